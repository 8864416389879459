//! One transaction of the writing connection, and the statements that it uses.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, btree_map::Entry},
};

use jiff::{SignedDuration, Timestamp};
use rusqlite::{
    CachedStatement, Connection, ToSql,
    types::{ToSqlOutput, ValueRef},
};
use uuid::{Uuid, fmt::Hyphenated};

use crate::{
    LedgerError,
    record::{columns::Cell, time_text},
};

/// How exact a token's last use is kept.
pub(super) const LAST_USED_STEP: SignedDuration = SignedDuration::from_secs(60);
/// Most tokens whose last use is remembered.
const TOKENS: usize = 4_096;

/// A transaction that is taken back when it is dropped before it is committed.
pub(super) struct Batch<'c> {
    connection: &'c Connection,
    /// By the place of the text: finding a statement by its text, and giving it back each time,
    /// costs as much as binding its values.
    statements: BTreeMap<*const str, CachedStatement<'c>>,
    pub(super) last_uses: &'c mut LastUses,
    last_row: Option<Uuid>,
    is_committed: bool,
}

impl<'c> Batch<'c> {
    pub(super) fn begin(
        connection: &'c Connection,
        last_uses: &'c mut LastUses,
    ) -> Result<Self, LedgerError> {
        let batch = Self {
            connection,
            statements: BTreeMap::new(),
            last_uses,
            last_row: None,
            is_committed: false,
        };
        batch.run("BEGIN IMMEDIATE")?;
        Ok(batch)
    }

    pub(super) fn statement(
        &mut self,
        sql: &'static str,
    ) -> Result<&mut CachedStatement<'c>, LedgerError> {
        Ok(match self.statements.entry(sql) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.connection.prepare_cached(sql)?),
        })
    }

    /// An id for a new row. Those of a batch count on from the first, because the system is asked
    /// for randomness for each that is made anew.
    pub(super) fn row_id(&mut self) -> Uuid {
        let row = match self.last_row {
            Some(last) => Uuid::from_u128(last.as_u128().wrapping_add(1)),
            None => Uuid::now_v7(),
        };
        self.last_row = Some(row);
        row
    }

    /// Runs a statement that has a `?` for each cell; gives the number of rows that it changed.
    pub(super) fn execute(
        &mut self,
        sql: &'static str,
        cells: &[Cell<'_>],
    ) -> Result<usize, LedgerError> {
        let statement = self.statement(sql)?;
        for (number, cell) in (1..).zip(cells) {
            let bound = match cell {
                Cell::Text(text) => statement.raw_bind_parameter(number, text),
                Cell::Id(id) => statement.raw_bind_parameter(number, id.map(IdText::from)),
                Cell::Time(time) => statement.raw_bind_parameter(number, time.map(time_text)),
                Cell::Integer(integer) => statement.raw_bind_parameter(number, integer),
                Cell::Boolean(boolean) => statement.raw_bind_parameter(number, boolean),
                Cell::Json(json) => statement.raw_bind_parameter(number, json),
                Cell::JsonOrText(text) => statement.raw_bind_parameter(number, text.map(as_json)),
            };
            bound?;
        }
        Ok(statement.raw_execute()?)
    }

    pub(super) fn commit(mut self) -> Result<(), LedgerError> {
        self.run("COMMIT")?;
        self.is_committed = true;
        Ok(())
    }

    /// Does a piece of work that leaves nothing behind where its record is at fault.
    pub(super) fn apart<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        self.run("SAVEPOINT record")?;
        let result = work(self);
        if let Err(error) = &result {
            if !error.is_about_one_record() {
                return result;
            }
            self.last_uses.forget();
            self.run("ROLLBACK TO record")?;
        }
        self.run("RELEASE record")?;
        result
    }

    fn run(&self, sql: &str) -> Result<(), LedgerError> {
        self.connection.prepare_cached(sql)?.execute([])?;
        Ok(())
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if self.is_committed {
            return;
        }
        self.last_uses.forget();
        // What ends with a full disk, the database has taken back itself.
        if self.connection.is_autocommit() {
            return;
        }
        if let Err(error) = self.run("ROLLBACK") {
            tracing::error!(%error, "a transaction cannot be taken back");
        }
    }
}

/// A text as JSON: as it is where it is JSON, else as a JSON string.
fn as_json(text: &str) -> Cow<'_, str> {
    if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(serde_json::Value::from(text).to_string())
    }
}

/// When tokens were last used, as far as the store is known to say so.
#[derive(Debug, Default)]
pub(super) struct LastUses(HashMap<Uuid, Timestamp>);

impl LastUses {
    /// Whether the store says already that a token was used at that time.
    pub(super) fn has(&self, token: Uuid, now: Timestamp) -> bool {
        self.0.get(&token).is_some_and(|used| now.duration_since(*used) <= LAST_USED_STEP)
    }

    pub(super) fn note(&mut self, token: Uuid, now: Timestamp) {
        if self.0.len() >= TOKENS {
            self.forget();
        }
        self.0.insert(token, now);
    }

    fn forget(&mut self) {
        self.0.clear();
    }
}

/// An id as the store has it, written without an allocation.
pub(super) struct IdText([u8; Hyphenated::LENGTH]);

impl From<Uuid> for IdText {
    fn from(id: Uuid) -> Self {
        let mut text = [0; Hyphenated::LENGTH];
        id.hyphenated().encode_lower(&mut text);
        Self(text)
    }
}

impl ToSql for IdText {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(&self.0)))
    }
}
