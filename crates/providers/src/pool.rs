//! The keys of one provider: which is used next, which are rate limited, and which were refused.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::rand;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use tokio::time::Instant;

use crate::{
    config::{KeySelection, ProviderConfig},
    credential::Credential,
    health::{KeyState, KeyStatus},
    retry,
};

/// Cooldown of a rate-limited key if the provider sends no delay.
const RATE_LIMIT_COOLDOWN: Duration = Duration::from_secs(30);
/// Cooldown of a refused key; doubled each time it is refused again.
const REFUSED_COOLDOWN: Duration = Duration::from_secs(10 * 60);
/// Maximum cooldown of a key, whatever delay the provider sends.
const MAX_COOLDOWN: Duration = Duration::from_secs(24 * 60 * 60);
/// While one request probes a refused key, others use the remaining keys for this long.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// A key whose cooldown ends within this time is used if there is no other: so short a wait is not worth
/// a refusal.
const SHORT_COOLDOWN: Duration = Duration::from_secs(1);

/// The keys of one provider.
#[derive(Debug)]
pub(crate) struct Pool {
    selection: KeySelection,
    keys: Vec<PooledKey>,
}

#[derive(Debug)]
struct PooledKey {
    name: String,
    weight: u32,
    credential: Arc<Credential>,
    cooldown: Mutex<Cooldown>,
}

/// The cooldown of a key and its reason.
#[derive(Debug, Clone, Copy)]
struct Cooldown {
    status: KeyStatus,
    /// When it may be used again; `None` while it is ready.
    until: Option<Instant>,
    /// The length of the last cooldown; doubled if the key is refused again.
    length: Duration,
}

impl Cooldown {
    const READY: Self = Self { status: KeyStatus::Ready, until: None, length: Duration::ZERO };

    fn has_ended(self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    /// The cooldown after an answer.
    fn next(self, verdict: KeyVerdict) -> Self {
        let (status, length) = match verdict {
            KeyVerdict::Accepted => return Self::READY,
            KeyVerdict::RateLimited(requested) => {
                (KeyStatus::Resting, requested.unwrap_or(RATE_LIMIT_COOLDOWN))
            }
            KeyVerdict::Invalid | KeyVerdict::Forbidden if self.status == KeyStatus::Invalid => {
                (KeyStatus::Invalid, self.length.saturating_mul(2))
            }
            KeyVerdict::Invalid | KeyVerdict::Forbidden => (KeyStatus::Invalid, REFUSED_COOLDOWN),
        };
        let length = length.min(MAX_COOLDOWN);
        Self { status, until: Some(Instant::now() + length), length }
    }
}

/// What a provider's answer shows about the key of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyVerdict {
    /// The key is accepted.
    Accepted,
    /// The key is rate limited, for this long if the provider sent a delay.
    RateLimited(Option<Duration>),
    /// The key is not accepted.
    Invalid,
    /// The key is not allowed to do this; the key is at fault only if another key is allowed to.
    Forbidden,
}

impl KeyVerdict {
    pub(crate) fn of(status: StatusCode, headers: &HeaderMap) -> Self {
        match status {
            StatusCode::UNAUTHORIZED => Self::Invalid,
            StatusCode::FORBIDDEN => Self::Forbidden,
            StatusCode::TOO_MANY_REQUESTS => {
                Self::RateLimited(retry::requested_delay(headers, Timestamp::now()))
            }
            _ => Self::Accepted,
        }
    }
}

impl Pool {
    pub(crate) fn new(config: &ProviderConfig, credentials: Vec<Credential>) -> Self {
        let keys = config.keys.iter().zip(credentials).map(|(key, credential)| PooledKey {
            name: key.name.clone(),
            weight: key.weight,
            credential: Arc::new(credential),
            cooldown: Mutex::new(Cooldown::READY),
        });
        Self { selection: config.key_selection, keys: keys.collect() }
    }

    /// Copies the cooldowns of another pool, for the keys that both have.
    pub(crate) fn copy_cooldowns(&self, other: &Self) {
        for key in &self.keys {
            let same =
                other.keys.iter().find(|known| known.credential.value == key.credential.value);
            if let Some(same) = same {
                *key.cooldown() = *same.cooldown();
            }
        }
    }

