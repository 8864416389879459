//! The store in one SQLite file: WAL mode, full durability, two writing connections, connections of
//! readers, and general ones.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
    thread,
    time::Duration,
};

use jiff::Timestamp;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, Row, ToSql, Transaction, TransactionBehavior, params,
    types::{self, FromSql, ToSqlOutput},
};
use tokio::time::Instant;
use uuid::Uuid;

use self::write::SqliteWriter;
use crate::{
    LedgerError,
    record::time_text,
    store::read_limit::ReadLimit,
    store::{
        BUSY_TIMEOUT, Dead, Hold, IndexStep, Store, WriterConnection,
        migrations::{self, Migration, SQLITE_LEVEL},
        retention_run::RetentionRun,
        sql::{Cells, Database, Flavour, Value},
    },
};

mod batch;
mod file;
mod retention;
pub(crate) mod search_index;
mod write;

/// Maximum number of idle connections of each kind.
const MAX_IDLE: usize = 4;
/// Instructions of SQLite's virtual machine between two checks of a read's limit: a fraction of a
/// millisecond.
const LIMIT_CHECK_INTERVAL: i32 = 1_000;
/// After a statement that took this long the reader runs the checkpoint that it delayed.
const LONG_STATEMENT: Duration = Duration::from_millis(50);
/// When the WAL exceeds this size, new reads wait until it is restarted.
const MAX_WAL_BYTES: u64 = 64 * 1024 * 1024;
/// How long a restart of the WAL may block writers.
const RESTART_TIMEOUT: Duration = Duration::from_millis(20);
/// Page cache of a connection in KiB. Writes go to the end of a few B-trees; other pages are in the
/// kernel's cache, which does not count as memory of this process.
const CACHE_KIB: i64 = 640;

/// The condition of living processes while one serves from the store.
pub(crate) const IS_SERVED: &str = "TRUE";

/// A store in a file.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    path: PathBuf,
    readers: Connections,
    /// For everything except reading and writing records.
    general: Connections,
    /// Of the only thread that indexes.
    indexing: Mutex<Option<Connection>>,
    /// Shared by the statements of readers, exclusive while the WAL is restarted.
    wal_gate: RwLock<()>,
}

/// Connections to a file: one is opened when none is idle, so that no caller waits for another.
#[derive(Debug)]
struct Connections {
    path: PathBuf,
    access: Access,
    idle: Mutex<Vec<Connection>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadOnly,
    ReadWrite,
}

impl Connections {
    fn new(path: &Path, access: Access) -> Self {
        Self { path: path.to_owned(), access, idle: Mutex::default() }
    }

    fn connect(&self) -> Result<Connection, LedgerError> {
        file::create_private(&self.path);
        let connection = Connection::open(&self.path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.pragma_update(None, "query_only", self.access == Access::ReadOnly)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(connection)
    }

    /// Runs a closure on an idle connection, or on a new one.
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
        // A connection may be broken after an error: close it.
        if result.is_ok() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < MAX_IDLE {
                idle.push(connection);
            }
        }
        result
    }
}

impl SqliteStore {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            readers: Connections::new(path, Access::ReadOnly),
            general: Connections::new(path, Access::ReadWrite),
            indexing: Mutex::default(),
            wal_gate: RwLock::default(),
        }
    }

    /// Copies the WAL into the database after a statement that delayed this. Otherwise the writer would do
    /// it with its next commit, for which model requests wait. While reads overlap without a gap, the WAL
    /// grows without bound: above `MAX_WAL_BYTES`, new reads wait until it is restarted.
    fn checkpoint(&self) -> Result<(), LedgerError> {
        self.general.with(|connection| {
            let run = |sql: &str| connection.query_row(sql, [], |_row| Ok(()));
            run("PRAGMA wal_checkpoint(PASSIVE)")?;
            let wal = file::beside(&file::resolve(&self.path), "-wal");
            if wal.metadata().is_ok_and(|wal| wal.len() > MAX_WAL_BYTES) {
                let _exclusive = self.wal_gate.write().unwrap_or_else(PoisonError::into_inner);
                run("PRAGMA wal_checkpoint(PASSIVE)")?;
                connection.busy_timeout(RESTART_TIMEOUT)?;
                let restarted = run("PRAGMA wal_checkpoint(RESTART)");
                connection.busy_timeout(BUSY_TIMEOUT)?;
                restarted?;
            }
            Ok(())
        })
    }

    /// Adds the path of the store, and a hint, to an error at its opening.
    fn open_error(&self, error: LedgerError) -> LedgerError {
        let LedgerError::Database(mut reason) = error else { return error };
        if reason.contains("readonly") {
            reason.push_str("; keybridge needs write permission for the file and its directory");
        }
        LedgerError::Open { store: self.path.display().to_string(), reason }
    }

    /// Locks the file for this process. The lock stands beside the file itself, whatever symbolic links
    /// lead to it.
    fn lock(&self) -> Result<File, LedgerError> {
        let path = file::beside(&file::resolve(&self.path), "-lock");
        let failed =
            |reason: String| LedgerError::Open { store: path.display().to_string(), reason };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(file::PRIVATE)
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

    /// Refuses a file with several names: a process that uses another one would neither find the lock
    /// nor the write-ahead log.
    fn check_names(&self) -> Result<(), LedgerError> {
        let links = fs::metadata(&self.path).map_or(1, |file| file.nlink());
        if links > 1 {
            return Err(LedgerError::HardLinks { store: self.path.display().to_string(), links });
        }
        Ok(())
    }
}

