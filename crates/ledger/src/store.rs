//! What the ledger requires of a database, and the statements that other crates run on it.
//!
//! The store owns connections, migrations and the differences between SQLite and PostgreSQL. The
//! tables of other crates, such as those of users, are created by the migrations here; these crates
//! run their statements through the [`Database`] of [`crate::Ledger::database`].

use std::{fs::File, thread, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::{read_limit::ReadLimit, retention_run::RetentionRun};
use crate::record::{
    Interception, NewAnswer, NewAttachment, NewThought, NewTokenUsage, NewToolUsage, Opening,
    Outcome, Settlement, objects::ObjectChanges,
};

pub(crate) mod interceptions;
pub(crate) mod migrations;
pub(crate) mod postgres;
pub(crate) mod read_limit;
pub(crate) mod retention_run;
pub(crate) mod rollups;
pub(crate) mod settings;
pub(crate) mod sql;
pub(crate) mod sqlite;
pub(crate) mod trail;

pub use self::sql::{
    Cells, Database, Flavour, FromRow, Value, all, execute, first, required, word,
};

/// Why a call of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The URL of the store is invalid.
    #[error("invalid store URL `{url}`: {reason}")]
    Url {
        /// The URL, without its password.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store cannot be opened.
    #[error("cannot open the store `{store}`: {reason}")]
    Open {
        /// The path of the file, or the URL without its password.
        store: String,
        /// The error of the system.
        reason: String,
    },
    /// The server of the store does not answer, or not yet.
    #[error("cannot open the store `{store}`: {reason}")]
    Unreachable {
        /// The URL without its password.
        store: String,
        /// The error of the system or of the server.
        reason: String,
    },
    /// The store that is back after a start without it is another one.
    #[error(
        "the store at {url} is not the one that the offline cache belongs to; nothing is written to it"
    )]
    OtherStore {
        /// The URL, without its password.
        url: String,
    },
    /// There is no store at this URL yet.
    #[error("no store at {url}")]
    NoStore {
        /// The URL, without its password.
        url: String,
    },
    /// The store has the schema of an earlier release.
    #[error("the store at {url} lacks the migrations {}", .pending.join(", "))]
    OutOfDate {
        /// The URL, without its password.
        url: String,
        /// The names of the migrations that it lacks.
        pending: Vec<&'static str>,
    },
    /// The store has the schema of a later release.
    #[error(
        "the store has schema level {found}, this release supports {known}: use a later release of keybridge"
    )]
    Newer {
        /// The store's level.
        found: u32,
        /// This release's.
        known: u32,
    },
    /// Another process serves from this store.
    #[error("another keybridge process is using the store `{0}`; to run several, use PostgreSQL")]
    Claimed(String),
    /// The file of the store exists and cannot be written.
    #[error("cannot write `{store}`: {reason}")]
    ReadOnly {
        /// The path of the file.
        store: String,
        /// The error of the system.
        reason: String,
    },
    /// The file is known by several names, each of which would have a write-ahead log of its own.
    #[error(
        "the store `{store}` has {links} hard links; remove all but one, because SQLite keeps a write-ahead log for each name"
    )]
    HardLinks {
        /// The path of the file.
        store: String,
        /// The number of its names.
        links: u64,
    },
    /// Retention is not applied because the clock cannot be trusted.
    #[error("the clock cannot be trusted: {0}")]
    ImplausibleClock(String),
    /// What this machine remembers of the store cannot be read or written.
    #[error("cannot use `{path}`: {reason}")]
    Remembered {
        /// The file.
        path: String,
        /// The error of the system.
        reason: String,
    },
    /// Another store is in the place of the one that this machine remembers, or it was emptied.
    #[error("{0}")]
    Replaced(String),
    /// A row violates a constraint of the schema.
    #[error("{0}")]
    Conflict(String),
    /// Usage is grouped so finely that the answer would be too large.
    #[error("there are more than {0} groups; group by less, or narrow the period")]
    TooManyGroups(usize),
    /// A cursor that this ledger did not return.
    #[error("invalid cursor")]
    Cursor,
    /// What is looked for in prompts is no query.
    #[error("invalid `q`: {0}")]
    Query(String),
    /// A row cannot be read.
    #[error("cannot read a row of the store: {0}")]
    Row(String),
    /// The database failed; a retry may succeed.
    #[error("the store failed: {0}")]
    Database(String),
    /// A commit failed, and the reason may lie in what was to be written: it took too long, or the server
    /// could not process it.
    #[error("the commit failed: {0}")]
    Commit(String),
    /// A read took longer than its timeout.
    #[error(
        "the read took longer than {} and was cancelled; narrow it, for example with a later `since`",
        seconds(*.0)
    )]
    ReadTimeout(Duration),
    /// No reader became free within the timeout.
    #[error("no reader became free within {}; try again later", seconds(*.0))]
    ReadersBusy(Duration),
    /// The read was cancelled because the ledger is closing.
    #[error("keybridge is shutting down")]
    Closing,
    /// New records are currently refused.
    #[error("new records are refused: {0}")]
    Refusing(String),
    /// The spool cannot be read or written.
    #[error("the spool failed: {0}")]
    Spool(String),
}

