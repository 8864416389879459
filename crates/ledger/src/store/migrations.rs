//! Migrations: numbered, applied in order, and expand-only.
//!
//! After an expand-only migration the statements of the previous release still work, so that releases
//! can be mixed during a rollout. Any other migration raises the level of the schema, and a release
//! refuses a store of a higher level than it supports.

use crate::LedgerError;

/// The schema level of SQLite stores that this release supports.
pub(crate) const SQLITE_LEVEL: u32 = 2;
/// The schema level of PostgreSQL stores that this release supports.
pub(crate) const POSTGRES_LEVEL: u32 = 1;

/// A migration of a kind of store, with the text of its file.
macro_rules! migration {
    ($store:literal, $name:literal) => {
        Migration {
            name: $name,
            sql: include_str!(concat!("../../migrations/", $store, "/", $name, ".sql")),
        }
    };
}

/// The migrations of SQLite.
pub(crate) const SQLITE: &[Migration] = &[
    migration!("sqlite", "0001_records"),
    migration!("sqlite", "0002_replicas"),
    migration!("sqlite", "0003_continuations"),
    migration!("sqlite", "0004_upstream_attempts"),
    migration!("sqlite", "0005_retention_runs"),
    migration!("sqlite", "0006_token_usages"),
    migration!("sqlite", "0007_trail"),
    migration!("sqlite", "0008_objects"),
    migration!("sqlite", "0009_child_keys"),
    migration!("sqlite", "0010_rollups"),
    migration!("sqlite", "0011_search"),
    migration!("sqlite", "0012_trail_order"),
    migration!("sqlite", "0013_phases"),
];

/// The migrations of PostgreSQL.
pub(crate) const POSTGRES: &[Migration] = &[
    migration!("postgres", "0001_records"),
    migration!("postgres", "0002_continuations"),
    migration!("postgres", "0003_upstream_attempts"),
    migration!("postgres", "0004_retention_runs"),
    migration!("postgres", "0005_token_usages"),
    migration!("postgres", "0006_trail"),
    migration!("postgres", "0007_objects"),
    migration!("postgres", "0008_rollups"),
    migration!("postgres", "0009_search"),
    migration!("postgres", "0010_trail_order"),
    migration!("postgres", "0011_phases"),
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

/// Refuses a schema of a higher level than is known.
pub(crate) fn check_level(found: i64, known: u32) -> Result<(), LedgerError> {
    let found = u32::try_from(found).unwrap_or(u32::MAX);
    if found > known { Err(LedgerError::Newer { found, known }) } else { Ok(()) }
}
