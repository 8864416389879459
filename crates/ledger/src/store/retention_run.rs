//! What a run of retention removes: counted with each removal, and written in its transaction.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::{
    LedgerError,
    record::serialize_time,
    store::sql::{CHILD_TABLES, Cells, Database, FromRow, all, required},
};

pub(crate) const INTERCEPTIONS: &str = "interceptions";
/// Has rows that belong to interceptions, too, but is found by keys of its own.
pub(crate) const CONTINUATIONS: &str = "continuations";
/// The same.
pub(crate) const OBJECTS: &str = "objects";

/// The tables with rows that belong to an interception.
pub(crate) fn dependent_tables() -> impl Iterator<Item = &'static str> {
    CHILD_TABLES.into_iter().chain([CONTINUATIONS, OBJECTS])
}

/// The columns with prompts of a session; they go with their records, whose ids are beside them.
pub(crate) const SESSION_PROMPTS: [&str; 2] = ["first_prompt", "last_prompt"];

/// A run, and what it has removed so far.
#[derive(Debug, Clone)]
pub(crate) struct RetentionRun {
    pub(crate) id: Uuid,
    /// What started before this time is removed.
    pub(crate) cutoff: Timestamp,
    pub(crate) started_at: Timestamp,
    /// The process that removes.
    pub(crate) replica: Uuid,
    pub(crate) removed: Removed,
}

impl RetentionRun {
    pub(crate) fn new(cutoff: Timestamp, replica: Uuid) -> Self {
        let removed = Removed::default();
        Self { id: Uuid::now_v7(), cutoff, started_at: Timestamp::now(), replica, removed }
    }

    /// The run after a further step.
    pub(crate) fn plus(&self, step: &Removed) -> Self {
        Self { removed: self.removed.plus(step), ..self.clone() }
    }
}

/// Removed rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    /// The oldest interception.
    pub(crate) first_id: Option<Uuid>,
    /// The newest interception.
    pub(crate) last_id: Option<Uuid>,
    rows: BTreeMap<&'static str, u64>,
}

impl Removed {
    /// Nothing yet of the interceptions from one id to another.
    pub(crate) fn between(first: Uuid, last: Uuid) -> Self {
        Self { first_id: Some(first), last_id: Some(last), rows: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, table: &'static str, rows: u64) {
        if rows > 0 {
            *self.rows.entry(table).or_default() += rows;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn interceptions(&self) -> u64 {
        self.rows.get(INTERCEPTIONS).copied().unwrap_or_default()
    }

    /// The numbers of rows by table, as JSON.
    pub(crate) fn rows_json(&self) -> String {
        serde_json::json!(self.rows).to_string()
    }

    fn plus(&self, step: &Self) -> Self {
        let mut sum = self.clone();
        sum.first_id = [self.first_id, step.first_id].into_iter().flatten().min();
        sum.last_id = self.last_id.max(step.last_id);
        step.rows.iter().for_each(|(table, rows)| sum.add(table, *rows));
        sum
    }
}

/// A run of retention as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RecordedRun {
    /// Its id.
    pub id: Uuid,
    /// `records`: whole interceptions with their rows.
    pub kind: String,
    /// What started before this time was removed.
    #[serde(serialize_with = "serialize_time")]
    pub cutoff: Timestamp,
    /// When it started.
    #[serde(serialize_with = "serialize_time")]
    pub started_at: Timestamp,
    /// The time of its last transaction.
    #[serde(serialize_with = "serialize_time")]
    pub changed_at: Timestamp,
    /// The process that removed.
    pub replica_id: Uuid,
    /// Its version.
    pub version: String,
    /// The oldest interception that was removed.
    pub first_id: Option<Uuid>,
    /// The newest interception that was removed.
    pub last_id: Option<Uuid>,
    /// The number of rows by table.
    pub removed_rows: BTreeMap<String, u64>,
}

impl RecordedRun {
    /// How many interceptions it removed.
    pub fn interceptions(&self) -> u64 {
        self.removed_rows.get(INTERCEPTIONS).copied().unwrap_or_default()
    }
}

impl FromRow for RecordedRun {
    const COLUMNS: &'static str = "id, kind, cutoff, started_at, changed_at, replica_id, version,
        first_id, last_id, CAST(removed_rows AS TEXT)";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            id: required(row.id()?)?,
            kind: required(row.text()?)?,
            cutoff: required(row.time()?)?,
            started_at: required(row.time()?)?,
            changed_at: required(row.time()?)?,
            replica_id: required(row.id()?)?,
            version: required(row.text()?)?,
            first_id: row.id()?,
            last_id: row.id()?,
            removed_rows: serde_json::from_str(&required(row.text()?)?)
                .map_err(|error| LedgerError::Row(format!("removed_rows: {error}")))?,
        })
    }
}

/// All runs that removed something, oldest first.
pub(crate) fn recorded(database: &dyn Database) -> Result<Vec<RecordedRun>, LedgerError> {
    let columns = RecordedRun::COLUMNS;
    all(database, &format!("SELECT {columns} FROM retention_runs ORDER BY id"), &[])
}
