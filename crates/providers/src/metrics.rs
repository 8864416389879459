//! What is counted of providers: retries, credentials, keys, circuit breakers, fallbacks.

use keybridge_telemetry::BoundedFamily;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::health::{CircuitStatus, KeyStatus};

/// The metrics of the providers of one data path.
#[derive(Debug, Default)]
pub struct ProviderMetrics {
    retries: Family<RetryLabels, Counter>,
    refusals: Family<CredentialLabels, Counter>,
    keys: Family<KeyLabels, Gauge>,
    circuits: BoundedFamily<CircuitLabels, Gauge>,
    trips: BoundedFamily<CircuitLabels, Counter>,
    rejects: BoundedFamily<CircuitLabels, Counter>,
    fallbacks: Family<FallbackLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CredentialLabels {
    provider: String,
    credential_kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyLabels {
    provider: String,
    key: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FallbackLabels {
    provider: String,
    fallback: String,
}

/// What a circuit breaker guards.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CircuitLabels {
    pub(crate) provider: String,
    pub(crate) endpoint: String,
    pub(crate) model: String,
    pub(crate) credential_kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RetryLabels {
    provider: String,
    reason: String,
}

impl ProviderMetrics {
    /// A provider is asked again.
    pub(crate) fn retried(&self, provider: &str, reason: &str) {
        let labels = RetryLabels { provider: provider.to_owned(), reason: reason.to_owned() };
        self.retries.get_or_create(&labels).inc();
    }

    /// A provider refused a credential (401, 403).
    pub fn credential_refused(&self, provider: &str, credential_kind: &str) {
        let labels = CredentialLabels {
            provider: provider.to_owned(),
            credential_kind: credential_kind.to_owned(),
        };
        self.refusals.get_or_create(&labels).inc();
    }

    /// How a key of a pool is now.
    pub(crate) fn key_state(&self, provider: &str, key: &str, status: KeyStatus) {
        let labels = KeyLabels { provider: provider.to_owned(), key: key.to_owned() };
        let value = match status {
            KeyStatus::Ready => 0,
            KeyStatus::Resting => 1,
            KeyStatus::Invalid => 2,
        };
        self.keys.get_or_create(&labels).set(value);
    }

    /// A key is no longer configured.
    pub(crate) fn forget_key(&self, provider: &str, key: &str) {
        self.keys.remove(&KeyLabels { provider: provider.to_owned(), key: key.to_owned() });
    }

    /// A circuit breaker is no longer there.
    pub(crate) fn forget_circuit(&self, labels: &CircuitLabels) {
        self.circuits.remove(labels);
    }

    /// A circuit breaker has changed.
    pub(crate) fn circuit_changed(&self, labels: &CircuitLabels, status: CircuitStatus) {
        let value = match status {
            CircuitStatus::Closed => 0,
            CircuitStatus::HalfOpen => 1,
            CircuitStatus::Open => 2,
        };
        self.circuits.get_or_create(labels).set(value);
        if status == CircuitStatus::Open {
            self.trips.get_or_create(labels).inc();
        }
    }

    /// A circuit breaker kept a request from its provider.
    pub(crate) fn circuit_rejects(&self, labels: &CircuitLabels) {
        self.rejects.get_or_create(labels).inc();
    }

    /// Another instance is used instead of a provider.
    pub fn fell_back(&self, provider: &str, fallback: &str) {
        let labels =
            FallbackLabels { provider: provider.to_owned(), fallback: fallback.to_owned() };
        self.fallbacks.get_or_create(&labels).inc();
    }

    /// Registers them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "upstream_retries",
            "Requests that were sent to a provider again, by what the attempt before came to",
            self.retries.clone(),
        );
        registry.register(
            "credential_failures",
            "Credentials that a provider refused (401, 403)",
            self.refusals.clone(),
        );
        registry.register(
            "key_pool_state",
            "Whether a central key is used: 0 ready, 1 resting, 2 invalid",
            self.keys.clone(),
        );
        registry.register(
            "circuit_breaker_state",
            "0 closed, 1 half open, 2 open",
            self.circuits.clone(),
        );
        registry.register(
            "circuit_breaker_trips",
            "How often a circuit breaker has opened",
            self.trips.clone(),
        );
        registry.register(
            "circuit_breaker_rejects",
            "Requests that a circuit breaker kept from their provider",
            self.rejects.clone(),
        );
        registry.register(
            "provider_fallbacks",
            "Requests that went to another instance instead",
            self.fallbacks.clone(),
        );
    }
}
