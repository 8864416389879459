//! What the request path talks to: opening waits until the record is durable, settling never waits.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};
use uuid::Uuid;

use crate::{
    record::{Interception, Outcome, Quality},
    token::hex,
    write::journal::{Journal, Ticket},
    write::outage::Condition,
    write::queue::Queue,
    write::writer::{Job, Write},
};

/// Most records that are open or wait to be written.
pub(crate) const CAPACITY: usize = 65_536;
/// Longest wait for room in the queue and for the commit.
const PATIENCE: Duration = Duration::from_secs(5);

/// A record to be opened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Opening {
    /// The record as far as it is known; its thread and parent are found by the ledger.
    pub interception: Interception,
    /// The user's own words.
    pub prompt: Option<String>,
    /// Results of earlier tool calls that the request carries.
    pub tool_results: Vec<ToolResult>,
}

/// The size of a tool's result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolResult {
    /// The call it answers.
    pub tool_call_id: String,
    /// Its size.
    pub bytes: u64,
    /// Whether the client marked it as an error.
    pub is_error: Option<bool>,
}

/// What became of a record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settlement {
    /// When it was over.
    pub ended_at: Timestamp,
    /// When the first byte of the answer came.
    pub first_byte_at: Option<Timestamp>,
    /// How it ended.
    pub outcome: Outcome,
    /// Status sent to the client.
    pub status_code: Option<u16>,
    /// Status of the provider.
    pub upstream_status: Option<u16>,
    /// Kind of the error.
    pub error_kind: Option<String>,
    /// Its message, without secrets.
    pub error_message: Option<String>,
    /// The model as answered.
    pub model_served: Option<String>,
    /// Why the model stopped.
    pub stop_reason: Option<String>,
    /// How often the provider was asked.
    pub attempts: u32,
    /// Further turns that called injected tools.
    pub inner_turns: u32,
    /// Bytes of the provider's answer that were relayed.
    pub response_bytes: u64,
    /// The provider's id of the answer, put on the prompt too.
    pub provider_response_id: Option<String>,
    /// Token counts, a row per answer of the provider.
    pub token_usages: Vec<NewTokenUsage>,
    /// Tool calls of the model.
    pub tool_usages: Vec<NewToolUsage>,
    /// Thoughts of the model.
    pub thoughts: Vec<NewThought>,
    /// Who answered, where that is not as the record was opened.
    #[serde(default)]
    pub served_by: Option<ServedBy>,
}

/// The provider and the credential that a request came to in the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedBy {
    /// The provider instance.
    pub provider: String,
    /// `pool:<key name>`.
    pub credential_source: String,
    /// The masked credential.
    pub credential_hint: String,
    /// Its length in Unicode scalar values.
    pub credential_length: u32,
    /// Its keyed fingerprint, 16 hex digits.
    pub credential_fingerprint: String,
}

impl Settlement {
    /// A settlement of which only time and outcome are known.
    pub fn new(ended_at: Timestamp, outcome: Outcome) -> Self {
        Self {
            ended_at,
            first_byte_at: None,
            outcome,
            status_code: None,
            upstream_status: None,
            error_kind: None,
            error_message: None,
            model_served: None,
            stop_reason: None,
            attempts: 0,
            inner_turns: 0,
            response_bytes: 0,
            provider_response_id: None,
            token_usages: Vec::new(),
            tool_usages: Vec::new(),
            thoughts: Vec::new(),
            served_by: None,
        }
    }
}

/// The token counts of one answer; `None` is "not known".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTokenUsage {
    /// The provider's id of the answer.
    pub provider_response_id: Option<String>,
    /// Input that was not cached.
    pub input: Option<u64>,
    /// Output.
    pub output: Option<u64>,
    /// Input read from the provider's cache.
    pub cache_read: Option<u64>,
    /// Input written to the provider's cache.
    pub cache_write: Option<u64>,
    /// Further counts by name.
    pub extra: BTreeMap<String, u64>,
    /// How far the figures can be trusted.
    pub quality: Quality,
    /// Which of the record's answers it is, from 0: an inner loop has several.
    #[serde(default)]
    pub turn: u16,
    /// Skip the row when the same user's records hold exact figures of that answer already: a
    /// background answer may be fetched many times.
    pub once_per_response: bool,
}

impl Default for NewTokenUsage {
    fn default() -> Self {
        Self {
            provider_response_id: None,
            input: None,
            output: None,
            cache_read: None,
            cache_write: None,
            extra: BTreeMap::new(),
            quality: Quality::Unknown,
            turn: 0,
            once_per_response: false,
        }
    }
}

impl NewTokenUsage {
    /// The id of its row: that of a note and of the settlement that replaces it are the same.
    pub(crate) fn row(&self, record: Uuid) -> Uuid {
        Uuid::from_u128(record.as_u128().wrapping_add(self.turn.into()))
    }
}

