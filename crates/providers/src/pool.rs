//! The company keys of one provider: which is used, which are rate limited, and which were refused.

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

/// How long a rate-limited key is not used if its provider does not say how long.
const RATE_LIMITED: Duration = Duration::from_secs(30);
/// How long a refused key is not used; doubled each time it is refused again.
const REFUSED: Duration = Duration::from_secs(10 * 60);
/// Longest time that a key is not used, whatever its provider asks for.
const MAX_COOLDOWN: Duration = Duration::from_secs(24 * 60 * 60);
/// While one request tries a refused key, others use the remaining keys.
const PROBE: Duration = Duration::from_secs(30);
/// A key that may be used within this time is used where there is no other: the client need not
/// come back for the sake of a moment.
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

/// How long a key is not used, and why.
#[derive(Debug, Clone, Copy)]
struct Cooldown {
    status: KeyStatus,
    /// When it may be used again; `None` while it is ready.
    until: Option<Instant>,
    /// How long it was last not used; doubled if it is refused again.
    length: Duration,
}

impl Cooldown {
    const READY: Self = Self { status: KeyStatus::Ready, until: None, length: Duration::ZERO };

    fn is_over(self, now: Instant) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    /// The cooldown that follows this one after an answer.
    fn after(self, verdict: KeyVerdict) -> Self {
        let (status, length) = match verdict {
            KeyVerdict::Good => return Self::READY,
            KeyVerdict::Resting(requested) => {
                (KeyStatus::Resting, requested.unwrap_or(RATE_LIMITED))
            }
            KeyVerdict::Invalid | KeyVerdict::Forbidden if self.status == KeyStatus::Invalid => {
                (KeyStatus::Invalid, self.length.saturating_mul(2))
            }
            KeyVerdict::Invalid | KeyVerdict::Forbidden => (KeyStatus::Invalid, REFUSED),
        };
        let length = length.min(MAX_COOLDOWN);
        Self { status, until: Some(Instant::now() + length), length }
    }
}

/// What a provider's answer says of the key of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyVerdict {
    /// The key is good.
    Good,
    /// The rate limit is reached, for this long if the provider says so.
    Resting(Option<Duration>),
    /// The key is not accepted.
    Invalid,
    /// The key may not do this: its own fault only if another key may.
    Forbidden,
}

impl KeyVerdict {
    pub(crate) fn of(status: StatusCode, headers: &HeaderMap) -> Self {
        match status {
            StatusCode::UNAUTHORIZED => Self::Invalid,
            StatusCode::FORBIDDEN => Self::Forbidden,
            StatusCode::TOO_MANY_REQUESTS => {
                Self::Resting(retry::requested_delay(headers, Timestamp::now()))
            }
            _ => Self::Good,
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

    /// Copies the cooldowns of the keys that another pool has too.
    pub(crate) fn learn_from(&self, other: &Self) {
        for key in &self.keys {
            let same =
                other.keys.iter().find(|known| known.credential.value == key.credential.value);
            if let Some(same) = same {
                *key.cooldown() = *same.cooldown();
            }
        }
    }

    /// A key that may be used and is not among those `tried`. The only key of a pool is always used:
    /// the provider's own answer says more than a refusal by keybridge.
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
            return self.soonest_of(SHORT_COOLDOWN, tried);
        };
        let mut cooldown = key.cooldown();
        let now = Instant::now();
        if cooldown.status == KeyStatus::Invalid && cooldown.is_over(now) {
            cooldown.until = Some(now + PROBE);
        }
        Some(Arc::clone(&key.credential))
    }

    /// Whether a key may be used now.
    pub(crate) fn is_ready(&self, index: usize) -> bool {
        let is_usable = |key: &PooledKey| key.cooldown().is_over(Instant::now());
        self.keys.len() == 1 || self.keys.get(index).is_some_and(is_usable)
    }

    /// How long until a key may be used again; `None` if there is no key.
    pub(crate) fn soonest(&self) -> Option<Duration> {
        self.waits().map(|(wait, _)| wait).min()
    }

    /// The key that may be used first, if that is within a delay.
    pub(crate) fn soonest_within(&self, delay: Duration) -> Option<Arc<Credential>> {
        self.soonest_of(delay, &[])
    }

    /// The same among the keys that were not `tried`.
    fn soonest_of(&self, delay: Duration, tried: &[usize]) -> Option<Arc<Credential>> {
        let left = self.waits().enumerate().filter(|(index, _)| !tried.contains(index));
        let (wait, key) = left.map(|(_, left)| left).min_by_key(|(wait, _)| *wait)?;
        (wait <= delay).then(|| Arc::clone(&key.credential))
    }

    /// The keys, each with the rest of its cooldown.
    fn waits(&self) -> impl Iterator<Item = (Duration, &PooledKey)> {
        let now = Instant::now();
        self.keys.iter().map(move |key| {
            let until = key.cooldown().until;
            (until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now)), key)
        })
    }

    /// Applies what a provider's answer says of a key; returns its name if its status changes.
    pub(crate) fn judge(&self, index: usize, verdict: KeyVerdict) -> Option<(&str, KeyStatus)> {
        let key = self.keys.get(index)?;
        let mut cooldown = key.cooldown();
        let before = cooldown.status;
        *cooldown = cooldown.after(verdict);
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

/// A random key, each as often as its weight says.
fn weighted(keys: Vec<(usize, &PooledKey)>) -> Option<(usize, &PooledKey)> {
    let sum: u64 = keys.iter().map(|(_, key)| u64::from(key.weight)).sum();
    let mut bytes = [0; 8];
    // Without randomness the first one is used.
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
