//! The store in one SQLite file: WAL, full durability, one writing connection and a few readers.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, Row, ToSql, Transaction, TransactionBehavior, params,
    types::{self, FromSql, ToSqlOutput},
};
use uuid::Uuid;

use self::write::SqliteWriter;
use crate::{
    LedgerError,
    record::{Outcome, time_text},
    store::{
        BUSY, Dead, Hold, Store, StoreWriter,
        interceptions::first_id,
        migrations::{self, LEVEL, Migration},
        sql::{Cells, Database, Flavour, Value},
    },
};

mod batch;
mod write;

/// Idle reading connections that are kept.
const READERS: usize = 4;
/// Pages that a connection keeps, in KiB. What is written lies at the end of a few trees; for the rest
/// there is the kernel's cache, which is not this process's memory.
const CACHE_KIB: i64 = 640;

/// Interceptions before an id and a time, up to a number of them.
const FIND_OLD: &str = "SELECT id FROM interceptions
    WHERE id < ?1 AND started_at < ?2 AND outcome <> 'in_progress' ORDER BY id LIMIT ?3";

/// A store in a file.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl SqliteStore {
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), idle: Mutex::new(Vec::new()) }
    }

    fn connect(&self) -> Result<Connection, LedgerError> {
        let connection = Connection::open(&self.path)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(connection)
    }

    /// Says which store it is that cannot be opened, and what may help.
    fn named(&self, error: LedgerError) -> LedgerError {
        let LedgerError::Database(mut reason) = error else { return error };
        if reason.contains("readonly") {
            reason.push_str("; keybridge must be able to write the file and its directory");
        }
        LedgerError::Open { store: self.path.display().to_string(), reason }
    }

    /// Runs a piece of work on a connection of the pool.
    fn with<T>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let result = work(&mut connection);
        // One that failed may be broken: the next caller gets a new one.
        if result.is_ok() {
            self.give_back(connection);
        }
        result
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < READERS {
            idle.push(connection);
        }
    }

    fn lock(&self) -> Result<File, LedgerError> {
        let path = PathBuf::from(format!("{}-lock", self.path.display()));
        let failed =
            |reason: String| LedgerError::Open { store: path.display().to_string(), reason };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| failed(error.to_string()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                Err(LedgerError::Claimed(self.path.display().to_string()))
            }
            Err(TryLockError::Error(error)) => Err(failed(error.to_string())),
        }
    }
}

/// How many migrations a store has. The release that had only the first kept no list of them.
fn applied(connection: &Connection) -> Result<i64, LedgerError> {
    let level: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    migrations::check_level(level)?;
    let has_list = connection
        .prepare("SELECT 1 FROM sqlite_schema WHERE name = 'schema_migrations'")?
        .exists([])?;
    if !has_list {
        return Ok(level.min(1));
    }
    let sql = "SELECT coalesce(max(version), 0) FROM schema_migrations";
    Ok(connection.query_row(sql, [], |row| row.get(0))?)
}

fn note(
    transaction: &Transaction<'_>,
    version: i64,
    migration: &Migration,
) -> Result<(), LedgerError> {
    transaction.execute_batch(
        "CREATE TABLE IF NOT EXISTS schema_migrations (version INTEGER PRIMARY KEY NOT NULL,
         name TEXT NOT NULL, applied_at TEXT NOT NULL) STRICT",
    )?;
    transaction.execute(
        "INSERT INTO schema_migrations (version, name, applied_at) VALUES (?1, ?2, ?3)",
        params![version, migration.name, time_text(Timestamp::now())],
    )?;
    Ok(())
}

impl Database for SqliteStore {
    fn flavour(&self) -> Flavour {
        Flavour::Sqlite
    }

    fn run(
        &self,
        _patience: Duration,
        sql: &str,
        values: &[Value],
        each: &mut dyn FnMut(&mut dyn Cells) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        self.with(|connection| {
            // `$1` would be a name here, numbered in the order of its first use.
            let mut statement = connection.prepare_cached(&sql.replace('$', "?"))?;
            let mut rows = statement.query(rusqlite::params_from_iter(values))?;
            while let Some(row) = rows.next()? {
                each(&mut SqliteCells { row, next: 0 })?;
            }
            Ok(())
        })
    }
}

