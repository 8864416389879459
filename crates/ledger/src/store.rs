//! What a database must do for the ledger, and what other crates may ask of it.
//!
//! The store owns connections, migrations and what differs between SQLite and PostgreSQL. A crate
//! that keeps tables of its own in it, such as the users, has them created by the migrations here
//! and runs its statements through [`Database`], which [`crate::Ledger::database`] gives out.

use std::{fs::File, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::read_limit::ReadLimit;
use crate::record::{NewTokenUsage, Opening, Settlement};

mod interceptions;
pub(crate) mod migrations;
pub(crate) mod postgres;
pub(crate) mod read_limit;
pub(crate) mod settings;
pub(crate) mod sql;
pub(crate) mod sqlite;

pub use self::sql::{
    Cells, Database, Flavour, FromRow, Value, all, execute, first, required, word,
};

/// Why a call of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The address of the store is not understood.
    #[error("the store `{url}` is not supported: {reason}")]
    Url {
        /// The address, without a password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store cannot be opened.
    #[error("the store `{store}` cannot be opened: {reason}")]
    Open {
        /// The file, or the address without a password.
        store: String,
        /// What the system says.
        reason: String,
    },
    /// There is no store at this address yet.
    #[error("no store at {url}")]
    NoStore {
        /// The address, without a password.
        url: String,
    },
    /// The store was written by an earlier release.
    #[error("the schema of the store at {url} is out of date: {} not applied", .pending.join(", "))]
    OutOfDate {
        /// The address, without a password.
        url: String,
        /// The migrations that it lacks, by name.
        pending: Vec<&'static str>,
    },
    /// The store was written by a later release.
    #[error(
        "the store has schema level {found}, this release knows {known}: use a later release of keybridge"
    )]
    Newer {
        /// The store's level.
        found: u32,
        /// This release's.
        known: u32,
    },
    /// Another process serves from this store.
    #[error("another keybridge serves from the store `{0}`; several need PostgreSQL")]
    Claimed(String),
    /// A row violates a constraint of the schema.
    #[error("{0}")]
    Conflict(String),
    /// A cursor that this ledger did not give out.
    #[error("the cursor is not valid")]
    Cursor,
    /// A row cannot be read.
    #[error("the store holds a row that cannot be read: {0}")]
    Row(String),
    /// The database failed; trying again may help.
    #[error("the store failed: {0}")]
    Database(String),
    /// A read took longer than a read may.
    #[error(
        "the read took longer than {} and was ended; ask for less, for example with a later `since`",
        seconds(*.0)
    )]
    ReadTimeout(Duration),
    /// All readers were busy for as long as a read may wait for one.
    #[error("all readers were busy for {}; try again later", seconds(*.0))]
    ReadersBusy(Duration),
    /// The read was cancelled because the ledger is closing.
    #[error("keybridge is shutting down")]
    Closing,
    /// No records are taken at present.
    #[error("the ledger takes no records: {0}")]
    Refusing(String),
    /// The spool cannot be read or written.
    #[error("the spool failed: {0}")]
    Spool(String),
}

/// A limit as people write it: `5 s`.
fn seconds(limit: Duration) -> String {
    format!("{} s", limit.as_secs_f64())
}

impl LedgerError {
    pub(crate) fn no_answer(limit: Duration) -> Self {
        Self::Database(format!("no answer within {}", seconds(limit)))
    }

    /// Whether one record is at fault, so that others can still be written.
    pub(crate) const fn is_about_one_record(&self) -> bool {
        matches!(self, Self::Conflict(_) | Self::Row(_))
    }
}

/// How long a store may be busy with another process before it counts as failed.
pub(crate) const BUSY: Duration = Duration::from_secs(5);
/// How often a process that serves says that it lives.
pub(crate) const BEAT: Duration = Duration::from_secs(3);
/// After so long without a sign a process counts as dead.
pub(crate) const DEAD_AFTER: Duration = Duration::from_secs(15);

/// Whose open records count as left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dead {
    /// Processes that have ended in order.
    Ended,
    /// Those too that have given no sign for [`DEAD_AFTER`].
    Silent,
}

/// What a process holds while it serves from a store; given back when dropped.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    /// Of the file that only one process may serve from.
    pub(crate) _lock: Option<File>,
}

/// A database of records. Calls block.
///
/// Connections are kept apart by what they are for, so that no call waits for one of another kind. The
/// store's own statements are those of administration and of counting whole tables.
pub(crate) trait Store: Database {
    /// For what a model request waits for: its token, and what earlier answers left for it.
    fn authentication(&self) -> &dyn Database;

    /// For health checks, which end soon with or without an answer.
    fn health(&self) -> &dyn Database;

    /// For one read of the records, which ends when its limit is reached.
    fn reader(&self, limit: ReadLimit) -> Box<dyn Database + '_>;

