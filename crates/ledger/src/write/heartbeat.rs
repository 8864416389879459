//! The background work of a serving process: it writes its heartbeat, marks the records that dead
//! processes left open as interrupted, and maintains the store.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    LedgerError,
    store::{DEAD_AFTER, Dead, HEARTBEAT_INTERVAL, Store, rollups::tables},
    write::reap,
};

/// How often open records of dead processes are looked for.
const REAP_INTERVAL: Duration = Duration::from_secs(6);
/// How often the store is maintained.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(3_600);

/// The thread of a serving process; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Heartbeat {
    pub(crate) fn start(store: Arc<dyn Store>, replica: Uuid) -> Result<Self, LedgerError> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stop_signal = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("ledger-beat".into())
            .spawn(move || run(&*store, replica, &stop_signal))
            .map_err(|error| {
                LedgerError::Database(format!("cannot start the heartbeat thread: {error}"))
            })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the heartbeat thread panicked");
        }
    }
}

fn run(store: &dyn Store, replica: Uuid, stop: &(Mutex<bool>, Condvar)) {
    let mut stable = StableSince::default();
    let (mut reaped, mut maintained) = (Instant::now(), Instant::now());
    while !stopped_within(stop, HEARTBEAT_INTERVAL) {
        let beaten = store.beat(replica);
        // After an outage the heartbeats of all others are old too: they get the time to write new ones.
        let is_sure = stable.has_held_for(DEAD_AFTER, beaten.is_ok());
        if let Err(error) = beaten {
            tracing::debug!(%error, "the heartbeat could not be written");
            continue;
        }
        if reaped.elapsed() >= REAP_INTERVAL {
            reaped = Instant::now();
            report(reap(store, replica, if is_sure { Dead::Silent } else { Dead::Ended }));
        }
        if maintained.elapsed() >= MAINTENANCE_INTERVAL {
            maintained = Instant::now();
            report(store.maintain());
            report(tables::fold(store, Timestamp::now()));
        }
    }
    report(store.release(replica));
}

/// Waits, and says whether the thread was stopped meanwhile.
pub(super) fn stopped_within(stop: &(Mutex<bool>, Condvar), time: Duration) -> bool {
    let stopped = stop.0.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = stop.1.wait_timeout_while(stopped, time, |stopped| !*stopped);
    *waited.unwrap_or_else(PoisonError::into_inner).0
}

fn reap(store: &dyn Store, replica: Uuid, dead: Dead) -> Result<(), LedgerError> {
    let records = reap::reap(store, replica, dead)?;
    if records > 0 {
        tracing::warn!(records, "records of a dead process were marked as interrupted");
    }
    Ok(())
}

fn report(result: Result<(), LedgerError>) {
    if let Err(error) = result {
        tracing::error!(%error, "background work of the ledger failed");
    }
}

/// Since when a condition has held without a break.
#[derive(Debug, Default)]
struct StableSince(Option<Instant>);

impl StableSince {
    /// Whether the condition has held for `time`; `holds` says whether it does now.
    fn has_held_for(&mut self, time: Duration, holds: bool) -> bool {
        if !holds {
            self.0 = None;
            return false;
        }
        self.0.get_or_insert_with(Instant::now).elapsed() >= time
    }
}
