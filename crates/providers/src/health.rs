//! How the providers are, as administrators are shown it.

use std::sync::{Mutex, PoisonError};

use http::{StatusCode, Uri};
use jiff::Timestamp;

use crate::config::ProviderType;

/// A provider instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderState {
    /// Its name in the configuration.
    pub name: String,
    /// Its kind.
    pub kind: ProviderType,
    /// Where it is.
    pub base_url: Uri,
    /// The keys of its pool in the order of the configuration.
    pub keys: Vec<KeyState>,
    /// Its circuit breakers that have seen requests lately.
    pub circuits: Vec<CircuitState>,
    /// What went wrong last with central keys.
    pub last_centralized_error: Option<LastError>,
    /// What went wrong last with requests' own credentials.
    pub last_byok_error: Option<LastError>,
}

/// A key of a provider's pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyState {
    /// Its name in the configuration.
    pub name: String,
    /// The masked key.
    pub hint: String,
    /// Whether it is used.
    pub status: KeyStatus,
    /// When it is tried again, if it is not ready.
    pub until: Option<Timestamp>,
}

/// Whether a key is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyStatus {
    /// It is used.
    Ready,
    /// The provider's limit of requests is reached.
    Resting,
    /// The provider refuses it.
    Invalid,
}

impl KeyStatus {
    /// The name used in the API and in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Resting => "resting",
            Self::Invalid => "invalid",
        }
    }
}

/// The circuit breaker of an endpoint and a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CircuitState {
    /// The endpoint, such as `/v1/messages`.
    pub endpoint: String,
    /// The model as asked for.
    pub model: String,
    /// `centralized` or `byok`: they are counted apart.
    pub credential_kind: &'static str,
    /// Whether requests pass.
    pub status: CircuitStatus,
    /// Failures in a row.
    pub failures: u32,
    /// When trial requests pass, if it is open.
    pub until: Option<Timestamp>,
}

/// Whether requests pass a circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CircuitStatus {
    /// They do.
    Closed,
    /// A few do, on trial.
    HalfOpen,
    /// They do not.
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

/// What went wrong at a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastError {
    /// When.
    pub at: Timestamp,
    /// The provider's status, if it answered.
    pub status: Option<u16>,
    /// The kind of the error, as in records.
    pub kind: Option<String>,
}

/// The last errors of one provider by the kind of the credential.
#[derive(Debug, Default)]
pub struct LastErrors(Mutex<[Option<LastError>; 2]>);

impl LastErrors {
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

    /// Of central keys, and of requests' own credentials.
    pub fn both(&self) -> [Option<LastError>; 2] {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
