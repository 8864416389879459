//! Limits on the requests of one process, one user and one token.

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
    Quota, RateLimiter, clock::Clock, middleware::NoOpMiddleware, state::keyed::DashMapStateStore,
};
use uuid::Uuid;

/// The rates of idle tokens are dropped after every so many requests.
const DROP_IDLE_EVERY: usize = 4_096;

/// The limits of one process, one user and one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Maximum number of requests in flight; 0 = unlimited.
    pub concurrent_requests: usize,
    /// Maximum number of requests in flight per user; 0 = unlimited.
    pub concurrent_requests_per_user: usize,
    /// Maximum rate of requests per token; 0 = unlimited.
    pub requests_per_second: u32,
    /// Maximum burst of requests per token; 0 = the same as `requests_per_second`.
    pub burst: u32,
    /// Memory in bytes for request bodies, as received and as decoded.
    pub body_memory: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            concurrent_requests: 0,
            concurrent_requests_per_user: 0,
            requests_per_second: 0,
            burst: 0,
            body_memory: 512 << 20,
        }
    }
}

/// The limit that a request exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitExceeded {
    /// [`LimitsConfig::concurrent_requests`].
    #[error("too many requests in flight; retry in a moment")]
    Process,
    /// [`LimitsConfig::concurrent_requests_per_user`].
    #[error("too many requests in flight for this user; retry in a moment")]
    User,
    /// [`LimitsConfig::requests_per_second`].
    #[error("rate limit exceeded for this token; retry in {} s", .retry_after.as_secs_f64().ceil())]
    Token {
        /// The delay until a request is within the limit.
        retry_after: Duration,
    },
}

/// The limits of one process; time comes from `C`.
#[derive(Debug)]
pub struct RequestLimits<C: Clock> {
    config: LimitsConfig,
    clock: C,
    /// Requests that hold a [`Slot`].
    in_flight: Arc<AtomicUsize>,
    users: Users,
    rates: Option<Arc<TokenRates<C>>>,
}

type Rates<C> =
    RateLimiter<Uuid, DashMapStateStore<Uuid>, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// The request rate of each token.
#[derive(Debug)]
struct TokenRates<C: Clock> {
    rates: Rates<C>,
    requests: AtomicUsize,
}

/// The slot of a request in flight; released on drop.
#[derive(Debug)]
pub struct Slot(Arc<AtomicUsize>);

/// The number of requests in flight per user, if it is limited.
#[derive(Debug, Clone, Default)]
struct Users {
    limit: usize,
    in_flight: Arc<Mutex<HashMap<Uuid, usize>>>,
}

/// The slot of a user's request in flight; released on drop.
#[derive(Debug)]
pub struct UserSlot {
    user: Uuid,
    users: Users,
}

impl<C: Clock + Clone> RequestLimits<C> {
    /// New limits without requests in flight.
    pub fn new(config: LimitsConfig, clock: C) -> Self {
        Self {
            config,
            in_flight: Arc::default(),
            users: Users { limit: config.concurrent_requests_per_user, ..Users::default() },
            rates: token_rates(config, &clock),
            clock,
        }
    }

    /// The settings.
    pub const fn config(&self) -> &LimitsConfig {
        &self.config
    }

    /// Applies other limits: requests in flight keep their slots, and unchanged rates keep their history.
    #[must_use]
    pub fn reconfigured(&self, config: LimitsConfig) -> Self {
        let rate = |config: LimitsConfig| (config.requests_per_second, config.burst);
        let is_same_rate = rate(config) == rate(self.config);
        let rates =
            if is_same_rate { self.rates.clone() } else { token_rates(config, &self.clock) };
        Self {
            config,
            clock: self.clock.clone(),
            in_flight: Arc::clone(&self.in_flight),
            users: Users { limit: config.concurrent_requests_per_user, ..self.users.clone() },
            rates,
        }
    }