/// Checks that an existing file can be written, or that it does not exist. SQLite itself must open it:
/// closing another descriptor of the file would release the locks of this process's connections.
pub(crate) fn check_writable(path: &Path) -> Result<(), LedgerError> {
    if !path.exists() {
        return Ok(());
    }
    let failed =
        |reason: String| LedgerError::ReadOnly { store: path.display().to_string(), reason };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection =
        Connection::open_with_flags(path, flags).map_err(|error| failed(error.to_string()))?;
    match connection.is_readonly(rusqlite::MAIN_DB) {
        Ok(false) => Ok(()),
        Ok(true) => Err(failed("permission denied, or a read-only file system".into())),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// The number of applied migrations. The first release, with one migration, kept no list of them.
fn applied(connection: &Connection) -> Result<i64, LedgerError> {
    let level: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    migrations::check_level(level, SQLITE_LEVEL)?;
    let has_list = connection
        .prepare("SELECT 1 FROM sqlite_schema WHERE name = 'schema_migrations'")?
        .exists([])?;
    if !has_list {
        return Ok(level.min(1));
    }
    let sql = "SELECT coalesce(max(version), 0) FROM schema_migrations";
    Ok(connection.query_row(sql, [], |row| row.get(0))?)
}

fn record_migration(
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

/// Runs a statement and calls `each` with its rows.
fn run(
    connection: &Connection,
    sql: &str,
    values: &[Value],
    each: &mut dyn FnMut(&mut dyn Cells) -> Result<(), LedgerError>,
) -> Result<(), LedgerError> {
    // SQLite takes `$1` for a named parameter, and numbers these in the order of their first use.
    let mut statement = connection.prepare_cached(&sql.replace('$', "?"))?;
    let mut rows = statement.query(rusqlite::params_from_iter(values))?;
    while let Some(row) = rows.next()? {
        each(&mut SqliteCells { row, next: 0 })?;
    }
    Ok(())
}

/// These statements use an index, or count tables for the command line: they need no timeout.
impl Database for Connections {
    fn flavour(&self) -> Flavour {
        Flavour::Sqlite
    }

    fn run(
        &self,
        _timeout: Duration,
        sql: &str,
        values: &[Value],
        each: &mut dyn FnMut(&mut dyn Cells) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        self.with(|connection| run(connection, sql, values, each))
    }
}

impl Database for SqliteStore {
    fn flavour(&self) -> Flavour {
        Flavour::Sqlite
    }

    fn run(
        &self,
        timeout: Duration,
        sql: &str,
        values: &[Value],
        each: &mut dyn FnMut(&mut dyn Cells) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        self.general.run(timeout, sql, values, each)
    }
}

/// The statements of one transaction.
#[derive(Debug)]
struct InTransaction<'a>(Mutex<&'a mut Connection>);

impl Database for InTransaction<'_> {
    fn flavour(&self) -> Flavour {
        Flavour::Sqlite
    }

    fn run(
        &self,
        _timeout: Duration,
        sql: &str,
        values: &[Value],
        each: &mut dyn FnMut(&mut dyn Cells) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        run(&self.0.lock().unwrap_or_else(PoisonError::into_inner), sql, values, each)
    }
}

/// The connection of one read; its statements are interrupted when its limit is reached.
#[derive(Debug)]
struct SqliteReader<'a> {
    store: &'a SqliteStore,
    limit: ReadLimit,
}

impl SqliteReader<'_> {
    /// Runs a statement to its end, or until the limit is reached.
    fn run_within_limit(
        &self,
        sql: &str,
        values: &[Value],
        each: &mut dyn FnMut(&mut dyn Cells) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        let _shared = self.store.wal_gate.read().unwrap_or_else(PoisonError::into_inner);
        // Short statements end before the progress handler checks the limit.
        if let Some(error) = self.limit.error() {
            return Err(error);
        }
        self.store.readers.with(|connection| {
            let limit = self.limit.clone();
            let interrupts = move || limit.error().is_some();
            connection.progress_handler(LIMIT_CHECK_INTERVAL, Some(interrupts))?;
            let result = run(connection, sql, values, each);
            connection.progress_handler(0, None::<fn() -> bool>)?;
            result.map_err(|error| self.limit.error().unwrap_or(error))
        })
    }
}

