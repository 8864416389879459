//! `keybridge interceptions` and `keybridge sessions`: the records, read directly from the store.

use std::{collections::HashMap, thread, time::Duration};

use anyhow::anyhow;
use jiff::Timestamp;
use keybridge_identity::Accounts;
use keybridge_ledger::{
    InterceptionFilter, InterceptionItem, Ledger, LedgerError, Page, Session, SessionFilter,
    TokenCounts, TokenSums,
    record::{Outcome, time_text},
};
use keybridge_telemetry::escape_controls;
use uuid::Uuid;

use super::{Cli, Exit, InterceptionsCommand, InterceptionsOptions, SessionsOptions};
use crate::{
    env::Env,
    print::{Table, json_line, json_lines},
};

/// Pause between two polls of the store.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How far back every poll looks, for records that are committed some time after they started.
const RECENT: Duration = Duration::from_secs(60);
/// How far back a sweep looks: records that wait in a spool are committed late.
const SWEEP_WINDOW: Duration = Duration::from_secs(3600);
/// Time between two sweeps.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// Rows read at a time.
const PAGE_SIZE: u32 = 500;

pub(crate) fn command(cli: &Cli, env: &Env, options: &InterceptionsOptions) -> Result<(), Exit> {
    let ledger = cli.ledger(env)?;
    if let Some(InterceptionsCommand::Show { id }) = &options.command {
        let found = ledger.interception(*id)?;
        let detail = found.ok_or_else(|| anyhow!("no interception with the id {id}"))?;
        let value = serde_json::to_value(&detail).map_err(anyhow::Error::from)?;
        return if cli.json { json_line(&value) } else { crate::print::detail(&value) };
    }
    let filter = InterceptionFilter {
        user: options.user.clone(),
        provider: options.provider.clone(),
        session: options.session.clone(),
        since: options.since,
        until: options.until,
        limit: options.limit,
        ..InterceptionFilter::default()
    };
    if options.follow {
        return follow(cli, &ledger, filter);
    }
    let items = all_pages(filter.limit, |limit, cursor| {
        ledger.interceptions(&InterceptionFilter { limit, cursor, ..filter.clone() })
    })?;
    if cli.json { json_lines(&items) } else { table(&items).print() }
}

/// The first `limit` rows of a list, which may be on several pages.
fn all_pages<T>(
    limit: u32,
    page: impl Fn(u32, Option<String>) -> Result<Page<T>, LedgerError>,
) -> Result<Vec<T>, LedgerError> {
    let wanted = usize::try_from(limit.max(1)).unwrap_or(usize::MAX);
    let (mut rows, mut cursor) = (Vec::new(), None);
    loop {
        let left = u32::try_from(wanted - rows.len()).unwrap_or(u32::MAX);
        let page = page(left, cursor)?;
        rows.extend(page.items);
        cursor = page.next_cursor;
        if cursor.is_none() || rows.len() >= wanted {
            return Ok(rows);
        }
    }
}

/// Prints the latest requests that have ended and then, until the process is stopped, each further
/// one when it ends.
fn follow(cli: &Cli, ledger: &Ledger, filter: InterceptionFilter) -> Result<(), Exit> {
    let limit = usize::try_from(filter.limit).unwrap_or(usize::MAX);
    let mut follower = Follower::new(ledger, filter)?;
    let mut ended = follower.poll()?;
    ended.drain(..ended.len().saturating_sub(limit));
    loop {
        if cli.json {
            json_lines(&ended)?;
        } else {
            ended.iter().try_for_each(print_row)?;
        }
        thread::sleep(POLL_INTERVAL);
        ended = follower.poll()?;
    }
}

/// Finds each request that ends, once.
struct Follower<'a> {
    ledger: &'a Ledger,
    /// The next poll reads what started at or after `filter.since`.
    filter: InterceptionFilter,
    /// What started earlier is never printed.
    start: Timestamp,
    next_sweep: Timestamp,
    /// The requests that have ended, with when they started.
    ended: HashMap<Uuid, Timestamp>,
}

impl<'a> Follower<'a> {
    fn new(ledger: &'a Ledger, mut filter: InterceptionFilter) -> Result<Self, Exit> {
        let now = Timestamp::now();
        let start = filter.since.map_or_else(|| before(now, SWEEP_WINDOW), Ok)?;
        filter.since = Some(start);
        filter.limit = PAGE_SIZE;
        Ok(Self { ledger, filter, start, next_sweep: now, ended: HashMap::new() })
    }

