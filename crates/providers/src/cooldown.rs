//! When a key of a pool is not used: as a whole while it is rejected, otherwise for one endpoint and model.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use keybridge_telemetry::MAX_LABEL_BYTES;
use tokio::time::Instant;

use crate::{
    health::{KeyStatus, Restriction},
    retry,
    target::Target,
};

/// Cooldown of a rate-limited key if the provider sends no delay.
const RATE_LIMIT_COOLDOWN: Duration = Duration::from_secs(30);
/// Cooldown of a refused key; doubled each time it is refused again.
const REFUSED_COOLDOWN: Duration = Duration::from_secs(10 * 60);
/// Maximum cooldown of a key, whatever delay the provider sends.
const MAX_COOLDOWN: Duration = Duration::from_secs(24 * 60 * 60);
/// While one request probes a refused key, others use the remaining keys for this long.
const PROBE_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum number of endpoints and models for which the cooldowns of a key are remembered.
const MAX_PLACES: usize = 100;

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

/// Whether a key can be used, and how long not; in the order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Availability {
    pub(crate) status: KeyStatus,
    pub(crate) wait: Duration,
}

impl Availability {
    const READY: Self = Self { status: KeyStatus::Ready, wait: Duration::ZERO };

    pub(crate) fn is_ready(self) -> bool {
        self.wait.is_zero()
    }
}

/// The cooldowns of one key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cooldowns {
    /// Set from a rejection on, until the key is accepted.
    rejected: Option<Cooldown>,
    places: Vec<PlaceCooldown>,
}

/// The cooldown for one endpoint and model.
#[derive(Debug, Clone)]
struct PlaceCooldown {
    endpoint: String,
    model: Option<String>,
    cooldown: Cooldown,
}

#[derive(Debug, Clone, Copy)]
struct Cooldown {
    status: KeyStatus,
    /// When the key is used again.
    until: Instant,
    /// Doubled if the key is refused again.
    length: Duration,
    /// Whether a request is sent to find out whether the key is still refused.
    is_probed: bool,
}

impl Cooldown {
    fn new(status: KeyStatus, length: Duration, now: Instant) -> Self {
        let length = length.min(MAX_COOLDOWN);
        Self { status, until: now + length, length, is_probed: false }
    }

    /// The cooldown after the key was refused: longer each time that it was not used in between.
    fn refused(before: Option<Self>, status: KeyStatus, now: Instant) -> Self {
        match before.filter(|before| before.status == status) {
            None => Self::new(status, REFUSED_COOLDOWN, now),
            Some(before) if before.is_probed || before.until <= now => {
                Self::new(status, before.length.saturating_mul(2), now)
            }
            // It was used only because no other key was ready.
            Some(before) => before,
        }
    }

    fn availability(&self, now: Instant) -> Option<Availability> {
        let wait = self.until.saturating_duration_since(now);
        (!wait.is_zero()).then_some(Availability { status: self.status, wait })
    }

    /// Keeps others from probing a refused key while one request does.
    fn start_probe(&mut self, now: Instant) {
        if self.status != KeyStatus::Resting && self.until <= now {
            (self.until, self.is_probed) = (now + PROBE_TIMEOUT, true);
        }
    }
}

impl PlaceCooldown {
    fn is_for(&self, target: &Target<'_>) -> bool {
        self.endpoint == target.endpoint && self.model.as_deref() == target.model
    }
}

impl Cooldowns {
    /// Whether the key can be used for a request.
    pub(crate) fn availability(&self, target: &Target<'_>, now: Instant) -> Availability {
        let rejected = self.rejected.and_then(|rejected| rejected.availability(now));
        let place = || self.place(target)?.cooldown.availability(now);
        rejected.or_else(place).unwrap_or(Availability::READY)
    }

    /// Whether the provider rejects the key, whatever is asked for.
    pub(crate) fn is_rejected(&self, now: Instant) -> bool {
        self.rejected.is_some_and(|rejected| rejected.until > now)
    }

