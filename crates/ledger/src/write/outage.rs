//! What happens while the store is down: who is let in, what waits where, and how it comes back.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{
    LedgerError,
    store::StoreWriter,
    store::Write,
    write::metrics::Metrics,
    write::spool::{Batch, Spool},
};

/// First and maximum pause between two attempts to reach a store that is down.
const MIN_RETRY_PAUSE: Duration = Duration::from_millis(100);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How often the spool files of dead processes are looked for.
const ADOPTION_INTERVAL: Duration = Duration::from_secs(30);

/// What happens to new requests while the store is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutagePolicy {
    /// They are refused; open requests continue, and their settlements wait in the spool.
    Refuse,
    /// They are recorded in the spool.
    Spool,
}

/// Whether the ledger takes records, and where they go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Records are committed to the store.
    Storing,
    /// The store is down; records go to the spool.
    Spooling,
    /// New records are refused, for this reason.
    Refusing(String),
}

/// What the writer, the replayer and the recorder know of the store.
#[derive(Debug)]
pub(crate) struct Outage {
    policy: OutagePolicy,
    /// Without a spool, what cannot be committed waits in memory.
    spool: Option<Mutex<Spool>>,
    is_down: AtomicBool,
    /// What the store said when it failed.
    reason: Mutex<String>,
    /// Why the spool takes no new records, as of its last change.
    full: Mutex<Option<String>>,
    /// Set while not even the spool can be written.
    is_stuck: AtomicBool,
    stopping: Mutex<bool>,
    wake: Condvar,
    pub(crate) metrics: Metrics,
}

impl Outage {
    pub(crate) fn new(policy: OutagePolicy, spool: Option<Spool>) -> Self {
        Self {
            policy,
            spool: spool.map(Mutex::new),
            is_down: AtomicBool::new(false),
            reason: Mutex::default(),
            full: Mutex::default(),
            is_stuck: AtomicBool::new(false),
            stopping: Mutex::new(false),
            wake: Condvar::new(),
            metrics: Metrics::default(),
        }
    }

