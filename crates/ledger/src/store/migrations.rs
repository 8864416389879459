//! Migrations: numbered, applied in order, and expand-only.
//!
//! An expand-only migration leaves the statements of the release before working, so that releases
//! can be mixed while they are rolled out. One that cannot raises the schema's level, and a release
//! refuses a store whose level it does not know.

use crate::LedgerError;

/// The level that this release knows.
pub(crate) const LEVEL: u32 = 1;

/// Those of SQLite.
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
];

/// Those of PostgreSQL.
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
];

/// One step of a schema.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Migration {
    /// Its number, and what it does.
    pub(crate) name: &'static str,
    pub(crate) sql: &'static str,
}

/// The migrations that come after the first `applied`.
pub(crate) fn pending(
    all: &'static [Migration],
    applied: i64,
) -> impl Iterator<Item = (i64, &'static Migration)> {
    (1..).zip(all).filter(move |(version, _)| *version > applied)
}

/// Whether a store that lacks these migrations has none at all.
pub(crate) fn is_new(pending: &[&str]) -> bool {
    pending.first().is_some_and(|name| name.starts_with("0001_"))
}

/// Refuses a schema that a later release has changed beyond what this one understands.
pub(crate) fn check_level(found: i64) -> Result<(), LedgerError> {
    let found = u32::try_from(found).unwrap_or(u32::MAX);
    if found > LEVEL { Err(LedgerError::Newer { found, known: LEVEL }) } else { Ok(()) }
}
