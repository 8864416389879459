//! Searches in PostgreSQL. The index knows no order, and a query with `ORDER BY` and `LIMIT` makes the planner
//! leave it: so the newest prompts are read themselves, and then the hits of the index in growing periods.

use uuid::Uuid;

use super::merge;
use crate::{
    LedgerError, WalkBudget,
    read::{
        lists::Conditions,
        walk::{Found, IdRange, Selection, Statement},
    },
    store::{
        interceptions::{first_id, time_of},
        read_limit::Windows,
        sql::{Database, first},
    },
    words::Query,
};

/// How many of the newest prompts are read themselves for each row that is wanted.
const NEWEST_PER_ROW: u32 = 4;
/// Where no more than this number of interceptions are selected, their prompts are read themselves.
const MAX_READ: u32 = 3_000;

/// The newest selected interceptions whose prompts have all words of a query.
pub(super) fn find(
    database: &dyn Database,
    selection: &Selection<'_>,
    query: &Query,
    wanted: usize,
    budget: WalkBudget,
) -> Result<Found, LedgerError> {
    let range = selection.range;
    let mut found = Found::default();
    if selection.edge(database, range, MAX_READ + 1)?.is_none() {
        found.ids = read(selection, query, range, wanted).ids(database)?;
        return Ok(found);
    }
    let newest_rows = u32::try_from(wanted).unwrap_or(u32::MAX).saturating_mul(NEWEST_PER_ROW);
    let (newest, edge) =
        (selection.edge(database, range, 1)?, selection.edge(database, range, newest_rows)?);
    let (Some(newest), Some(mut below)) = (newest, edge) else { return Ok(found) };
    let window = IdRange { from: Some(below), ..range };
    found.ids = read(selection, query, window, wanted).ids(database)?;
    let oldest: Option<Uuid> =
        first(database, "SELECT id FROM interceptions ORDER BY id LIMIT 1", &[])?;
    let end = range.from.max(oldest);
    let span_ms = (time_of(newest).as_millisecond() - time_of(below).as_millisecond()).max(1_000);
    let mut windows = Windows::new(budget);
    while found.ids.len() < wanted && Some(below) > end {
        let Some(rows) = windows.next() else {
            found.stopped_at = Some(below);
            break;
        };
        let window = period(below, span_ms.saturating_mul(rows.into()) / i64::from(newest_rows));
        let from = window.from.max(range.from);
        let hits = search(selection, query, IdRange { from, ..window }, wanted - found.ids.len());
        merge(&mut found.ids, hits.ids(database)?, wanted);
        below = window.from.unwrap_or_default();
    }
    Ok(found)
}

/// The ids of a time before one.
fn period(below: Uuid, millis: i64) -> IdRange {
    let end = time_of(below);
    let start = end.checked_sub(jiff::SignedDuration::from_millis(millis.max(1)));
    let from = start.map_or(Uuid::nil(), first_id);
    IdRange { from: Some(from), below: Some(below) }
}

/// Adds the condition that a prompt matches.
fn add_query(conditions: &mut Conditions, query: &Query) {
    conditions.add("prompt_words(p.prompt) @@ CAST(CAST(? AS text) AS tsquery)", query.tsquery());
}

/// Reads the prompts of the selected interceptions of a range.
pub(super) fn read(
    selection: &Selection<'_>,
    query: &Query,
    range: IdRange,
    limit: usize,
) -> Statement {
    let mut conditions = Conditions::default();
    selection.add_to(&mut conditions, range);
    let selected = conditions.text();
    conditions.sql.clear();
    range.add_to(&mut conditions, "p.interception_id");
    let bounds = conditions.text();
    conditions.sql.clear();
    add_query(&mut conditions, query);
    let sql = format!(
        "WITH listed AS MATERIALIZED (SELECT i.id FROM interceptions i WHERE {selected}),
           texts AS MATERIALIZED (SELECT p.interception_id, p.prompt FROM listed
             JOIN prompts p ON p.interception_id = listed.id WHERE {bounds})
         SELECT DISTINCT p.interception_id AS id FROM texts p WHERE {}
         ORDER BY id DESC LIMIT {limit}",
        conditions.text()
    );
    Statement { sql, conditions }
}

/// Searches the index for the selected interceptions of a range.
pub(super) fn search(
    selection: &Selection<'_>,
    query: &Query,
    range: IdRange,
    limit: usize,
) -> Statement {
    let mut conditions = Conditions::default();
    add_query(&mut conditions, query);
    range.add_to(&mut conditions, "p.interception_id");
    let matching = conditions.text();
    conditions.sql.clear();
    selection.add_to(&mut conditions, range);
    let sql = format!(
        "WITH hit AS MATERIALIZED (SELECT p.interception_id AS id FROM prompts p WHERE {matching})
         SELECT DISTINCT i.id FROM hit JOIN interceptions i ON i.id = hit.id WHERE {}
         ORDER BY i.id DESC LIMIT {limit}",
        conditions.text()
    );
    Statement { sql, conditions }
}