/// A duration in seconds, such as `5 s`.
fn seconds(limit: Duration) -> String {
    format!("{} s", limit.as_secs_f64())
}

impl LedgerError {
    pub(crate) fn no_answer(limit: Duration) -> Self {
        Self::Database(format!("no response within {}", seconds(limit)))
    }

    /// Whether the error concerns one record only, so that others can still be written.
    pub(crate) const fn is_about_one_record(&self) -> bool {
        matches!(self, Self::Conflict(_) | Self::Row(_))
    }

    /// Whether the error may concern what was to be written, so that other writes can be committed.
    pub(crate) const fn may_concern_the_writes(&self) -> bool {
        matches!(self, Self::Commit(_))
    }

    pub(crate) fn slow_commit(limit: Duration) -> Self {
        Self::Commit(format!("it took longer than {}", seconds(limit)))
    }

    pub(crate) fn no_record() -> Self {
        Self::Conflict("its record is not in the store".into())
    }
}

/// How long a commit may take; the caller that opens a record waits a little longer.
pub(crate) const COMMIT_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a statement waits for a store that another connection has locked.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval between the heartbeats of a serving process.
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
/// A process without a heartbeat for this long counts as dead.
pub(crate) const DEAD_AFTER: Duration = Duration::from_secs(15);

/// Which processes count as dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dead {
    /// Those that have shut down.
    Ended,
    /// Also those that have sent no heartbeat for [`DEAD_AFTER`].
    Silent,
}

/// What a step of indexing has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IndexStep {
    /// This number of prompts, or of partitions, was indexed; there may be more.
    Indexed(u64),
    /// Everything is indexed.
    Complete,
}

/// What a process holds while it serves from a store; released when dropped.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    /// The lock of a file that only one process may serve from.
    pub(crate) _lock: Option<File>,
}

/// A database of records. Calls block.
///
/// There are separate connections for each purpose, so that no call waits for one of another purpose.
/// The store's own [`Database`] is for administration and for counting whole tables.
pub(crate) trait Store: Database {
    /// For statements that a model request waits for: its token, and the continuations of earlier
    /// responses.
    fn authentication(&self) -> &dyn Database;

    /// For health checks, which have a short timeout.
    fn health(&self) -> &dyn Database;

    /// For one read, which is cancelled when its limit is reached.
    fn reader(&self, limit: ReadLimit) -> Box<dyn Database + '_>;

    /// How many reads may run concurrently where the configuration allows `allowed`.
    fn concurrent_reads(&self, allowed: usize) -> usize {
        allowed
    }

    /// The names of the migrations that the store lacks; nothing is created or changed.
    fn pending(&self) -> Result<Vec<&'static str>, LedgerError>;

    /// Applies the missing migrations and returns their names; concurrent calls wait for each other.
    fn migrate(&self) -> Result<Vec<&'static str>, LedgerError>;

    /// A connection for a writing thread, whose commits take at most this long.
    fn writer(&self, commit_timeout: Duration) -> Result<Box<dyn WriterConnection>, LedgerError>;

    /// Claims the right to serve from this store; [`LedgerError::Claimed`] when another process has it
    /// and the store supports only one.
    fn claim(&self, replica: Uuid) -> Result<Hold, LedgerError>;

    /// Writes the heartbeat of a process.
    fn beat(&self, replica: Uuid) -> Result<(), LedgerError>;

    /// Removes a process that shuts down.
    fn release(&self, replica: Uuid) -> Result<(), LedgerError>;

