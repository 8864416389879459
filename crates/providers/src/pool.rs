//! The keys of one provider: which is used next.

use std::{
    slice,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::{
    digest::{Context, SHA256},
    rand,
};
use jiff::Timestamp;
use tokio::time::Instant;

use crate::{
    config::{KeySelection, ProviderConfig},
    cooldown::{Availability, Cooldowns, KeyVerdict},
    credential::Credential,
    health::{KeyState, KeyStatus},
    target::Target,
};

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
    cooldowns: Mutex<Cooldowns>,
}

impl Pool {
    pub(crate) fn new(config: &ProviderConfig, credentials: Vec<Credential>) -> Self {
        let keys = config.keys.iter().zip(credentials).map(|(key, credential)| PooledKey {
            name: key.name.clone(),
            weight: key.weight,
            credential: Arc::new(credential),
            cooldowns: Mutex::default(),
        });
        Self { selection: config.key_selection, keys: keys.collect() }
    }

    /// Copies the cooldowns of another pool, for the keys that both have.
    pub(crate) fn copy_cooldowns(&self, other: &Self) {
        for key in &self.keys {
            let same = other.keys.iter().find(|known| known.credential.sent == key.credential.sent);
            if let Some(same) = same {
                let cooldowns = same.cooldowns().clone();
                *key.cooldowns() = cooldowns;
            }
        }
    }

    /// Whether the key depends on the conversation that a request belongs to.
    pub(crate) fn chooses_by_session(&self) -> bool {
        self.selection == KeySelection::Weighted && self.keys.len() > 1
    }

    /// Picks a key that is ready for a request and not among those `tried`. A request that only one key
    /// can serve gets it in any case: the provider's own error is more useful than a refusal by keybridge.
    pub(crate) fn pick(&self, target: &Target<'_>, tried: &[usize]) -> Option<Arc<Credential>> {
        let now = Instant::now();
        let bound = self.bound(target, now);
        if self.keys.len() == 1 || bound.is_some() {
            let key = bound.or_else(|| self.keys.first().map(|key| (0, key)));
            return key
                .filter(|(index, _)| !tried.contains(index))
                .map(|key| key.1.use_for(target));
        }
        let untried = || self.keys.iter().enumerate().filter(|(index, _)| !tried.contains(index));
        let mut ready = untried().filter(|(_, key)| key.availability(target, now).is_ready());
        let picked = match (self.selection, target.session) {
            (KeySelection::First, _) => ready.next().map(|(_, key)| key),
            (KeySelection::Weighted, Some(session)) => {
                by_session(ready.map(|(_, key)| key), session)
            }
            (KeySelection::Weighted, None) => weighted(ready.map(|(_, key)| key).collect()),
        };
        let soon = || {
            let soonest = untried().map(|(_, key)| (key.availability(target, now), key));
            let (soonest, key) = soonest.min_by_key(|(soonest, _)| soonest.wait)?;
            (soonest.wait <= SHORT_COOLDOWN).then_some(key)
        };
        Some(picked.or_else(soon)?.use_for(target))
    }

    /// Picks the key that is the most likely to serve a request although none is ready; `None` only if
    /// there is no key.
    pub(crate) fn pick_any(&self, target: &Target<'_>) -> Option<Arc<Credential>> {
        let now = Instant::now();
        let key = self.keys.iter().min_by_key(|key| key.availability(target, now))?;
        Some(Arc::clone(&key.credential))
    }

    /// Picks a key that is ready for a request after a delay: the one `used` before it, if it is.
    pub(crate) fn pick_after(
        &self,
        delay: Duration,
        target: &Target<'_>,
        used: usize,
    ) -> Option<Arc<Credential>> {
        let now = Instant::now();
        let is_ready =
            |key: &&PooledKey| self.keys.len() == 1 || key.availability(target, now).is_ready();
        if let Some(key) = self.keys.get(used).filter(is_ready) {
            return Some(Arc::clone(&key.credential));
        }
        let candidates =
            self.bound(target, now).map_or(&*self.keys, |(_, key)| slice::from_ref(key));
        let soonest = candidates.iter().map(|key| (key.availability(target, now).wait, key));
        let (wait, key) = soonest.min_by_key(|(wait, _)| *wait)?;
        (wait <= delay).then(|| key.use_for(target))
    }

