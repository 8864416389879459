//! The limits of one process: requests in flight, rates, and the memory of request bodies.

use std::{sync::Arc, time::Duration};

use governor::clock::MonotonicClock;
use keybridge_policy::{LimitExceeded, LimitsConfig, RequestLimits, Slot, UserSlot};
use keybridge_providers::failure::Failure;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use uuid::Uuid;

/// Bodies up to this size are not counted as large.
const SMALL_BODY: usize = 1 << 20;
/// Bytes per permit of the memory for large bodies.
const UNIT: usize = 1 << 10;
/// Longest wait for memory.
const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);

/// The limits of one data path.
#[derive(Debug)]
pub(crate) struct Limits {
    requests: RequestLimits<MonotonicClock>,
    memory: Arc<Semaphore>,
    memory_units: u32,
    /// Requests in flight and the records of side requests.
    pub(crate) tasks: TaskTracker,
}

/// A request in flight: counted until its answer has been relayed.
#[derive(Debug)]
pub(crate) struct InFlight {
    _counted: TaskTrackerToken,
    slot: Result<Slot, LimitExceeded>,
    _user: Option<UserSlot>,
}

/// The memory that a large body may take, given back when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Memory(Option<OwnedSemaphorePermit>);

impl Limits {
    pub(crate) fn new(config: LimitsConfig) -> Self {
        let memory_units = memory_units(config.body_memory);
        Self {
            requests: RequestLimits::new(config, MonotonicClock),
            memory: Arc::new(Semaphore::new(usize::try_from(memory_units).unwrap_or(usize::MAX))),
            memory_units,
            tasks: TaskTracker::new(),
        }
    }

    /// Other limits for the same requests: those in flight go on and count.
    pub(crate) fn changed(&self, config: LimitsConfig) -> Self {
        let memory_units = memory_units(config.body_memory);
        let missing = self.memory_units.saturating_sub(memory_units);
        let missing = usize::try_from(missing).unwrap_or_default();
        let rest = missing - self.memory.forget_permits(missing);
        if let Ok(rest @ 1..) = u32::try_from(rest) {
            // In use: it is taken away as it is given back.
            let memory = Arc::clone(&self.memory);
            self.tasks.spawn(async move {
                memory.acquire_many(rest).await.into_iter().for_each(SemaphorePermit::forget);
            });
        }
        let more = memory_units.saturating_sub(self.memory_units);
        self.memory.add_permits(usize::try_from(more).unwrap_or_default());
        Self {
            requests: self.requests.changed(config),
            memory: Arc::clone(&self.memory),
            memory_units,
            tasks: self.tasks.clone(),
        }
    }

    /// Counts a request that has arrived; whether there was a slot for it decides [`Limits::admit`],
    /// when its caller is known.
    pub(crate) fn enter(&self) -> InFlight {
        InFlight { _counted: self.tasks.token(), slot: self.requests.enter(), _user: None }
    }

    /// Whether a user's request may go on.
    pub(crate) fn admit(
        &self,
        in_flight: &mut InFlight,
        user: Uuid,
        token: Uuid,
    ) -> Result<(), Failure> {
        if let Err(exceeded) = in_flight.slot {
            return Err(failure(exceeded));
        }
        in_flight._user = self.requests.admit(user, token).map_err(failure)?;
        Ok(())
    }

    /// Sees to it that a body of that size has its memory, as soon as others give it back.
    pub(crate) async fn take_memory(
        &self,
        memory: &mut Memory,
        bytes: usize,
    ) -> Result<(), Failure> {
        if bytes <= SMALL_BODY {
            return Ok(());
        }
        // One that is larger than all memory has it for itself.
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.memory_units);
        let missing = units.saturating_sub(memory.units());
        let acquiring = Arc::clone(&self.memory).acquire_many_owned(missing);
        let Ok(Ok(permit)) = tokio::time::timeout(MEMORY_TIMEOUT, acquiring).await else {
            let detail = "too many large requests are in flight".into();
            return Err(Failure::unavailable(detail, MEMORY_TIMEOUT));
        };
        match &mut memory.0 {
            Some(taken) => taken.merge(permit),
            None => memory.0 = Some(permit),
        }
        Ok(())
    }
}

/// The memory in permits.
fn memory_units(bytes: usize) -> u32 {
    let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(most)
}

/// The answer to a request that exceeds a limit.
fn failure(exceeded: LimitExceeded) -> Failure {
    let failure = Failure::too_many_requests(&exceeded.to_string());
    match exceeded {
        LimitExceeded::Token { retry_after } => failure.after(retry_after),
        LimitExceeded::Process | LimitExceeded::User => failure,
    }
}

impl Memory {
    fn units(&self) -> u32 {
        let units = self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        u32::try_from(units).unwrap_or(u32::MAX)
    }
}
