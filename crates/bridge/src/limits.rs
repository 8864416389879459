//! How much one process, one user and one token may ask at a time.

use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock, MonotonicClock},
    state::keyed::DashMapStateStore,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use uuid::Uuid;

use crate::{config::LimitsConfig, failure::Failure};

/// Bodies up to this size are not counted as large.
const SMALL_BODY: usize = 1 << 20;
/// Bytes per permit of the memory for large bodies.
const UNIT: usize = 1 << 10;
/// Longest wait for memory.
const MEMORY_WAIT: Duration = Duration::from_secs(10);
/// Rates of tokens that have been idle are forgotten once in so many requests.
const FORGET_EVERY: usize = 4_096;

type Rates = RateLimiter<Uuid, DashMapStateStore<Uuid>, MonotonicClock>;

/// The limits of one data path.
#[derive(Debug)]
pub(crate) struct Limits {
    places: Option<Arc<Semaphore>>,
    users: Users,
    rates: Option<Rates>,
    asked: AtomicUsize,
    memory: Arc<Semaphore>,
    memory_units: u32,
    /// Requests in flight and the records of side requests.
    pub(crate) tasks: TaskTracker,
}

/// A request in flight: counted until its answer has been relayed.
#[derive(Debug)]
pub(crate) struct InFlight {
    _counted: TaskTrackerToken,
    /// None where nothing limits it, and where there was none left.
    _place: Option<OwnedSemaphorePermit>,
    _user: Option<UserPlace>,
    /// There was no place for it.
    is_over: bool,
}

/// How many requests each user has in flight, if that is limited.
#[derive(Debug, Clone, Default)]
struct Users {
    limit: usize,
    in_flight: Arc<Mutex<HashMap<Uuid, usize>>>,
}

/// A place among a user's requests.
#[derive(Debug)]
struct UserPlace {
    user: Uuid,
    users: Users,
}

/// The memory that a large body may take, given back when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Memory(Option<OwnedSemaphorePermit>);

impl Limits {
    pub(crate) fn new(config: &LimitsConfig) -> Self {
        let places = config.concurrent_requests;
        let memory_units = u32::try_from(config.body_memory.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let memory_units =
            memory_units.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        let rates = NonZeroU32::new(config.requests_per_second).map(|rate| {
            let burst = NonZeroU32::new(config.burst).unwrap_or(rate);
            let quota = Quota::per_second(rate).allow_burst(burst);
            RateLimiter::new(quota, DashMapStateStore::default(), MonotonicClock)
        });
        Self {
            places: (places > 0).then(|| Arc::new(Semaphore::new(places))),
            users: Users { limit: config.concurrent_requests_per_user, ..Users::default() },
            rates,
            asked: AtomicUsize::new(0),
            memory: Arc::new(Semaphore::new(usize::try_from(memory_units).unwrap_or(usize::MAX))),
            memory_units,
            tasks: TaskTracker::new(),
        }
    }

    /// A request has come; whether there is a place for it is told by [`Limits::admit`], when it is
    /// known who asks.
    pub(crate) fn enter(&self) -> InFlight {
        let place = self.places.as_ref().map(|places| Arc::clone(places).try_acquire_owned());
        InFlight {
            _counted: self.tasks.token(),
            is_over: place.as_ref().is_some_and(Result::is_err),
            _place: place.and_then(Result::ok),
            _user: None,
        }
    }

    /// Whether a user's request may go on.
    pub(crate) fn admit(
        &self,
        in_flight: &mut InFlight,
        user: Uuid,
        token: Uuid,
    ) -> Result<(), Failure> {
        if in_flight.is_over {
            return Err(Failure::too_many_requests("too many requests are in flight"));
        }
        self.rate(token)?;
        in_flight._user = self.users.enter(user)?;
        Ok(())
    }

    fn rate(&self, token: Uuid) -> Result<(), Failure> {
        let Some(rates) = &self.rates else { return Ok(()) };
        if self.asked.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            rates.retain_recent();
        }
        rates.check_key(&token).map_err(|early| {
            let wait = early.wait_time_from(MonotonicClock.now());
            Failure::too_many_requests("this token asks more often than allowed").after(wait)
        })
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
        let Ok(Ok(permit)) = tokio::time::timeout(MEMORY_WAIT, acquiring).await else {
            let detail = "too many large requests are in flight".into();
            return Err(Failure::unavailable(detail, MEMORY_WAIT));
        };
        match &mut memory.0 {
            Some(taken) => taken.merge(permit),
            None => memory.0 = Some(permit),
        }
        Ok(())
    }
}

impl Memory {
    fn units(&self) -> u32 {
        let units = self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        u32::try_from(units).unwrap_or(u32::MAX)
    }
}

impl Users {
    fn enter(&self, user: Uuid) -> Result<Option<UserPlace>, Failure> {
        if self.limit == 0 {
            return Ok(None);
        }
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let count = in_flight.entry(user).or_default();
        if *count >= self.limit {
            return Err(Failure::too_many_requests("you have too many requests in flight"));
        }
        *count += 1;
        Ok(Some(UserPlace { user, users: self.clone() }))
    }
}

impl Drop for UserPlace {
    fn drop(&mut self) {
        let mut in_flight = self.users.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = in_flight.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                in_flight.remove(&self.user);
            }
        }
    }
}