    /// The SQL condition under which an interception `i` in progress was left by a dead process; `$1` is
    /// this one.
    fn reap_condition(&self, dead: Dead) -> String;

    /// Forgets the processes that have sent no heartbeat for [`DEAD_AFTER`].
    fn forget_silent(&self) -> Result<(), LedgerError> {
        Ok(())
    }

    /// Runs statements in one transaction, which is rolled back after an error.
    fn transaction(
        &self,
        work: &mut dyn FnMut(&dyn Database) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError>;

    /// Wakes a thread, the sequencer, after each commit of this process that wrote rows of the outbox.
    fn wake_on_commit(&self, _sequencer: thread::Thread) {}

    /// The SQL condition under which an interception `i` in progress belongs to a living process.
    fn alive_condition(&self) -> Result<String, LedgerError>;

    /// Recurring maintenance, such as creating the partitions of the next months.
    fn maintain(&self) -> Result<(), LedgerError> {
        Ok(())
    }

    /// About how many prompts the index of searches lacks, where the store can tell at once.
    fn index_backlog(&self) -> Result<u64, LedgerError> {
        Ok(u64::MAX)
    }

    /// Brings the indexes of searches a small step up to date, where the database does not do so itself.
    fn index_step(&self) -> Result<IndexStep, LedgerError>;

    /// Where the store is, without user and password; the same for every way to name it.
    fn location(&self) -> String;

    /// The time by the clock of the store's server; `None` where that is this machine's.
    fn server_time(&self) -> Result<Option<Timestamp>, LedgerError> {
        Ok(None)
    }

    /// Drops whole partitions of interceptions that started before the cutoff of a run, where the store
    /// has partitions; those with one in progress are kept. Each transaction records what it removes.
    fn drop_before(&self, _run: &mut RetentionRun) -> Result<(), LedgerError> {
        Ok(())
    }

    /// Deletes at most `limit` interceptions that started before the cutoff of a run, with their child
    /// rows, and returns their number; those in progress are kept. The transaction records what it
    /// removes. An id contains the time of its request, so no later ones are read.
    fn delete_before(&self, run: &mut RetentionRun, limit: u32) -> Result<u64, LedgerError>;

    /// Announces to all processes that a user or a token has changed.
    fn announce_access_change(&self) -> Result<(), LedgerError> {
        Ok(())
    }

    /// Registers a callback for such changes, announced by any process.
    fn on_access_change(&self, _callback: Box<dyn Fn() + Send + Sync>) {}
}

/// One write; each can safely be repeated.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Write {
    /// Opens a record of a replica.
    Open(Uuid, Box<Opening>),
    /// Stores the token usage of an open record so far; its settlement replaces it.
    Note(Uuid, Box<NewTokenUsage>),
    /// Settles an open record.
    Settle(Uuid, Box<Settlement>),
    /// Stores continuations, which later requests of a user need of a record's response, by the hashes
    /// of their keys.
    Keep(Uuid, Uuid, Vec<(String, String)>),
    /// Stores what the request of a record made or deleted at its provider.
    Objects(Uuid, Box<ObjectChanges>),
    /// Writes a record together with its settlement.
    Record(Box<Opening>, Box<Settlement>),
    /// Nothing: its receipt says that all earlier writes are durable.
    Nothing,
}

/// The approximate size of an upstream attempt or an attachment in bytes, and of a tool's result.
const ATTEMPT_WEIGHT: usize = 200;
const RESULT_WEIGHT: usize = 150;

impl Write {
    /// Its approximate size in bytes.
    pub(crate) fn weight(&self) -> usize {
        let opened = |opening: &Opening| {
            let prompt = opening.prompt.as_ref().map_or(0, String::len);
            let results = opening.tool_results.iter().flat_map(|result| &result.result);
            prompt
                + results.map(String::len).sum::<usize>()
                + opening.tool_results.len() * RESULT_WEIGHT
                + opening.attachments.len() * ATTEMPT_WEIGHT
        };
        let settled = |settlement: &Settlement| {
            let tools = settlement.tool_usages.iter();
            let tools = tools.flat_map(|tool| tool.arguments.iter().chain(&tool.result));
            let thoughts = settlement.thoughts.iter().map(|thought| &thought.content);
            let answers = settlement.answers.iter().map(|answer| &answer.content);
            let attempts = settlement.upstream_attempts.len() * ATTEMPT_WEIGHT;
            tools.chain(thoughts).chain(answers).map(String::len).sum::<usize>() + attempts
        };
        match self {
            Self::Open(_, opening) => opened(opening),
            Self::Settle(_, settlement) => settled(settlement),
            Self::Record(opening, settlement) => opened(opening) + settled(settlement),
            Self::Keep(_, _, values) => values.iter().map(|(_, value)| value.len()).sum(),
            Self::Note(..) | Self::Objects(..) | Self::Nothing => 0,
        }
    }