    pub(crate) fn spool(&self) -> Option<MutexGuard<'_, Spool>> {
        self.spool.as_ref().map(lock)
    }

    pub(crate) const fn has_spool(&self) -> bool {
        self.spool.is_some()
    }

    /// Whether new records are taken while the store is down.
    pub(crate) fn spools(&self) -> bool {
        self.policy == OutagePolicy::Spool && self.has_spool() && lock(&self.full).is_none()
    }

    pub(crate) fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Acquire)
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.is_stuck.load(Ordering::Acquire)
    }

    pub(crate) fn set_stuck(&self, is_stuck: bool) {
        self.is_stuck.store(is_stuck, Ordering::Release);
    }

    /// Starts an outage after the store failed: from now on only the replayer commits.
    pub(crate) fn begin(&self, error: &LedgerError) {
        *lock(&self.reason) = error.to_string();
        if !self.is_down.swap(true, Ordering::AcqRel) {
            tracing::error!(%error, policy = ?self.policy, "the store is down");
            self.metrics.outage.set(1);
        }
        let _stopping = lock(&self.stopping);
        self.wake.notify_all();
    }

    /// The store is back and nothing waits; called with the spool locked.
    pub(crate) fn end(&self) {
        if self.is_down.swap(false, Ordering::AcqRel) {
            tracing::info!("the store is back, and all waiting records are committed");
            self.metrics.outage.set(0);
        }
    }

    /// Whether the ledger takes records, and where they go. Never waits for a disk.
    pub(crate) fn condition(&self) -> Condition {
        if self.is_stuck() {
            return Condition::Refusing("neither the store nor the spool can be written".into());
        }
        if !self.is_down() {
            return Condition::Storing;
        }
        if self.spools() {
            return Condition::Spooling;
        }
        let full = lock(&self.full).clone().filter(|_| self.policy == OutagePolicy::Spool);
        Condition::Refusing(full.unwrap_or_else(|| lock(&self.reason).clone()))
    }

    /// Tells the replayer to end.
    pub(crate) fn stop(&self) {
        *lock(&self.stopping) = true;
        self.wake.notify_all();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        *lock(&self.stopping)
    }

    /// Waits for the end, for an outage where `or_outage`, or for the time to pass.
    fn pause(&self, time: Duration, or_outage: bool) {
        let stopping = lock(&self.stopping);
        let stays = |stopping: &mut bool| !(*stopping || (or_outage && self.is_down()));
        drop(self.wake.wait_timeout_while(stopping, time, stays));
    }

    /// Takes notice of what waits.
    pub(crate) fn show_backlog(&self, spool: &Spool) {
        *lock(&self.full) = spool.is_full();
        let backlog = spool.backlog();
        let shown = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.spooled_records.set(shown(backlog.records));
        self.metrics.spooled_bytes.set(shown(backlog.bytes));
    }

    /// How many writes wait in the spool.
    pub(crate) fn spooled(&self) -> u64 {
        self.spool().map_or(0, |spool| spool.backlog().records)
    }

    /// Commits the writes that dead processes left in the spool; returns the number of records.
    pub(crate) fn adopt(&self, connection: &mut dyn StoreWriter) -> Result<u64, LedgerError> {
        let Some(mut spool) = self.spool() else { return Ok(0) };
        let records = spool.adopt().map_err(|error| LedgerError::Spool(error.to_string()))?;
        self.show_backlog(&spool);
        drop(spool);
        if records > 0 {
            tracing::warn!(records, "replaying the spool of a dead process");
        }
        while self.spool().is_some_and(|spool| spool.has_adopted()) {
            self.replay_batch(connection)?;
        }
        Ok(records)
    }

    /// Commits one batch of the spool; `false` when it is empty.
    fn replay_batch(&self, connection: &mut dyn StoreWriter) -> Result<bool, LedgerError> {
        let failed = |error: io::Error| LedgerError::Spool(error.to_string());
        let batch = match self.spool() {
            Some(mut spool) => spool.next_batch().map_err(failed)?,
            None => None,
        };
        let Some(batch) = batch else {
            self.try_recover(connection)?;
            return Ok(false);
        };
        let rejected = commit(connection, &batch)?;
        if let Some(mut spool) = self.spool() {
            spool.committed(&batch, &rejected).map_err(failed)?;
            self.show_backlog(&spool);
        }
        Ok(true)
    }

    /// Ends the outage, if the store can be written and the spool is still empty.
    fn try_recover(&self, connection: &mut dyn StoreWriter) -> Result<(), LedgerError> {
        if !self.is_down() {
            return Ok(());
        }
        connection.probe()?;
        match self.spool() {
            None => self.end(),
            Some(mut spool) => {
                if spool.backlog().records == 0 {
                    let retired = spool.retire();
                    retired.map_err(|error| LedgerError::Spool(error.to_string()))?;
                    self.show_backlog(&spool);
                    self.end();
                }
            }
        }
        Ok(())
    }

    /// The work of the replayer's thread.
    pub(crate) fn replay(&self, connection: &mut dyn StoreWriter) {
        let mut pause = MIN_RETRY_PAUSE;
        while !self.is_stopping() {
            if !self.is_down() {
                self.pause(ADOPTION_INTERVAL, true);
                if !self.is_down() && !self.is_stopping() {
                    report(self.adopt(connection).map(|_records| ()));
                }
                continue;
            }
            match self.replay_batch(connection) {
                Ok(true) => pause = MIN_RETRY_PAUSE,
                Ok(false) => {}
                Err(error) => {
                    *lock(&self.reason) = error.to_string();
                    tracing::debug!(%error, "the store is still down");
                    self.pause(pause, false);
                    pause = (pause * 2).min(MAX_RETRY_PAUSE);
                }
            }
        }
    }
}

/// Commits a batch; returns the writes that the store rejects for good.
fn commit<'a>(
    connection: &mut dyn StoreWriter,
    batch: &'a Batch,
) -> Result<Vec<&'a Write>, LedgerError> {
    let receipts = connection.commit(&batch.writes)?;
    let mut rejected = Vec::new();
    for (write, receipt) in batch.writes.iter().zip(receipts) {
        if let Err(error) = receipt {
            tracing::error!(%error, "a record of the spool cannot be written");
            rejected.push(write);
        }
    }
    Ok(rejected)
}

fn report(result: Result<(), LedgerError>) {
    if let Err(error) = result {
        tracing::error!(%error, "cannot adopt the spool of a dead process");
    }
}

/// Starts the replayer's thread.
pub(crate) fn start(
    outage: &Arc<Outage>,
    mut connection: Box<dyn StoreWriter>,
) -> Result<thread::JoinHandle<()>, LedgerError> {
    let outage = Arc::clone(outage);
    thread::Builder::new()
        .name("ledger-replayer".into())
        .spawn(move || outage.replay(&mut *connection))
        .map_err(|error| {
            LedgerError::Database(format!("cannot start the replayer thread: {error}"))
        })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
