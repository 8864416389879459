//! The sequencer of a serving process: it gives positions in the trail to what waits for one in the outbox of
//! a PostgreSQL store, and in any store appends the ended records that an earlier release wrote.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    LedgerError,
    store::{
        Store,
        sql::Flavour,
        trail::{self, MAX_SEQUENCED},
    },
};

/// How often the outbox is read without a commit of this process: others write to it too.
const OUTBOX_INTERVAL: Duration = Duration::from_secs(1);
/// How long commits gather before they get positions together.
const GATHER_TIME: Duration = Duration::from_millis(20);
/// How often records of an earlier release are looked for: during a rollout such a release may still run.
const EARLIER_INTERVAL: Duration = Duration::from_secs(60);
/// Such records appended in one transaction: few, so that the writer waits at most milliseconds.
const EARLIER_STEP: u32 = 100;
/// How often the progress of a long job is logged.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// The thread of a serving process; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Sequencer {
    is_stopped: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Sequencer {
    pub(crate) fn start(store: Arc<dyn Store>) -> Result<Self, LedgerError> {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stop_signal = Arc::clone(&is_stopped);
        let thread = thread::Builder::new()
            .name("ledger-sequence".into())
            .spawn(move || run(&*store, &stop_signal))
            .map_err(|error| {
                LedgerError::Database(format!("cannot start the sequencer thread: {error}"))
            })?;
        Ok(Self { is_stopped, thread: Some(thread) })
    }
}

impl Drop for Sequencer {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            if thread.join().is_err() {
                tracing::error!("the sequencer thread panicked");
            }
        }
    }
}

fn run(store: &dyn Store, is_stopped: &AtomicBool) {
    store.wake_on_commit(thread::current());
    let interval = match store.flavour() {
        Flavour::Sqlite => EARLIER_INTERVAL,
        Flavour::Postgres => OUTBOX_INTERVAL,
    };
    let mut earlier = EarlierRecords::default();
    let mut is_failing = false;
    while !is_stopped.load(Ordering::Acquire) {
        let step = sequence(store, &mut earlier);
        match &step {
            Err(error) if is_failing => tracing::debug!(%error, "records still get no positions"),
            Err(error) => tracing::warn!(%error, "records get no positions in the trail for now"),
            Ok(_) => {}
        }
        is_failing = step.is_err();
        if !matches!(step, Ok(Progress::More)) {
            // A commit that came during the step ends this at once.
            thread::park_timeout(interval.min(if is_failing { OUTBOX_INTERVAL } else { interval }));
            if !is_stopped.load(Ordering::Acquire) && store.flavour() == Flavour::Postgres {
                thread::sleep(GATHER_TIME);
            }
        }
    }
}

/// Whether more waits for a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    More,
    Done,
}

fn sequence(store: &dyn Store, earlier: &mut EarlierRecords) -> Result<Progress, LedgerError> {
    let appended = earlier.append(store)?;
    let sequenced = trail::sequence(store, MAX_SEQUENCED)?;
    let is_full = sequenced == u64::from(MAX_SEQUENCED) || appended == Progress::More;
    Ok(if is_full { Progress::More } else { Progress::Done })
}

/// The progress with the records of an earlier release.
#[derive(Debug, Default)]
struct EarlierRecords {
    /// When they were looked for and none was found.
    looked_at: Option<Instant>,
    /// How many were found at the beginning of this job, and how many have been appended since.
    job: Option<Job>,
}

#[derive(Debug)]
struct Job {
    found: u64,
    appended: u64,
    reported: Instant,
}

impl EarlierRecords {
    /// Appends some of them, then pauses for as long as it took, so that the writer gets its share of the store.
    fn append(&mut self, store: &dyn Store) -> Result<Progress, LedgerError> {
        if self.looked_at.is_some_and(|looked_at| looked_at.elapsed() < EARLIER_INTERVAL) {
            return Ok(Progress::Done);
        }
        let mut job = match self.job.take() {
            Some(job) => job,
            None => {
                Job { found: trail::earlier_records(store)?, appended: 0, reported: Instant::now() }
            }
        };
        if job.found > 0 && job.appended == 0 {
            tracing::info!(
                records = job.found,
                "appending the records that an earlier release wrote to the trail"
            );
        }
        let started = Instant::now();
        let step = if job.found > 0 { trail::append_earlier(store, EARLIER_STEP)? } else { 0 };
        job.appended += step;
        if step == 0 {
            if job.appended > 0 {
                tracing::info!(records = job.appended, "the records are in the trail");
            }
            self.looked_at = Some(Instant::now());
            return Ok(Progress::Done);
        }
        if job.reported.elapsed() >= PROGRESS_INTERVAL {
            job.reported = Instant::now();
            tracing::info!(
                appended = job.appended,
                of = job.found,
                "appending records to the trail"
            );
        }
        self.job = Some(job);
        thread::sleep(started.elapsed());
        Ok(Progress::More)
    }
}
