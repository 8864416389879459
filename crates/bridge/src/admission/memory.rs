//! The memory of request bodies: one budget for the bytes of all of them, as received and as decoded.
//!
//! A body of known length reserves its memory before it is read, any other body as it arrives. A request
//! that finds too little memory keeps what it has and waits, at most for [`MEMORY_TIMEOUT`]; then it is
//! refused and releases all it has, so that requests that wait for each other do not wait for ever.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use keybridge_providers::failure::Failure;
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};
use uuid::Uuid;

/// Timeout of a wait for memory, and of the wait to decode a large body.
pub(crate) const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);
/// Reservations are multiples of this; the smallest covers a request's head, too.
const UNIT: usize = 16 << 10;
/// A reservation up to this size may use the whole budget; larger ones leave an eighth of it free, so
/// that small requests do not wait for large ones.
const SMALL_RESERVATION: usize = 64 << 10;
/// Maximum number of requests that wait for memory; further ones are refused at once. The connection of
/// one that waits may have buffered up to 1 MiB of its body.
const MAX_WAITING: usize = 256;

/// The memory for request bodies; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct MemoryBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    state: Mutex<State>,
    released: Notify,
    waiting: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    limit: usize,
    used: usize,
    /// What each user has reserved; only users with reservations are listed.
    users: HashMap<Uuid, usize>,
}

/// Memory reserved for the body of one request, released on drop.
#[derive(Debug, Default)]
pub(crate) struct Memory(Option<Reservation>);

#[derive(Debug)]
struct Reservation {
    budget: Arc<Budget>,
    user: Uuid,
    bytes: usize,
}

impl MemoryBudget {
    pub(crate) fn new(limit: usize) -> Self {
        Self(Arc::new(Budget {
            state: Mutex::new(State { limit, ..State::default() }),
            released: Notify::new(),
            waiting: Semaphore::new(MAX_WAITING),
        }))
    }

    /// Changes the size of the budget; what is reserved beyond a smaller one is waited for.
    pub(crate) fn resize(&self, limit: usize) {
        self.0.state().limit = limit;
        self.0.released.notify_waiters();
    }

    /// Bytes that are reserved.
    pub(crate) fn used(&self) -> usize {
        self.0.state().used
    }

    /// An empty reservation for a request of this user.
    pub(crate) fn reservation(&self, user: Uuid) -> Memory {
        Memory(Some(Reservation { budget: Arc::clone(&self.0), user, bytes: 0 }))
    }
}

impl Memory {
    /// Bytes that are reserved.
    pub(crate) fn bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |reservation| reservation.bytes)
    }

    /// Grows the reservation to this many bytes in all, if there is memory. An empty default reservation
    /// belongs to no budget and is not limited.
    pub(crate) fn try_grow(&mut self, bytes: usize) -> bool {
        let Some(Reservation { budget, user, bytes: held }) = &mut self.0 else { return true };
        if bytes <= *held {
            return true;
        }
        let grown = budget.state().grow(*user, *held, bytes);
        if let Some(grown) = grown {
            *held = grown;
        }
        grown.is_some()
    }

    /// Waits until the reservation has grown to this many bytes in all.
    pub(crate) async fn grow(&mut self, bytes: usize) -> Result<(), Failure> {
        if self.try_grow(bytes) {
            return Ok(());
        }
        // Boxed: most requests do not wait.
        Box::pin(self.wait_to_grow(bytes)).await
    }

    async fn wait_to_grow(&mut self, bytes: usize) -> Result<(), Failure> {
        let Some(budget) = self.0.as_ref().map(|reservation| Arc::clone(&reservation.budget))
        else {
            return Ok(());
        };
        let _waiting = budget.waiting.try_acquire().map_err(|_full| no_memory())?;
        let growing = async {
            loop {
                let mut released = std::pin::pin!(budget.released.notified());
                released.as_mut().enable();
                if self.try_grow(bytes) {
                    return;
                }
                released.await;
            }
        };
        timeout(MEMORY_TIMEOUT, growing).await.map_err(|_elapsed| no_memory())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.state().release(self.user, self.bytes);
            self.budget.released.notify_waiters();
        }
    }
}

