//! What the data path counts.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::health::{CircuitStatus, KeyStatus};

/// Most different values of a label that comes from outside; the rest are [`OTHER`].
const MOST: usize = 200;
const OTHER: &str = "other";
/// Longest label value from outside, in characters.
const CHARS: usize = 100;

/// The metrics of one data path.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// Models by name.
    pub(crate) models: Bounded,
    tools: Bounded,
    invocations: Family<ToolLabels, Counter>,
    failures: Family<ToolLabels, Counter>,
    seconds: Family<ServerLabels, Histogram, fn() -> Histogram>,
    selections: Family<SelectionLabels, Counter>,
    retries: Family<RetryLabels, Counter>,
    refusals: Family<CredentialLabels, Counter>,
    keys: Family<KeyLabels, Gauge>,
    circuits: Family<CircuitLabels, Gauge>,
    trips: Family<CircuitLabels, Counter>,
    rejects: Family<CircuitLabels, Counter>,
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
pub(crate) struct CircuitLabels {
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

/// Upper bounds of the histogram of tool calls, in seconds.
const SECONDS: [f64; 10] = [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

impl Default for Metrics {
    fn default() -> Self {
        Self {
            models: Bounded::default(),
            tools: Bounded::default(),
            invocations: Family::default(),
            failures: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            selections: Family::default(),
            retries: Family::default(),
            refusals: Family::default(),
            keys: Family::default(),
            circuits: Family::default(),
            trips: Family::default(),
            rejects: Family::default(),
            fallbacks: Family::default(),
        }
    }
}

/// An injected tool that was called for a model.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ToolLabels {
    pub(crate) provider: String,
    pub(crate) model: String,
    pub(crate) server: String,
    pub(crate) name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabels {
    server: String,
}

/// A tool of the client that a model chose.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SelectionLabels {
    provider: String,
    model: String,
    name: String,
}

/// Values of a label that come from outside, bounded in number.
#[derive(Debug, Default)]
pub(crate) struct Bounded(Mutex<HashSet<String>>);

impl Bounded {
    /// The value, or `other` where there are too many.
    pub(crate) fn bounded(&self, value: &str) -> String {
        let value: String = value.chars().take(CHARS).collect();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&value) {
            return value;
        }
        if known.len() >= MOST {
            return OTHER.into();
        }
        known.insert(value.clone());
        value
    }
}

impl Metrics {
    /// An injected tool was called.
    pub(crate) fn invoked(&self, labels: &ToolLabels, succeeded: bool, duration: Duration) {
        self.invocations.get_or_create(labels).inc();
        if !succeeded {
            self.failures.get_or_create(labels).inc();
        }
        let server = ServerLabels { server: labels.server.clone() };
        self.seconds.get_or_create(&server).observe(duration.as_secs_f64());
    }

    /// A model chose a tool of the client.
    pub(crate) fn selected(&self, provider: &str, model: Option<&str>, name: &str) {
        let labels = SelectionLabels {
            provider: provider.to_owned(),
            model: self.models.bounded(model.unwrap_or_default()),
            name: self.tools.bounded(name),
        };
        self.selections.get_or_create(&labels).inc();
    }

    /// A provider is asked again.
    pub(crate) fn retried(&self, provider: &str, reason: &str) {
        let labels = RetryLabels { provider: provider.to_owned(), reason: reason.to_owned() };
        self.retries.get_or_create(&labels).inc();
    }

    /// A provider refused a credential (401, 403).
    pub(crate) fn credential_refused(&self, provider: &str, credential_kind: &str) {
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
    pub(crate) fn fell_back(&self, provider: &str, fallback: &str) {
        let labels =
            FallbackLabels { provider: provider.to_owned(), fallback: fallback.to_owned() };
        self.fallbacks.get_or_create(&labels).inc();
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "injected_tool_invocations",
            "Calls of injected tools",
            self.invocations.clone(),
        );
        registry.register(
            "injected_tool_failures",
            "Calls of injected tools that failed",
            self.failures.clone(),
        );
        registry.register(
            "injected_tool_seconds",
            "How long calls of injected tools took",
            self.seconds.clone(),
        );
        registry.register(
            "non_injected_tool_selections",
            "Calls that models made of tools which the bridge did not inject",
            self.selections.clone(),
        );
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
