//! The central keys of one provider: which is in use, which rest, and which were refused.

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

/// Rest of a key whose provider does not say how long, and the longest one it may ask for.
const REST: Duration = Duration::from_secs(30);
const LONGEST_REST: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a refused key is left alone; doubled each time it is refused again.
const REFUSED: Duration = Duration::from_secs(10 * 60);
const LONGEST_REFUSED: Duration = Duration::from_secs(24 * 60 * 60);
/// While one request finds out whether a refused key is good again, others use the rest.
const PROBE: Duration = Duration::from_secs(30);

/// A key whose rest ends that soon is used where there is no other: a retry may serve the request,
/// and its client is not sent away for a moment's sake.
const SHORT: Duration = Duration::from_secs(1);

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
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Ready,
    Resting {
        until: Instant,
    },
    /// Refused by the provider; `pause` is doubled if that happens again.
    Invalid {
        until: Instant,
        pause: Duration,
    },
}

impl State {
    fn is_ready(self, now: Instant) -> bool {
        self.until().is_none_or(|until| until <= now)
    }

    fn until(self) -> Option<Instant> {
        match self {
            Self::Ready => None,
            Self::Resting { until } | Self::Invalid { until, .. } => Some(until),
        }
    }
}

/// What a provider's answer says of the key that it was asked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing against it.
    Good,
    /// Over its limit, for this long if the provider says so.
    Resting(Option<Duration>),
    /// Not accepted.
    Invalid,
    /// Not permitted to do what was asked: the key's fault only if another key may.
    Forbidden,
}

impl Verdict {
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
            state: Mutex::new(State::Ready),
        });
        Self { selection: config.key_selection, keys: keys.collect() }
    }

    /// Takes over what another pool knows of the keys that both have.
    pub(crate) fn learn_from(&self, other: &Self) {
        for key in &self.keys {
            let same =
                other.keys.iter().find(|known| known.credential.value == key.credential.value);
            if let Some(same) = same {
                *key.state() = *same.state();
            }
        }
    }

    /// A key that may be used and is not among those `tried`. The only key of a pool is always used:
    /// there is nothing to spare it for, and the provider's own answer says more than the bridge's.
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
            return self.soonest_of(SHORT, tried);
        };
        let mut state = key.state();
        let now = Instant::now();
        if let State::Invalid { until, .. } = &mut *state
            && *until <= now
        {
            *until = now + PROBE;
        }
        Some(Arc::clone(&key.credential))
    }

    /// Whether a key may be used now.
    pub(crate) fn is_ready(&self, index: usize) -> bool {
        let is_usable = |key: &PooledKey| key.state().is_ready(Instant::now());
        self.keys.len() == 1 || self.keys.get(index).is_some_and(is_usable)
    }

    /// How long until a key may be used again; `None` if there is no key.
    pub(crate) fn soonest(&self) -> Option<Duration> {
        self.waits().map(|(wait, _)| wait).min()
    }

    /// The key that may be used first, if that is within a pause.
    pub(crate) fn soonest_within(&self, pause: Duration) -> Option<Arc<Credential>> {
        self.soonest_of(pause, &[])
    }

    /// The same of those that are not among `tried`.
    fn soonest_of(&self, pause: Duration, tried: &[usize]) -> Option<Arc<Credential>> {
        let left = self.waits().enumerate().filter(|(index, _)| !tried.contains(index));
        let (wait, key) = left.map(|(_, left)| left).min_by_key(|(wait, _)| *wait)?;
        (wait <= pause).then(|| Arc::clone(&key.credential))
    }

    /// The keys, each with how long it is not to be used.
    fn waits(&self) -> impl Iterator<Item = (Duration, &PooledKey)> {
        let now = Instant::now();
        self.keys.iter().map(move |key| {
            let until = key.state().until();
            (until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now)), key)
        })
    }

    /// Notes what a provider's answer says of a key; gives its name if that changes anything.
    pub(crate) fn judge(&self, index: usize, verdict: Verdict) -> Option<(&str, KeyStatus)> {
        let key = self.keys.get(index)?;
        let now = Instant::now();
        let mut state = key.state();
        let before = status(*state);
        *state = match verdict {
            Verdict::Good => State::Ready,
            Verdict::Resting(asked) => {
                let rest = asked.unwrap_or(REST).min(LONGEST_REST);
                State::Resting { until: now + rest }
            }
            Verdict::Invalid | Verdict::Forbidden => {
                let pause = match *state {
                    State::Invalid { pause, .. } => pause.saturating_mul(2).min(LONGEST_REFUSED),
                    State::Ready | State::Resting { .. } => REFUSED,
                };
                State::Invalid { until: now + pause, pause }
            }
        };
        let after = status(*state);
        (before != after).then_some((key.name.as_str(), after))
    }

    /// How the keys are, in the order of the configuration.
    pub(crate) fn states(&self) -> Vec<KeyState> {
        let (now, clock) = (Instant::now(), Timestamp::now());
        let shown = |key: &PooledKey| {
            let state = *key.state();
            let wait = state.until().map(|until| until.saturating_duration_since(now));
            KeyState {
                name: key.name.clone(),
                hint: key.credential.trace.hint.clone(),
                status: status(state),
                until: wait.and_then(|wait| clock.checked_add(wait).ok()),
            }
        };
        self.keys.iter().map(shown).collect()
    }
}

impl PooledKey {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const fn status(state: State) -> KeyStatus {
    match state {
        State::Ready => KeyStatus::Ready,
        State::Resting { .. } => KeyStatus::Resting,
        State::Invalid { .. } => KeyStatus::Invalid,
    }
}

/// One of the keys by chance, each as often as its weight says.
fn weighted(keys: Vec<(usize, &PooledKey)>) -> Option<(usize, &PooledKey)> {
    let sum: u64 = keys.iter().map(|(_, key)| u64::from(key.weight)).sum();
    let mut bytes = [0; 8];
    // Without randomness it is the first one.
    let _filled = rand::fill(&mut bytes);
    let mut left = u64::from_le_bytes(bytes).checked_rem(sum)?;
    keys.into_iter().find(|(_, key)| {
        let weight = u64::from(key.weight);
        let is_it = left < weight;
        left = left.saturating_sub(weight);
        is_it
    })
}

#[cfg(test)]
mod tests;
