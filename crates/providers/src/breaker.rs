//! Circuit breakers: a provider that fails repeatedly gets no requests for a while.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::StatusCode;
use jiff::Timestamp;
use keybridge_telemetry::MAX_LABEL_BYTES;
use keybridge_wire::error::transient_status;
use tokio::time::Instant;

use crate::{
    config::BreakerConfig,
    health::{CircuitState, CircuitStatus},
    metrics::{CircuitLabels, ProviderMetrics},
};

/// Most circuits of one provider; requests beyond them pass unguarded.
const MAX_CIRCUITS: usize = 1_000;

/// The circuit breakers of one provider.
#[derive(Debug)]
pub struct Breakers {
    provider: String,
    config: Option<BreakerConfig>,
    circuits: Mutex<HashMap<CircuitKey, Arc<Circuit>>>,
    metrics: Arc<ProviderMetrics>,
}

/// What fails together: an endpoint and a model; company keys and BYOK credentials are counted
/// apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct CircuitKey {
    endpoint: String,
    model: String,
    credential_kind: &'static str,
}

#[derive(Debug)]
struct Circuit {
    credential_kind: &'static str,
    labels: CircuitLabels,
    config: BreakerConfig,
    phase: Mutex<NumberedPhase>,
}

#[derive(Debug)]
struct NumberedPhase {
    /// Grows with each change of phase: a request counts only in the phase that admitted it.
    generation: u64,
    phase: Phase,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Closed { failures: u32, since: Instant },
    Open { until: Instant },
    Trial { admitted: u32, passed: u32, since: Instant },
}

impl Phase {
    const fn status(self) -> CircuitStatus {
        match self {
            Self::Closed { .. } => CircuitStatus::Closed,
            Self::Open { .. } => CircuitStatus::Open,
            Self::Trial { .. } => CircuitStatus::HalfOpen,
        }
    }
}

/// What the outcome of a guarded request says of its provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The provider works.
    Works,
    /// The provider is overloaded or does not answer.
    Fails,
    /// Nothing.
    Unknown,
}

impl Verdict {
    /// The verdict of an answer's status. Refused credentials say nothing of the provider, nor does
    /// the rate limit of a BYOK credential.
    pub fn of_status(status: StatusCode, credential_kind: &str) -> Self {
        match status.as_u16() {
            503 | 504 | 529 => Self::Fails,
            429 if credential_kind != "byok" => Self::Fails,
            401 | 403 | 429 | 500..=599 => Self::Unknown,
            _ => Self::Works,
        }
    }

    /// The verdict of an error event within a stream that began with a success.
    pub fn of_error(kind: &str, credential_kind: &str) -> Self {
        match transient_status(kind) {
            Some(429) if credential_kind == "byok" => Self::Unknown,
            Some(_) => Self::Fails,
            None => Self::Unknown,
        }
    }
}

impl Breakers {
    /// Breakers of a provider, all closed; without a configuration nothing is guarded.
    pub fn new(
        provider: &str,
        config: Option<BreakerConfig>,
        metrics: Arc<ProviderMetrics>,
    ) -> Self {
        Self { provider: provider.into(), config, circuits: Mutex::default(), metrics }
    }

    /// Admits a request, or says how long to wait; `None` when nothing guards it.
    pub fn admit(
        &self,
        endpoint: &str,
        model: Option<&str>,
        credential_kind: &'static str,
    ) -> Result<Option<Permit>, Duration> {
        let Some(config) = self.config else { return Ok(None) };
        let model = model.unwrap_or_default();
        // The whole name is the label: no two circuits share a series.
        if model.len() > MAX_LABEL_BYTES || endpoint.len() > MAX_LABEL_BYTES {
            return Ok(None);
        }
        let key = CircuitKey { endpoint: endpoint.into(), model: model.into(), credential_kind };
        let Some(circuit) = self.circuit(key, config) else { return Ok(None) };
        Circuit::admit(&circuit, &self.metrics).map(Some)
    }

    fn circuit(&self, key: CircuitKey, config: BreakerConfig) -> Option<Arc<Circuit>> {
        let mut circuits = self.circuits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(circuit) = circuits.get(&key) {
            return Some(Arc::clone(circuit));
        }
        if circuits.len() >= MAX_CIRCUITS {
            // A circuit without failures and requests in flight has nothing to remember.
            circuits.retain(|_, circuit| !circuit.is_quiet() || Arc::strong_count(circuit) > 1);
        }
        if circuits.len() >= MAX_CIRCUITS {
            return None;
        }
        let labels = CircuitLabels {
            provider: self.provider.clone(),
            endpoint: key.endpoint.clone(),
            model: key.model.clone(),
            credential_kind: key.credential_kind.into(),
        };
        let phase = Phase::Closed { failures: 0, since: Instant::now() };
        let phase = Mutex::new(NumberedPhase { generation: 0, phase });
        let credential_kind = key.credential_kind;
        let circuit = Arc::new(Circuit { credential_kind, labels, config, phase });
        circuits.insert(key, Arc::clone(&circuit));
        Some(circuit)
    }

    /// The states of the circuits, sorted by endpoint and model.
    pub fn states(&self) -> Vec<CircuitState> {
        let circuits = self.circuits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut states: Vec<CircuitState> =
            circuits.values().map(|circuit| circuit.state()).collect();
        states.sort_by(|a, b| (&a.endpoint, &a.model).cmp(&(&b.endpoint, &b.model)));
        states
    }
}

