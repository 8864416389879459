//! The store in one SQLite file: WAL, full durability, one writing connection and a few readers.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, TransactionBehavior, params};
use uuid::Uuid;

use self::{rows::FromRow, write::SqliteWriter};
use crate::{
    Claim, InterceptionDetail, InterceptionFilter, InterceptionItem, LedgerError, NewUser, Page,
    Session, SessionFilter,
    record::{Outcome, Token, User, UserStatus, time_text},
    store::{BUSY, Store, StoreWriter},
};

mod read;
mod rows;
mod write;

/// Idle reading connections that are kept.
const READERS: usize = 4;

/// The migrations, in order; the schema's version is their number.
const MIGRATIONS: [&str; 1] = [include_str!("../migrations/sqlite/0001_records.sql")];

/// A store in a file.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl SqliteStore {
    pub(crate) fn open(path: &Path) -> Result<Self, LedgerError> {
        let store = Self { path: path.to_owned(), idle: Mutex::new(Vec::new()) };
        store.migrate().map_err(|error| match error {
            LedgerError::Database(reason) => {
                LedgerError::Open { path: path.display().to_string(), reason }
            }
            other => other,
        })?;
        Ok(store)
    }

    fn connect(&self) -> Result<Connection, LedgerError> {
        let connection = Connection::open(&self.path)?;
        connection.busy_timeout(BUSY)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(connection)
    }

    /// Brings the schema up to date; two processes at once wait for each other.
    fn migrate(&self) -> Result<(), LedgerError> {
        let mut connection = self.connect()?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found: u32 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
        if found > known {
            return Err(LedgerError::Newer { found, known });
        }
        let done = usize::try_from(found).unwrap_or(usize::MAX);
        for migration in MIGRATIONS.iter().skip(done) {
            transaction.execute_batch(migration)?;
        }
        transaction.pragma_update(None, "user_version", known)?;
        transaction.commit()?;
        self.give_back(connection);
        Ok(())
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
            |reason: String| LedgerError::Open { path: path.display().to_string(), reason };
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

impl Store for SqliteStore {
    fn writer(&self) -> Result<Box<dyn StoreWriter>, LedgerError> {
        Ok(Box::new(SqliteWriter::new(self.connect()?)))
    }

    fn claim(&self) -> Result<Claim, LedgerError> {
        let lock = self.lock()?;
        let interrupted = self.with(|connection| {
            let changed = connection.execute(
                "UPDATE interceptions SET outcome = ?1, ended_at = ?2 WHERE outcome = ?3",
                params![
                    Outcome::Interrupted.as_str(),
                    time_text(Timestamp::now()),
                    Outcome::InProgress.as_str()
                ],
            )?;
            Ok(u64::try_from(changed).unwrap_or(u64::MAX))
        })?;
        Ok(Claim { interrupted, _lock: lock })
    }

    fn ping(&self) -> Result<(), LedgerError> {
        self.with(|connection| {
            connection.query_row("SELECT count(*) FROM settings", [], |_row| Ok(()))?;
            Ok(())
        })
    }

    fn setting(&self, key: &str, initial: &[u8]) -> Result<Vec<u8>, LedgerError> {
        self.with(|connection| {
            connection.execute(
                "INSERT INTO settings (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO NOTHING",
                params![key, initial],
            )?;
            let read = "SELECT value FROM settings WHERE key = ?1";
            Ok(connection.query_row(read, [key], |row| row.get(0))?)
        })
    }

    fn create_user(&self, user: &NewUser) -> Result<User, LedgerError> {
        let made = User {
            id: Uuid::now_v7(),
            name: user.name.clone(),
            email: user.email.clone(),
            role: user.role,
            status: UserStatus::Active,
            created_at: Timestamp::now(),
        };
        self.with(|connection| {
            let changed = connection.execute(
                "INSERT INTO users (id, name, email, role, status, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (name) DO NOTHING",
                params![
                    made.id.to_string(),
                    made.name,
                    made.email,
                    made.role.as_str(),
                    made.status.as_str(),
                    time_text(made.created_at)
                ],
            )?;
            if changed == 0 {
                return Err(LedgerError::Conflict(format!("the user `{}` exists", made.name)));
            }
            Ok(made.clone())
        })
    }

    fn users(&self) -> Result<Vec<User>, LedgerError> {
        self.with(|connection| {
            let sql = format!("SELECT {} FROM users ORDER BY name", User::COLUMNS);
            rows::all(connection, &sql, [])
        })
    }

    fn set_user_status(&self, name: &str, status: UserStatus) -> Result<User, LedgerError> {
        self.with(|connection| {
            let sql =
                format!("UPDATE users SET status = ?1 WHERE name = ?2 RETURNING {}", User::COLUMNS);
            let changed = rows::first(connection, &sql, [status.as_str(), name])?;
            changed.ok_or_else(|| LedgerError::NotFound(format!("there is no user `{name}`")))
        })
    }

    fn insert_token(&self, token: &Token) -> Result<(), LedgerError> {
        self.with(|connection| {
            connection.execute(
                "INSERT INTO tokens (id, user_id, name, token_hash, hint, created_at, expires_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    token.id.to_string(),
                    token.user_id.to_string(),
                    token.name,
                    token.token_hash,
                    token.hint,
                    time_text(token.created_at),
                    token.expires_at.map(time_text)
                ],
            )?;
            Ok(())
        })
    }

    fn tokens(&self, user_id: Option<Uuid>) -> Result<Vec<Token>, LedgerError> {
        self.with(|connection| {
            let sql = format!(
                "SELECT {} FROM tokens WHERE ?1 IS NULL OR user_id = ?1 ORDER BY id",
                Token::COLUMNS
            );
            rows::all(connection, &sql, [user_id.map(|id| id.to_string())])
        })
    }

    fn revoke_token(&self, id: Uuid) -> Result<Token, LedgerError> {
        self.with(|connection| {
            let sql = format!(
                "UPDATE tokens SET revoked_at = coalesce(revoked_at, ?1) WHERE id = ?2 RETURNING {}",
                Token::COLUMNS
            );
            let values = [time_text(Timestamp::now()), id.to_string()];
            let changed = rows::first(connection, &sql, values)?;
            changed.ok_or_else(|| LedgerError::NotFound(format!("there is no token {id}")))
        })
    }

    fn find_token(&self, hash: &str) -> Result<Option<(Token, User)>, LedgerError> {
        self.with(|connection| {
            let sql = format!("SELECT {} FROM tokens WHERE token_hash = ?1", Token::COLUMNS);
            let Some(token) = rows::first::<Token, _>(connection, &sql, [hash])? else {
                return Ok(None);
            };
            let sql = format!("SELECT {} FROM users WHERE id = ?1", User::COLUMNS);
            let user = rows::first(connection, &sql, [token.user_id.to_string()])?;
            Ok(user.map(|user| (token, user)))
        })
    }

    fn interceptions(
        &self,
        filter: &InterceptionFilter,
    ) -> Result<Page<InterceptionItem>, LedgerError> {
        self.with(|connection| read::interceptions(connection, filter))
    }

    fn interception(&self, id: Uuid) -> Result<Option<InterceptionDetail>, LedgerError> {
        self.with(|connection| read::interception(connection, id))
    }

    fn sessions(&self, filter: &SessionFilter) -> Result<Page<Session>, LedgerError> {
        self.with(|connection| read::sessions(connection, filter))
    }

    fn delete_before(&self, time: Timestamp, limit: u32) -> Result<u64, LedgerError> {
        self.with(|connection| {
            let changed = connection.execute(
                "DELETE FROM interceptions WHERE id IN (SELECT id FROM interceptions
                 WHERE started_at < ?1 AND outcome <> ?2 ORDER BY id LIMIT ?3)",
                params![time_text(time), Outcome::InProgress.as_str(), limit],
            )?;
            Ok(u64::try_from(changed).unwrap_or(u64::MAX))
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
