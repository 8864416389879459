//! A store behind one handle: users, tokens, reading, and the recorder.

use std::{
    fmt,
    fs::File,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    InterceptionDetail, InterceptionFilter, InterceptionItem, LedgerError, Page, Recorder, Session,
    SessionFilter,
    record::{Role, Token, User, UserStatus},
    sqlite::SqliteStore,
    store::Store,
    token::{BridgeToken, hex},
    writer,
};

/// Interceptions deleted in one transaction, so that writers wait a moment at most.
const RETENTION_BATCH: u32 = 500;
const SERVER_SECRET: &str = "server_secret";

/// A user to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUser {
    /// Unique name.
    pub name: String,
    /// Mail address.
    pub email: Option<String>,
    /// What they may do.
    pub role: Role,
}

/// The right of one process to serve from a store; given back when dropped.
#[derive(Debug)]
pub struct Claim {
    /// How many records of a dead process were marked as interrupted.
    pub interrupted: u64,
    pub(crate) _lock: File,
}

/// A store of records; clones share it. All calls but the recorder's block.
#[derive(Clone)]
pub struct Ledger {
    store: Arc<dyn Store>,
    recorder: Recorder,
    writer: Arc<Mutex<Option<Running>>>,
}

/// The writer thread and the way to it.
type Running = (writer::Queue, JoinHandle<()>);

impl Ledger {
    /// Opens a store, making it and bringing its schema up to date where needed.
    ///
    /// # Errors
    ///
    /// When the address is not understood or the store cannot be used.
    pub fn open(url: &str) -> Result<Self, LedgerError> {
        let path = url.strip_prefix("sqlite://").filter(|path| !path.is_empty());
        let path = path.ok_or_else(|| LedgerError::Url(without_password(url)))?;
        Self::with_store(Arc::new(SqliteStore::open(path.as_ref())?))
    }

    /// A ledger over a given store; its writer thread is started.
    ///
    /// # Errors
    ///
    /// When the store gives no connection for the writer.
    pub fn with_store(store: Arc<dyn Store>) -> Result<Self, LedgerError> {
        let (queue, handle) = writer::start(&store)?;
        let recorder = Recorder::new(queue.clone());
        Ok(Self { store, recorder, writer: Arc::new(Mutex::new(Some((queue, handle)))) })
    }

    /// Takes the store for this process; marks what a dead one left `in_progress` as interrupted.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Claimed`] while another process serves from it.
    pub fn claim(&self) -> Result<Claim, LedgerError> {
        self.store.claim()
    }

