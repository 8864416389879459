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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
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
    config: LimitsConfig,
    /// Requests that have a place.
    placed: Arc<AtomicUsize>,
    users: Users,
    rates: Option<Arc<TokenRates>>,
    memory: Arc<Semaphore>,
    memory_units: u32,
    /// Requests in flight and the records of side requests.
    pub(crate) tasks: TaskTracker,
}

/// How often each token asks.
#[derive(Debug)]
struct TokenRates {
    rates: Rates,
    asked: AtomicUsize,
}

/// A request in flight: counted until its answer has been relayed.
#[derive(Debug)]
pub(crate) struct InFlight {
    _counted: TaskTrackerToken,
    /// None where there was none left.
    place: Option<Place>,
    _user: Option<UserPlace>,
}

/// A place among the requests in flight.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

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
    pub(crate) fn new(config: LimitsConfig) -> Self {
        let memory_units = memory_units(config.body_memory);
        Self {
            config,
            placed: Arc::default(),
            users: Users { limit: config.concurrent_requests_per_user, ..Users::default() },
            rates: token_rates(config),
            memory: Arc::new(Semaphore::new(usize::try_from(memory_units).unwrap_or(usize::MAX))),
            memory_units,
            tasks: TaskTracker::new(),
        }
    }

    /// Other limits for the same requests: those in flight go on and count.
    pub(crate) fn changed(&self, config: LimitsConfig) -> Self {
        let rate = |config: LimitsConfig| (config.requests_per_second, config.burst);
        let is_same_rate = rate(config) == rate(self.config);
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
            config,
            placed: Arc::clone(&self.placed),
            users: Users { limit: config.concurrent_requests_per_user, ..self.users.clone() },
            rates: if is_same_rate { self.rates.clone() } else { token_rates(config) },
            memory: Arc::clone(&self.memory),
            memory_units,
            tasks: self.tasks.clone(),
        }
    }

    /// A request has come; whether there is a place for it is told by [`Limits::admit`], when it is
    /// known who asks.
    pub(crate) fn enter(&self) -> InFlight {
        let limit = self.config.concurrent_requests;
        let with_one_more = |placed: usize| (limit == 0 || placed < limit).then_some(placed + 1);
        let placed = self.placed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_one_more);
        InFlight {
            _counted: self.tasks.token(),
            place: placed.ok().map(|_| Place(Arc::clone(&self.placed))),
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
        if in_flight.place.is_none() {
            return Err(Failure::too_many_requests("too many requests are in flight"));
        }
        self.rate(token)?;
        in_flight._user = self.users.enter(user)?;
        Ok(())
    }

    fn rate(&self, token: Uuid) -> Result<(), Failure> {
        let Some(TokenRates { rates, asked }) = self.rates.as_deref() else { return Ok(()) };
        if asked.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
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

/// The memory in permits.
fn memory_units(bytes: usize) -> u32 {
    let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(most)
}

fn token_rates(config: LimitsConfig) -> Option<Arc<TokenRates>> {
    let rate = NonZeroU32::new(config.requests_per_second)?;
    let burst = NonZeroU32::new(config.burst).unwrap_or(rate);
    let quota = Quota::per_second(rate).allow_burst(burst);
    let rates = RateLimiter::new(quota, DashMapStateStore::default(), MonotonicClock);
    Some(Arc::new(TokenRates { rates, asked: AtomicUsize::new(0) }))
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
