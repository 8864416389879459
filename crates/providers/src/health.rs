//! The state of providers for administrators: keys, circuit breakers, last errors.
//!
//! The pool and the breakers use these types themselves; the console's response types are made of
//! them in one place, `keybridge::admin_view`.

use std::sync::{Mutex, PoisonError};

use http::{StatusCode, Uri};
use jiff::Timestamp;

use crate::config::ProviderType;

/// The state of a provider instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderState {
    /// Its name in the configuration.
    pub name: String,
    /// Its kind.
    pub kind: ProviderType,
    /// Its base URL.
    pub base_url: Uri,
    /// The keys of its pool in the order of the configuration.
    pub keys: Vec<KeyState>,
    /// Its circuit breakers that guarded requests lately.
    pub circuits: Vec<CircuitState>,
    /// The last error with a company key.
    pub last_centralized_error: Option<LastError>,
    /// The last error with a BYOK credential.
    pub last_byok_error: Option<LastError>,
}

/// The state of a key of a provider's pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyState {
    /// Its name in the configuration.
    pub name: String,
    /// The masked key.
    pub hint: String,
    /// Whether it is used: `Resting` if there is anything that it is not used for.
    pub status: KeyStatus,
    /// When it is used again for everything, if it is not ready.
    pub until: Option<Timestamp>,
    /// What it is not used for.
    pub restrictions: Vec<Restriction>,
}

/// An endpoint and a model for which a key is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restriction {
    /// The endpoint, such as `/v1/messages`.
    pub endpoint: String,
    /// The model, if the requests named one.
    pub model: Option<String>,
    /// `Resting` or `Forbidden`.
    pub status: KeyStatus,
    /// When the key is used for it again.
    pub until: Timestamp,
}

/// Whether a key is used; in the order in which keys that are not ready are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyStatus {
    /// The key is used.
    Ready,
    /// The key has reached a rate limit of the provider.
    Resting,
    /// The provider does not allow the key to use an endpoint and model; of restrictions only.
    Forbidden,
    /// The provider rejects the key.
    Invalid,
}

impl KeyStatus {
    /// The name used in the API and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Resting => "resting",
            Self::Forbidden => "forbidden",
            Self::Invalid => "invalid",
        }
    }
}

/// The state of the circuit breaker of an endpoint and a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CircuitState {
    /// The endpoint, such as `/v1/messages`.
    pub endpoint: String,
    /// The requested model.
    pub model: String,
    /// `centralized` or `byok`, which are counted apart.
    pub credential_kind: &'static str,
    /// Whether requests pass.
    pub status: CircuitStatus,
    /// Consecutive failures.
    pub failures: u32,
    /// When trial requests pass, if it is open.
    pub until: Option<Timestamp>,
}

/// Whether requests pass a circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitStatus {
    /// All requests pass.
    Closed,
    /// A few trial requests pass.
    HalfOpen,
    /// No request passes.
    Open,
}

impl CircuitStatus {
    /// The name used in the API and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// The last error of a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastError {
    /// When it happened.
    pub at: Timestamp,
    /// The provider's status, if it answered.
    pub status: Option<u16>,
    /// The kind of the error, as in records.
    pub kind: Option<String>,
}

/// The last errors of one provider by credential kind.
#[derive(Debug, Default)]
pub struct LastErrors(Mutex<[Option<LastError>; 2]>);

impl LastErrors {
    /// Replaces the last error of a credential kind.
    pub fn note(&self, credential_kind: &str, status: Option<StatusCode>, kind: Option<&str>) {
        let error = LastError {
            at: Timestamp::now(),
            status: status.map(|status| status.as_u16()),
            kind: kind.map(str::to_owned),
        };
        let mut errors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let [centralized, byok] = &mut *errors;
        *(if credential_kind == "byok" { byok } else { centralized }) = Some(error);
    }

    /// The last errors with company keys and with BYOK credentials.
    pub fn both(&self) -> [Option<LastError>; 2] {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