    /// The key that a request is bound to, unless the provider rejects it.
    fn bound(&self, target: &Target<'_>, now: Instant) -> Option<(usize, &PooledKey)> {
        let name = target.bound_key?;
        let mut keys = self.keys.iter().enumerate();
        keys.find(|(_, key)| key.name == name && !key.cooldowns().is_rejected(now))
    }

    /// Applies a verdict on the key of a request; returns its name and new status if the status changes.
    pub(crate) fn apply_verdict(
        &self,
        index: usize,
        target: &Target<'_>,
        verdict: KeyVerdict,
    ) -> Option<(&str, KeyStatus)> {
        let key = self.keys.get(index)?;
        let mut cooldowns = key.cooldowns();
        if verdict == KeyVerdict::Accepted && cooldowns.is_empty() {
            return None;
        }
        let now = Instant::now();
        let before = cooldowns.status(now);
        cooldowns.apply(target, verdict, now);
        let after = cooldowns.status(now);
        (before != after).then_some((key.name.as_str(), after))
    }

    /// The states of the keys in the order of the configuration.
    pub(crate) fn states(&self) -> Vec<KeyState> {
        let (now, clock) = (Instant::now(), Timestamp::now());
        let state = |key: &PooledKey| {
            let cooldowns = key.cooldowns();
            let restrictions = cooldowns.restrictions(now, clock);
            let rejected = cooldowns.rejected_for(now);
            let rejected = rejected.and_then(|wait| clock.checked_add(wait).ok());
            KeyState {
                name: key.name.clone(),
                hint: key.credential.trace.hint.clone(),
                status: cooldowns.status(now),
                until: rejected.or_else(|| restrictions.iter().map(|one| one.until).max()),
                restrictions,
            }
        };
        self.keys.iter().map(state).collect()
    }
}

impl PooledKey {
    fn cooldowns(&self) -> MutexGuard<'_, Cooldowns> {
        self.cooldowns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn availability(&self, target: &Target<'_>, now: Instant) -> Availability {
        self.cooldowns().availability(target, now)
    }

    fn use_for(&self, target: &Target<'_>) -> Arc<Credential> {
        self.cooldowns().start_use(target);
        Arc::clone(&self.credential)
    }
}

/// The key of a conversation: the same one each time among the same keys, and of many conversations each
/// key gets a share in proportion to its weight. While a key is not ready, only its own conversations move
/// (rendezvous hashing with weights).
fn by_session<'a>(
    keys: impl Iterator<Item = &'a PooledKey>,
    session: &str,
) -> Option<&'a PooledKey> {
    let score = |key: &PooledKey| {
        let mut context = Context::new(&SHA256);
        context.update(session.as_bytes());
        context.update(&[0]);
        context.update(key.name.as_bytes());
        let start = context.finish().as_ref().first_chunk().copied().unwrap_or_default();
        // Between 0 and 1, neither included.
        let share = (f64::from(u32::from_be_bytes(start)) + 0.5) / (f64::from(u32::MAX) + 1.0);
        -f64::from(key.weight) / share.ln()
    };
    keys.map(|key| (score(key), key))
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, key)| key)
}

/// A random key, in proportion to the weights.
fn weighted(keys: Vec<&PooledKey>) -> Option<&PooledKey> {
    let sum: u64 = keys.iter().map(|key| u64::from(key.weight)).sum();
    let mut bytes = [0; 8];
    // Without randomness, the first key is used.
    let _filled = rand::fill(&mut bytes);
    let mut left = u64::from_le_bytes(bytes).checked_rem(sum)?;
    keys.into_iter().find(|key| {
        let weight = u64::from(key.weight);
        let is_picked = left < weight;
        left = left.saturating_sub(weight);
        is_picked
    })
}

#[cfg(test)]
mod tests;
