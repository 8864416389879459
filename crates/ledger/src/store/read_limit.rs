//! How reads are limited, and what ends one early.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::LedgerError;

/// How reads of the records are limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadOptions {
    /// Most reads at the same time.
    pub max_concurrent: usize,
    /// Longest that a read waits until it may begin, and longest that it then takes.
    pub timeout: Duration,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self { max_concurrent: 4, timeout: Duration::from_secs(5) }
    }
}

/// What ends a read early: its deadline, its cancellation, or the end of the ledger.
#[derive(Debug, Clone)]
pub(crate) struct ReadLimit {
    timeout: Duration,
    deadline: Instant,
    cancellation: CancellationToken,
}

impl ReadLimit {
    /// The limit of a read that begins now.
    pub(crate) fn new(timeout: Duration, cancellation: CancellationToken) -> Self {
        Self { timeout, deadline: Instant::now() + timeout, cancellation }
    }

    /// Whether the read has to end, and with which error.
    pub(crate) fn error(&self) -> Option<LedgerError> {
        if self.cancellation.is_cancelled() {
            Some(LedgerError::Closing)
        } else if Instant::now() >= self.deadline {
            Some(LedgerError::ReadTimeout(self.timeout))
        } else {
            None
        }
    }

    /// Waits until the read has to end.
    pub(crate) async fn reached(self) -> LedgerError {
        tokio::select! {
            () = self.cancellation.cancelled() => LedgerError::Closing,
            () = sleep_until(self.deadline) => LedgerError::ReadTimeout(self.timeout),
        }
    }

    pub(crate) fn cancel_on_drop(&self) -> DropGuard {
        self.cancellation.clone().drop_guard()
    }
}
