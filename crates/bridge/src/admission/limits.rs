//! The limits of one process: requests in flight, rates, and the memory of request bodies.

use std::{sync::Arc, thread::available_parallelism};

use governor::clock::MonotonicClock;
use keybridge_net::listener::ForwardedClient;
use keybridge_policy::{LimitExceeded, LimitsConfig, RequestLimits, Slot, UserSlot};
use keybridge_providers::failure::Failure;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    time::timeout,
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use uuid::Uuid;

use super::memory::{MEMORY_TIMEOUT, MemoryBudget, no_memory};

/// Maximum number of requests without a valid token whose bodies are discarded at the same time; others
/// are answered at once, and their connection is closed.
const MAX_DISCARDS: usize = 64;

/// Maximum number of streams that are read on for their usage after their client has disconnected;
/// further ones are closed at once.
const MAX_ABANDONED_STREAMS: usize = 256;

/// The limits of one data path.
#[derive(Debug)]
pub(crate) struct Limits {
    requests: RequestLimits<MonotonicClock>,
    pub(crate) memory: MemoryBudget,
    /// Limits how many large bodies are decoded at the same time.
    decoding: Arc<Semaphore>,
    discards: Arc<Semaphore>,
    abandoned_streams: Arc<Semaphore>,
    /// Requests in flight and the records of side requests.
    pub(crate) tasks: TaskTracker,
}

/// A request in flight; counted until its answer has been relayed.
#[derive(Debug)]
pub(crate) struct InFlight {
    counted: TaskTrackerToken,
    abandoned_streams: Arc<Semaphore>,
    /// The client that a trusted proxy forwards the request of.
    client: Option<ForwardedClient>,
    /// `None` until the caller is known: only identified requests take slots.
    _slot: Option<Slot>,
    _user: Option<UserSlot>,
}

impl InFlight {
    /// Refuses a request of an address that has too many in flight through trusted proxies.
    pub(crate) fn check_address(&self) -> Result<(), Failure> {
        match &self.client {
            Some(client) if client.is_over_limit() => Err(Failure::too_many_requests(
                "too many requests in flight from this address; retry in a moment",
            )),
            _ => Ok(()),
        }
    }

    /// A permit to read on in the answer of a client that has disconnected, if one is left.
    pub(crate) fn read_on_permit(&self) -> Option<ReadOnPermit> {
        let permit = Arc::clone(&self.abandoned_streams).try_acquire_owned().ok()?;
        // There is no runtime when the process ends.
        let runtime = Handle::try_current().ok()?;
        Some(ReadOnPermit { permit, tasks: self.counted.task_tracker().clone(), runtime })
    }
}

/// A permit to read on in the answer of a client that has disconnected.
pub(crate) struct ReadOnPermit {
    permit: OwnedSemaphorePermit,
    tasks: TaskTracker,
    runtime: Handle,
}

impl ReadOnPermit {
    /// Runs `reading` in a task that the shutdown waits for.
    pub(crate) fn spawn(self, reading: impl Future<Output = ()> + Send + 'static) {
        let permit = self.permit;
        let task = async move {
            reading.await;
            drop(permit);
        };
        self.tasks.spawn_on(task, &self.runtime);
    }
}

impl Limits {
    pub(crate) fn new(config: LimitsConfig) -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self {
            requests: RequestLimits::new(config, MonotonicClock),
            memory: MemoryBudget::new(config.body_memory),
            // Half of the cores stay free for everything else.
            decoding: Arc::new(Semaphore::new((cores / 2).max(1))),
            discards: Arc::new(Semaphore::new(MAX_DISCARDS)),
            abandoned_streams: Arc::new(Semaphore::new(MAX_ABANDONED_STREAMS)),
            tasks: TaskTracker::new(),
        }
    }

    /// Applies other limits; the requests in flight still count.
    pub(crate) fn reconfigured(&self, config: LimitsConfig) -> Self {
        self.memory.resize(config.body_memory);
        Self {
            requests: self.requests.reconfigured(config),
            memory: self.memory.clone(),
            decoding: Arc::clone(&self.decoding),
            discards: Arc::clone(&self.discards),
            abandoned_streams: Arc::clone(&self.abandoned_streams),
            tasks: self.tasks.clone(),
        }
    }

    /// Counts a request that has arrived. It takes no slot before its caller is known, so that requests
    /// without a valid token cannot use up the slots.
    pub(crate) fn count_request(&self, client: Option<ForwardedClient>) -> InFlight {
        InFlight {
            counted: self.tasks.token(),
            abandoned_streams: Arc::clone(&self.abandoned_streams),
            client,
            _slot: None,
            _user: None,
        }
    }

    /// Admits an identified request, or returns the limit that it exceeds as an error.
    pub(crate) fn admit(
        &self,
        in_flight: &mut InFlight,
        user: Uuid,
        token: Uuid,
    ) -> Result<(), Failure> {
        in_flight._slot = Some(self.requests.enter().map_err(failure)?);
        in_flight._user = self.requests.admit(user, token).map_err(failure)?;
        Ok(())
    }

    /// A permit to discard the body of a request without a valid token, if one is left.
    pub(crate) fn try_discard_permit(&self) -> Option<SemaphorePermit<'_>> {
        self.discards.try_acquire().ok()
    }

    /// Waits for a permit to decode a large body.
    pub(crate) async fn decode_permit(&self) -> Result<SemaphorePermit<'_>, Failure> {
        match timeout(MEMORY_TIMEOUT, self.decoding.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(no_memory()),
        }
    }
}

/// The error for a request that exceeds a limit.
fn failure(exceeded: LimitExceeded) -> Failure {
    let failure = Failure::too_many_requests(&exceeded.to_string());
    match exceeded {
        LimitExceeded::Token { retry_after } => failure.with_retry_after(retry_after),
        LimitExceeded::Process | LimitExceeded::User => failure,
    }
}
