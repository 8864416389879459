//! Migrations, and the creation of the monthly partitions.

use deadpool_postgres::Object;
use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use super::server::failed;
use crate::{
    LedgerError,
    store::{
        interceptions::first_id,
        migrations::{self, POSTGRES_LEVEL},
        retention_run::INTERCEPTIONS,
        sql::CHILD_TABLES,
    },
};

/// The key of the advisory lock for changes of the schema: "keybridg" in ASCII.
pub(super) const SCHEMA_LOCK_KEY: i64 = 0x6b65_7962_7269_6467;
/// Number of months whose partitions are created ahead.
const MONTHS_AHEAD: i64 = 2;
/// Whether a table of this name exists.
pub(super) const EXISTS: &str = "SELECT to_regclass($1) IS NOT NULL";

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
                    &[&version, &migration.name, &i64::from(POSTGRES_LEVEL)],
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
            migrations::check_level(row.get(1), POSTGRES_LEVEL)?;
            Ok(row.get(0))
        }
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => Ok(0),
        Err(error) => Err(failed(&error)),
    }
}

/// A month of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Month(Date);

impl Month {
    fn of(time: Timestamp) -> Self {
        Self(TimeZone::UTC.to_datetime(time).date().first_of_month())
    }

    pub(super) fn plus(self, months: i64) -> Self {
        Self(self.0.saturating_add(months.months()))
    }

    /// Parses the month in the name of a partition.
    pub(super) fn from_partition(table: &str, partition: &str) -> Option<Self> {
        let (year, month) = partition.strip_prefix(table)?.strip_prefix('_')?.split_once('_')?;
        Date::new(year.parse().ok()?, month.parse().ok()?, 1).ok().map(Self)
    }

    pub(super) fn partition(self, table: &str) -> String {
        format!("{table}_{:04}_{:02}", self.0.year(), self.0.month())
    }

    pub(super) fn start(self) -> Result<Timestamp, LedgerError> {
        let midnight = TimeZone::UTC.to_timestamp(self.0.at(0, 0, 0, 0));
        midnight.map_err(|error| LedgerError::Row(error.to_string()))
    }

    /// The smallest id of the month.
    pub(super) fn first_id(self) -> Result<Uuid, LedgerError> {
        Ok(first_id(self.start()?))
    }
}

/// The monthly partitioned tables: that of interceptions, and those of their child rows.
pub(super) fn partitioned_tables() -> impl Iterator<Item = &'static str> {
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
