//! `keybridge interceptions` and `keybridge sessions`: the records, read directly from the store.

use anyhow::anyhow;
use keybridge_identity::Accounts;
use keybridge_ledger::{
    InterceptionFilter, InterceptionItem, LedgerError, Page, Session, SessionFilter, TokenCounts,
    TokenSums, record::time_text,
};

use super::{Cli, Exit, InterceptionsCommand, InterceptionsOptions, SessionsOptions, follow};
use crate::{
    env::Env,
    print::{Table, json_line, json_lines},
};

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
        return follow::follow(cli, &ledger, filter);
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

/// What is printed of an interception, in the order of the columns.
pub(super) fn cells(item: &InterceptionItem) -> [String; 13] {
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
