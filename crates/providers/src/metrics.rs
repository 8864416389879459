//! Metrics of providers: retries, credentials, keys, circuit breakers, fallbacks.

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

/// The labels of a circuit breaker.
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
    /// Counts a retry.
    pub(crate) fn retried(&self, provider: &str, reason: &str) {
        let labels = RetryLabels { provider: provider.to_owned(), reason: reason.to_owned() };
        self.retries.get_or_create(&labels).inc();
    }

    /// Counts a credential that a provider refused (401, 403).
    pub fn credential_refused(&self, provider: &str, credential_kind: &str) {
        let labels = CredentialLabels {
            provider: provider.to_owned(),
            credential_kind: credential_kind.to_owned(),
        };
        self.refusals.get_or_create(&labels).inc();
    }

    /// Sets the state of a key.
    pub(crate) fn key_state(&self, provider: &str, key: &str, status: KeyStatus) {
        let labels = KeyLabels { provider: provider.to_owned(), key: key.to_owned() };
        let value = match status {
            KeyStatus::Ready => 0,
            KeyStatus::Resting | KeyStatus::Forbidden => 1,
            KeyStatus::Invalid => 2,
        };
        self.keys.get_or_create(&labels).set(value);
    }

    /// Removes a key that is no longer configured.
    pub(crate) fn forget_key(&self, provider: &str, key: &str) {
        self.keys.remove(&KeyLabels { provider: provider.to_owned(), key: key.to_owned() });
    }

    /// Removes a circuit breaker that is no longer used.
    pub(crate) fn forget_circuit(&self, labels: &CircuitLabels) {
        self.circuits.remove(labels);
    }

    /// Sets the state of a circuit breaker, and counts that it opens.
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

    /// Counts a request that a circuit breaker rejected.
    pub(crate) fn circuit_rejects(&self, labels: &CircuitLabels) {
        self.rejects.get_or_create(labels).inc();
    }

    /// Counts a request that went to the fallback of its provider.
    pub fn fell_back(&self, provider: &str, fallback: &str) {
        let labels =
            FallbackLabels { provider: provider.to_owned(), fallback: fallback.to_owned() };
        self.fallbacks.get_or_create(&labels).inc();
    }

    /// Registers the metrics.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "upstream_retries",
            "Retries, by the status of the attempt before or `connection`",
            self.retries.clone(),
        );
        registry.register(
            "credential_failures",
            "Credentials that a provider refused (401, 403)",
            self.refusals.clone(),
        );
        registry.register(
            "key_pool_state",
            "State of a company key: 0 ready, 1 resting for some endpoint and model, 2 invalid",
            self.keys.clone(),
        );
        registry.register(
            "circuit_breaker_state",
            "0 closed, 1 half open, 2 open",
            self.circuits.clone(),
        );
        registry.register(
            "circuit_breaker_trips",
            "Times that a circuit breaker has opened",
            self.trips.clone(),
        );
        registry.register(
            "circuit_breaker_rejects",
            "Requests that a circuit breaker rejected",
            self.rejects.clone(),
        );
        registry.register(
            "provider_fallbacks",
            "Requests that went to the fallback of their provider",
            self.fallbacks.clone(),
        );
    }
}
