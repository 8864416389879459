//! The interface of the request path: opening waits until the record is durable, settling never waits.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};
use uuid::Uuid;

use crate::{
    record::{
        NewTokenUsage, Opening, Outcome, Settlement, key_hash,
        objects::ObjectChanges,
        text::{ContentLimits, Unmasked},
    },
    store::Write,
    write::journal::{Journal, Ticket},
    write::outage::Condition,
    write::queue::Queue,
    write::recent_objects::RecentObjects,
    write::writer::Job,
};

/// Records that may be open or queued.
pub(crate) const CAPACITY: usize = 65_536;
/// Maximum number of upstream attempts that are stored for one record.
pub const MAX_UPSTREAM_ATTEMPTS: usize = 100;
/// How long a caller waits for room in the queue, and for the commit: longer than a commit takes that fails,
/// after which the record goes to the spool.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(6);

/// Why a record was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecorderError {
    /// The store failed or did not respond in time.
    #[error("the store cannot be written: {0}")]
    Unavailable(String),
    /// Too many records are open or waiting.
    #[error("the ledger's queue is full")]
    Full,
}

/// Writes records; clones share one queue and one writer thread.
#[derive(Debug, Clone)]
pub struct Recorder {
    replica: Uuid,
    queue: Queue,
    /// Set when a record must survive a crash of the process, but not of the machine, before its request
    /// is sent.
    journal: Option<Arc<Journal>>,
    capacity: Arc<Semaphore>,
}

/// An open record and the capacity reserved for its settlement.
#[derive(Debug)]
pub struct Entry {
    id: Uuid,
    thread_id: Option<Uuid>,
    queue: Queue,
    permit: OwnedSemaphorePermit,
}

/// An opening that is being committed. Its caller may leave or time out while the commit still succeeds;
/// the record is then settled, so that it does not stay open.
struct PendingOpening {
    entry: Option<Entry>,
    outcome: Outcome,
}

impl Drop for PendingOpening {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.settle(Settlement::new(Timestamp::now(), self.outcome));
        }
    }
}

impl Recorder {
    pub(crate) fn new(replica: Uuid, queue: Queue, journal: Option<Journal>) -> Self {
        let capacity = Arc::new(Semaphore::new(CAPACITY));
        Self { replica, queue, journal: journal.map(Arc::new), capacity }
    }

    /// Makes a record durable and reserves the room for its settlement.
    ///
    /// # Errors
    ///
    /// When the store cannot take it, or not in time: nothing may go upstream then.
    pub async fn open(&self, opening: impl Into<Box<Opening>>) -> Result<Entry, RecorderError> {
        let opening = bounded(opening.into());
        if let Condition::Refusing(reason) = self.queue.condition() {
            return Err(RecorderError::Unavailable(reason));
        }
        let permit = self.reserve().await?;
        let id = opening.interception.id;
        let entry = Entry { id, thread_id: None, queue: self.queue.clone(), permit };
        let write = Write::Open(self.replica, opening);
        if let Some(ticket) = self.journal(&write) {
            self.queue.send(Job { _ticket: Some(ticket), ..Job::new(write) });
            return Ok(entry);
        }
        let mut pending = PendingOpening { entry: Some(entry), outcome: Outcome::Cancelled };
        let (answer, committed) = oneshot::channel();
        self.queue.send(Job { answer: Some(answer), ..Job::new(write) });
        let receipt = match timeout(COMMIT_TIMEOUT, committed).await {
            Ok(Ok(receipt)) => receipt,
            Ok(Err(_closed)) => Err("the writer thread has ended".into()),
            Err(_elapsed) => {
                pending.outcome = Outcome::Refused;
                return Err(RecorderError::Unavailable("commit timed out".into()));
            }
        };
        let entry = pending.entry.take();
        match (receipt, entry) {
            (Ok(receipt), Some(entry)) => Ok(Entry { thread_id: receipt.thread_id, ..entry }),
            (Err(error), _) => Err(RecorderError::Unavailable(error)),
            (Ok(_), None) => Err(RecorderError::Unavailable("the opening was abandoned".into())),
        }
    }

    /// Puts an opening into the journal, if there is one and it can be written.
    fn journal(&self, write: &Write) -> Option<Ticket> {
        let journal = self.journal.as_ref()?;
        journal
            .append(write)
            .inspect_err(|error| {
                tracing::warn!(%error, "the journal cannot be written; requests wait for commits instead");
            })
            .ok()
    }

    /// Leaves the journal: all that is in it is done.
    pub(crate) fn close(&self) {
        if let Some(journal) = &self.journal {
            journal.close();
        }
    }