impl Budget {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Grows the reservation of a user's request from `held` to `wanted` bytes, rounded up; returns its
    /// new size. A reservation larger than the whole budget gets all of it.
    fn grow(&mut self, user: Uuid, held: usize, wanted: usize) -> Option<usize> {
        let wanted = wanted.div_ceil(UNIT).saturating_mul(UNIT);
        let limit =
            if wanted <= SMALL_RESERVATION { self.limit } else { self.limit - self.limit / 8 };
        let wanted = wanted.min(limit).max(held);
        let of_others = self.used.saturating_sub(held);
        if of_others.saturating_add(wanted) > limit {
            return None;
        }
        let of_user = self.users.entry(user).or_default();
        // One user's requests share half of the budget, but one request alone may be larger.
        let of_user_others = of_user.saturating_sub(held);
        if of_user_others > 0 && of_user_others.saturating_add(wanted) > self.limit / 2 {
            return None;
        }
        *of_user = of_user_others.saturating_add(wanted);
        self.used = of_others.saturating_add(wanted);
        Some(wanted)
    }

    fn release(&mut self, user: Uuid, bytes: usize) {
        self.used = self.used.saturating_sub(bytes);
        if let Entry::Occupied(mut of_user) = self.users.entry(user) {
            let rest = of_user.get().saturating_sub(bytes);
            if rest == 0 {
                of_user.remove();
            } else {
                *of_user.get_mut() = rest;
            }
        }
    }
}

/// The error for a request while others use the memory.
pub(crate) fn no_memory() -> Failure {
    Failure::unavailable("too many large requests are in flight", MEMORY_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;
    const MIB: usize = 1 << 20;
    const ADA: Uuid = Uuid::from_u128(1);
    const BOB: Uuid = Uuid::from_u128(2);

    #[test]
    fn small_reservations_use_the_part_that_large_ones_leave() {
        let budget = MemoryBudget::new(8 * MIB);
        let mut large = budget.reservation(ADA);
        assert!(large.try_grow(100 * MIB), "alone it gets all there is");
        assert_eq!(budget.used(), 7 * MIB);
        assert!(!budget.reservation(BOB).try_grow(65 * KIB));
        let small: Vec<_> = (0..64)
            .map(|_| {
                let mut small = budget.reservation(BOB);
                assert!(small.try_grow(1));
                small
            })
            .collect();
        assert!(!budget.reservation(BOB).try_grow(1), "nothing is left");
        drop((large, small));
        assert_eq!(budget.used(), 0);
        assert!(budget.0.state().users.is_empty());
    }

    #[test]
    fn the_requests_of_one_user_share_half_of_the_budget() {
        let budget = MemoryBudget::new(8 * MIB);
        let mut reservations: Vec<_> = (0..4).map(|_| budget.reservation(ADA)).collect();
        assert!(reservations.iter_mut().all(|memory| memory.try_grow(MIB)));
        assert!(!budget.reservation(ADA).try_grow(1));
        let mut other = budget.reservation(BOB);
        assert!(other.try_grow(3 * MIB));
        reservations.pop();
        assert!(budget.reservation(ADA).try_grow(MIB));
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_wait_for_each_other_are_refused_after_a_while() {
        let budget = MemoryBudget::new(8 * MIB);
        let (mut first, mut second) = (budget.reservation(ADA), budget.reservation(BOB));
        assert!(first.try_grow(3 * MIB) && second.try_grow(3 * MIB));
        let grow = |mut memory: Memory| async move {
            let began = tokio::time::Instant::now();
            // What it has is released when it is refused.
            let is_grown = memory.grow(5 * MIB).await.is_ok();
            (is_grown, began.elapsed())
        };
        let (first, second) = tokio::join!(grow(first), grow(second));
        assert_ne!(first.0, second.0, "one is refused, and the other continues");
        assert!(first.1 >= MEMORY_TIMEOUT && second.1 >= MEMORY_TIMEOUT);
    }

    #[tokio::test]
    async fn a_smaller_budget_is_reached_as_memory_is_released() {
        let budget = MemoryBudget::new(8 * MIB);
        let mut large = budget.reservation(ADA);
        assert!(large.try_grow(4 * MIB));
        budget.resize(2 * MIB);
        assert!(!budget.reservation(BOB).try_grow(1));
        drop(large);
        assert!(budget.reservation(BOB).try_grow(1));
    }
}
