//! Ending open streams when the process shuts down.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use keybridge_providers::failure::Failure;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Signals open streams that the grace period has ended; clones share the signal.
#[derive(Debug, Default, Clone)]
pub(crate) struct Drain {
    /// The state of `token` is behind a lock; this is read at each pause of a stream.
    started: Arc<AtomicBool>,
    token: CancellationToken,
}

impl Drain {
    /// Ends the streams that are open, and those that start later.
    pub(crate) fn start(&self) {
        self.started.store(true, Ordering::Release);
        self.token.cancel();
    }

    /// Waits for [`Drain::start`].
    pub(crate) async fn wait(&self) {
        self.token.cancelled().await;
    }

    /// Like [`Drain::wait`], as a future that owns its state.
    pub(crate) fn wait_owned(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }

    pub(crate) fn has_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// Runs `work` to completion, or fails when the drain starts first.
    pub(crate) async fn run_until_started<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        tokio::select! {
            output = work => Ok(output),
            () = self.wait() => Err(Failure::shutting_down()),
        }
    }
}
