//! Searches in PostgreSQL. The index knows no order, and a statement with `ORDER BY` and `LIMIT` makes the planner
//! leave it: so the newest prompts are read themselves, and then the hits of the index month by month.

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use uuid::Uuid;

use super::merge;
use crate::{
    InterceptionFilter, LedgerError, WalkBudget,
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

/// How many of the newest prompts are read first for each row that is wanted.
const NEWEST_PER_ROW: u32 = 4;
/// How many of the newest prompts are read before the index is searched: more than the prompts of most users.
const MAX_READ: u32 = 3_000;
/// Words are frequent if every twentieth of some prompts has them.
const SAMPLE: u32 = 200;
const FREQUENT: u32 = 20;
/// Whether all partitions have the index.
const IS_INDEXED: &str = "SELECT coalesce(max(CAST(indisvalid AS int)), 0)::bigint FROM pg_index
    WHERE indexrelid = to_regclass('prompts_by_words')";

/// The newest selected interceptions whose prompts have all words of a query.
pub(super) fn find(
    database: &dyn Database,
    selection: &Selection<'_>,
    query: &Query,
    wanted: usize,
    budget: WalkBudget,
) -> Result<Found, LedgerError> {
    if first::<i64>(database, IS_INDEXED, &[])? != Some(1) {
        // While the partitions of an earlier release are being indexed.
        return selection.walk(database, wanted, budget, |range, missing| {
            read(selection, query, range, missing).ids(database)
        });
    }
    let mut windows = Windows::new(budget);
    let (mut found, below) = read_newest(database, selection, query, wanted)?;
    let Some(mut below) = below else { return Ok(found) };
    if found.ids.is_empty() && is_frequent(database, query, below)? {
        // The index would return most of a month, for a filter that few of them meet.
        let range = IdRange { below: Some(below), ..selection.range };
        return selection.within(range).walk(database, wanted, budget, |range, missing| {
            read(selection, query, range, missing).ids(database)
        });
    }
    let oldest: Option<Uuid> =
        first(database, "SELECT id FROM interceptions ORDER BY id LIMIT 1", &[])?;
    let end = selection.range.from.max(oldest);
    while Some(below) > end {
        if windows.next().is_none() {
            found.stopped_at = Some(below);
            break;
        }
        let month = month_of_last(below);
        let range = IdRange { from: month.from.max(selection.range.from), below: Some(below) };
        let hits = search(selection, query, month, range, wanted - found.ids.len());
        merge(&mut found.ids, hits.ids(database)?, wanted);
        if found.ids.len() >= wanted {
            break;
        }
        below = month.from.unwrap_or_default();
    }
    Ok(found)
}

/// Reads the newest prompts, and returns below which id the index is to be searched, if it is.
fn read_newest(
    database: &dyn Database,
    selection: &Selection<'_>,
    query: &Query,
    wanted: usize,
) -> Result<(Found, Option<Uuid>), LedgerError> {
    let (mut found, mut range) = (Found::default(), selection.range);
    let mut rows = u32::try_from(wanted).unwrap_or(u32::MAX).saturating_mul(NEWEST_PER_ROW);
    let mut read_rows = 0_u32;
    loop {
        let edge = selection.edge(database, range, rows)?;
        let window = IdRange { from: edge.or(range.from), ..range };
        let missing = wanted - found.ids.len();
        found.ids.extend(read(selection, query, window, missing).ids(database)?);
        if edge.is_none() || found.ids.len() >= wanted {
            return Ok((found, None));
        }
        range.below = edge;
        read_rows = read_rows.saturating_add(rows);
        // The index is quick for a word that is rare among all.
        let is_rare = found.ids.is_empty() && selection.is_of_all();
        if is_rare || read_rows >= MAX_READ {
            return Ok((found, edge));
        }
        rows = rows.saturating_mul(2);
    }
}

/// Whether the words are frequent among all prompts before an id.
fn is_frequent(database: &dyn Database, query: &Query, below: Uuid) -> Result<bool, LedgerError> {
    let filter = InterceptionFilter::default();
    let Some(all) = Selection::new(database, &filter)? else { return Ok(false) };
    let range = IdRange { from: None, below: Some(below) };
    let range = IdRange { from: all.edge(database, range, SAMPLE)?, ..range };
    let limit = usize::try_from(SAMPLE / FREQUENT).unwrap_or(usize::MAX);
    Ok(read(&all, query, range, limit).ids(database)?.len() >= limit)
}

/// The ids of a month of which this is one.
fn month_of(id: Uuid) -> IdRange {
    let first_day = TimeZone::UTC.to_datetime(time_of(id)).date().first_of_month();
    let start = |date: jiff::civil::Date| {
        TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0)).unwrap_or(Timestamp::UNIX_EPOCH)
    };
    let next = first_day.saturating_add(1.month());
    IdRange { from: Some(first_id(start(first_day))), below: Some(first_id(start(next))) }
}

/// The ids of the month of the last id before one.
fn month_of_last(below: Uuid) -> IdRange {
    month_of(Uuid::from_u128(below.as_u128().saturating_sub(1)))
}

/// The ids of the months of a range. The planner takes a range within a month for a single row, and then reads it
/// once for each row of the other side of a join.
fn months_of(range: IdRange) -> IdRange {
    IdRange {
        from: range.from.and_then(|from| month_of(from).from),
        below: range.below.and_then(|below| month_of_last(below).below),
    }
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
    months_of(range).add_to(&mut conditions, "p.interception_id");
    let bounds = conditions.text();
    conditions.sql.clear();
    // Much quicker than to split each text into words.
    for word in query.ascii_words() {
        conditions.add("strpos(lower(p.prompt COLLATE \"C\"), ?) > 0", word);
    }
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

/// Searches the index of a month for the selected interceptions of a range in it. The month alone selects the
/// partition: with a bound within it, which the planner cannot estimate, it would read all prompts after it. Each
/// hit is looked up, newest first: for few of them the planner would read all interceptions of the month.
pub(super) fn search(
    selection: &Selection<'_>,
    query: &Query,
    month: IdRange,
    range: IdRange,
    limit: usize,
) -> Statement {
    let mut conditions = Conditions::default();
    add_query(&mut conditions, query);
    month.add_to(&mut conditions, "p.interception_id");
    conditions.add_some("(p.interception_id >= ?) IS TRUE", range.from);
    conditions.add_some("(p.interception_id < ?) IS TRUE", range.below);
    let matching = conditions.text();
    conditions.sql.clear();
    selection.add_to(&mut conditions, month);
    let sql = format!(
        "WITH hit AS MATERIALIZED (
           SELECT DISTINCT p.interception_id AS id FROM prompts p WHERE {matching})
         SELECT h.id FROM (SELECT id FROM hit ORDER BY id DESC) h
         CROSS JOIN LATERAL (SELECT 1 FROM interceptions i WHERE i.id = h.id AND {} OFFSET 0) i
         ORDER BY h.id DESC LIMIT {limit}",
        conditions.text()
    );
    Statement { sql, conditions }
}