    /// Takes a slot of the process.
    ///
    /// # Errors
    ///
    /// [`LimitExceeded::Process`] when no slot is free.
    pub fn enter(&self) -> Result<Slot, LimitExceeded> {
        let limit = self.config.concurrent_requests;
        let with_one_more = |count: usize| (limit == 0 || count < limit).then_some(count + 1);
        self.in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, with_one_more)
            .map(|_before| Slot(Arc::clone(&self.in_flight)))
            .map_err(|_full| LimitExceeded::Process)
    }

    /// Counts a request of a token and a user; the slot is `None` where users are not limited.
    ///
    /// # Errors
    ///
    /// When the token's rate or the user's number of requests is exceeded.
    pub fn admit(&self, user: Uuid, token: Uuid) -> Result<Option<UserSlot>, LimitExceeded> {
        self.count_request(token)?;
        self.users.enter(user)
    }

    fn count_request(&self, token: Uuid) -> Result<(), LimitExceeded> {
        let Some(TokenRates { rates, requests }) = self.rates.as_deref() else { return Ok(()) };
        if requests.fetch_add(1, Ordering::Relaxed) % DROP_IDLE_EVERY == DROP_IDLE_EVERY - 1 {
            rates.retain_recent();
        }
        rates.check_key(&token).map_err(|early| LimitExceeded::Token {
            retry_after: early.wait_time_from(self.clock.now()),
        })
    }
}

fn token_rates<C: Clock + Clone>(config: LimitsConfig, clock: &C) -> Option<Arc<TokenRates<C>>> {
    let rate = NonZeroU32::new(config.requests_per_second)?;
    let burst = NonZeroU32::new(config.burst).unwrap_or(rate);
    let quota = Quota::per_second(rate).allow_burst(burst);
    let rates = RateLimiter::new(quota, DashMapStateStore::default(), clock.clone());
    Some(Arc::new(TokenRates { rates, requests: AtomicUsize::new(0) }))
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Users {
    fn enter(&self, user: Uuid) -> Result<Option<UserSlot>, LimitExceeded> {
        if self.limit == 0 {
            return Ok(None);
        }
        let mut in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let count = in_flight.entry(user).or_default();
        if *count >= self.limit {
            return Err(LimitExceeded::User);
        }
        *count += 1;
        Ok(Some(UserSlot { user, users: self.clone() }))
    }
}

impl Drop for UserSlot {
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

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn limits(config: LimitsConfig) -> (RequestLimits<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (RequestLimits::new(config, clock.clone()), clock)
    }

    #[test]
    fn a_slot_is_released_when_its_request_ends() {
        let config = LimitsConfig { concurrent_requests: 1, ..LimitsConfig::default() };
        let (limits, _clock) = limits(config);
        let slot = limits.enter().unwrap();
        assert_eq!(limits.enter().unwrap_err(), LimitExceeded::Process);
        drop(slot);
        assert!(limits.enter().is_ok());
    }

    #[test]
    fn users_are_limited_independently() {
        let config = LimitsConfig { concurrent_requests_per_user: 1, ..LimitsConfig::default() };
        let (limits, _clock) = limits(config);
        let (ada, bob) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let slot = limits.admit(ada, ada).unwrap();
        assert_eq!(limits.admit(ada, ada).unwrap_err(), LimitExceeded::User);
        assert!(limits.admit(bob, bob).is_ok());
        drop(slot);
        assert!(limits.admit(ada, ada).is_ok());
    }

    #[test]
    fn a_token_over_its_rate_is_admitted_after_the_returned_delay() {
        let config = LimitsConfig { requests_per_second: 2, burst: 1, ..LimitsConfig::default() };
        let (limits, clock) = limits(config);
        let (user, token) = (Uuid::from_u128(1), Uuid::from_u128(2));
        limits.admit(user, token).unwrap();
        let Err(LimitExceeded::Token { retry_after }) = limits.admit(user, token) else {
            panic!("the second request exceeds the rate");
        };
        assert_eq!(retry_after, Duration::from_millis(500));
        clock.advance(retry_after);
        assert!(limits.admit(user, token).is_ok());
    }

    #[test]
    fn requests_in_flight_still_count_after_a_change_of_limits() {
        let config = LimitsConfig { concurrent_requests: 1, ..LimitsConfig::default() };
        let (limits, _clock) = limits(config);
        let _slot = limits.enter().unwrap();
        let limits = limits.reconfigured(LimitsConfig { requests_per_second: 5, ..config });
        assert_eq!(limits.enter().unwrap_err(), LimitExceeded::Process);
    }
}