impl Store for SqliteStore {
    fn pending(&self) -> Result<Vec<&'static str>, LedgerError> {
        let applied = if self.path.exists() {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            Connection::open_with_flags(&self.path, flags)
                .map_err(LedgerError::from)
                .and_then(|connection| applied(&connection))
                .map_err(|error| self.named(error))?
        } else {
            0
        };
        Ok(migrations::pending(migrations::SQLITE, applied)
            .map(|(_, migration)| migration.name)
            .collect())
    }

    fn migrate(&self) -> Result<Vec<&'static str>, LedgerError> {
        self.with(|connection| {
            let mut names = Vec::new();
            // Most starts find nothing to do, and a full disk can still be read.
            if migrations::pending(migrations::SQLITE, applied(connection)?).next().is_none() {
                return Ok(names);
            }
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let applied = applied(&transaction)?;
            for (version, migration) in migrations::pending(migrations::SQLITE, applied) {
                transaction.execute_batch(migration.sql)?;
                note(&transaction, version, migration)?;
                names.push(migration.name);
            }
            transaction.pragma_update(None, "user_version", LEVEL)?;
            transaction.commit()?;
            Ok(names)
        })
        .map_err(|error| self.named(error))
    }

    fn writer(&self) -> Result<Box<dyn StoreWriter>, LedgerError> {
        Ok(Box::new(SqliteWriter::new(self.connect()?)))
    }

    fn claim(&self, _replica: Uuid) -> Result<Hold, LedgerError> {
        Ok(Hold { _lock: Some(self.lock()?) })
    }

    fn beat(&self, _replica: Uuid) -> Result<(), LedgerError> {
        Ok(())
    }

    fn release(&self, _replica: Uuid) -> Result<(), LedgerError> {
        Ok(())
    }

    /// Only one process serves from a file: all others are dead.
    fn reap(&self, replica: Uuid, _dead: Dead) -> Result<u64, LedgerError> {
        self.with(|connection| {
            let changed = connection.execute(
                "UPDATE interceptions SET outcome = ?1, ended_at = ?2
                 WHERE outcome = 'in_progress' AND replica_id IS NOT ?3",
                params![
                    Outcome::Interrupted.as_str(),
                    time_text(Timestamp::now()),
                    replica.to_string()
                ],
            )?;
            Ok(u64::try_from(changed).unwrap_or(u64::MAX))
        })
    }

    fn alive(&self) -> Result<String, LedgerError> {
        match self.lock() {
            Ok(_nobody_serves) => Ok("FALSE".into()),
            Err(LedgerError::Claimed(_)) => Ok("TRUE".into()),
            Err(error) => Err(error),
        }
    }

    fn delete_before(&self, time: Timestamp, limit: u32) -> Result<u64, LedgerError> {
        self.with(|connection| {
            // Found before the transaction, which others wait for, begins.
            let mut find = connection.prepare_cached(FIND_OLD)?;
            let old = find
                .query_map(params![first_id(time).to_string(), time_text(time), limit], |row| {
                    row.get::<_, String>(0)
                })?;
            let old = old.collect::<Result<Vec<_>, _>>()?;
            if old.is_empty() {
                return Ok(0);
            }
            let mut delete = connection.prepare_cached(
                "DELETE FROM interceptions WHERE id IN (SELECT value FROM json_each(?1))
                 AND outcome <> 'in_progress'",
            )?;
            let deleted = delete.execute([serde_json::json!(old).to_string()])?;
            Ok(u64::try_from(deleted).unwrap_or(u64::MAX))
        })
    }
}

impl From<rusqlite::Error> for LedgerError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::ConstraintViolation | ErrorCode::TooBig | ErrorCode::TypeMismatch) => {
                Self::Conflict(error.to_string())
            }
            _ => Self::Database(error.to_string()),
        }
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        match self {
            Self::Text(text) => text.to_sql(),
            Self::Id(id) => Ok(text(id.map(|id| id.to_string()))),
            Self::Time(time) => Ok(text(time.map(time_text))),
            Self::Bytes(bytes) => bytes.to_sql(),
        }
    }
}

fn text(text: Option<String>) -> ToSqlOutput<'static> {
    ToSqlOutput::Owned(text.map_or(types::Value::Null, types::Value::Text))
}

struct SqliteCells<'a, 'b> {
    row: &'a Row<'b>,
    next: usize,
}

impl SqliteCells<'_, '_> {
    fn take<T: FromSql>(&mut self) -> Result<Option<T>, LedgerError> {
        let cell = self.row.get(self.next).map_err(|error| LedgerError::Row(error.to_string()))?;
        self.next += 1;
        Ok(cell)
    }

    fn parsed<T: std::str::FromStr>(&mut self) -> Result<Option<T>, LedgerError>
    where
        T::Err: std::fmt::Display,
    {
        let text: Option<String> = self.take()?;
        text.map(|text| {
            text.parse().map_err(|error: T::Err| LedgerError::Row(format!("`{text}`: {error}")))
        })
        .transpose()
    }
}

impl Cells for SqliteCells<'_, '_> {
    fn text(&mut self) -> Result<Option<String>, LedgerError> {
        self.take()
    }

    fn id(&mut self) -> Result<Option<Uuid>, LedgerError> {
        self.parsed()
    }

    fn time(&mut self) -> Result<Option<Timestamp>, LedgerError> {
        self.parsed()
    }

    fn integer(&mut self) -> Result<Option<i64>, LedgerError> {
        self.take()
    }

    fn boolean(&mut self) -> Result<Option<bool>, LedgerError> {
        self.take()
    }

    fn bytes(&mut self) -> Result<Option<Vec<u8>>, LedgerError> {
        self.take()
    }
}

#[cfg(test)]
mod tests;
