//! What a database must do for the ledger; SQLite is the first one.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    Claim, InterceptionDetail, InterceptionFilter, InterceptionItem, NewUser, Page, Session,
    SessionFilter,
    record::{Token, User, UserStatus},
    writer::{Receipt, Write},
};

/// Why a store cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The address of the store is not understood.
    #[error("the store `{0}` is not supported: use sqlite://<path>")]
    Url(String),
    /// The store cannot be opened.
    #[error("the store `{path}` cannot be opened: {reason}")]
    Open {
        /// The file.
        path: String,
        /// What the system says.
        reason: String,
    },
    /// The store was written by a later release.
    #[error(
        "the store has schema version {found}, this release knows {known}: use a later release"
    )]
    Newer {
        /// The store's version.
        found: u32,
        /// This release's.
        known: u32,
    },
    /// Another process serves from this store.
    #[error("another keybridge serves from the store `{0}`")]
    Claimed(String),
    /// A name is taken, or a row is not as the schema wants it.
    #[error("{0}")]
    Conflict(String),
    /// There is no such user or token.
    #[error("{0}")]
    NotFound(String),
    /// A cursor that this ledger did not give out.
    #[error("the cursor is not valid")]
    Cursor,
    /// A row cannot be read.
    #[error("the store holds a row that cannot be read: {0}")]
    Row(String),
    /// The database failed; trying again may help.
    #[error("the store failed: {0}")]
    Database(String),
}

impl LedgerError {
    /// Whether one record is at fault, so that others can still be written.
    pub(crate) const fn is_about_one_record(&self) -> bool {
        matches!(self, Self::Conflict(_) | Self::Row(_) | Self::NotFound(_))
    }
}

/// How long a store may be busy with another process before it counts as failed.
pub(crate) const BUSY: Duration = Duration::from_secs(5);

/// A database of records. Calls block.
pub trait Store: Send + Sync + 'static {
    /// A connection for the one writer thread.
    ///
    /// # Errors
    ///
    /// When no connection can be made.
    fn writer(&self) -> Result<Box<dyn StoreWriter>, LedgerError>;
    /// Takes the store for this process and marks what a dead one left behind.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Claimed`] while another process has it.
    fn claim(&self) -> Result<Claim, LedgerError>;
    /// Whether the store answers.
    ///
    /// # Errors
    ///
    /// Why it does not.
    fn ping(&self) -> Result<(), LedgerError>;
    /// The value of a setting, `initial` being stored when there is none.
    ///
    /// # Errors
    ///
    /// When the store fails.
    fn setting(&self, key: &str, initial: &[u8]) -> Result<Vec<u8>, LedgerError>;
    /// Makes a user.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Conflict`] when the name is taken.
    fn create_user(&self, user: &NewUser) -> Result<User, LedgerError>;
    /// All users by name.
    ///
    /// # Errors
    ///
    /// When the store fails.
    fn users(&self) -> Result<Vec<User>, LedgerError>;
    /// Suspends or resumes a user.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NotFound`] when there is none of that name.
    fn set_user_status(&self, name: &str, status: UserStatus) -> Result<User, LedgerError>;
    /// Keeps a token.
    ///
    /// # Errors
    ///
    /// When the store fails.
    fn insert_token(&self, token: &Token) -> Result<(), LedgerError>;
    /// Tokens of one user or of all, oldest first.
    ///
    /// # Errors
    ///
    /// When the store fails.
    fn tokens(&self, user_id: Option<Uuid>) -> Result<Vec<Token>, LedgerError>;
    /// Revokes a token; one that was revoked before keeps its time.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NotFound`] when there is none of that id.
    fn revoke_token(&self, id: Uuid) -> Result<Token, LedgerError>;
    /// The token of a hash in hex, and its user.
    ///
    /// # Errors
    ///
    /// When the store fails.
    fn find_token(&self, hash: &str) -> Result<Option<(Token, User)>, LedgerError>;
    /// A page of interceptions, newest first.
    ///
    /// # Errors
    ///
    /// When the store fails or the cursor is not valid.
    fn interceptions(
        &self,
        filter: &InterceptionFilter,
    ) -> Result<Page<InterceptionItem>, LedgerError>;
    /// One interception with all that belongs to it.
    ///
    /// # Errors
    ///
    /// When the store fails.
    fn interception(&self, id: Uuid) -> Result<Option<InterceptionDetail>, LedgerError>;
    /// A page of sessions, latest activity first.
    ///
    /// # Errors
    ///
    /// When the store fails or the cursor is not valid.
    fn sessions(&self, filter: &SessionFilter) -> Result<Page<Session>, LedgerError>;
    /// Deletes at most `limit` interceptions that began before a time, with all that belongs to
    /// them; those in progress stay.
    ///
    /// # Errors
    ///
    /// When the store fails.
    fn delete_before(&self, time: Timestamp, limit: u32) -> Result<u64, LedgerError>;
}

/// The writing end of a store.
pub trait StoreWriter: Send {
    /// Commits a batch in one transaction. The outer error concerns all of it and nothing was
    /// written; an inner one concerns that record alone.
    ///
    /// # Errors
    ///
    /// When the transaction could not be committed.
    fn commit(&mut self, batch: &[Write])
    -> Result<Vec<Result<Receipt, LedgerError>>, LedgerError>;
}