/// One tool call of the model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToolUsage {
    /// The provider's id of the answer.
    pub provider_response_id: Option<String>,
    /// The call's id.
    pub tool_call_id: Option<String>,
    /// The tool's name.
    pub tool: String,
    /// Its arguments as they came.
    pub arguments: Option<String>,
    /// Whether the bridge injected the tool.
    pub injected: bool,
    /// The MCP server of an injected tool.
    pub server_url: Option<String>,
    /// Why an injected tool's call failed.
    pub invocation_error: Option<String>,
    /// How long an injected tool's call took.
    pub duration_ms: Option<u64>,
    /// Size of an injected tool's result.
    #[serde(default)]
    pub result_bytes: Option<u64>,
    /// Whether an injected tool called its result an error.
    #[serde(default)]
    pub result_is_error: Option<bool>,
}

/// Thinking, a reasoning summary or a commentary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewThought {
    /// Where it comes from.
    pub source: String,
    /// The text.
    pub content: String,
}

/// Why a record was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecorderError {
    /// The store failed or did not answer in time.
    #[error("the store cannot be written: {0}")]
    Unavailable(String),
    /// Too many records are open or waiting.
    #[error("the ledger's queue is full")]
    Full,
}

/// Writes the trail; clones share one queue and one writer thread.
#[derive(Debug, Clone)]
pub struct Recorder {
    replica: Uuid,
    queue: Queue,
    /// Set where a record need not outlive the machine before its request goes on.
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

/// An opening that is being committed: whoever waits may leave, or lose patience, and the record
/// that is then committed after all must not stay open.
struct Waiting {
    entry: Option<Entry>,
    outcome: Outcome,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.settle(Settlement::new(Timestamp::now(), self.outcome));
        }
    }
}

/// What stands for a key in the store: keys are of any length.
pub(crate) fn key_hash(key: &str) -> String {
    hex(digest(&SHA256, key.as_bytes()).as_ref())
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
        let opening = opening.into();
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
        let mut waiting = Waiting { entry: Some(entry), outcome: Outcome::Cancelled };
        let (answer, committed) = oneshot::channel();
        self.queue.send(Job { answer: Some(answer), ..Job::new(write) });
        let receipt = match timeout(PATIENCE, committed).await {
            Ok(Ok(receipt)) => receipt,
            Ok(Err(_closed)) => Err("the writer has ended".into()),
            Err(_elapsed) => {
                waiting.outcome = Outcome::Refused;
                return Err(RecorderError::Unavailable("no commit in time".into()));
            }
        };
        let entry = waiting.entry.take();
        match (receipt, entry) {
            (Ok(receipt), Some(entry)) => Ok(Entry { thread_id: receipt.thread_id, ..entry }),
            (Err(error), _) => Err(RecorderError::Unavailable(error)),
            (Ok(_), None) => Err(RecorderError::Unavailable("the record was given up".into())),
        }
    }

    /// Puts an opening into the journal, if there is one and it can be written.
    fn journal(&self, write: &Write) -> Option<Ticket> {
        let journal = self.journal.as_ref()?;
        journal
            .append(write)
            .inspect_err(|error| {
                tracing::warn!(%error, "the journal cannot be written: requests wait for commits");
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
        let opening = opening.into();
        let permit = self.reserve().await?;
        let write = Write::Record(opening, Box::new(settlement));
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

    /// Waits until all that was handed over before is in the store, or in the spool.
    pub async fn drained(&self) {
        let (answer, committed) = oneshot::channel();
        self.queue.send(Job { answer: Some(answer), ..Job::new(Write::Nothing) });
        // An error means that the writer is gone: then nothing is left to wait for.
        let _receipt = committed.await;
    }

    async fn reserve(&self) -> Result<OwnedSemaphorePermit, RecorderError> {
        let waiting = Arc::clone(&self.capacity).acquire_owned();
        match timeout(PATIENCE, waiting).await {
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

    /// Hands over what is known of the tokens so far, so that it is kept if the process dies.
    pub fn note(&self, usage: NewTokenUsage) {
        self.queue.send(Job::new(Write::Note(self.id, Box::new(usage))));
    }

    /// Keeps what later requests of the user will look for, by key: handed over at once, and what
    /// this gives waits until it is durable.
    ///
    /// # Errors
    ///
    /// When it is not in time; it is written all the same as soon as it can be.
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
            match timeout(PATIENCE, committed).await {
                Ok(Ok(Ok(_receipt))) => Ok(()),
                Ok(Ok(Err(error))) => Err(RecorderError::Unavailable(error)),
                Ok(Err(_closed)) => Err(RecorderError::Unavailable("the writer has ended".into())),
                Err(_elapsed) => Err(RecorderError::Unavailable("no commit in time".into())),
            }
        }
    }

    /// Hands over what became of the record. Never blocks and never fails: its room was reserved,
    /// and the writer keeps it until it is committed.
    pub fn settle(self, settlement: Settlement) {
        let write = Write::Settle(self.id, Box::new(settlement));
        self.queue.send(Job { _permit: Some(self.permit), ..Job::new(write) });
    }
}
