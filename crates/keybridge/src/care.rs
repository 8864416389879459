//! The care for the store while it is served: retention.

use std::time::Duration;

use jiff::Timestamp;
use keybridge_ledger::{Ledger, LedgerError, RetentionPolicy};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// Time between two runs of retention.
const RETENTION_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// How often the clock is checked and written down, and what retention could not do is tried again.
const CLOCK_INTERVAL: Duration = Duration::from_secs(3600);

/// Writes the time down, now and then hourly; deletes records that are too old, now and then daily,
/// unless the clock is not plausible.
pub(crate) fn start_retention(ledger: &Ledger, policy: RetentionPolicy) {
    let ledger = ledger.clone();
    let job = async move {
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
