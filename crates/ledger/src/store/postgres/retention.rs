//! Retention: drops whole months, deletes other records in small transactions, and records what each
//! transaction removes.

use std::ops::Range;

use deadpool_postgres::{Object, Transaction};
use jiff::Timestamp;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::{
    cells::{JsonText, Time},
    schema::{EXISTS, Month, SCHEMA_LOCK_KEY, partitioned_tables},
    server::failed,
};
use crate::{
    LedgerError,
    store::{
        interceptions::first_id,
        retention_run::{INTERCEPTIONS, Removed, RetentionRun, SESSION_PROMPTS, dependent_tables},
        trail::append_run_sql,
    },
};

/// A limited number of interceptions before an id and a time. The bound on ids prunes the partitions of
/// later months.
const FIND_OLD: &str = "SELECT id FROM interceptions
    WHERE id < $1 AND started_at < $2 AND outcome <> 'in_progress' ORDER BY id LIMIT $3";

/// Deletes the rows of these ids; the first and last id prune partitions.
fn delete_sql(table: &str, column: &str) -> String {
    format!("DELETE FROM {table} WHERE {column} = ANY ($1) AND {column} >= $2 AND {column} <= $3")
}

/// Deletes a limited number of interceptions with their child rows; returns the number of those that
/// another process had not deleted yet.
pub(super) async fn delete_before(
    client: &mut Object,
    run: &mut RetentionRun,
    limit: u32,
) -> Result<u64, LedgerError> {
    let deleting = async {
        let old = client
            .query(FIND_OLD, &[&first_id(run.cutoff), &Time(run.cutoff), &i64::from(limit)])
            .await?
            .iter()
            .map(|row| row.get(0))
            .collect::<Vec<Uuid>>();
        let (Some(first), Some(last)) = (old.first(), old.last()) else { return Ok(0) };
        let mut step = Removed::between(*first, *last);
        let transaction = client.transaction().await?;
        for prompt in SESSION_PROMPTS {
            let sql = format!(
                "UPDATE sessions s SET {prompt} = NULL FROM interceptions i
                 WHERE i.id = ANY ($1) AND i.id >= $2 AND i.id <= $3
                 AND s.user_id = i.user_id AND s.id = i.session_id AND s.{prompt}_id = i.id"
            );
            transaction.execute(&sql, &[&old, first, last]).await?;
        }
        let tables = dependent_tables().map(|table| (table, "interception_id"));
        for (table, column) in tables.chain([(INTERCEPTIONS, "id")]) {
            let sql = delete_sql(table, column);
            step.add(table, transaction.execute(&sql, &[&old, first, last]).await?);
        }
        let after = run.plus(&step);
        record_run(&transaction, &after, &step).await?;
        transaction.commit().await?;
        *run = after;
        Ok(step.interceptions())
    };
    deleting.await.map_err(|error: tokio_postgres::Error| failed(&error))
}

/// Records what a run has removed so far, unless the last step removed nothing; the first step of a run gets a
/// position in the trail.
async fn record_run(
    transaction: &Transaction<'_>,
    run: &RetentionRun,
    step: &Removed,
) -> Result<(), tokio_postgres::Error> {
    if step.is_empty() {
        return Ok(());
    }
    transaction.execute(&append_run_sql("outbox"), &[&run.id]).await?;
    let sql = "INSERT INTO retention_runs (id, kind, cutoff, started_at, changed_at, replica_id,
           version, first_id, last_id, removed_rows)
         VALUES ($1, 'records', $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT (id) DO UPDATE SET changed_at = excluded.changed_at,
           first_id = excluded.first_id, last_id = excluded.last_id,
           removed_rows = excluded.removed_rows";
    let values: [&(dyn ToSql + Sync); 9] = [
        &run.id,
        &Time(run.cutoff),
        &Time(run.started_at),
        &Time(Timestamp::now()),
        &run.replica,
        &env!("CARGO_PKG_VERSION"),
        &run.removed.first_id,
        &run.removed.last_id,
        &JsonText(run.removed.rows_json()),
    ];
    transaction.execute(sql, &values).await.map(|_changed| ())
}

