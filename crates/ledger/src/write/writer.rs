//! The writer thread: it commits all queued jobs in one transaction.

use std::{sync::Arc, thread, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use crate::{
    LedgerError,
    record::{Outcome, Settlement},
    store::{Receipt, StoreWriter, Write, WriterConnection},
    write::aside::Refused,
    write::journal::Ticket,
    write::outage::{Condition, Outage},
    write::queue::{Queue, WakeOn},
    write::room::{MAX_WRITES, Room, is_oversized},
};

/// How long jobs without a waiting caller may wait for others, before readers see them.
const IDLE_DELAY: Duration = Duration::from_millis(10);
/// How long a commit waits for further jobs, if at least `MIN_SHARED` are expected in this time.
const GATHER_TIME: Duration = Duration::from_millis(8);
const MIN_SHARED: f64 = 32.0;
/// When no job arrives for this long, the commit waits no longer.
const QUIET_TIME: Duration = Duration::from_millis(1);
/// The time over which the rate of arrivals is averaged.
const PACE_WINDOW: Duration = Duration::from_millis(50);
/// Pause before jobs that neither store nor spool took are tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long closing waits for the store, where there is no spool.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A queued write, with its waiting caller and the capacity that it takes.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) write: Write,
    pub(crate) answer: Option<oneshot::Sender<Result<Receipt, String>>>,
    /// Released when the job is done.
    pub(crate) _permit: Option<OwnedSemaphorePermit>,
    /// What the journal holds of it until it is done.
    pub(crate) _ticket: Option<Ticket>,
}

impl Job {
    pub(crate) fn new(write: Write) -> Self {
        Self { write, answer: None, _permit: None, _ticket: None }
    }

    pub(crate) const fn has_waiter(&self) -> bool {
        self.answer.is_some()
    }

    fn respond(&mut self, receipt: Result<Receipt, String>) {
        if let Some(answer) = self.answer.take() {
            // The caller may have left.
            let _sent = answer.send(receipt);
        }
    }

    /// Turns a refused opening into its settlement, because its record may be in the store or the spool
    /// when only the response was lost. Returns `false` for jobs that can be dropped.
    fn give_up(&mut self, reason: &str) -> bool {
        match &self.write {
            // Its request was sent to the provider.
            Write::Open(..) if !self.has_waiter() => true,
            Write::Open(_, opening) => {
                let id = opening.interception.id;
                self.respond(Err(reason.to_owned()));
                let refused = Settlement::new(Timestamp::now(), Outcome::Refused);
                self.write = Write::Settle(id, Box::new(refused));
                true
            }
            Write::Nothing => self.answer.is_some(),
            Write::Note(..)
            | Write::Settle(..)
            | Write::Keep(..)
            | Write::Objects(..)
            | Write::Record(..) => true,
        }
    }
}

type Receipts = Vec<Result<Receipt, LedgerError>>;

/// Starts the writer thread over a connection.
pub(crate) fn start(
    mut connection: Box<dyn WriterConnection>,
    outage: &Arc<Outage>,
) -> Result<(Queue, thread::JoinHandle<()>), LedgerError> {
    let queue = Queue::new(outage);
    let (jobs, outage) = (queue.clone(), Arc::clone(outage));
    let run = move || {
        connection.write(&mut |store| {
            let mut writer = Writer {
                queue: jobs.clone(),
                store,
                outage: Arc::clone(&outage),
                kept: Vec::new(),
                is_open: true,
                pace: Pace::default(),
            };
            writer.run();
        });
    };
    let handle =
        thread::Builder::new().name("ledger-writer".into()).spawn(run).map_err(|error| {
            LedgerError::Database(format!("cannot start the writer thread: {error}"))
        })?;
    Ok((queue, handle))
}

struct Writer<'s> {
    queue: Queue,
    store: &'s mut dyn StoreWriter,
    outage: Arc<Outage>,
    /// Jobs that neither store nor spool took, in order.
    kept: Vec<Job>,
    is_open: bool,
    pace: Pace,
}

