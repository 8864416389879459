//! What a process that serves does in the background: it says that it lives, marks what dead ones
//! left open, and keeps the store in shape.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    LedgerError,
    store::{BEAT, DEAD_AFTER, Dead, Store},
};

/// How often open records are looked through for those of dead processes.
const REAP_PAUSE: Duration = Duration::from_secs(6);
/// How often the store is kept in shape.
const MAINTENANCE_PAUSE: Duration = Duration::from_secs(3_600);

/// The thread of a process that serves; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Heart {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Heart {
    pub(crate) fn start(store: Arc<dyn Store>, replica: Uuid) -> Result<Self, LedgerError> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let told = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("ledger-heart".into())
            .spawn(move || beat(&*store, replica, &told))
            .map_err(|error| LedgerError::Database(format!("no heart thread: {error}")))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the ledger's heart panicked");
        }
    }
}

fn beat(store: &dyn Store, replica: Uuid, stop: &(Mutex<bool>, Condvar)) {
    let mut steady = Steady::default();
    let (mut reaped, mut maintained) = (Instant::now(), Instant::now());
    while !stopped_within(stop, BEAT) {
        let beaten = store.beat(replica);
        // After an outage all others are silent too: they get the time to be heard again.
        let is_sure = steady.for_at_least(DEAD_AFTER, beaten.is_ok());
        if let Err(error) = beaten {
            tracing::debug!(%error, "the store does not hear that this process lives");
            continue;
        }
        if reaped.elapsed() >= REAP_PAUSE {
            reaped = Instant::now();
            report(reap(store, replica, if is_sure { Dead::Silent } else { Dead::Ended }));
        }
        if maintained.elapsed() >= MAINTENANCE_PAUSE {
            maintained = Instant::now();
            report(store.maintain());
        }
    }
    report(store.release(replica));
}

fn stopped_within(stop: &(Mutex<bool>, Condvar), time: Duration) -> bool {
    let stopped = stop.0.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = stop.1.wait_timeout_while(stopped, time, |stopped| !*stopped);
    *waited.unwrap_or_else(PoisonError::into_inner).0
}

fn reap(store: &dyn Store, replica: Uuid, dead: Dead) -> Result<(), LedgerError> {
    let records = store.reap(replica, dead)?;
    if records > 0 {
        tracing::warn!(records, "records of a process that died are marked as interrupted");
    }
    Ok(())
}

fn report(result: Result<(), LedgerError>) {
    if let Err(error) = result {
        tracing::error!(%error, "background work of the ledger failed");
    }
}

/// Since when something holds, for as long as it does.
#[derive(Debug, Default)]
struct Steady(Option<Instant>);

impl Steady {
    /// Whether it has held for `time`; `holds` says whether it does now.
    fn for_at_least(&mut self, time: Duration, holds: bool) -> bool {
        if !holds {
            self.0 = None;
            return false;
        }
        self.0.get_or_insert_with(Instant::now).elapsed() >= time
    }
}