    /// The requests that have ended since the last poll, oldest first.
    fn poll(&mut self) -> Result<Vec<InterceptionItem>, Exit> {
        let now = Timestamp::now();
        let mut newly_ended = Vec::new();
        let mut oldest_open: Option<Timestamp> = None;
        loop {
            let page = self.ledger.interceptions(&self.filter)?;
            for item in page.items {
                let (id, started_at) = (item.interception.id, item.interception.started_at);
                if item.interception.outcome == Outcome::InProgress {
                    oldest_open = oldest_open.into_iter().chain([started_at]).min();
                } else if self.ended.insert(id, started_at).is_none() {
                    newly_ended.push(item);
                }
            }
            self.filter.cursor = page.next_cursor;
            if self.filter.cursor.is_none() {
                break;
            }
        }
        newly_ended.reverse();
        let recent = before(now, RECENT)?;
        let recent = oldest_open.map_or(recent, |oldest| oldest.min(recent));
        let sweep = before(now, SWEEP_WINDOW)?.min(recent);
        self.ended.retain(|_, started_at| *started_at >= sweep);
        let since = if self.next_sweep <= now {
            self.next_sweep = now.checked_add(SWEEP_INTERVAL).unwrap_or(now);
            sweep
        } else {
            recent
        };
        self.filter.since = Some(since.max(self.start));
        Ok(newly_ended)
    }
}

fn before(now: Timestamp, duration: Duration) -> Result<Timestamp, Exit> {
    now.checked_sub(duration).map_err(|error| Exit::Failed(error.into()))
}

fn print_row(item: &InterceptionItem) -> Result<(), Exit> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", escape_controls(&cells(item).join("  "))).map_err(Exit::from)
}

pub(crate) fn sessions(cli: &Cli, env: &Env, options: &SessionsOptions) -> Result<(), Exit> {
    let ledger = cli.ledger(env)?;
    let accounts = Accounts::new(ledger.clone());
    let user = options.user.as_deref().map(|name| accounts.user(name)).transpose()?;
    let filter = SessionFilter {
        user_id: user.map(|user| user.id),
        since: options.since,
        limit: options.limit,
        ..SessionFilter::default()
    };
    let sessions = all_pages(filter.limit, |limit, cursor| {
        ledger.sessions(&SessionFilter { limit, cursor, ..filter.clone() })
    })?;
    if cli.json { json_lines(&sessions) } else { session_table(&sessions).print() }
}

pub(crate) fn table(items: &[InterceptionItem]) -> Table {
    let mut table = Table::new([
        "STARTED",
        "ID",
        "USER",
        "CLIENT",
        "ENDPOINT",
        "MODEL",
        "CREDENTIAL",
        "OUTCOME",
        "STATUS",
        "IN",
        "OUT",
        "CACHED",
        "TOOLS",
    ]);
    for item in items {
        table.row(&cells(item));
    }
    table
}

fn cells(item: &InterceptionItem) -> [String; 13] {
    let record = &item.interception;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let credential = match (&record.credential_kind, &record.credential_hint) {
        (Some(kind), Some(hint)) => format!("{kind} {hint}"),
        (Some(kind), None) => kind.clone(),
        (None, _) => String::new(),
    };
    [
        time_text(record.started_at),
        record.id.to_string(),
        item.user.clone(),
        text(&record.client),
        format!("{}{}", record.provider, record.endpoint),
        text(&record.model),
        credential,
        record.outcome.to_string(),
        record.status_code.map(|status| status.to_string()).unwrap_or_default(),
        tokens(&item.tokens, |counts| counts.input_tokens),
        tokens(&item.tokens, |counts| counts.output_tokens),
        tokens(&item.tokens, |counts| counts.cache_read_input_tokens),
        item.tool_calls.to_string(),
    ]
}

/// The figures that providers reported, and after a `~` those that are estimated.
fn tokens(sums: &TokenSums, count: fn(&TokenCounts) -> u64) -> String {
    match (count(&sums.exact), count(&sums.estimated)) {
        (exact, 0) => exact.to_string(),
        (0, estimated) => format!("~{estimated}"),
        (exact, estimated) => format!("{exact} ~{estimated}"),
    }
}

fn session_table(sessions: &[Session]) -> Table {
    let mut table =
        Table::new(["LAST", "ID", "USER", "CLIENT", "MODELS", "REQUESTS", "IN", "OUT", "TOOLS"]);
    for session in sessions {
        table.row(&[
            time_text(session.last_at),
            session.id.clone(),
            session.user.clone(),
            session.client.clone().unwrap_or_default(),
            session.models.join(","),
            session.requests.to_string(),
            tokens(&session.tokens, |counts| counts.input_tokens),
            tokens(&session.tokens, |counts| counts.output_tokens),
            session.tools.to_string(),
        ]);
    }
    table
}
