//! Migrations: numbered, applied in order, and expand-only.
//!
//! After an expand-only migration the statements of the previous release still work, so that releases
//! can be mixed during a rollout. Any other migration raises the level of the schema, and a release
//! refuses a store of a higher level than it supports.

use crate::LedgerError;

/// The schema level that this release supports.
pub(crate) const LEVEL: u32 = 1;

/// The migrations of SQLite.
pub(crate) const SQLITE: &[Migration] = &[
    Migration {
        name: "0001_records",
        sql: include_str!("../../migrations/sqlite/0001_records.sql"),
    },
    Migration {
        name: "0002_replicas",
        sql: include_str!("../../migrations/sqlite/0002_replicas.sql"),
    },
    Migration {
        name: "0003_continuations",
        sql: include_str!("../../migrations/sqlite/0003_continuations.sql"),
    },
    Migration {
        name: "0004_upstream_attempts",
        sql: include_str!("../../migrations/sqlite/0004_upstream_attempts.sql"),
    },
    Migration {
        name: "0005_retention_runs",
        sql: include_str!("../../migrations/sqlite/0005_retention_runs.sql"),
    },
    Migration {
        name: "0006_token_usages",
        sql: include_str!("../../migrations/sqlite/0006_token_usages.sql"),
    },
    Migration { name: "0007_trail", sql: include_str!("../../migrations/sqlite/0007_trail.sql") },
    Migration {
        name: "0008_objects",
        sql: include_str!("../../migrations/sqlite/0008_objects.sql"),
    },
];

/// The migrations of PostgreSQL.
pub(crate) const POSTGRES: &[Migration] = &[
    Migration {
        name: "0001_records",
        sql: include_str!("../../migrations/postgres/0001_records.sql"),
    },
    Migration {
        name: "0002_continuations",
        sql: include_str!("../../migrations/postgres/0002_continuations.sql"),
    },
    Migration {
        name: "0003_upstream_attempts",
        sql: include_str!("../../migrations/postgres/0003_upstream_attempts.sql"),
    },
    Migration {
        name: "0004_retention_runs",
        sql: include_str!("../../migrations/postgres/0004_retention_runs.sql"),
    },
    Migration {
        name: "0005_token_usages",
        sql: include_str!("../../migrations/postgres/0005_token_usages.sql"),
    },
    Migration { name: "0006_trail", sql: include_str!("../../migrations/postgres/0006_trail.sql") },
    Migration {
        name: "0007_objects",
        sql: include_str!("../../migrations/postgres/0007_objects.sql"),
    },
];

/// One step of a schema.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Migration {
    /// Its number, and what it does.
    pub(crate) name: &'static str,
    pub(crate) sql: &'static str,
}

/// The migrations after the first `applied`.
pub(crate) fn pending(
    all: &'static [Migration],
    applied: i64,
) -> impl Iterator<Item = (i64, &'static Migration)> {
    (1..).zip(all).filter(move |(version, _)| *version > applied)
}

/// Whether a store that lacks these migrations is new.
pub(crate) fn is_new(pending: &[&str]) -> bool {
    pending.first().is_some_and(|name| name.starts_with("0001_"))
}

/// Refuses a schema of a higher level than this release supports.
pub(crate) fn check_level(found: i64) -> Result<(), LedgerError> {
    let found = u32::try_from(found).unwrap_or(u32::MAX);
    if found > LEVEL { Err(LedgerError::Newer { found, known: LEVEL }) } else { Ok(()) }
}
