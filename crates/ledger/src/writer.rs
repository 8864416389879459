//! The one thread that writes: it commits all that waits in one transaction.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use uuid::Uuid;

use crate::{
    LedgerError, Opening, Settlement,
    store::{Store, StoreWriter},
};

/// Most records in one transaction.
const BATCH: usize = 1_000;
/// First and longest pause after a failed commit.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// One thing to write.
#[derive(Debug)]
pub enum Write {
    /// A record is opened.
    Open(Box<Opening>),
    /// An open record is settled.
    Settle(Uuid, Box<Settlement>),
    /// A record is written with its settlement.
    Record(Box<Opening>, Box<Settlement>),
    /// Nothing: its answer says that all before it is committed.
    Nothing,
}

/// What a commit found out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Receipt {
    /// The thread of an opened record.
    pub thread_id: Option<Uuid>,
}

/// A write on its way, with whoever waits for it and the room it takes.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) write: Write,
    pub(crate) answer: Option<oneshot::Sender<Result<Receipt, String>>>,
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// The way to the writer thread. It holds no more jobs than the recorder's capacity allows, plus
/// one for each caller that waits.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    jobs: mpsc::Sender<Message>,
    healthy: Arc<AtomicBool>,
}

#[derive(Debug)]
enum Message {
    Job(Box<Job>),
    Stop,
}

impl Queue {
    pub(crate) fn send(&self, job: Job) {
        if self.jobs.send(Message::Job(Box::new(job))).is_err() {
            tracing::error!("a record came after the ledger was closed and is lost");
        }
    }

    pub(crate) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Tells the writer to end when all before this is written.
    pub(crate) fn stop(&self) {
        // An error means that it has ended.
        let _ended = self.jobs.send(Message::Stop);
    }
}

/// Starts the writer thread of a store.
pub(crate) fn start(
    store: &Arc<dyn Store>,
) -> Result<(Queue, thread::JoinHandle<()>), LedgerError> {
    spawn(store.writer()?)
}

fn spawn(connection: Box<dyn StoreWriter>) -> Result<(Queue, thread::JoinHandle<()>), LedgerError> {
    let (jobs, waiting) = mpsc::channel();
    let healthy = Arc::new(AtomicBool::new(true));
    let queue = Queue { jobs, healthy: Arc::clone(&healthy) };
    let mut writer = Writer { connection, healthy, kept: Vec::new(), pause: PAUSE };
    let handle = thread::Builder::new()
        .name("ledger-writer".into())
        .spawn(move || writer.run(&waiting))
        .map_err(|error| LedgerError::Database(format!("no writer thread: {error}")))?;
    Ok((queue, handle))
}

struct Writer {
    connection: Box<dyn StoreWriter>,
    healthy: Arc<AtomicBool>,
    /// Settlements that could not be committed yet, in order.
    kept: Vec<Job>,
    pause: Duration,
}

impl Writer {
    fn run(&mut self, waiting: &mpsc::Receiver<Message>) {
        let mut is_open = true;
        while is_open || !self.kept.is_empty() {
            let mut batch = std::mem::take(&mut self.kept);
            let is_retry = !batch.is_empty();
            if is_retry {
                thread::sleep(self.pause);
            } else if is_open {
                is_open = take(waiting.recv().ok(), &mut batch);
            }
            while is_open && batch.len() < BATCH {
                match waiting.try_recv() {
                    Ok(message) => is_open = take(Some(message), &mut batch),
                    Err(mpsc::TryRecvError::Empty) => break,
                    Err(mpsc::TryRecvError::Disconnected) => is_open = false,
                }
            }
            self.commit(batch);
            if !is_open && !self.kept.is_empty() && self.pause >= LONGEST_PAUSE {
                tracing::error!(records = self.kept.len(), "the store failed until the end");
                return;
            }
        }
    }

    fn commit(&mut self, batch: Vec<Job>) {
        if batch.is_empty() {
            return;
        }
        let (writes, rest): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|job| (job.write, (job.answer, job.permit))).unzip();
        match self.connection.commit(&writes) {
            Ok(receipts) => {
                self.healthy.store(true, Ordering::Relaxed);
                self.pause = PAUSE;
                for ((answer, permit), receipt) in rest.into_iter().zip(receipts) {
                    let receipt = receipt.map_err(|error| {
                        tracing::error!(%error, "a record cannot be written");
                        error.to_string()
                    });
                    respond(answer, receipt);
                    drop(permit);
                }
            }
            Err(error) => {
                self.healthy.store(false, Ordering::Relaxed);
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                tracing::error!(%error, records = writes.len(), "a commit failed");
                for (write, (answer, permit)) in writes.into_iter().zip(rest) {
                    match write {
                        // Whoever opens does not go upstream without its record.
                        Write::Open(_) => respond(answer, Err(error.to_string())),
                        kept => self.kept.push(Job { write: kept, answer, permit }),
                    }
                }
            }
        }
    }
}

fn take(message: Option<Message>, batch: &mut Vec<Job>) -> bool {
    match message {
        Some(Message::Job(job)) => {
            batch.push(*job);
            true
        }
        Some(Message::Stop) | None => false,
    }
}

fn respond(
    answer: Option<oneshot::Sender<Result<Receipt, String>>>,
    receipt: Result<Receipt, String>,
) {
    if let Some(answer) = answer {
        // Whoever waited may have left.
        let _gone = answer.send(receipt);
    }
}

#[cfg(test)]
mod tests;
