//! `keybridge interceptions` and `keybridge sessions`: the records, read directly from the store.

use anyhow::anyhow;
use jiff::Timestamp;
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

/// The first `limit` rows of a list, which may be on several pages. Continues where a page ended before it was
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