    /// How many reads may run at the same time where the configuration allows `allowed`.
    fn concurrent_reads(&self, allowed: usize) -> usize {
        allowed
    }

    /// The names of the migrations that the store lacks; nothing is changed or made.
    fn pending(&self) -> Result<Vec<&'static str>, LedgerError>;

    /// Brings the schema up to date and gives the names of what it lacked; others that do the same
    /// wait.
    fn migrate(&self) -> Result<Vec<&'static str>, LedgerError>;

    /// A connection for a thread that writes.
    fn writer(&self) -> Result<Box<dyn StoreWriter>, LedgerError>;

    /// Takes the right to serve from this store; [`LedgerError::Claimed`] while another process
    /// has it, where only one can.
    fn claim(&self, replica: Uuid) -> Result<Hold, LedgerError>;

    /// Says that a process lives.
    fn beat(&self, replica: Uuid) -> Result<(), LedgerError>;

    /// Forgets a process that ends.
    fn release(&self, replica: Uuid) -> Result<(), LedgerError>;

    /// Marks what dead processes left `in_progress` as interrupted, and tells how much it was.
    fn reap(&self, replica: Uuid, dead: Dead) -> Result<u64, LedgerError>;

    /// The condition under which an interception `i` in progress belongs to a process that lives.
    fn alive(&self) -> Result<String, LedgerError>;

    /// Work that comes back, such as making the partitions of the next months.
    fn maintain(&self) -> Result<(), LedgerError> {
        Ok(())
    }

    /// Deletes what began before a time where much of it can be dropped at once, and gives the number
    /// of interceptions; those in progress stay.
    fn drop_before(&self, _time: Timestamp) -> Result<u64, LedgerError> {
        Ok(0)
    }

    /// Deletes at most `limit` interceptions that began before a time, with all that belongs to
    /// them, and gives their number; those in progress stay. An id carries the time of its request, so
    /// none beyond that time is looked at.
    fn delete_before(&self, time: Timestamp, limit: u32) -> Result<u64, LedgerError>;

    /// Announces to all processes that a user or a token was changed.
    fn announce_access_change(&self) -> Result<(), LedgerError> {
        Ok(())
    }

    /// Calls back whenever a process announces such a change.
    fn on_access_change(&self, _call: Box<dyn Fn() + Send + Sync>) {}
}

/// One thing to write. Any of them may be written again: what is there already stays.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Write {
    /// A record is opened by a replica.
    Open(Uuid, Box<Opening>),
    /// What is known of the tokens of an open record so far; its settlement replaces it.
    Note(Uuid, Box<NewTokenUsage>),
    /// An open record is settled.
    Settle(Uuid, Box<Settlement>),
    /// What later requests of a user need of a record's answer, by the hashes of their keys.
    Keep(Uuid, Uuid, Vec<(String, String)>),
    /// A record is written with its settlement.
    Record(Box<Opening>, Box<Settlement>),
    /// Nothing: its answer says that all before it is durable.
    Nothing,
}

/// About how many bytes an upstream attempt takes.
const ATTEMPT_WEIGHT: usize = 200;

impl Write {
    /// About how many bytes it takes to hand it to a store.
    pub(crate) fn weight(&self) -> usize {
        let opened = |opening: &Opening| opening.prompt.as_ref().map_or(0, String::len);
        let settled = |settlement: &Settlement| {
            let tools = settlement.tool_usages.iter().flat_map(|tool| &tool.arguments);
            let thoughts = settlement.thoughts.iter().map(|thought| &thought.content);
            let attempts = settlement.upstream_attempts.len() * ATTEMPT_WEIGHT;
            tools.chain(thoughts).map(String::len).sum::<usize>() + attempts
        };
        match self {
            Self::Open(_, opening) => opened(opening),
            Self::Settle(_, settlement) => settled(settlement),
            Self::Record(opening, settlement) => opened(opening) + settled(settlement),
            Self::Keep(_, _, kept) => kept.iter().map(|(_, value)| value.len()).sum(),
            Self::Note(..) | Self::Nothing => 0,
        }
    }
}

/// What a commit found out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Receipt {
    /// The thread of an opened record.
    pub thread_id: Option<Uuid>,
}

/// The writing end of a store.
pub(crate) trait StoreWriter: Send {
    /// Commits a batch in one transaction. The outer error concerns all of it, and then it is not
    /// known what was written; an inner one concerns that record alone. Whatever is in the store
    /// already stays as it is.
    fn commit(&mut self, batch: &[Write])
    -> Result<Vec<Result<Receipt, LedgerError>>, LedgerError>;

    /// Shows that the store can be written, by writing.
    fn probe(&mut self) -> Result<(), LedgerError>;
}
