//! Exponential backoff with jitter.

use std::time::Duration;

use aws_lc_rs::rand;

/// Delays between attempts: doubled each time up to a maximum, with half of each delay random, so that
/// many processes do not retry at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    attempts: u32,
}

/// The delay is doubled at most this often, which exceeds every maximum in use.
const MAX_DOUBLINGS: u32 = 16;

impl Backoff {
    /// A new backoff whose first delay is at most `first`; no delay is longer than `max`.
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, attempts: 0 }
    }

    /// The delay before the next attempt of this series.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.delay(self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        delay
    }

    /// Resets to the first delay after a successful attempt.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The delay after this many earlier attempts.
    pub fn delay(&self, attempts: u32) -> Duration {
        let max = self.first.saturating_mul(1 << attempts.min(MAX_DOUBLINGS)).min(self.max);
        let mut byte = [0];
        if rand::fill(&mut byte).is_err() {
            return max;
        }
        let [jitter] = byte;
        max / 2 + (max / 2) * u32::from(jitter) / 255
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Backoff;

    #[test]
    fn delays_double_up_to_the_maximum_and_vary() {
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(8));
        for (attempts, max) in [(0, 500), (1, 1_000), (2, 2_000), (9, 8_000), (u32::MAX, 8_000)] {
            let max = Duration::from_millis(max);
            let delays: Vec<Duration> = (0..50).map(|_| backoff.delay(attempts)).collect();
            assert!(delays.iter().all(|delay| *delay <= max && *delay >= max / 2));
            assert!(delays.iter().any(|delay| Some(delay) != delays.first()));
        }
    }

    #[test]
    fn the_delay_is_reset_after_a_success() {
        let (first, max) = (Duration::from_millis(500), Duration::from_secs(30));
        let mut backoff = Backoff::new(first, max);
        assert!(backoff.next_delay() <= first);
        for _ in 0..20 {
            backoff.next_delay();
        }
        assert!(backoff.next_delay() >= max / 2);
        backoff.reset();
        assert!(backoff.next_delay() <= first);
    }
}
