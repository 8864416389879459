//! The limits of reads: how many run concurrently, and what cancels one.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::LedgerError;

/// Limits of reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadOptions {
    /// Maximum number of concurrent reads.
    pub max_concurrent: usize,
    /// How long a read waits for a free reader, and how long it may then take.
    pub timeout: Duration,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { max_concurrent: 4, timeout: Duration::from_secs(5) }
    }
}

/// What cancels a read: its deadline, its caller, or the shutdown of the ledger.
#[derive(Debug, Clone)]
pub(crate) struct ReadLimit {
    timeout: Duration,
    deadline: Instant,
    cancellation: CancellationToken,
}

impl ReadLimit {
    /// The limit of a read that starts now.
    pub(crate) fn new(timeout: Duration, cancellation: CancellationToken) -> Self {
        Self { timeout, deadline: Instant::now() + timeout, cancellation }
    }

    /// The error with which the read must stop, if its limit is reached.
    pub(crate) fn error(&self) -> Option<LedgerError> {
        if self.cancellation.is_cancelled() {
            Some(LedgerError::Closing)
        } else if Instant::now() >= self.deadline {
            Some(LedgerError::ReadTimeout(self.timeout))
        } else {
            None
        }
    }

    /// Waits until the limit is reached; returns the error with which the read must stop.
    pub(crate) async fn wait(self) -> LedgerError {
        tokio::select! {
            () = self.cancellation.cancelled() => LedgerError::Closing,
            () = sleep_until(self.deadline) => LedgerError::ReadTimeout(self.timeout),
        }
    }

    pub(crate) fn cancel_on_drop(&self) -> DropGuard {
        self.cancellation.clone().drop_guard()
    }
}
