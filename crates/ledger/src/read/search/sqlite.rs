//! Searches in SQLite: the index of prompts, and the prompts that are not in it yet.

use std::ops::Range;

use uuid::Uuid;

use super::merge;
use crate::{
    LedgerError, WalkBudget,
    read::{
        lists::Conditions,
        walk::{Found, IdRange, Selection},
    },
    store::{
        interceptions::{first_id_of_second, seconds},
        read_limit::Windows,
        sql::{Cells, Database, FromRow, STATEMENT_TIMEOUT, Value, all, first, required},
        sqlite::search_index::{IS_POSITION_VALID, numbers, owner, second},
    },
    words::Query,
};

/// Maximum number of prompts that a search reads itself because they are not in the index.
const MAX_UNINDEXED: usize = 5_000;

/// The newest selected interceptions whose prompts have all words of a query.
pub(super) fn find(
    database: &dyn Database,
    selection: &Selection<'_>,
    query: &Query,
    wanted: usize,
    budget: WalkBudget,
) -> Result<Found, LedgerError> {
    // Before the index is read: what is added to it meanwhile is then found twice, and not missed.
    let recent = if query.has_short_prefix() { None } else { matching_unindexed(database, query)? };
    let Some(recent) = recent else {
        // Also while the prompts of an earlier release are being indexed.
        return selection.walk(database, wanted, budget, |range, missing| {
            let mut found = matching_prompts(database, selection, query, range)?;
            found.truncate(missing);
            Ok(found)
        });
    };
    let mut found = search_index(database, selection, query, wanted, budget)?;
    let range = IdRange { from: found.stopped_at.max(selection.range.from), ..selection.range };
    merge(&mut found.ids, selection.among(database, &recent, range)?, wanted);
    if found.ids.len() >= wanted {
        found.stopped_at = None;
    }
    Ok(found)
}

/// The interceptions of prompts that match and are not in the index; `None` if too many are not in it.
fn matching_unindexed(
    database: &dyn Database,
    query: &Query,
) -> Result<Option<Vec<Uuid>>, LedgerError> {
    let sql = format!(
        "SELECT CASE WHEN {IS_POSITION_VALID} THEN last_rowid ELSE 0 END FROM search_position"
    );
    let position: i64 = first(database, &sql, &[])?.unwrap_or_default();
    let position = [Value::from(position.to_string())];
    let sql = format!(
        "SELECT count(*) FROM (SELECT 1 FROM prompts WHERE rowid > CAST($1 AS INTEGER) LIMIT {})",
        MAX_UNINDEXED + 1
    );
    let unindexed: i64 = first(database, &sql, &position)?.unwrap_or_default();
    if usize::try_from(unindexed).is_ok_and(|unindexed| unindexed > MAX_UNINDEXED) {
        return Ok(None);
    }
    let sql = "SELECT interception_id, prompt FROM prompts WHERE rowid > CAST($1 AS INTEGER)";
    matching(database, sql, &position, query).map(Some)
}

/// The selected interceptions of a range whose prompts match, newest first.
fn matching_prompts(
    database: &dyn Database,
    selection: &Selection<'_>,
    query: &Query,
    range: IdRange,
) -> Result<Vec<Uuid>, LedgerError> {
    let mut conditions = Conditions::default();
    selection.add_to(&mut conditions, range);
    let sql = format!(
        "SELECT i.id, p.prompt FROM interceptions i
         CROSS JOIN prompts p ON p.interception_id = i.id WHERE {} ORDER BY i.id DESC",
        conditions.text()
    );
    let mut found = matching(database, &sql, &conditions.values, query)?;
    found.dedup();
    Ok(found)
}

/// The ids in the rows of a statement whose texts match.
fn matching(
    database: &dyn Database,
    sql: &str,
    values: &[Value],
    query: &Query,
) -> Result<Vec<Uuid>, LedgerError> {
    let mut found = Vec::new();
    database.run(STATEMENT_TIMEOUT, sql, values, &mut |row| {
        let (id, prompt) = (required(row.id()?)?, required(row.text()?)?);
        if query.matches(&prompt) {
            found.push(id);
        }
        Ok(())
    })?;
    Ok(found)
}

/// A prompt in the index.
struct Hit {
    number: i64,
    interception_id: Uuid,
}

impl FromRow for Hit {
    const COLUMNS: &'static str = "n.number, n.interception_id";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self { number: required(row.integer()?)?, interception_id: required(row.id()?)? })
    }
}

/// The newest prompts in the index with these numbers.
pub(super) fn hits_sql(limit: Option<u32>) -> String {
    let limit = limit.map(|limit| format!(" LIMIT {limit}")).unwrap_or_default();
    format!(
        "SELECT {} FROM prompt_index CROSS JOIN indexed_prompts n ON n.number = prompt_index.rowid
         WHERE prompt_index MATCH $1 AND prompt_index.rowid >= CAST($2 AS INTEGER)
           AND prompt_index.rowid < CAST($3 AS INTEGER)
         ORDER BY prompt_index.rowid DESC{limit}",
        Hit::COLUMNS
    )
}

/// The newest selected interceptions in the index. Their prompts are sorted by second: the last second of a
/// window is read as a whole.
fn search_index(
    database: &dyn Database,
    selection: &Selection<'_>,
    query: &Query,
    wanted: usize,
    budget: WalkBudget,
) -> Result<Found, LedgerError> {
    let words = query.fts5(selection.user_id.map(owner).as_deref());
    let hits = |numbers: &Range<i64>, limit| -> Result<Vec<Hit>, LedgerError> {
        let (start, end) = (numbers.start.to_string(), numbers.end.to_string());
        all(database, &hits_sql(limit), &[words.as_str().into(), start.into(), end.into()])
    };
    let mut windows = Windows::new(budget);
    let (mut found, mut range) = (Found::default(), number_range(selection.range));
    // Usually every hit is selected.
    let mut rows = u32::try_from(wanted).unwrap_or(u32::MAX);
    loop {
        let mut window = hits(&range, Some(rows))?;
        let is_last = window.len() < usize::try_from(rows).unwrap_or(usize::MAX);
        let mut edge = None;
        if let Some(last) = window.last().filter(|_| !is_last) {
            let first = numbers(second(last.number)).start;
            edge = Some(first_id_of_second(second(last.number)));
            let rest = hits(&(first.max(range.start)..last.number), None)?;
            window.extend(rest);
            range.end = first;
        }
        let ids: Vec<Uuid> = window.iter().map(|hit| hit.interception_id).collect();
        merge(&mut found.ids, selection.among(database, &ids, selection.range)?, wanted);
        if edge.is_none() || found.ids.len() >= wanted {
            return Ok(found);
        }
        match windows.next() {
            Some(next) => rows = next,
            None => return Ok(Found { stopped_at: edge, ..found }),
        }
    }
}

/// The numbers of the prompts of a range of ids.
fn number_range(range: IdRange) -> Range<i64> {
    let start = range.from.map_or(0, |from| numbers(seconds(from)).start);
    let end = range.below.map_or(i64::MAX, |below| {
        let last = Uuid::from_u128(below.as_u128().saturating_sub(1));
        numbers(seconds(last)).end
    });
    start..end
}
