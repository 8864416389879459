//! The care for the store while it is served: retention, and what this machine remembers of it.

use std::{path::Path, time::Duration};

use anyhow::anyhow;
use jiff::Timestamp;
use keybridge_ledger::{Ledger, LedgerError, RetentionPolicy};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// Time between two runs of retention.
const RETENTION_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// How often the clock is checked and written down, and what retention could not do is tried again.
const CLOCK_INTERVAL: Duration = Duration::from_secs(3600);
/// How often records that are not summed are looked for.
const SUM_INTERVAL: Duration = Duration::from_secs(60);
/// Records summed in one transaction: few, so that the writer waits at most milliseconds.
const RECORDS_PER_STEP: u32 = 100;
/// How often the progress of a long job is logged.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// How often this machine writes down what it knows of the store.
const REMEMBER_INTERVAL: Duration = Duration::from_secs(60);

/// Refuses a store that stands in the place of the one that this machine remembers, before anything is
/// written to it; reports what else it lacks.
pub(crate) fn check_store(ledger: &Ledger, dir: &Path) -> anyhow::Result<()> {
    let check = match ledger.check_store(dir) {
        Ok(check) => check,
        Err(error @ LedgerError::Remembered { .. }) => {
            tracing::error!(%error, "cannot tell whether this is the store of the last start");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(replaced) = check.replaced() {
        tracing::error!("{replaced}");
        return Err(anyhow!(replaced));
    }
    for finding in check.findings() {
        tracing::error!("{finding}");
    }
    Ok(())
}

/// Writes down what this machine knows of the store.
pub(crate) fn remember(ledger: &Ledger, dir: &Path) {
    match ledger.remember_store(dir) {
        Ok(_check) => {}
        Err(LedgerError::Replaced(replaced)) => tracing::error!("{replaced}"),
        Err(error) => tracing::warn!(%error, "cannot write down which store this is"),
    }
}

/// Writes the time down, now and then hourly; deletes records that are too old, now and then daily,
/// unless the clock is not plausible.
pub(crate) fn start_retention(ledger: &Ledger, policy: RetentionPolicy) {
    let ledger = ledger.clone();
    let job = async move {
        ledger.claimed().await;
        let mut applied: Option<Instant> = None;
        loop {
            let is_due = applied.is_none_or(|last| last.elapsed() >= RETENTION_INTERVAL);
            let ledger = ledger.clone();
            let run = move || apply_retention(&ledger, &policy, is_due);
            match tokio::task::spawn_blocking(run).await {
                Ok(Ok(())) if is_due => applied = Some(Instant::now()),
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "cannot apply retention"),
                Err(error) => tracing::error!(%error, "the retention job failed"),
            }
            tokio::time::sleep(CLOCK_INTERVAL).await;
        }
    };
    // Ends with the runtime; the next run deletes the rest.
    let _job = TaskTracker::new().spawn(job);
}

fn apply_retention(
    ledger: &Ledger,
    policy: &RetentionPolicy,
    is_due: bool,
) -> Result<(), LedgerError> {
    let cutoff = ledger.witness_clock(policy, Timestamp::now())?;
    let Some(cutoff) = cutoff.filter(|_| is_due) else { return Ok(()) };
    let records = ledger.apply_retention(cutoff)?;
    if records > 0 {
        tracing::info!(records, "deleted records older than the retention period");
    }
    Ok(())
}

/// Sums the records that an earlier release wrote, now and then again: during a rollout such a release may
/// still run. Pauses after each step for as long as it took, so that the writer gets its share of the store.
pub(crate) fn start_summing(ledger: &Ledger) {
    let ledger = ledger.clone();
    let job = async move {
        ledger.claimed().await;
        loop {
            let ledger = ledger.clone();
            match tokio::task::spawn_blocking(move || sum_records(&ledger)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "cannot sum records"),
                Err(error) => tracing::error!(%error, "the job that sums records failed"),
            }
            tokio::time::sleep(SUM_INTERVAL).await;
        }
    };
    // Ends with the runtime; the next start continues.
    let _job = TaskTracker::new().spawn(job);
}

fn sum_records(ledger: &Ledger) -> Result<(), LedgerError> {
    let to_sum = ledger.records_to_sum()?;
    if to_sum == 0 {
        return Ok(());
    }
    tracing::info!(to_sum, "summing the records that an earlier release wrote");
    let mut reported = Instant::now();
    let summed = ledger.sum_all_records(RECORDS_PER_STEP, &mut |summed, took| {
        if reported.elapsed() >= PROGRESS_INTERVAL {
            reported = Instant::now();
            tracing::info!(summed, to_sum, "summing records");
        }
        std::thread::sleep(took);
    })?;
    tracing::info!(summed, "the records are summed");
    Ok(())
}

/// Keeps what this machine knows of the store up to date.
pub(crate) fn start_remembering(ledger: &Ledger, dir: &Path) {
    let (ledger, dir) = (ledger.clone(), dir.to_owned());
    let job = async move {
        ledger.claimed().await;
        loop {
            tokio::time::sleep(REMEMBER_INTERVAL).await;
            let (ledger, dir) = (ledger.clone(), dir.clone());
            if let Err(error) = tokio::task::spawn_blocking(move || remember(&ledger, &dir)).await {
                tracing::error!(%error, "the job that writes down which store this is failed");
            }
        }
    };
    // Ends with the runtime.
    let _job = TaskTracker::new().spawn(job);
}