    /// Picks a usable key that is not among those `tried`. The only key of a pool is always used: the
    /// provider's own error is more useful than a refusal by keybridge.
    pub(crate) fn pick(&self, tried: &[usize]) -> Option<Arc<Credential>> {
        let mut ready = self
            .keys
            .iter()
            .enumerate()
            .filter(|(index, _)| !tried.contains(index) && self.is_ready(*index));
        let picked = match self.selection {
            KeySelection::First => ready.next(),
            KeySelection::Weighted => weighted(ready.collect()),
        };
        let Some((_, key)) = picked else {
            return self.first_untried_within(SHORT_COOLDOWN, tried);
        };
        let mut cooldown = key.cooldown();
        let now = Instant::now();
        if cooldown.status == KeyStatus::Invalid && cooldown.has_ended(now) {
            cooldown.until = Some(now + PROBE_TIMEOUT);
        }
        Some(Arc::clone(&key.credential))
    }

    /// Whether a key is usable now.
    pub(crate) fn is_ready(&self, index: usize) -> bool {
        let is_usable = |key: &PooledKey| key.cooldown().has_ended(Instant::now());
        self.keys.len() == 1 || self.keys.get(index).is_some_and(is_usable)
    }

    /// The time until a key is usable; `None` if there is no key.
    pub(crate) fn time_until_usable(&self) -> Option<Duration> {
        self.waits().map(|(wait, _)| wait).min()
    }

    /// The key that is usable first, if that is within a delay.
    pub(crate) fn first_usable_within(&self, delay: Duration) -> Option<Arc<Credential>> {
        self.first_untried_within(delay, &[])
    }

    /// The same among the keys that are not in `tried`.
    fn first_untried_within(&self, delay: Duration, tried: &[usize]) -> Option<Arc<Credential>> {
        let left = self.waits().enumerate().filter(|(index, _)| !tried.contains(index));
        let (wait, key) = left.map(|(_, left)| left).min_by_key(|(wait, _)| *wait)?;
        (wait <= delay).then(|| Arc::clone(&key.credential))
    }

    /// The keys with their remaining cooldowns.
    fn waits(&self) -> impl Iterator<Item = (Duration, &PooledKey)> {
        let now = Instant::now();
        self.keys.iter().map(move |key| {
            let until = key.cooldown().until;
            (until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now)), key)
        })
    }

    /// Applies a verdict to a key; returns its name and new status if the status changes.
    pub(crate) fn apply_verdict(
        &self,
        index: usize,
        verdict: KeyVerdict,
    ) -> Option<(&str, KeyStatus)> {
        let key = self.keys.get(index)?;
        let mut cooldown = key.cooldown();
        let before = cooldown.status;
        *cooldown = cooldown.next(verdict);
        let after = cooldown.status;
        (before != after).then_some((key.name.as_str(), after))
    }

    /// The states of the keys in the order of the configuration.
    pub(crate) fn states(&self) -> Vec<KeyState> {
        let (now, clock) = (Instant::now(), Timestamp::now());
        let state = |key: &PooledKey| {
            let Cooldown { status, until, .. } = *key.cooldown();
            let wait = until.map(|until| until.saturating_duration_since(now));
            KeyState {
                name: key.name.clone(),
                hint: key.credential.trace.hint.clone(),
                status,
                until: wait.and_then(|wait| clock.checked_add(wait).ok()),
            }
        };
        self.keys.iter().map(state).collect()
    }
}

impl PooledKey {
    fn cooldown(&self) -> MutexGuard<'_, Cooldown> {
        self.cooldown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A random key, in proportion to the weights.
fn weighted(keys: Vec<(usize, &PooledKey)>) -> Option<(usize, &PooledKey)> {
    let sum: u64 = keys.iter().map(|(_, key)| u64::from(key.weight)).sum();
    let mut bytes = [0; 8];
    // Without randomness, the first key is used.
    let _filled = rand::fill(&mut bytes);
    let mut left = u64::from_le_bytes(bytes).checked_rem(sum)?;
    keys.into_iter().find(|(_, key)| {
        let weight = u64::from(key.weight);
        let is_picked = left < weight;
        left = left.saturating_sub(weight);
        is_picked
    })
}

#[cfg(test)]
mod tests;
