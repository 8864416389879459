//! Retention: deletes old records in small transactions, and records what each transaction deletes.

use jiff::Timestamp;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use uuid::Uuid;

use super::search_index;
use crate::{
    LedgerError,
    record::time_text,
    store::{
        interceptions::first_id,
        retention_run::{INTERCEPTIONS, Removed, RetentionRun, SESSION_PROMPTS, dependent_tables},
        trail::append_run_sql,
    },
};

/// A limited number of interceptions before an id and a time.
pub(super) const FIND_OLD: &str = "SELECT id FROM interceptions
    WHERE id < ?1 AND started_at < ?2 AND outcome <> 'in_progress' ORDER BY id LIMIT ?3";

/// Deletes a limited number of interceptions with their child rows, and returns their number.
pub(super) fn delete_before(
    connection: &mut Connection,
    run: &mut RetentionRun,
    limit: u32,
) -> Result<u64, LedgerError> {
    let old = find_old(connection, run.cutoff, limit)?;
    let (Some(first), Some(last)) = (old.first(), old.last()) else { return Ok(0) };
    let mut step = Removed::between(*first, *last);
    let ids = serde_json::json!(old).to_string();
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for prompt in SESSION_PROMPTS {
        let sql = format!(
            "UPDATE sessions SET {prompt} = NULL
             WHERE {prompt}_id IN (SELECT value FROM json_each(?1)) AND (user_id, id) IN
               (SELECT user_id, session_id FROM interceptions
                WHERE id IN (SELECT value FROM json_each(?1)))"
        );
        transaction.prepare_cached(&sql)?.execute([&ids])?;
    }
    let position = search_index::position(&transaction)?;
    let tables = dependent_tables().map(|table| (table, "interception_id"));
    for (table, column) in tables.chain([(INTERCEPTIONS, "id")]) {
        let sql =
            format!("DELETE FROM {table} WHERE {column} IN (SELECT value FROM json_each(?1))");
        let deleted = transaction.prepare_cached(&sql)?.execute([&ids])?;
        step.add(table, u64::try_from(deleted).unwrap_or(u64::MAX));
    }
    search_index::remove(&transaction, &ids, (*first, *last), &position)?;
    let after = run.plus(&step);
    record(&transaction, &after)?;
    transaction.commit()?;
    *run = after;
    Ok(step.interceptions())
}

/// The oldest interceptions before a time. Read outside the transaction that deletes them, for which
/// other writers wait: what has ended does not begin again.
fn find_old(
    connection: &Connection,
    cutoff: Timestamp,
    limit: u32,
) -> Result<Vec<Uuid>, LedgerError> {
    let mut find = connection.prepare_cached(FIND_OLD)?;
    let old = find
        .query_map(params![first_id(cutoff).to_string(), time_text(cutoff), limit], |row| {
            row.get::<_, String>(0)
        })?;
    let mut ids = Vec::new();
    for id in old {
        let id = id?;
        let parsed = id.parse().map_err(|error| LedgerError::Row(format!("`{id}`: {error}")))?;
        ids.push(parsed);
    }
    Ok(ids)
}

/// Records what a run has removed so far; the first step of a run gets a position in the trail.
fn record(transaction: &Transaction<'_>, run: &RetentionRun) -> Result<(), LedgerError> {
    transaction.prepare_cached(&append_run_sql("trail"))?.execute([run.id.to_string()])?;
    let mut record = transaction.prepare_cached(
        "INSERT INTO retention_runs (id, kind, cutoff, started_at, changed_at, replica_id, version,
           first_id, last_id, removed_rows)
         VALUES (?1, 'records', ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT (id) DO UPDATE SET changed_at = excluded.changed_at,
           first_id = excluded.first_id, last_id = excluded.last_id,
           removed_rows = excluded.removed_rows",
    )?;
    record.execute(params![
        run.id.to_string(),
        time_text(run.cutoff),
        time_text(run.started_at),
        time_text(Timestamp::now()),
        run.replica.to_string(),
        env!("CARGO_PKG_VERSION"),
        run.removed.first_id.map(|id| id.to_string()),
        run.removed.last_id.map(|id| id.to_string()),
        run.removed.rows_json(),
    ])?;
    Ok(())
}
