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

/// Tells open streams that the grace period is over; clones share it.
#[derive(Debug, Default, Clone)]
pub(crate) struct Drain {
    /// The token's own state is behind a lock, and this is read for each pause of a stream.
    started: Arc<AtomicBool>,
    token: CancellationToken,
}

impl Drain {
    /// Ends the streams that are open, and those that begin later.
    pub(crate) fn start(&self) {
        self.started.store(true, Ordering::Release);
        self.token.cancel();
    }

    /// Waits for [`Drain::start`].
    pub(crate) async fn wait(&self) {
        self.token.cancelled().await;
    }

    /// The same as a future that owns what it needs.
    pub(crate) fn wait_owned(&self) -> WaitForCancellationFutureOwned {
        self.token.clone().cancelled_owned()
    }

    pub(crate) fn has_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    /// The output of `work`, unless the drain starts before it is done.
    pub(crate) async fn unless_started<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        tokio::select! {
            output = work => Ok(output),
            () = self.wait() => Err(Failure::shutting_down()),
        }
    }
}
