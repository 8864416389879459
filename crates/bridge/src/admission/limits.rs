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

/// Bodies up to this size are not counted as large.
const SMALL_BODY: usize = 1 << 20;
/// Bytes per permit of the memory for large bodies.
const UNIT: usize = 1 << 10;
/// Longest wait for memory, or for the thread that decodes large bodies.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);
/// Refused requests without a valid token whose bodies are read on at the same time; those beyond it
/// are answered at once, and their connection is closed.
const MAX_UNIDENTIFIED: usize = 64;

/// The limits of one data path.
#[derive(Debug)]
pub(crate) struct Limits {
    requests: RequestLimits<MonotonicClock>,
    pub(crate) memory: MemoryBudget,
    /// Large bodies that are decoded at the same time.
    decoding: Arc<Semaphore>,
    unidentified: Arc<Semaphore>,
    /// Requests in flight and the records of side requests.
    pub(crate) tasks: TaskTracker,
}

/// A request in flight: counted until its answer has been relayed.
#[derive(Debug)]
pub(crate) struct InFlight {
    _counted: TaskTrackerToken,
    /// None until the caller is known: only identified requests take slots.
    _slot: Option<Slot>,
    _user: Option<UserSlot>,
}

/// The memory for large request bodies; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct MemoryBudget {
    semaphore: Arc<Semaphore>,
    units: u32,
}

/// Memory that a large body may take, given back when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    permit: Option<OwnedSemaphorePermit>,
    /// What else is held as long as this.
    _with: Option<Arc<Self>>,
}

impl Limits {
    pub(crate) fn new(config: LimitsConfig) -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self {
            requests: RequestLimits::new(config, MonotonicClock),
            memory: MemoryBudget::new(config.body_memory),
            // Half of the cores stay free for everything else.
            decoding: Arc::new(Semaphore::new((cores / 2).max(1))),
            unidentified: Arc::new(Semaphore::new(MAX_UNIDENTIFIED)),
            tasks: TaskTracker::new(),
        }
    }

    /// Other limits for the same requests: those in flight go on and count.
    pub(crate) fn changed(&self, config: LimitsConfig) -> Self {
        Self {
            requests: self.requests.changed(config),
            memory: self.memory.changed(config.body_memory, &self.tasks),
            decoding: Arc::clone(&self.decoding),
            unidentified: Arc::clone(&self.unidentified),
            tasks: self.tasks.clone(),
        }
    }

    /// Counts a request that has arrived. It takes no slot before its caller is known, so that
    /// requests without a valid token cannot use them up.
    pub(crate) fn arrive(&self) -> InFlight {
        InFlight { _counted: self.tasks.token(), _slot: None, _user: None }
    }

    /// Whether an identified request may go on.
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

    /// The right to read on the body of a request without a valid token, if few do.
    pub(crate) fn unidentified(&self) -> Option<SemaphorePermit<'_>> {
        self.unidentified.try_acquire().ok()
    }

    /// Waits for the turn to decode a large body.
    pub(crate) async fn decode_turn(&self) -> Result<SemaphorePermit<'_>, Failure> {
        match timeout(MEMORY_TIMEOUT, self.decoding.acquire()).await {
            Ok(Ok(turn)) => Ok(turn),
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

    /// Another size of the same memory; what is taken beyond it is withdrawn as it is given back.
    fn changed(&self, bytes: usize, tasks: &TaskTracker) -> Self {
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

    /// Bytes that nobody holds.
    #[cfg(test)]
    pub(crate) fn available(&self) -> usize {
        self.semaphore.available_permits() * UNIT
    }

    /// Waits until a body of that size has its memory, as others give it back.
    pub(crate) async fn take(&self, memory: &mut Memory, bytes: usize) -> Result<(), Failure> {
        if bytes <= SMALL_BODY {
            return Ok(());
        }
        // One that is larger than all memory has it for itself.
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
    /// This memory, held as long as another one.
    pub(crate) fn joined(first: Arc<Self>, second: Self) -> Self {
        Self { permit: second.permit, _with: Some(first) }
    }

    fn units(&self) -> u32 {
        let units = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        u32::try_from(units).unwrap_or(u32::MAX)
    }
}

/// Bytes in permits.
fn units(bytes: usize) -> u32 {
    let max = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(max)
}

/// The answer to a large request while others hold the memory.
pub(crate) fn no_memory() -> Failure {
    Failure::unavailable("too many large requests are in flight".into(), MEMORY_TIMEOUT)
}

/// The answer to a request that exceeds a limit.
fn failure(exceeded: LimitExceeded) -> Failure {
    let failure = Failure::too_many_requests(&exceeded.to_string());
    match exceeded {
        LimitExceeded::Token { retry_after } => failure.after(retry_after),
        LimitExceeded::Process | LimitExceeded::User => failure,
    }
}
