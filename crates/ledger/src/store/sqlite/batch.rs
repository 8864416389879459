//! One transaction of the writing connection, and the statements that it uses.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, btree_map::Entry},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rusqlite::{
    Connection, Params, PrepFlags, Statement, ToSql,
    types::{Null, ToSqlOutput, ValueRef},
};
use tokio::time::Instant;
use uuid::{Uuid, fmt::Hyphenated};

use crate::{
    LedgerError,
    record::{columns::Cell, time_text},
    store::{
        rollups::{self, Differences, KnownParts},
        sql::Flavour,
    },
};

/// The precision of a token's last use.
pub(super) const LAST_USED_STEP: SignedDuration = SignedDuration::from_secs(60);
/// Maximum number of tokens whose last use is cached.
const MAX_TOKENS: usize = 4_096;

/// The statements of a writing connection. They stay prepared while it writes: to look them up by their text
/// costs as much as to bind their values.
pub(super) struct Statements<'c> {
    pub(super) connection: &'c Connection,
    /// By the address of their SQL.
    prepared: BTreeMap<*const str, Statement<'c>>,
}

impl<'c> Statements<'c> {
    pub(super) const fn new(connection: &'c Connection) -> Self {
        Self { connection, prepared: BTreeMap::new() }
    }

    fn get(&mut self, sql: &'static str) -> Result<&mut Statement<'c>, LedgerError> {
        Ok(match self.prepared.entry(sql) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                // It leaves the memory for short-lived objects free.
                let flags = PrepFlags::SQLITE_PREPARE_PERSISTENT;
                entry.insert(self.connection.prepare_with_flags(sql, flags)?)
            }
        })
    }
}

/// A transaction that is rolled back when it is dropped before it is committed.
pub(super) struct Batch<'b, 'c> {
    statements: &'b mut Statements<'c>,
    pub(super) known: &'b mut Known,
    /// What the transaction changes of the sums.
    pub(super) differences: Differences,
    last_row: Option<Uuid>,
    /// Rows of one record have the same times.
    last_time: Option<(Timestamp, String)>,
    is_committed: bool,
    started: Instant,
    limit: Duration,
}

impl<'b, 'c> Batch<'b, 'c> {
    pub(super) fn begin(
        statements: &'b mut Statements<'c>,
        known: &'b mut Known,
        limit: Duration,
    ) -> Result<Self, LedgerError> {
        let mut batch = Self {
            statements,
            known,
            differences: Differences::default(),
            last_row: None,
            last_time: None,
            is_committed: false,
            started: Instant::now(),
            limit,
        };
        batch.run("BEGIN IMMEDIATE")?;
        // Others had the store before.
        batch.started = Instant::now();
        Ok(batch)
    }

    /// Fails when the transaction takes too long.
    pub(super) fn check_time(&self) -> Result<(), LedgerError> {
        if self.started.elapsed() > self.limit {
            return Err(LedgerError::slow_commit(self.limit));
        }
        Ok(())
    }