/// Drops the months that ended before the cutoff of a run.
pub(super) async fn drop_months(
    client: &mut Object,
    run: &mut RetentionRun,
) -> Result<(), LedgerError> {
    let tables: Vec<&str> = partitioned_tables().collect();
    let partitions = client
        .query(
            "SELECT p.relname::text, c.relname::text FROM pg_inherits h
             JOIN pg_class c ON c.oid = h.inhrelid JOIN pg_class p ON p.oid = h.inhparent
             WHERE h.inhparent = ANY ($1::text[]::regclass[])",
            &[&tables],
        )
        .await
        .map_err(|error| failed(&error))?;
    let mut months: Vec<Month> =
        partitions.iter().filter_map(|row| Month::from_partition(row.get(0), row.get(1))).collect();
    months.sort_unstable();
    months.dedup();
    for month in months {
        if month.plus(1).start()? <= run.cutoff {
            let ids = month.first_id()?..month.plus(1).first_id()?;
            drop_month(client, month, ids, run).await.map_err(|error| failed(&error))?;
        }
    }
    Ok(())
}

/// Drops a month, unless one of its records is in progress or it has no partition.
async fn drop_month(
    client: &mut Object,
    month: Month,
    ids: Range<Uuid>,
    run: &mut RetentionRun,
) -> Result<(), tokio_postgres::Error> {
    let partition = month.partition(INTERCEPTIONS);
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL lock_timeout = '5s'").await?;
    transaction.batch_execute("SET LOCAL statement_timeout = 0").await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK_KEY]).await?;
    let sql = "SELECT count(*) FROM interceptions
               WHERE id >= $1 AND id < $2 AND outcome = 'in_progress'";
    let open: i64 = transaction.query_one(sql, &[&ids.start, &ids.end]).await?.get(0);
    let step = count_month(&transaction, &ids).await?;
    // Another process may have dropped it in the meantime.
    let exists: bool = transaction.query_one(EXISTS, &[&partition]).await?.get(0);
    let records = step.interceptions();
    if open > 0 || (records > 0 && !exists) {
        return Ok(());
    }
    for prompt in SESSION_PROMPTS {
        let sql = format!(
            "UPDATE sessions SET {prompt} = NULL WHERE {prompt} IS NOT NULL
             AND {prompt}_id >= $1 AND {prompt}_id < $2"
        );
        transaction.execute(&sql, &[&ids.start, &ids.end]).await?;
    }
    for table in partitioned_tables() {
        // A table that was created after the month has no partition for it.
        let sql = format!("DROP TABLE IF EXISTS {}", month.partition(table));
        transaction.batch_execute(&sql).await?;
    }
    // The rows of the month in default partitions, and in the table without partitions.
    for table in dependent_tables() {
        let sql =
            format!("DELETE FROM {table} WHERE interception_id >= $1 AND interception_id < $2");
        transaction.execute(&sql, &[&ids.start, &ids.end]).await?;
    }
    let after = run.plus(&step);
    record_run(&transaction, &after, &step).await?;
    transaction.commit().await?;
    *run = after;
    if exists {
        tracing::info!(partition, records, "dropped the records of a month");
    }
    Ok(())
}

/// The rows of a month, and its first and last id.
async fn count_month(
    transaction: &Transaction<'_>,
    ids: &Range<Uuid>,
) -> Result<Removed, tokio_postgres::Error> {
    let mut found = Removed::default();
    let tables = dependent_tables().map(|table| (table, "interception_id"));
    for (table, column) in tables.chain([(INTERCEPTIONS, "id")]) {
        let sql = format!("SELECT count(*) FROM {table} WHERE {column} >= $1 AND {column} < $2");
        let rows: i64 = transaction.query_one(&sql, &[&ids.start, &ids.end]).await?.get(0);
        found.add(table, u64::try_from(rows).unwrap_or_default());
    }
    let end = |order: &str| {
        format!(
            "(SELECT id FROM interceptions WHERE id >= $1 AND id < $2 ORDER BY id {order} LIMIT 1)"
        )
    };
    let sql = format!("SELECT {}, {}", end("ASC"), end("DESC"));
    let row = transaction.query_one(&sql, &[&ids.start, &ids.end]).await?;
    (found.first_id, found.last_id) = (row.get(0), row.get(1));
    Ok(found)
}

#[cfg(test)]
pub(super) mod plans {
    //! The statements of retention with literal values, for EXPLAIN.

    use jiff::Timestamp;
    use uuid::Uuid;

    use super::{FIND_OLD, delete_sql, first_id};

    pub(in crate::store::postgres) fn find_old(before: Timestamp) -> String {
        FIND_OLD
            .replace("$1", &format!("'{}'", first_id(before)))
            .replace("$2", &format!("'{before}'"))
            .replace("$3", "50")
    }

    pub(in crate::store::postgres) fn delete(table: &str, column: &str, id: Uuid) -> String {
        delete_sql(table, column)
            .replace("$1", &format!("ARRAY['{id}'::uuid]"))
            .replace("$2", &format!("'{id}'"))
            .replace("$3", &format!("'{id}'"))
    }
}
