//! The limits of one process: requests in flight, rates, and the memory of request bodies.

use std::{sync::Arc, thread::available_parallelism, time::Duration};

use governor::clock::MonotonicClock;
use keybridge_policy::{LimitExceeded, LimitsConfig, RequestLimits, Slot, UserSlot};
use keybridge_providers::failure::Failure;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit},
    time::timeout,
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use uuid::Uuid;

/// Maximum size of a body that does not count as large.
const SMALL_BODY: usize = 1 << 20;
/// Bytes per permit of the memory for large bodies.
const UNIT: usize = 1 << 10;
/// Timeout of the wait for memory, and of the wait to decode a large body.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of requests without a valid token whose bodies are discarded at the same time; others
/// are answered at once, and their connection is closed.
const MAX_DISCARDS: usize = 64;

/// The limits of one data path.
#[derive(Debug)]
pub(crate) struct Limits {
    requests: RequestLimits<MonotonicClock>,
    pub(crate) memory: MemoryBudget,
    /// Limits how many large bodies are decoded at the same time.
    decoding: Arc<Semaphore>,
    discards: Arc<Semaphore>,
    /// Requests in flight and the records of side requests.
    pub(crate) tasks: TaskTracker,
}

/// A request in flight; counted until its answer has been relayed.
#[derive(Debug)]
pub(crate) struct InFlight {
    _counted: TaskTrackerToken,
    /// `None` until the caller is known: only identified requests take slots.
    _slot: Option<Slot>,
    _user: Option<UserSlot>,
}

/// The memory for large request bodies; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct MemoryBudget {
    semaphore: Arc<Semaphore>,
    units: u32,
}

/// Memory reserved for a large body, released on drop.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    permit: Option<OwnedSemaphorePermit>,
    /// Another reservation that lives as long as this one.
    _other: Option<Arc<Self>>,
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
            tasks: TaskTracker::new(),
        }
    }

    /// Applies other limits; the requests in flight still count.
    pub(crate) fn reconfigured(&self, config: LimitsConfig) -> Self {
        Self {
            requests: self.requests.reconfigured(config),
            memory: self.memory.reconfigured(config.body_memory, &self.tasks),
            decoding: Arc::clone(&self.decoding),
            discards: Arc::clone(&self.discards),
            tasks: self.tasks.clone(),
        }
    }

    /// Counts a request that has arrived. It takes no slot before its caller is known, so that requests
    /// without a valid token cannot use up the slots.
    pub(crate) fn count_request(&self) -> InFlight {
        InFlight { _counted: self.tasks.token(), _slot: None, _user: None }
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

impl MemoryBudget {
    fn new(bytes: usize) -> Self {
        let units = units(bytes);
        let permits = usize::try_from(units).unwrap_or(usize::MAX);
        Self { semaphore: Arc::new(Semaphore::new(permits)), units }
    }

    /// Resizes the budget; memory in use beyond the new size is withdrawn as it is released.
    fn reconfigured(&self, bytes: usize, tasks: &TaskTracker) -> Self {
        let units = units(bytes);
        let excess = usize::try_from(self.units.saturating_sub(units)).unwrap_or_default();
        let rest = excess - self.semaphore.forget_permits(excess);
        if let Ok(rest @ 1..) = u32::try_from(rest) {
            let semaphore = Arc::clone(&self.semaphore);
            tasks.spawn(async move {
                semaphore.acquire_many(rest).await.into_iter().for_each(SemaphorePermit::forget);
            });
        }
        let more = units.saturating_sub(self.units);
        self.semaphore.add_permits(usize::try_from(more).unwrap_or_default());
        Self { semaphore: Arc::clone(&self.semaphore), units }
    }

    /// Bytes that are not reserved.
    #[cfg(test)]
    pub(crate) fn available(&self) -> usize {
        self.semaphore.available_permits() * UNIT
    }

    /// Waits until memory for a body of this size is reserved.
    pub(crate) async fn take(&self, memory: &mut Memory, bytes: usize) -> Result<(), Failure> {
        if bytes <= SMALL_BODY {
            return Ok(());
        }
        // A body larger than the whole budget takes all of it.
        let wanted = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units);
        let missing = wanted.saturating_sub(memory.units());
        if missing == 0 {
            return Ok(());
        }
        let acquiring = Arc::clone(&self.semaphore).acquire_many_owned(missing);
        let Ok(Ok(permit)) = timeout(MEMORY_TIMEOUT, acquiring).await else {
            return Err(no_memory());
        };
        match &mut memory.permit {
            Some(taken) => taken.merge(permit),
            None => memory.permit = Some(permit),
        }
        Ok(())
    }
}

impl Memory {
    /// Joins two reservations, which are then released together.
    pub(crate) fn join(first: Arc<Self>, second: Self) -> Self {
        Self { permit: second.permit, _other: Some(first) }
    }

    fn units(&self) -> u32 {
        let units = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        u32::try_from(units).unwrap_or(u32::MAX)
    }
}

/// The number of permits for so many bytes.
fn units(bytes: usize) -> u32 {
    let max = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(max)
}

/// The error for a large request while others use the memory.
pub(crate) fn no_memory() -> Failure {
    Failure::unavailable("too many large requests are in flight", MEMORY_TIMEOUT)
}

/// The error for a request that exceeds a limit.
fn failure(exceeded: LimitExceeded) -> Failure {
    let failure = Failure::too_many_requests(&exceeded.to_string());
    match exceeded {
        LimitExceeded::Token { retry_after } => failure.with_retry_after(retry_after),
        LimitExceeded::Process | LimitExceeded::User => failure,
    }
}
