//! Migrations, and the monthly partitions: their creation and retention.

use deadpool_postgres::Object;
use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::{cells::Time, server::failed};
use crate::{
    LedgerError,
    store::{
        interceptions::first_id,
        migrations::{self, LEVEL},
        sql::CHILD_TABLES,
    },
};

/// The key of the advisory lock for changes of the schema: "keybridg" in ASCII.
const SCHEMA_LOCK_KEY: i64 = 0x6b65_7962_7269_6467;
/// Number of months whose partitions are created ahead.
const MONTHS_AHEAD: i64 = 2;
const INTERCEPTIONS: &str = "interceptions";
/// Also has rows that belong to interceptions, but is not partitioned.
const CONTINUATIONS: &str = "continuations";
/// Whether a table of this name exists.
const EXISTS: &str = "SELECT to_regclass($1) IS NOT NULL";

pub(super) async fn pending(client: &Object) -> Result<Vec<&'static str>, LedgerError> {
    let applied = applied(client).await?;
    Ok(migrations::pending(migrations::POSTGRES, applied)
        .map(|(_, migration)| migration.name)
        .collect())
}

pub(super) async fn migrate(client: &mut Object) -> Result<Vec<&'static str>, LedgerError> {
    // Usually nothing is pending, and this check needs no lock.
    if pending(client).await?.is_empty() {
        return Ok(Vec::new());
    }
    // A concurrent migration may take longer than the usual statement timeout.
    let run = async {
        let transaction = client.transaction().await?;
        transaction.batch_execute("SET LOCAL statement_timeout = 0").await?;
        transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK_KEY]).await?;
        transaction
            .batch_execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations (version bigint PRIMARY KEY,
                 name text NOT NULL, level bigint NOT NULL, applied_at timestamptz NOT NULL)",
            )
            .await?;
        let sql = "SELECT coalesce(max(version), 0) FROM schema_migrations";
        let applied = transaction.query_one(sql, &[]).await?.get::<_, i64>(0);
        let mut names = Vec::new();
        for (version, migration) in migrations::pending(migrations::POSTGRES, applied) {
            transaction.batch_execute(migration.sql).await?;
            transaction
                .execute(
                    "INSERT INTO schema_migrations (version, name, level, applied_at)
                     VALUES ($1, $2, $3, now())",
                    &[&version, &migration.name, &i64::from(LEVEL)],
                )
                .await?;
            names.push(migration.name);
        }
        transaction.commit().await?;
        Ok(names)
    };
    let names = run.await.map_err(|error: tokio_postgres::Error| failed(&error))?;
    create_partitions(client, Timestamp::now()).await?;
    Ok(names)
}

/// The number of applied migrations.
async fn applied(client: &Object) -> Result<i64, LedgerError> {
    let sql = "SELECT coalesce(max(version), 0), coalesce(max(level), 0) FROM schema_migrations";
    match client.query_one(sql, &[]).await {
        Ok(row) => {
            migrations::check_level(row.get(1))?;
            Ok(row.get(0))
        }
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(0),
        Err(error) => Err(failed(&error)),
    }
}

/// A month of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Month(Date);

impl Month {
    fn of(time: Timestamp) -> Self {
        Self(TimeZone::UTC.to_datetime(time).date().first_of_month())
    }

    fn plus(self, months: i64) -> Self {
        Self(self.0.saturating_add(months.months()))
    }

    /// Parses the month in the name of a partition.
    fn from_partition(table: &str, partition: &str) -> Option<Self> {
        let (year, month) = partition.strip_prefix(table)?.strip_prefix('_')?.split_once('_')?;
        Date::new(year.parse().ok()?, month.parse().ok()?, 1).ok().map(Self)
    }

    fn partition(self, table: &str) -> String {
        format!("{table}_{:04}_{:02}", self.0.year(), self.0.month())
    }

    fn start(self) -> Result<Timestamp, LedgerError> {
        let midnight = TimeZone::UTC.to_timestamp(self.0.at(0, 0, 0, 0));
        midnight.map_err(|error| LedgerError::Row(error.to_string()))
    }

    /// The smallest id of the month.
    fn first_id(self) -> Result<Uuid, LedgerError> {
        Ok(first_id(self.start()?))
    }
}

/// The monthly partitioned tables: that of interceptions, and those of their child rows.
fn partitioned_tables() -> impl Iterator<Item = &'static str> {
    std::iter::once(INTERCEPTIONS).chain(CHILD_TABLES)
}

/// Creates the partitions of this month and the next ones, where they are missing.
pub(super) async fn create_partitions(
    client: &mut Object,
    now: Timestamp,
) -> Result<(), LedgerError> {
    for ahead in 0..=MONTHS_AHEAD {
        let month = Month::of(now).plus(ahead);
        let (from, to) = (month.first_id()?, month.plus(1).first_id()?);
        for table in partitioned_tables() {
            let name = month.partition(table);
            match create_partition(client, table, &name, from, to).await {
                // The default partition has records of this month, after a clock was wrong; they stay there.
                Err(error) if error.code() == Some(&SqlState::CHECK_VIOLATION) => {
                    tracing::warn!(
                        name,
                        "cannot create a partition: its rows are in the default partition"
                    );
                }
                other => other.map_err(|error| failed(&error))?,
            }
        }
    }
    Ok(())
}