impl Database for SqliteReader<'_> {
    fn flavour(&self) -> Flavour {
        Flavour::Sqlite
    }

    fn run(
        &self,
        _timeout: Duration,
        sql: &str,
        values: &[Value],
        each: &mut dyn FnMut(&mut dyn Cells) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        let started = Instant::now();
        let result = self.run_within_limit(sql, values, each);
        if started.elapsed() >= LONG_STATEMENT
            && let Err(error) = self.store.checkpoint()
        {
            tracing::debug!(%error, "the checkpoint after a read failed");
        }
        result
    }
}

impl Store for SqliteStore {
    fn authentication(&self) -> &dyn Database {
        &self.general
    }

    fn health(&self) -> &dyn Database {
        &self.general
    }

    fn reader(&self, limit: ReadLimit) -> Box<dyn Database + '_> {
        Box::new(SqliteReader { store: self, limit })
    }

    /// Reads run in this process: they use at most half of the cores.
    fn concurrent_reads(&self, allowed: usize) -> usize {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        allowed.min((cores / 2).max(1))
    }

    fn pending(&self) -> Result<Vec<&'static str>, LedgerError> {
        let applied = if self.path.exists() {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            Connection::open_with_flags(&self.path, flags)
                .map_err(LedgerError::from)
                .and_then(|connection| applied(&connection))
                .map_err(|error| self.open_error(error))?
        } else {
            0
        };
        Ok(migrations::pending(migrations::SQLITE, applied)
            .map(|(_, migration)| migration.name)
            .collect())
    }

    fn migrate(&self) -> Result<Vec<&'static str>, LedgerError> {
        self.general
            .with(|connection| {
                let mut names = Vec::new();
                // Usually nothing is pending, and then a store on a full disk can still be opened.
                if migrations::pending(migrations::SQLITE, applied(connection)?).next().is_none() {
                    return Ok(names);
                }
                let transaction =
                    connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
                let applied = applied(&transaction)?;
                for (version, migration) in migrations::pending(migrations::SQLITE, applied) {
                    transaction.execute_batch(migration.sql)?;
                    record_migration(&transaction, version, migration)?;
                    names.push(migration.name);
                }
                transaction.pragma_update(None, "user_version", SQLITE_LEVEL)?;
                transaction.commit()?;
                Ok(names)
            })
            .map_err(|error| self.open_error(error))
    }

    fn writer(&self, commit_timeout: Duration) -> Result<Box<dyn WriterConnection>, LedgerError> {
        Ok(Box::new(SqliteWriter::new(self.general.connect()?, commit_timeout)))
    }

    fn claim(&self, _replica: Uuid) -> Result<Hold, LedgerError> {
        self.check_names()?;
        let lock = self.lock()?;
        file::make_private(&self.path);
        Ok(Hold { _lock: Some(lock) })
    }

    fn beat(&self, _replica: Uuid) -> Result<(), LedgerError> {
        Ok(())
    }

    fn release(&self, _replica: Uuid) -> Result<(), LedgerError> {
        Ok(())
    }

    /// Only one process serves from a file, so that all others are dead.
    fn reap_condition(&self, _dead: Dead) -> String {
        "i.replica_id IS NOT $1".into()
    }

    fn transaction(
        &self,
        work: &mut dyn FnMut(&dyn Database) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        self.general.with(|connection| {
            // After an error the connection is closed, which rolls back.
            connection.execute_batch("BEGIN IMMEDIATE")?;
            work(&InTransaction(Mutex::new(&mut *connection)))?;
            Ok(connection.execute_batch("COMMIT")?)
        })
    }

    fn alive_condition(&self) -> Result<String, LedgerError> {
        match self.lock() {
            Ok(_unlocked) => Ok("FALSE".into()),
            Err(LedgerError::Claimed(_)) => Ok(IS_SERVED.into()),
            Err(error) => Err(error),
        }
    }

    fn index_backlog(&self) -> Result<u64, LedgerError> {
        self.general.with(|connection| search_index::backlog(connection))
    }

    fn index_step(&self) -> Result<IndexStep, LedgerError> {
        let mut indexing = self.indexing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connection = match indexing.take() {
            Some(connection) => connection,
            None => {
                let connection = self.general.connect()?;
                // A step that is lost with the machine is done again; the next commit of a record syncs it.
                connection.pragma_update(None, "synchronous", "NORMAL")?;
                connection
            }
        };
        let step = search_index::step(&mut connection)?;
        *indexing = Some(connection);
        Ok(step)
    }

    fn location(&self) -> String {
        format!("sqlite://{}", file::resolve(&self.path).display())
    }

    fn delete_before(&self, run: &mut RetentionRun, limit: u32) -> Result<u64, LedgerError> {
        self.general.with(|connection| retention::delete_before(connection, run, limit))
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
            Self::Integer(integer) => integer.to_sql(),
            Self::Boolean(boolean) => boolean.to_sql(),
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
