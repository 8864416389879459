//! `keybridge interceptions …` and `keybridge sessions`: the records, from the store directly.

use std::{collections::HashSet, time::Duration};

use anyhow::anyhow;
use jiff::Timestamp;
use keybridge_identity::Accounts;
use keybridge_ledger::{
    InterceptionFilter, InterceptionItem, Ledger, Session, SessionFilter, TokenCounts, TokenSums,
    record::{Outcome, time_text},
};
use uuid::Uuid;

use super::{Cli, Exit, InterceptionsCommand, InterceptionsOptions, SessionsOptions};
use crate::{
    env::Env,
    print::{Table, json_line, json_lines},
};

/// Pause between two looks at the store while following.
const FOLLOW_PAUSE: Duration = Duration::from_millis(500);
/// How far back an open record is waited for while following.
const FOLLOW_WINDOW: Duration = Duration::from_secs(3600);

pub(crate) fn command(cli: &Cli, env: &Env, options: &InterceptionsOptions) -> Result<(), Exit> {
    let ledger = cli.ledger(env)?;
    if let Some(InterceptionsCommand::Show { id }) = &options.command {
        let found = ledger.interception(*id)?;
        let detail = found.ok_or_else(|| anyhow!("there is no interception {id}"))?;
        let value = serde_json::to_value(&detail).map_err(anyhow::Error::from)?;
        return if cli.json { json_line(&value) } else { crate::print::detail(&value) };
    }
    let since = options.since.map(ago).transpose()?;
    let filter = InterceptionFilter {
        user: options.user.clone(),
        provider: options.provider.clone(),
        session: options.session.clone(),
        since,
        limit: options.limit,
        ..InterceptionFilter::default()
    };
    let mut items = ledger.interceptions(&filter)?.items;
    if options.follow {
        items.reverse();
        return follow(cli, &ledger, filter, items);
    }
    if cli.json { json_lines(&items) } else { table(&items).print() }
}

/// Prints what is there and then, for ever, what ends; records that are open are waited for.
fn follow(
    cli: &Cli,
    ledger: &Ledger,
    mut filter: InterceptionFilter,
    mut items: Vec<InterceptionItem>,
) -> Result<(), Exit> {
    let mut printed: HashSet<Uuid> = HashSet::new();
    filter.limit = 500;
    loop {
        items.retain(|item| {
            item.interception.outcome != Outcome::InProgress
                && !printed.contains(&item.interception.id)
        });
        if cli.json {
            json_lines(&items)?;
        } else {
            items.iter().try_for_each(row_line)?;
        }
        printed.extend(items.iter().map(|item| item.interception.id));
        std::thread::sleep(FOLLOW_PAUSE);
        let since = ago(FOLLOW_WINDOW)?;
        filter.since = Some(since);
        // Ids begin with their time: what is older than the window is not looked at again.
        printed.retain(|id| is_since(*id, since));
        items = ledger.interceptions(&filter)?.items;
        items.reverse();
    }
}

fn is_since(id: Uuid, since: Timestamp) -> bool {
    let seconds = id.get_timestamp().map_or(0, |time| time.to_unix().0);
    i64::try_from(seconds).is_ok_and(|seconds| seconds >= since.as_second())
}

fn row_line(item: &InterceptionItem) -> Result<(), Exit> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", cells(item).join("  ")).map_err(Exit::from)
}

pub(crate) fn sessions(cli: &Cli, env: &Env, options: &SessionsOptions) -> Result<(), Exit> {
    let ledger = cli.ledger(env)?;
    let accounts = Accounts::new(ledger.clone());
    let user = options.user.as_deref().map(|name| accounts.user(name)).transpose()?;
    let filter = SessionFilter {
        user_id: user.map(|user| user.id),
        since: options.since.map(ago).transpose()?,
        limit: options.limit,
        ..SessionFilter::default()
    };
    let sessions = ledger.sessions(&filter)?.items;
    if cli.json { json_lines(&sessions) } else { session_table(&sessions).print() }
}

fn ago(span: Duration) -> Result<Timestamp, Exit> {
    Timestamp::now().checked_sub(span).map_err(|error| Exit::Failed(error.into()))
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
        _ => String::new(),
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

/// What a provider said, and after a `~` what is estimated beside it.
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
