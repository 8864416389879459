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
    /// How far a list without an index goes back.
    pub walk: WalkBudget,
}

/// How far a list of interceptions goes back where no index serves its filter, before it answers with what it
/// has found. The next page continues from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalkBudget {
    /// For about this long.
    Time(Duration),
    /// For this number of windows, of this number of rows each.
    Windows {
        /// The number of windows.
        count: u32,
        /// The rows in each.
        rows: u32,
    },
}

/// The windows of one walk.
#[derive(Debug)]
pub(crate) struct Windows {
    budget: WalkBudget,
    started: Instant,
    last: Option<LastWindow>,
}

/// The window before, with when it began.
#[derive(Debug)]
struct LastWindow {
    began: Instant,
    rows: u32,
    count: u32,
}

/// Rows in the first window.
const FIRST_ROWS: u32 = 1_000;
/// How much larger a window may be than the one before.
const GROWTH: u32 = 4;

impl Windows {
    pub(crate) fn new(budget: WalkBudget) -> Self {
        Self { budget, started: Instant::now(), last: None }
    }

    /// The number of rows in the next window; `None` when the budget is spent.
    pub(crate) fn next(&mut self) -> Option<u32> {
        let now = Instant::now();
        let count = self.last.as_ref().map_or(1, |last| last.count + 1);
        let rows = match (self.budget, &self.last) {
            (WalkBudget::Windows { count: max, rows }, _) => (count <= max).then_some(rows),
            (WalkBudget::Time(_), None) => Some(FIRST_ROWS),
            (WalkBudget::Time(limit), Some(last)) => {
                // A window may take longer than the one before.
                let left = limit.saturating_sub(now - self.started).as_micros() * 3 / 4;
                let took = (now - last.began).as_micros().max(1);
                let affordable = u128::from(last.rows) * left / took;
                let rows = u32::try_from(affordable).unwrap_or(u32::MAX);
                // What is left is not enough for a useful part.
                (rows >= last.rows / GROWTH && rows > 0)
                    .then(|| rows.min(last.rows.saturating_mul(GROWTH)))
            }
        }?;
        self.last = Some(LastWindow { began: now, rows, count });
        Some(rows)
    }
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            max_concurrent: 4,
            timeout: Duration::from_secs(5),
            walk: WalkBudget::Time(Duration::from_millis(200)),
        }
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