/// Creates the partition of a table for a range of ids, where it is missing.
async fn create_partition(
    client: &mut Object,
    table: &str,
    name: &str,
    from: Uuid,
    to: Uuid,
) -> Result<(), tokio_postgres::Error> {
    if client.query_one(EXISTS, &[&name]).await?.get(0) {
        return Ok(());
    }
    let transaction = client.transaction().await?;
    // Writers queue behind this request for a table lock.
    transaction.batch_execute("SET LOCAL lock_timeout = '5s'").await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK_KEY]).await?;
    let sql = format!(
        "CREATE TABLE IF NOT EXISTS {name} PARTITION OF {table}
         FOR VALUES FROM ('{from}') TO ('{to}')"
    );
    transaction.batch_execute(&sql).await?;
    transaction.commit().await
}

/// A limited number of interceptions before an id and a time. The bound on ids prunes the partitions of
/// later months.
const FIND_OLD: &str = "SELECT id FROM interceptions
    WHERE id < $1 AND started_at < $2 AND outcome <> 'in_progress' ORDER BY id LIMIT $3";

/// Deletes the rows of these ids; the first and last id prune partitions.
fn delete_sql(table: &str, column: &str) -> String {
    format!("DELETE FROM {table} WHERE {column} = ANY ($1) AND {column} >= $2 AND {column} <= $3")
}

/// Deletes a limited number of interceptions with their child rows.
pub(super) async fn delete_before(
    client: &mut Object,
    time: Timestamp,
    limit: u32,
) -> Result<u64, LedgerError> {
    let run = async {
        let old = client
            .query(FIND_OLD, &[&first_id(time), &Time(time), &i64::from(limit)])
            .await?
            .iter()
            .map(|row| row.get(0))
            .collect::<Vec<Uuid>>();
        let (Some(first), Some(last)) = (old.first(), old.last()) else { return Ok(0) };
        let transaction = client.transaction().await?;
        for table in CHILD_TABLES.into_iter().chain([CONTINUATIONS]) {
            let sql = delete_sql(table, "interception_id");
            transaction.execute(&sql, &[&old, first, last]).await?;
        }
        let deleted =
            transaction.execute(&delete_sql(INTERCEPTIONS, "id"), &[&old, first, last]).await?;
        transaction.commit().await?;
        Ok(deleted)
    };
    run.await.map_err(|error: tokio_postgres::Error| failed(&error))
}

/// Drops the months that ended before a time, and returns the number of their records.
pub(super) async fn drop_months(client: &mut Object, time: Timestamp) -> Result<u64, LedgerError> {
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
    let mut records = 0;
    for month in months {
        if month.plus(1).start()? <= time {
            let ids = month.first_id()?..month.plus(1).first_id()?;
            records += drop_month(client, month, ids).await.map_err(|error| failed(&error))?;
        }
    }
    Ok(records)
}

/// Drops a month, unless one of its records is in progress or it has no partition; returns the number
/// of its records.
async fn drop_month(
    client: &mut Object,
    month: Month,
    ids: std::ops::Range<Uuid>,
) -> Result<u64, tokio_postgres::Error> {
    let partition = month.partition(INTERCEPTIONS);
    let transaction = client.transaction().await?;
    transaction.batch_execute("SET LOCAL lock_timeout = '5s'").await?;
    transaction.batch_execute("SET LOCAL statement_timeout = 0").await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK_KEY]).await?;
    let sql = "SELECT count(*), count(*) FILTER (WHERE outcome = 'in_progress')
               FROM interceptions WHERE id >= $1 AND id < $2";
    let row = transaction.query_one(sql, &[&ids.start, &ids.end]).await?;
    let (records, open) = (row.get::<_, i64>(0), row.get::<_, i64>(1));
    // Another process may have dropped it in the meantime.
    let exists: bool = transaction.query_one(EXISTS, &[&partition]).await?.get(0);
    if open > 0 || (records > 0 && !exists) {
        return Ok(0);
    }
    for table in partitioned_tables() {
        // A table that was created after the month has no partition for it.
        let sql = format!("DROP TABLE IF EXISTS {}", month.partition(table));
        transaction.batch_execute(&sql).await?;
    }
    // The rows of the month in default partitions, and in the table without partitions.
    for table in CHILD_TABLES.into_iter().chain([CONTINUATIONS]) {
        let sql =
            format!("DELETE FROM {table} WHERE interception_id >= $1 AND interception_id < $2");
        transaction.execute(&sql, &[&ids.start, &ids.end]).await?;
    }
    transaction.commit().await?;
    if exists {
        tracing::info!(partition, records, "dropped the records of a month");
    }
    Ok(u64::try_from(records).unwrap_or(0))
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