    /// Writes a whole record at once; waits for room, not for the commit.
    ///
    /// # Errors
    ///
    /// When there is no room in time.
    pub async fn record(
        &self,
        opening: impl Into<Box<Opening>>,
        settlement: Settlement,
    ) -> Result<(), RecorderError> {
        let opening = bounded(opening.into());
        let permit = self.reserve().await?;
        let write = Write::Record(opening, bounded_settlement(settlement));
        self.queue.send(Job { _permit: Some(permit), ..Job::new(write) });
        Ok(())
    }

    /// How the ledger stands towards a new record.
    pub fn condition(&self) -> Condition {
        match self.queue.condition() {
            Condition::Refusing(reason) => Condition::Refusing(reason),
            _ if self.capacity.available_permits() == 0 => {
                Condition::Refusing(RecorderError::Full.to_string())
            }
            other => other,
        }
    }

    /// Waits until all earlier writes are in the store or the spool.
    pub async fn drained(&self) {
        let (answer, committed) = oneshot::channel();
        self.queue.send(Job { answer: Some(answer), ..Job::new(Write::Nothing) });
        // An error means that the writer has ended: then there is nothing left to wait for.
        let _receipt = committed.await;
    }

    /// Stores what a request without a record of its own made, as part of the record of an earlier one.
    pub fn keep_objects(&self, record: Uuid, changes: ObjectChanges) {
        send_objects(&self.queue, record, changes);
    }

    pub(crate) fn recent_objects(&self) -> &RecentObjects {
        self.queue.recent_objects()
    }

    async fn reserve(&self) -> Result<OwnedSemaphorePermit, RecorderError> {
        let permit = Arc::clone(&self.capacity).acquire_owned();
        match timeout(COMMIT_TIMEOUT, permit).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(RecorderError::Full),
        }
    }
}

impl Entry {
    /// The record's id.
    pub const fn id(&self) -> Uuid {
        self.id
    }

    /// The thread that the record belongs to, once it is committed.
    pub const fn thread_id(&self) -> Option<Uuid> {
        self.thread_id
    }

    /// Stores the token usage so far, so that it is not lost if the process dies.
    pub fn note(&self, mut usage: NewTokenUsage) {
        usage.clean(&Unmasked);
        self.queue.send(Job::new(Write::Note(self.id, Box::new(usage))));
    }

    /// Stores what the request made or deleted at its provider. From now on it is found, before it is
    /// committed.
    pub fn keep_objects(&self, changes: ObjectChanges) {
        send_objects(&self.queue, self.id, changes);
    }

    /// Stores continuations, which later requests of the user look up by key. They are queued at once;
    /// the returned future waits until they are durable.
    ///
    /// # Errors
    ///
    /// When this takes too long; they are still written as soon as possible.
    pub fn keep(
        &self,
        user: Uuid,
        kept: &[(String, String)],
    ) -> impl Future<Output = Result<(), RecorderError>> + Send + use<> {
        let hashed = kept.iter().map(|(key, value)| (key_hash(key), value.clone())).collect();
        let (answer, committed) = oneshot::channel();
        let write = Write::Keep(self.id, user, hashed);
        self.queue.send(Job { answer: Some(answer), ..Job::new(write) });
        async {
            match timeout(COMMIT_TIMEOUT, committed).await {
                Ok(Ok(Ok(_receipt))) => Ok(()),
                Ok(Ok(Err(error))) => Err(RecorderError::Unavailable(error)),
                Ok(Err(_closed)) => {
                    Err(RecorderError::Unavailable("the writer thread has ended".into()))
                }
                Err(_elapsed) => Err(RecorderError::Unavailable("commit timed out".into())),
            }
        }
    }

    /// Hands over what became of the record. Never blocks and never fails: its room was reserved,
    /// and the writer keeps it until it is committed.
    pub fn settle(self, settlement: Settlement) {
        let write = Write::Settle(self.id, bounded_settlement(settlement));
        self.queue.send(Job { _permit: Some(self.permit), ..Job::new(write) });
    }
}

fn send_objects(queue: &Queue, record: Uuid, mut changes: ObjectChanges) {
    changes.bound();
    if !changes.is_empty() {
        queue.recent_objects().keep(record, &changes);
        queue.send(Job::new(Write::Objects(record, Box::new(changes))));
    }
}

/// An opening within the bounds of what is stored, also if the caller has not bounded it.
fn bounded(mut opening: Box<Opening>) -> Box<Opening> {
    opening.clean(&ContentLimits::MAX, &Unmasked);
    opening
}

/// A settlement within the bounds of what is stored, also if the caller has not bounded it.
fn bounded_settlement(settlement: Settlement) -> Box<Settlement> {
    let mut settlement = Box::new(settlement);
    settlement.clean(&ContentLimits::MAX, &Unmasked);
    settlement
}