    pub(super) fn statement(
        &mut self,
        sql: &'static str,
    ) -> Result<&mut Statement<'c>, LedgerError> {
        self.statements.get(sql)
    }

    /// Runs a statement with parameters; returns the number of changed rows.
    pub(super) fn change(
        &mut self,
        sql: &'static str,
        parameters: impl Params,
    ) -> Result<usize, LedgerError> {
        let statement = self.statements.get(sql)?;
        let changed = statement.execute(parameters);
        statement.clear_bindings();
        Ok(changed?)
    }

    /// An id for a new row. The ids of a batch are consecutive, because each generated id costs a
    /// system call for random bytes.
    pub(super) fn row_id(&mut self) -> Uuid {
        let row = match self.last_row {
            Some(last) => Uuid::from_u128(last.as_u128().wrapping_add(1)),
            None => Uuid::now_v7(),
        };
        self.last_row = Some(row);
        row
    }

    /// Runs a statement with a `?` for each cell; returns the number of changed rows.
    pub(super) fn execute(
        &mut self,
        sql: &'static str,
        cells: &[Cell<'_>],
    ) -> Result<usize, LedgerError> {
        let statement = self.statements.get(sql)?;
        for (number, cell) in (1..).zip(cells) {
            let bound = match cell {
                Cell::Text(text) => statement.raw_bind_parameter(number, text),
                Cell::Id(id) => statement.raw_bind_parameter(number, id.map(IdText::from)),
                Cell::Time(Some(time)) => {
                    let (_, text) = match &mut self.last_time {
                        Some(last) if last.0 == *time => last,
                        last => last.insert((*time, time_text(*time))),
                    };
                    statement.raw_bind_parameter(number, &*text)
                }
                Cell::Time(None) => statement.raw_bind_parameter(number, Null),
                Cell::Integer(integer) => statement.raw_bind_parameter(number, integer),
                Cell::Boolean(boolean) => statement.raw_bind_parameter(number, boolean),
                Cell::Json(json) => statement.raw_bind_parameter(number, json),
                Cell::JsonOrText(text) => statement.raw_bind_parameter(number, text.map(as_json)),
            };
            bound?;
        }
        let changed = statement.raw_execute();
        // Else texts would stay in memory until the next use.
        statement.clear_bindings();
        Ok(changed?)
    }

    pub(super) fn commit(mut self) -> Result<(), LedgerError> {
        let mut differences = std::mem::take(&mut self.differences);
        let parts = differences.new_parts(&self.known.parts);
        let shard = rollups::shard(Flavour::Sqlite, Uuid::nil());
        differences
            .rows(shard, &mut |table, row| self.execute(&table.row_sql, &row).map(|_added| ()))?;
        self.run("COMMIT")?;
        self.known.parts.add(parts);
        self.is_committed = true;
        Ok(())
    }

    /// Runs a closure in a savepoint, which is rolled back when its record cannot be written.
    pub(super) fn in_savepoint<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        self.run("SAVEPOINT record")?;
        let differences = self.differences.clone();
        let result = work(self);
        if let Err(error) = &result {
            if !error.is_about_one_record() {
                return result;
            }
            self.known.clear();
            self.differences = differences;
            self.run("ROLLBACK TO record")?;
        }
        self.run("RELEASE record")?;
        result
    }

    fn run(&mut self, sql: &'static str) -> Result<(), LedgerError> {
        self.statements.get(sql)?.raw_execute()?;
        Ok(())
    }
}

impl Drop for Batch<'_, '_> {
    fn drop(&mut self) {
        if self.is_committed {
            return;
        }
        self.known.clear();
        // After some errors, such as a full disk, SQLite has rolled back already.
        if self.statements.connection.is_autocommit() {
            return;
        }
        if let Err(error) = self.run("ROLLBACK") {
            tracing::error!(%error, "cannot roll back a transaction");
        }
    }
}

/// A text as JSON: unchanged if it is valid JSON, else as a JSON string.
fn as_json(text: &str) -> Cow<'_, str> {
    if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(serde_json::Value::from(text).to_string())
    }
}

/// What a connection knows to be in the store.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) last_uses: LastUses,
    parts: KnownParts,
}

impl Known {
    fn clear(&mut self) {
        self.last_uses.clear();
        self.parts.clear();
    }
}

/// The last uses of tokens that are known to be in the store.
#[derive(Debug, Default)]
pub(super) struct LastUses(HashMap<Uuid, Timestamp>);

impl LastUses {
    /// Whether the store has a last use of the token that is recent enough.
    pub(super) fn is_recorded(&self, token: Uuid, now: Timestamp) -> bool {
        self.0.get(&token).is_some_and(|used| now.duration_since(*used) <= LAST_USED_STEP)
    }

    pub(super) fn insert(&mut self, token: Uuid, now: Timestamp) {
        if self.0.len() >= MAX_TOKENS {
            self.clear();
        }
        self.0.insert(token, now);
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// An id as stored text, formatted without an allocation.
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
