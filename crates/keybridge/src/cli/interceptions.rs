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
    let listed = all_pages(filter.limit, |limit, cursor| {
        ledger.interceptions(&InterceptionFilter { limit, cursor, ..filter.clone() })
    });
    if cli.json {
        json_lines(&listed.rows)?;
    } else {
        table(&listed.rows).print()?;
    }
    listed.complete()
}

/// The rows of a list.
struct Listed<T> {
    rows: Vec<T>,
    /// How far back was searched where no index serves the filter.
    searched_until: Option<Timestamp>,
    /// Why there are no more rows, if not because there are none.
    error: Option<LedgerError>,
}

impl<T> Listed<T> {
    /// Fails when the list ended early, and then says how far it goes.
    fn complete(self) -> Result<(), Exit> {
        let Some(error) = self.error else { return Ok(()) };
        if let Some(until) = self.searched_until {
            eprintln!("the list is not complete: searched back to {}", time_text(until));
        }
        Err(error.into())
    }
}

/// The first `limit` rows of a list, which may be on several pages. Goes on where a page ended before it was
/// full.
fn all_pages<T>(
    limit: u32,
    page: impl Fn(u32, Option<String>) -> Result<Page<T>, LedgerError>,
) -> Listed<T> {
    let wanted = usize::try_from(limit.max(1)).unwrap_or(usize::MAX);
    let mut listed = Listed { rows: Vec::new(), searched_until: None, error: None };
    let mut cursor = None;
    loop {
        let left = u32::try_from(wanted - listed.rows.len()).unwrap_or(u32::MAX);
        match page(left, cursor) {
            Ok(page) => {
                listed.rows.extend(page.items);
                listed.searched_until = page.searched_until.or(listed.searched_until);
                cursor = page.next_cursor;
            }
            Err(error) => {
                listed.error = Some(error);
                return listed;
            }
        }
        if cursor.is_none() || listed.rows.len() >= wanted {
            return listed;
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
    let listed = all_pages(filter.limit, |limit, cursor| {
        ledger.sessions(&SessionFilter { limit, cursor, ..filter.clone() })
    });
    if cli.json {
        json_lines(&listed.rows)?;
    } else {
        session_table(&listed.rows).print()?;
    }
    listed.complete()
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

#[cfg(test)]
mod tests {
    use keybridge_ledger::{LedgerError, Page};

    use super::all_pages;

    /// A list of one row on every third page, which ends with an error or without.
    fn listed(limit: u32, pages: u32, fails: bool) -> (usize, bool) {
        let listed = all_pages(limit, |_limit, cursor: Option<String>| {
            let number: u32 = cursor.map_or(0, |cursor| cursor.parse().unwrap());
            if fails && number == pages {
                return Err(LedgerError::Closing);
            }
            Ok(Page {
                items: if number % 3 == 2 { vec![number] } else { Vec::new() },
                next_cursor: (number < pages).then(|| (number + 1).to_string()),
                searched_until: None,
            })
        });
        (listed.rows.len(), listed.complete().is_ok())
    }

    #[test]
    fn a_list_goes_on_where_a_page_ended_early() {
        assert_eq!(listed(2, 100, false), (2, true));
        assert_eq!(listed(50, 10, false), (3, true));
    }

    #[test]
    fn what_was_found_before_an_error_is_kept() {
        assert_eq!(listed(50, 7, true), (2, false));
    }
}
