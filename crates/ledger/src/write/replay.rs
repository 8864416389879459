//! The replayer's thread: it commits what waits in the spool, in order, and finds what the store does
//! not take.
//!
//! A commit that fails although the store can be written is split into smaller ones. The one write that is
//! left is tried a few times, and then set aside. While nothing can be written, nothing is set aside.

use std::{io, path::PathBuf, sync::Arc, thread, time::Duration};

use crate::{
    LedgerError,
    store::{StoreWriter, WriterConnection},
    write::{
        aside::Refused,
        outage::{Outage, Work},
        room::MAX_WRITES,
        segment::Batch,
    },
};

/// First and maximum pause between two attempts to reach a store that is down.
const MIN_RETRY_PAUSE: Duration = Duration::from_millis(100);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Into how many commits a failed one is split. Each that fails may take some seconds, and one that does not
/// takes milliseconds.
const SPLIT: usize = 64;
/// How often a write is tried alone before it is set aside.
const MAX_TRIES: u32 = 3;

/// How many writes are committed together, and what is known of the one that cannot be.
#[derive(Debug)]
pub(crate) struct Isolation {
    max_writes: usize,
    /// File and end of a write that failed alone, and how often.
    suspect: Option<(PathBuf, u64, u32)>,
}

impl Default for Isolation {
    fn default() -> Self {
        Self { max_writes: MAX_WRITES, suspect: None }
    }
}

impl Isolation {
    fn on_success(&mut self) {
        self.max_writes = (self.max_writes * 2).min(MAX_WRITES);
        self.suspect = None;
    }

    /// Notes that a batch of one write failed; returns how often it has.
    fn on_failure(&mut self, batch: &Batch) -> u32 {
        let before = match self.suspect.take() {
            Some((path, end, tries)) if path == batch.path && end == batch.end => tries,
            Some(_) | None => 0,
        };
        self.suspect = Some((batch.path.clone(), batch.end, before + 1));
        before + 1
    }
}

/// Starts the replayer's thread.
pub(crate) fn start(
    outage: &Arc<Outage>,
    mut connection: Box<dyn WriterConnection>,
) -> Result<thread::JoinHandle<()>, LedgerError> {
    let outage = Arc::clone(outage);
    thread::Builder::new()
        .name("ledger-replayer".into())
        .spawn(move || connection.write(&mut |store| run(&outage, store)))
        .map_err(|error| {
            LedgerError::Database(format!("cannot start the replayer thread: {error}"))
        })
}

fn run(outage: &Outage, connection: &mut dyn StoreWriter) {
    let mut isolation = Isolation::default();
    let mut pause = MIN_RETRY_PAUSE;
    loop {
        match outage.next_work() {
            Work::Stop => return,
            Work::Adopt => adopt(outage),
            Work::Replay => match reconnect_and_replay(outage, connection, &mut isolation) {
                Ok(Progress::Committed) => pause = MIN_RETRY_PAUSE,
                Ok(Progress::Split | Progress::Empty) => {}
                Err(error) => {
                    outage.set_reason(&error);
                    outage.release_start();
                    tracing::debug!(%error, "the spool cannot be replayed yet");
                    outage.pause(pause);
                    pause = (pause * 2).min(MAX_RETRY_PAUSE);
                }
            },
        }
    }
}

/// Adopts the files that dead processes left in the spool.
fn adopt(outage: &Outage) {
    let mut records = 0;
    if let Some(mut spool) = outage.spool() {
        match spool.adopt() {
            Ok(found) => records = found,
            Err(error) => tracing::error!(%error, "cannot adopt the spool of a dead process"),
        }
        outage.show_backlog(&spool);
    }
    if records > 0 {
        tracing::warn!(records, "replaying the spool of a dead process");
    }
    outage.adopted(records);
    if !outage.spool().is_some_and(|spool| spool.has_adopted()) {
        outage.release_start();
    }
}

