//! One transaction of the writing connection, and the statements that it uses.

use std::collections::{BTreeMap, btree_map::Entry};

use rusqlite::{
    CachedStatement, Connection, ToSql,
    types::{ToSqlOutput, ValueRef},
};
use uuid::{Uuid, fmt::Hyphenated};

use crate::LedgerError;

/// A transaction that is taken back when it is dropped before it is committed.
pub(super) struct Batch<'c> {
    connection: &'c Connection,
    /// By the place of the text: finding a statement by its text, and giving it back each time,
    /// costs as much as binding its values.
    statements: BTreeMap<*const str, CachedStatement<'c>>,
    last_row: Option<Uuid>,
    is_committed: bool,
}

impl<'c> Batch<'c> {
    pub(super) fn begin(connection: &'c Connection) -> Result<Self, LedgerError> {
        let batch =
            Self { connection, statements: BTreeMap::new(), last_row: None, is_committed: false };
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
    pub(super) fn row(&mut self) -> IdText {
        let row = match self.last_row {
            Some(last) => Uuid::from_u128(last.as_u128().wrapping_add(1)),
            None => Uuid::now_v7(),
        };
        self.last_row = Some(row);
        row.into()
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
        // What ends with a full disk, the database has taken back itself.
        if self.connection.is_autocommit() {
            return;
        }
        if let Err(error) = self.run("ROLLBACK") {
            tracing::error!(%error, "a transaction cannot be taken back");
        }
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