    /// How many rows it writes.
    pub(crate) fn rows(&self) -> usize {
        let opened = |opening: &Opening| 1 + opening.tool_results.len() + opening.attachments.len();
        let settled = |settlement: &Settlement| {
            1 + settlement.token_usages.len()
                + settlement.tool_usages.len()
                + settlement.thoughts.len()
                + settlement.answers.len()
                + settlement.upstream_attempts.len()
        };
        match self {
            Self::Open(_, opening) => opened(opening),
            Self::Settle(_, settlement) => settled(settlement),
            Self::Record(opening, settlement) => opened(opening) + settled(settlement),
            Self::Keep(_, _, values) => values.len(),
            Self::Objects(_, changes) => changes.made.len() + changes.deleted.len(),
            Self::Note(..) => 1,
            Self::Nothing => 0,
        }
    }

    /// The record that it belongs to.
    pub(crate) const fn record_id(&self) -> Option<Uuid> {
        match self {
            Self::Open(_, opening) | Self::Record(opening, _) => Some(opening.interception.id),
            Self::Note(id, _) | Self::Settle(id, _) | Self::Keep(id, ..) | Self::Objects(id, _) => {
                Some(*id)
            }
            Self::Nothing => None,
        }
    }

    /// Whether it opens this record.
    pub(crate) fn opens(&self, record: Uuid) -> bool {
        matches!(self, Self::Open(..) | Self::Record(..)) && self.record_id() == Some(record)
    }

    /// What it does, in a word.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Open(..) => "open",
            Self::Note(..) => "note",
            Self::Settle(..) => "settle",
            Self::Keep(..) => "keep",
            Self::Objects(..) => "objects",
            Self::Record(..) => "record",
            Self::Nothing => "nothing",
        }
    }

    /// A record with a row of each kind, to be written and taken back.
    pub(crate) fn sample(user: Uuid) -> Self {
        let now = Timestamp::now();
        let opening = Opening {
            interception: Interception::new(Uuid::now_v7(), user, now),
            prompt: Some(String::new()),
            tool_results: Vec::new(),
            attachments: vec![NewAttachment::default()],
        };
        let settlement = Settlement {
            token_usages: vec![NewTokenUsage::default()],
            tool_usages: vec![NewToolUsage::default()],
            thoughts: vec![NewThought { source: "thinking".into(), content: String::new() }],
            answers: vec![NewAnswer::default()],
            ..Settlement::new(now, Outcome::Refused)
        };
        Self::Record(Box::new(opening), Box::new(settlement))
    }
}

/// Whether a settlement tells of a request that may have been sent. One that was not need not be in the
/// store: its opening was refused, and may or may not have been written.
pub(crate) fn needs_record(settlement: &Settlement) -> bool {
    let was_refused = matches!(settlement.outcome, Outcome::Refused | Outcome::Cancelled);
    settlement.attempts > 0 || !was_refused
}

/// The result of one committed write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Receipt {
    /// The thread of a record that was opened.
    pub thread_id: Option<Uuid>,
}

/// A connection that writes to a store, for one thread.
pub(crate) trait WriterConnection: Send {
    /// Writes until `work`, which is called once, returns. What the connection prepares stays until then.
    fn write(&mut self, work: &mut dyn FnMut(&mut dyn StoreWriter));
}

/// Writes to a store.
pub(crate) trait StoreWriter {
    /// Commits a batch in one transaction. The outer error concerns the whole batch, and it is then
    /// unknown what was written; an inner error concerns that record only. Repeated writes have no
    /// effect.
    fn commit(&mut self, batch: &[Write])
    -> Result<Vec<Result<Receipt, LedgerError>>, LedgerError>;

    /// Checks that the store can be written: writes a record with a row of each kind and takes it back, then
    /// commits a setting.
    fn probe(&mut self) -> Result<(), LedgerError>;
}
