//! The thread of a serving process that brings the indexes of searches up to date, beside the writer.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tokio::time::Instant;

use super::heartbeat::stopped_within;
use crate::{
    LedgerError,
    store::{IndexStep, Store, sql::Flavour},
};

/// Pause after a step at least; as long as the step took, so that the writer gets its share of the store.
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// Pause when everything is indexed.
const IDLE_PAUSE: Duration = Duration::from_secs(5);
/// New prompts are indexed when there are so many, and after this time at the latest. Until then they are searched
/// without the index.
const MIN_BACKLOG: u64 = 1_000;
const MAX_IDLE_TIME: Duration = Duration::from_secs(60);
/// The same where only partitions of earlier releases lack an index.
const SERVER_PAUSE: Duration = Duration::from_secs(60);
/// Pause after an error.
const ERROR_PAUSE: Duration = Duration::from_secs(30);
/// Number of prompts between two lines in the log.
const LOG_INTERVAL: u64 = 50_000;

/// The thread of a serving process; it ends soon after this is dropped, which does not wait for it: a server
/// may be building an index.
#[derive(Debug)]
pub(crate) struct Indexer {
    stop: Arc<(Mutex<bool>, Condvar)>,
}

impl Indexer {
    pub(crate) fn start(store: Arc<dyn Store>) -> Result<Self, LedgerError> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stop_signal = Arc::clone(&stop);
        thread::Builder::new()
            .name("ledger-index".into())
            .spawn(move || run(&*store, &stop_signal))
            .map_err(|error| {
                LedgerError::Database(format!("cannot start the indexing thread: {error}"))
            })?;
        Ok(Self { stop })
    }
}

impl Drop for Indexer {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
    }
}

fn run(store: &dyn Store, stop: &(Mutex<bool>, Condvar)) {
    let idle_pause = match store.flavour() {
        Flavour::Sqlite => IDLE_PAUSE,
        Flavour::Postgres => SERVER_PAUSE,
    };
    let mut progress = Progress::default();
    let mut pause = MIN_PAUSE;
    let mut complete_since: Option<Instant> = None;
    while !stopped_within(stop, pause) {
        let may_wait = complete_since.is_some_and(|since| since.elapsed() < MAX_IDLE_TIME);
        if may_wait && store.index_backlog().is_ok_and(|backlog| backlog < MIN_BACKLOG) {
            continue;
        }
        complete_since = None;
        let started = Instant::now();
        pause = match store.index_step() {
            Ok(IndexStep::Indexed(number)) => {
                progress.add(number);
                started.elapsed().max(MIN_PAUSE)
            }
            Ok(IndexStep::Complete) => {
                progress.complete();
                complete_since = Some(Instant::now());
                idle_pause
            }
            Err(error) => {
                tracing::warn!(%error, "the indexes of searches could not be brought up to date");
                ERROR_PAUSE
            }
        };
    }
}

/// What was indexed since everything was.
#[derive(Debug, Default)]
struct Progress {
    indexed: u64,
    logged: u64,
}

impl Progress {
    fn add(&mut self, number: u64) {
        self.indexed += number;
        if self.indexed - self.logged >= LOG_INTERVAL {
            self.logged = self.indexed;
            tracing::info!(
                prompts = self.indexed,
                "earlier prompts are being indexed for searches"
            );
        }
    }

    fn complete(&mut self) {
        if self.logged > 0 {
            tracing::info!(prompts = self.indexed, "all prompts are indexed for searches");
        }
        *self = Self::default();
    }
}