/// Commits one batch of the spool, after what comes before the first commit.
fn reconnect_and_replay(
    outage: &Outage,
    connection: &mut dyn StoreWriter,
    isolation: &mut Isolation,
) -> Result<Progress, LedgerError> {
    outage.reconnect()?;
    replay_batch(outage, connection, isolation)
}

/// What a step of the replay did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    Committed,
    /// The next batch is a part of this one.
    Split,
    /// Nothing waits.
    Empty,
}

/// Commits one batch of the spool.
pub(crate) fn replay_batch(
    outage: &Outage,
    connection: &mut dyn StoreWriter,
    isolation: &mut Isolation,
) -> Result<Progress, LedgerError> {
    let batch = match outage.spool() {
        Some(mut spool) => {
            spool.next_batch(isolation.max_writes).map_err(|error| spool_error(&error))?
        }
        None => None,
    };
    let Some(batch) = batch else {
        outage.release_start();
        try_recover(outage, connection)?;
        return Ok(Progress::Empty);
    };
    let refused = match commit(connection, &batch) {
        Ok(refused) => {
            isolation.on_success();
            refused
        }
        Err(error) => match isolate(outage, connection, isolation, &batch, error)? {
            Some(refused) => vec![refused],
            None => return Ok(Progress::Split),
        },
    };
    if let Some(mut spool) = outage.spool() {
        let set_aside = spool.committed(&batch, refused).map_err(|error| spool_error(&error))?;
        outage.metrics.set_aside.inc_by(set_aside);
        outage.show_backlog(&spool);
    }
    Ok(Progress::Committed)
}

/// Commits a batch; returns the writes that the store refuses.
fn commit<'a>(
    connection: &mut dyn StoreWriter,
    batch: &'a Batch,
) -> Result<Vec<Refused<'a>>, LedgerError> {
    if batch.writes.is_empty() {
        return Ok(Vec::new());
    }
    let receipts = connection.commit(&batch.writes)?;
    let refused =
        batch.writes.iter().zip(receipts).filter_map(|(write, receipt)| {
            Some(Refused { write, reason: receipt.err()?.to_string() })
        });
    Ok(refused.collect())
}

/// After a commit failed: makes the next batch smaller, or returns the one write that failed too often although
/// the store can be written.
fn isolate<'a>(
    outage: &Outage,
    connection: &mut dyn StoreWriter,
    isolation: &mut Isolation,
    batch: &'a Batch,
    error: LedgerError,
) -> Result<Option<Refused<'a>>, LedgerError> {
    let away = if error.may_concern_the_writes() { connection.probe().err() } else { None };
    if away.is_some() || !error.may_concern_the_writes() {
        let error = away.unwrap_or(error);
        if outage.is_detour() {
            outage.begin(&error);
        }
        return Err(error);
    }
    if outage.is_down() {
        outage.begin_detour(&error.to_string());
    }
    let [write] = &batch.writes[..] else {
        isolation.max_writes = (batch.writes.len() / SPLIT).max(1);
        return Ok(None);
    };
    if isolation.on_failure(batch) < MAX_TRIES {
        return Err(error);
    }
    isolation.suspect = None;
    let reason =
        format!("{error}; it was tried {MAX_TRIES} times alone, and the store took others");
    Ok(Some(Refused { write, reason }))
}

/// Ends the outage, if the store can be written and the spool is still empty.
fn try_recover(outage: &Outage, connection: &mut dyn StoreWriter) -> Result<(), LedgerError> {
    if !outage.is_down() {
        return Ok(());
    }
    connection.probe()?;
    match outage.spool() {
        None => outage.end(),
        Some(mut spool) => {
            if spool.backlog().records == 0 {
                let retired = spool.retire();
                retired.map_err(|error| spool_error(&error))?;
                outage.show_backlog(&spool);
                outage.end();
            }
        }
    }
    Ok(())
}

fn spool_error(error: &io::Error) -> LedgerError {
    LedgerError::Spool(error.to_string())
}