    /// Whether nothing keeps the key from being used.
    pub(crate) fn is_empty(&self) -> bool {
        self.rejected.is_none() && self.places.is_empty()
    }

    /// Notes that the key is used for a request.
    pub(crate) fn start_use(&mut self, target: &Target<'_>) {
        if self.is_empty() {
            return;
        }
        let now = Instant::now();
        if let Some(rejected) = &mut self.rejected {
            rejected.start_probe(now);
        }
        if let Some(place) = self.places.iter_mut().find(|place| place.is_for(target)) {
            place.cooldown.start_probe(now);
        }
    }

    /// Applies a verdict on the key of a request.
    pub(crate) fn apply(&mut self, target: &Target<'_>, verdict: KeyVerdict, now: Instant) {
        match verdict {
            KeyVerdict::Invalid => {
                self.rejected = Some(Cooldown::refused(self.rejected, KeyStatus::Invalid, now));
            }
            KeyVerdict::Forbidden => {
                let before = self.place(target).map(|place| place.cooldown);
                self.set(target, Cooldown::refused(before, KeyStatus::Forbidden, now), now);
            }
            KeyVerdict::RateLimited(requested) => {
                self.rejected = None;
                let length = requested.unwrap_or(RATE_LIMIT_COOLDOWN);
                self.set(target, Cooldown::new(KeyStatus::Resting, length, now), now);
            }
            KeyVerdict::Accepted => {
                self.rejected = None;
                self.places.retain(|place| !place.is_for(target));
            }
        }
    }

    /// The status of the key in all: `Resting` if there is anything that it is not used for.
    pub(crate) fn status(&self, now: Instant) -> KeyStatus {
        if self.rejected.is_some() {
            KeyStatus::Invalid
        } else if self.places.iter().any(|place| place.cooldown.until > now) {
            KeyStatus::Resting
        } else {
            KeyStatus::Ready
        }
    }

    /// The time until a rejected key is used again.
    pub(crate) fn rejected_for(&self, now: Instant) -> Option<Duration> {
        self.rejected.map(|rejected| rejected.until.saturating_duration_since(now))
    }

    /// What the key is not used for, with the remaining times.
    pub(crate) fn restrictions(&self, now: Instant, clock: Timestamp) -> Vec<Restriction> {
        let restriction = |place: &PlaceCooldown| {
            let Availability { status, wait } = place.cooldown.availability(now)?;
            Some(Restriction {
                endpoint: place.endpoint.clone(),
                model: place.model.clone(),
                status,
                until: clock.checked_add(wait).ok()?,
            })
        };
        self.places.iter().filter_map(restriction).collect()
    }

    fn place(&self, target: &Target<'_>) -> Option<&PlaceCooldown> {
        self.places.iter().find(|place| place.is_for(target))
    }

    fn set(&mut self, target: &Target<'_>, cooldown: Cooldown, now: Instant) {
        if let Some(place) = self.places.iter_mut().find(|place| place.is_for(target)) {
            place.cooldown = cooldown;
            return;
        }
        let model = target.model.unwrap_or_default();
        if target.endpoint.len() > MAX_LABEL_BYTES || model.len() > MAX_LABEL_BYTES {
            return;
        }
        if self.places.len() >= MAX_PLACES {
            self.places.retain(|place| place.cooldown.until > now);
        }
        if self.places.len() >= MAX_PLACES {
            let places = self.places.iter().enumerate();
            let soonest = places.min_by_key(|(_, place)| place.cooldown.until);
            if let Some((soonest, _)) = soonest {
                self.places.swap_remove(soonest);
            }
        }
        self.places.push(PlaceCooldown {
            endpoint: target.endpoint.to_owned(),
            model: target.model.map(str::to_owned),
            cooldown,
        });
    }
}

#[cfg(test)]
mod tests;