impl Circuit {
    fn phase(&self) -> MutexGuard<'_, NumberedPhase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_quiet(&self) -> bool {
        matches!(self.phase().phase, Phase::Closed { failures: 0, .. })
    }

    fn admit(circuit: &Arc<Self>, metrics: &Arc<ProviderMetrics>) -> Result<Permit, Duration> {
        let now = Instant::now();
        let mut current = circuit.phase();
        if let Phase::Open { until } = current.phase
            && until <= now
        {
            let trial = Phase::Trial { admitted: 0, passed: 0, since: now };
            circuit.change(&mut current, trial, metrics);
        }
        match &mut current.phase {
            Phase::Closed { .. } => {}
            Phase::Open { until } => {
                metrics.circuit_rejects(&circuit.labels);
                return Err(until.saturating_duration_since(now));
            }
            Phase::Trial { admitted, since, .. } => {
                // Trial requests without an outcome do not keep others out for ever.
                if now.saturating_duration_since(*since) >= circuit.config.open {
                    (*admitted, *since) = (0, now);
                }
                if *admitted >= circuit.config.trial_requests {
                    metrics.circuit_rejects(&circuit.labels);
                    return Err(Duration::from_secs(1));
                }
                *admitted += 1;
            }
        }
        Ok(Permit {
            circuit: Arc::clone(circuit),
            metrics: Arc::clone(metrics),
            generation: current.generation,
            is_reported: false,
        })
    }

    fn change(&self, current: &mut NumberedPhase, phase: Phase, metrics: &ProviderMetrics) {
        current.phase = phase;
        current.generation += 1;
        let status = phase.status();
        let CircuitLabels { provider, endpoint, model, .. } = &self.labels;
        let kind = self.credential_kind;
        if status == CircuitStatus::Open {
            tracing::warn!(provider, endpoint, model, kind, "the circuit breaker opened");
        } else {
            let status = status.as_str();
            tracing::info!(provider, endpoint, model, kind, status, "the circuit breaker changed");
        }
        metrics.circuit_changed(&self.labels, status);
    }

    fn state(&self) -> CircuitState {
        let phase = self.phase().phase;
        let until = match phase {
            Phase::Open { until } => Some(until.saturating_duration_since(Instant::now())),
            Phase::Closed { .. } | Phase::Trial { .. } => None,
        };
        CircuitState {
            endpoint: self.labels.endpoint.clone(),
            model: self.labels.model.clone(),
            credential_kind: self.credential_kind,
            status: phase.status(),
            failures: match phase {
                Phase::Closed { failures, .. } => failures,
                Phase::Open { .. } | Phase::Trial { .. } => self.config.failures,
            },
            until: until.and_then(|wait| Timestamp::now().checked_add(wait).ok()),
        }
    }
}

/// An admitted request; its outcome counts once.
#[derive(Debug)]
pub struct Permit {
    circuit: Arc<Circuit>,
    metrics: Arc<ProviderMetrics>,
    generation: u64,
    is_reported: bool,
}

impl Permit {
    /// Counts the head of the provider's answer: a trial that gets one has passed.
    pub fn record_head(&mut self, verdict: Verdict) {
        let circuit = Arc::clone(&self.circuit);
        let mut current = circuit.phase();
        if verdict == Verdict::Works
            && current.generation == self.generation
            && let Phase::Trial { passed, .. } = &mut current.phase
        {
            self.is_reported = true;
            *passed += 1;
            if *passed >= circuit.config.trial_requests {
                let closed = Phase::Closed { failures: 0, since: Instant::now() };
                circuit.change(&mut current, closed, &self.metrics);
                // The rest of its answer counts in the closed circuit.
                self.generation = current.generation;
                self.is_reported = false;
            }
        }
    }

    /// Counts the outcome of the whole request.
    pub fn record_end(mut self, verdict: Verdict) {
        self.report(verdict);
    }

    fn report(&mut self, verdict: Verdict) {
        let circuit = Arc::clone(&self.circuit);
        let mut current = circuit.phase();
        if current.generation != self.generation {
            return;
        }
        let now = Instant::now();
        let config = circuit.config;
        match (&mut current.phase, verdict) {
            (Phase::Closed { failures, since }, Verdict::Fails) => {
                if *failures == 0 || now.saturating_duration_since(*since) >= config.interval {
                    (*failures, *since) = (0, now);
                }
                *failures += 1;
                if *failures >= config.failures {
                    let open = Phase::Open { until: now + config.open };
                    circuit.change(&mut current, open, &self.metrics);
                }
            }
            (Phase::Closed { failures, .. }, Verdict::Works) => *failures = 0,
            (Phase::Trial { .. }, Verdict::Fails) => {
                let open = Phase::Open { until: now + config.open };
                circuit.change(&mut current, open, &self.metrics);
            }
            (Phase::Trial { admitted, .. }, Verdict::Unknown) if !self.is_reported => {
                *admitted = admitted.saturating_sub(1);
            }
            _ => {}
        }
        self.is_reported = true;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.is_reported {
            self.report(Verdict::Unknown);
        }
    }
}

#[cfg(test)]
mod tests;