/// The rate at which jobs arrive; what is longer ago than [`PACE_WINDOW`] counts little.
#[derive(Debug, Default)]
struct Pace {
    per_second: f64,
    since: Option<Instant>,
}

impl Pace {
    /// Whether enough jobs are expected to arrive while a commit waits.
    fn is_worth_waiting(&self) -> bool {
        self.per_second * GATHER_TIME.as_secs_f64() >= MIN_SHARED
    }

    fn arrived(&mut self, jobs: u32, now: Instant) {
        if let Some(since) = self.since.replace(now) {
            let seconds = now.duration_since(since).as_secs_f64().max(1e-6);
            let weight = 1.0 - (-seconds / PACE_WINDOW.as_secs_f64()).exp();
            self.per_second += weight * (f64::from(jobs) / seconds - self.per_second);
        }
    }
}

impl Writer<'_> {
    fn run(&mut self) {
        let mut closed_at = None;
        while self.is_open || !self.kept.is_empty() {
            let batch = self.gather();
            if !batch.is_empty() {
                self.write(batch);
            }
            if !self.is_open && !self.kept.is_empty() {
                if closed_at.get_or_insert_with(Instant::now).elapsed() > CLOSE_TIMEOUT {
                    tracing::error!(
                        records = self.kept.len(),
                        "store and spool failed until the ledger was closed: these records are lost"
                    );
                    return;
                }
                thread::sleep(RETRY_PAUSE);
            }
        }
    }

    /// The jobs of the next commit: those that were kept, and the queued ones. Waits a moment for
    /// further jobs where no caller waits, or where many are expected.
    fn gather(&mut self) -> Vec<Job> {
        let mut batch = std::mem::take(&mut self.kept);
        let retry_pause = (!batch.is_empty()).then_some(RETRY_PAUSE);
        if self.queue.sleep(WakeOn::AnyJob, retry_pause) {
            self.queue.sleep(WakeOn::UrgentJob, Some(IDLE_DELAY));
        }
        let mut room = Room::new(MAX_WRITES);
        // What was kept stays together; a full batch takes no more.
        let mut has_room = batch.iter().all(|job| room.admit(&job.write));
        let deadline = Instant::now() + GATHER_TIME;
        has_room = has_room && self.queue.take(&mut batch, &mut room);
        while has_room && self.pace.is_worth_waiting() {
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.queue.sleep(WakeOn::AnyJob, Some(left.min(QUIET_TIME))) {
                break;
            }
            has_room = self.queue.take(&mut batch, &mut room);
        }
        self.is_open = !self.queue.is_drained();
        self.pace.arrived(u32::try_from(batch.len()).unwrap_or(u32::MAX), Instant::now());
        batch
    }

    fn write(&mut self, mut batch: Vec<Job>) {
        if batch.iter().all(|job| matches!(job.write, Write::Nothing)) {
            // What came before is durable already: what is not is kept, and would be in the batch.
            batch.iter_mut().for_each(|job| job.respond(Ok(Receipt::default())));
            return;
        }
        let is_oversized = batch.iter().any(|job| is_oversized(&job.write));
        let can_spool = self.outage.has_spool() && !self.outage.is_stuck();
        let (batch, detour) = if self.outage.is_down() {
            (batch, None)
        } else if is_oversized && can_spool {
            // The replayer takes its time with it; no other request waits.
            (batch, Some("a record is too large to be committed with others".to_owned()))
        } else {
            match self.commit(batch) {
                Some(failed) => failed,
                None => return,
            }
        };
        self.spool(batch, detour);
    }

    /// Commits a batch to the store. After a failure returns it, and the reason for a detour where the store
    /// is not down.
    fn commit(&mut self, mut batch: Vec<Job>) -> Option<(Vec<Job>, Option<String>)> {
        let mut writes = Vec::with_capacity(batch.len());
        for job in &mut batch {
            writes.push(std::mem::replace(&mut job.write, Write::Nothing));
        }
        let started = Instant::now();
        match self.store.commit(&writes) {
            Ok(receipts) => {
                let metrics = &self.outage.metrics;
                metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
                metrics.commits.inc();
                let opened = |write: &&Write| matches!(write, Write::Open(..) | Write::Record(..));
                let opened = writes.iter().filter(opened).count();
                metrics.records.inc_by(u64::try_from(opened).unwrap_or(u64::MAX));
                self.outage.set_stuck(false);
                self.respond(batch, writes, receipts);
                None
            }
            Err(error) => {
                for (job, write) in batch.iter_mut().zip(writes) {
                    job.write = write;
                }
                Some((batch, self.on_failure(&error)))
            }
        }
    }

    /// Answers the callers of a committed batch. What the store refuses is set aside first, unless its
    /// caller is told: nothing was sent upstream then.
    fn respond(&mut self, batch: Vec<Job>, writes: Vec<Write>, receipts: Receipts) {
        let (mut done, mut refused) = (Vec::new(), Vec::new());
        for ((mut job, write), receipt) in batch.into_iter().zip(writes).zip(receipts) {
            match receipt {
                Err(error) if !job.has_waiter() => {
                    job.write = write;
                    refused.push((job, error.to_string()));
                }
                receipt => done.push((job, matches!(write, Write::Nothing), receipt)),
            }
        }
        self.set_aside(refused);
        for (mut job, waits_for_others, receipt) in done {
            if waits_for_others && !self.kept.is_empty() {
                self.kept.push(job);
                continue;
            }
            job.respond(receipt.map_err(|error| {
                tracing::error!(%error, "a record cannot be written");
                error.to_string()
            }));
        }
    }

    /// Sets aside what the store refuses, or keeps it where that fails.
    fn set_aside(&mut self, refused: Vec<(Job, String)>) {
        if refused.is_empty() {
            return;
        }
        let entries = refused
            .iter()
            .map(|(job, reason)| Refused { write: &job.write, reason: reason.clone() });
        let Err(error) = self.outage.set_aside(&entries.collect::<Vec<_>>()) else { return };
        let is_lost = !self.outage.has_spool();
        let reasons: Vec<&str> = refused.iter().map(|(_, reason)| reason.as_str()).collect();
        tracing::error!(%error, is_lost, ?reasons,
            "records that the store refuses cannot be set aside");
        if !is_lost {
            self.kept.extend(refused.into_iter().map(|(job, _)| job));
        }
    }

    /// After a commit failed: the store is down, or it does not take one of the writes, which is the reason
    /// for a detour.
    fn on_failure(&mut self, error: &LedgerError) -> Option<String> {
        if !error.may_concern_the_writes() || !self.outage.has_spool() {
            self.outage.begin(error);
            return None;
        }
        match self.store.probe() {
            Ok(()) => Some(error.to_string()),
            Err(away) => {
                self.outage.begin(&away);
                None
            }
        }
    }

    /// Puts a batch into the spool, or keeps it where that fails too.
    fn spool(&mut self, mut batch: Vec<Job>, detour: Option<String>) {
        let outage = Arc::clone(&self.outage);
        let spool = outage.spool();
        if let Some(reason) = detour {
            // With the spool locked: the replayer ends a detour while nothing waits.
            outage.begin_detour(&reason);
        }
        if let Condition::Refusing(reason) = outage.condition() {
            batch.retain_mut(|job| job.give_up(&reason));
        }
        let appended = match spool {
            None => Err("there is no spool".to_owned()),
            Some(mut spool) => {
                if !outage.is_down() {
                    // The store came back since the batch was taken: it goes there.
                    drop(spool);
                    self.kept = batch;
                    return;
                }
                let appended = spool.append(batch.iter().map(|job| &job.write));
                outage.show_backlog(&spool);
                appended.map_err(|error| error.to_string())
            }
        };
        outage.set_stuck(appended.is_err() && outage.has_spool());
        match appended {
            Ok(()) => {
                for job in &mut batch {
                    job.respond(Ok(Receipt::default()));
                }
            }
            Err(error) => {
                if outage.has_spool() {
                    tracing::error!(error, records = batch.len(), "the spool cannot be written");
                }
                batch.retain_mut(|job| job.give_up(&error));
                self.kept = batch;
            }
        }
    }
}

#[cfg(test)]
mod tests;