    /// Whether the store answers and the recorder has room.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn ready(&self) -> Result<(), LedgerError> {
        self.store.ping()?;
        if self.recorder.is_ready() {
            Ok(())
        } else {
            Err(LedgerError::Database("records wait to be written".into()))
        }
    }

    /// The random secret of this store, made once.
    ///
    /// # Errors
    ///
    /// When the store fails or there is no randomness.
    pub fn server_secret(&self) -> Result<[u8; 32], LedgerError> {
        let mut initial = [0; 32];
        SystemRandom::new()
            .fill(&mut initial)
            .map_err(|_unspecified| LedgerError::Database("no random bytes".into()))?;
        let stored = self.store.setting(SERVER_SECRET, &initial)?;
        <[u8; 32]>::try_from(stored)
            .map_err(|stored| LedgerError::Row(format!("a secret of {} bytes", stored.len())))
    }

    /// Makes a user.
    ///
    /// # Errors
    ///
    /// When the name is taken, or is not 1 to 64 letters, digits, `.`, `_`, `-` or `@`.
    pub fn create_user(&self, user: &NewUser) -> Result<User, LedgerError> {
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
        let length = user.name.chars().count();
        if !(1..=64).contains(&length) || !user.name.chars().all(is_name) {
            return Err(LedgerError::Conflict(
                "a user's name has 1 to 64 letters, digits, `.`, `_`, `-` or `@`".into(),
            ));
        }
        self.store.create_user(user)
    }

    /// All users by name.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn users(&self) -> Result<Vec<User>, LedgerError> {
        self.store.users()
    }

    /// The user of a name.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NotFound`] when there is none.
    pub fn user(&self, name: &str) -> Result<User, LedgerError> {
        let found = self.store.users()?.into_iter().find(|user| user.name == name);
        found.ok_or_else(|| LedgerError::NotFound(format!("there is no user `{name}`")))
    }

    /// Whether anybody can use this bridge yet.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn has_users(&self) -> Result<bool, LedgerError> {
        Ok(!self.store.users()?.is_empty())
    }

    /// Suspends or resumes a user.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NotFound`] when there is none of that name.
    pub fn set_user_status(&self, name: &str, status: UserStatus) -> Result<User, LedgerError> {
        self.store.set_user_status(name, status)
    }

    /// Makes a token for a user; its text is only known now.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NotFound`] when there is no such user.
    pub fn create_token(
        &self,
        user: &str,
        name: Option<&str>,
        expires_at: Option<Timestamp>,
    ) -> Result<(Token, BridgeToken), LedgerError> {
        let user = self.user(user)?;
        let secret =
            BridgeToken::generate().map_err(|error| LedgerError::Database(error.to_string()))?;
        let token = Token {
            id: Uuid::now_v7(),
            user_id: user.id,
            name: name.map(Into::into),
            token_hash: hex(&secret.hash()),
            hint: secret.hint(),
            created_at: Timestamp::now(),
            expires_at,
            last_used_at: None,
            revoked_at: None,
        };
        self.store.insert_token(&token)?;
        Ok((token, secret))
    }

    /// Tokens of a user or of all.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NotFound`] when there is no such user.
    pub fn tokens(&self, user: Option<&str>) -> Result<Vec<Token>, LedgerError> {
        let user_id = user.map(|name| self.user(name)).transpose()?.map(|user| user.id);
        self.store.tokens(user_id)
    }

    /// Revokes a token.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NotFound`] when there is none of that id.
    pub fn revoke_token(&self, id: Uuid) -> Result<Token, LedgerError> {
        self.store.revoke_token(id)
    }

    /// The token of a hash, and its user.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn find_token(&self, hash: &[u8; 32]) -> Result<Option<(Token, User)>, LedgerError> {
        self.store.find_token(&hex(hash))
    }

    /// A page of interceptions, newest first.
    ///
    /// # Errors
    ///
    /// When the store fails or the cursor is not valid.
    pub fn interceptions(
        &self,
        filter: &InterceptionFilter,
    ) -> Result<Page<InterceptionItem>, LedgerError> {
        self.store.interceptions(filter)
    }

    /// One interception with all that belongs to it.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn interception(&self, id: Uuid) -> Result<Option<InterceptionDetail>, LedgerError> {
        self.store.interception(id)
    }

    /// A page of sessions, latest activity first.
    ///
    /// # Errors
    ///
    /// When the store fails or the cursor is not valid.
    pub fn sessions(&self, filter: &SessionFilter) -> Result<Page<Session>, LedgerError> {
        self.store.sessions(filter)
    }

    /// Deletes what began before a time, in small transactions; what is in progress stays.
    ///
    /// # Errors
    ///
    /// When the store fails; what was deleted until then stays deleted.
    pub fn apply_retention(&self, older_than: Timestamp) -> Result<u64, LedgerError> {
        let mut total = 0;
        loop {
            let deleted = self.store.delete_before(older_than, RETENTION_BATCH)?;
            total += deleted;
            if deleted < u64::from(RETENTION_BATCH) {
                return Ok(total);
            }
        }
    }

    /// The recorder of this ledger.
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Writes what waits and ends the writer thread; later records are lost.
    pub fn close(&self) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((queue, handle)) = writer {
            queue.stop();
            if handle.join().is_err() {
                tracing::error!("the ledger's writer panicked");
            }
        }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}

/// An address as it may be shown: without what stands before `@`.
fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
        _ => url.to_owned(),
    }
}
