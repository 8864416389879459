//! Circuit breakers: a provider that fails again and again is left alone for a while.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::StatusCode;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::{
    config::BreakerConfig,
    health::{CircuitState, CircuitStatus},
    metrics::{CircuitLabels, ProviderMetrics},
};

/// Most circuits of one provider; requests beyond them pass unguarded.
const MOST: usize = 1_000;
/// Longest name of a model that has a circuit, in bytes.
const LONGEST_MODEL: usize = 200;

/// The circuit breakers of one provider.
#[derive(Debug)]
pub struct Breakers {
    provider: String,
    config: Option<BreakerConfig>,
    circuits: Mutex<HashMap<Place, Arc<Circuit>>>,
    metrics: Arc<ProviderMetrics>,
}

/// What fails together: an endpoint and a model; people's own credentials are counted apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    endpoint: String,
    model: String,
    credential_kind: &'static str,
}

#[derive(Debug)]
struct Circuit {
    place: Place,
    labels: CircuitLabels,
    config: BreakerConfig,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Grows with each change; what was begun before a change is not counted after it.
    generation: u64,
    phase: Phase,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Closed { failures: u32, since: Instant },
    Open { until: Instant },
    Trial { asked: u32, passed: u32, since: Instant },
}

/// How a guarded request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The provider works.
    Works,
    /// It is overloaded or does not answer.
    Fails,
    /// It says nothing of the provider.
    Unknown,
}

impl Verdict {
    /// Of an answer's status. Another's credential and another's limits say nothing of the provider.
    pub fn of_status(status: StatusCode, credential_kind: &str) -> Self {
        match status.as_u16() {
            503 | 504 | 529 => Self::Fails,
            429 if credential_kind != "byok" => Self::Fails,
            401 | 403 | 429 | 500..=599 => Self::Unknown,
            _ => Self::Works,
        }
    }

    /// Of an error within an answer that began well: the provider gave up what it had accepted.
    pub fn of_error(kind: &str, credential_kind: &str) -> Self {
        match kind {
            // Of Anthropic, then of OpenAI.
            "overloaded_error"
            | "timeout_error"
            | "api_error"
            | "server_error"
            | "service_unavailable_error"
            | "server_is_overloaded"
            | "slow_down" => Self::Fails,
            "rate_limit_error" | "rate_limit_exceeded" if credential_kind != "byok" => Self::Fails,
            _ => Self::Unknown,
        }
    }
}

impl Breakers {
    pub fn new(
        provider: &str,
        config: Option<BreakerConfig>,
        metrics: Arc<ProviderMetrics>,
    ) -> Self {
        Self { provider: provider.into(), config, circuits: Mutex::default(), metrics }
    }

    /// Lets a request pass, or says how long to wait; `None` when nothing guards it.
    pub fn admit(
        &self,
        endpoint: &str,
        model: Option<&str>,
        credential_kind: &'static str,
    ) -> Result<Option<Permit>, Duration> {
        let Some(config) = self.config else { return Ok(None) };
        let model = model.unwrap_or_default();
        if model.len() > LONGEST_MODEL {
            return Ok(None);
        }
        let place = Place { endpoint: endpoint.into(), model: model.into(), credential_kind };
        let Some(circuit) = self.circuit(place, config) else { return Ok(None) };
        Circuit::admit(&circuit, &self.metrics).map(Some)
    }

    fn circuit(&self, place: Place, config: BreakerConfig) -> Option<Arc<Circuit>> {
        let mut circuits = self.circuits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(circuit) = circuits.get(&place) {
            return Some(Arc::clone(circuit));
        }
        if circuits.len() >= MOST {
            // What has not failed lately may start anew.
            circuits.retain(|_, circuit| !circuit.is_quiet() || Arc::strong_count(circuit) > 1);
        }
        if circuits.len() >= MOST {
            return None;
        }
        let labels = CircuitLabels {
            provider: self.provider.clone(),
            endpoint: place.endpoint.clone(),
            model: self.metrics.models.bounded(&place.model),
            credential_kind: place.credential_kind.into(),
        };
        let phase = Phase::Closed { failures: 0, since: Instant::now() };
        let state = Mutex::new(State { generation: 0, phase });
        let circuit = Arc::new(Circuit { place: place.clone(), labels, config, state });
        circuits.insert(place, Arc::clone(&circuit));
        Some(circuit)
    }

    /// How the circuits are, by endpoint and model.
    pub fn states(&self) -> Vec<CircuitState> {
        let circuits = self.circuits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut states: Vec<CircuitState> =
            circuits.values().map(|circuit| circuit.shown()).collect();
        states.sort_by(|a, b| (&a.endpoint, &a.model).cmp(&(&b.endpoint, &b.model)));
        states
    }
}

impl Circuit {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_quiet(&self) -> bool {
        matches!(self.state().phase, Phase::Closed { failures: 0, .. })
    }

    fn admit(circuit: &Arc<Self>, metrics: &Arc<ProviderMetrics>) -> Result<Permit, Duration> {
        let now = Instant::now();
        let mut state = circuit.state();
        if let Phase::Open { until } = state.phase
            && until <= now
        {
            let trial = Phase::Trial { asked: 0, passed: 0, since: now };
            circuit.change(&mut state, trial, metrics);
        }
        match &mut state.phase {
            Phase::Closed { .. } => {}
            Phase::Open { until } => {
                metrics.circuit_rejects(&circuit.labels);
                return Err(until.saturating_duration_since(now));
            }
            Phase::Trial { asked, since, .. } => {
                // Trials that tell nothing for long do not keep others out for ever.
                if now.saturating_duration_since(*since) >= circuit.config.open {
                    (*asked, *since) = (0, now);
                }
                if *asked >= circuit.config.trial_requests {
                    metrics.circuit_rejects(&circuit.labels);
                    return Err(Duration::from_secs(1));
                }
                *asked += 1;
            }
        }
        Ok(Permit {
            circuit: Arc::clone(circuit),
            metrics: Arc::clone(metrics),
            generation: state.generation,
            is_told: false,
        })
    }

    fn change(&self, state: &mut State, phase: Phase, metrics: &ProviderMetrics) {
        state.phase = phase;
        state.generation += 1;
        let status = status(phase);
        let (provider, endpoint) = (&self.labels.provider, &self.place.endpoint);
        let (model, kind) = (&self.place.model, self.place.credential_kind);
        if status == CircuitStatus::Open {
            tracing::warn!(provider, endpoint, model, kind, "a circuit breaker has opened");
        } else {
            let status = status.as_str();
            tracing::info!(
                provider,
                endpoint,
                model,
                kind,
                status,
                "a circuit breaker has changed"
            );
        }
        metrics.circuit_changed(&self.labels, status);
    }

    fn shown(&self) -> CircuitState {
        let phase = self.state().phase;
        let until = match phase {
            Phase::Open { until } => Some(until.saturating_duration_since(Instant::now())),
            Phase::Closed { .. } | Phase::Trial { .. } => None,
        };
        CircuitState {
            endpoint: self.place.endpoint.clone(),
            model: self.place.model.clone(),
            credential_kind: self.place.credential_kind,
            status: status(phase),
            failures: match phase {
                Phase::Closed { failures, .. } => failures,
                Phase::Open { .. } | Phase::Trial { .. } => self.config.failures,
            },
            until: until.and_then(|wait| Timestamp::now().checked_add(wait).ok()),
        }
    }
}

const fn status(phase: Phase) -> CircuitStatus {
    match phase {
        Phase::Closed { .. } => CircuitStatus::Closed,
        Phase::Open { .. } => CircuitStatus::Open,
        Phase::Trial { .. } => CircuitStatus::HalfOpen,
    }
}

/// A request that was let through; what became of it is told once.
#[derive(Debug)]
pub struct Permit {
    circuit: Arc<Circuit>,
    metrics: Arc<ProviderMetrics>,
    generation: u64,
    is_told: bool,
}

impl Permit {
    /// The provider has begun to answer: a trial has passed, whatever becomes of the rest.
    pub fn answered(&mut self, verdict: Verdict) {
        let circuit = Arc::clone(&self.circuit);
        let mut state = circuit.state();
        if verdict == Verdict::Works
            && state.generation == self.generation
            && let Phase::Trial { passed, .. } = &mut state.phase
        {
            self.is_told = true;
            *passed += 1;
            if *passed >= circuit.config.trial_requests {
                let closed = Phase::Closed { failures: 0, since: Instant::now() };
                circuit.change(&mut state, closed, &self.metrics);
                // Its end is counted from here on.
                self.generation = state.generation;
                self.is_told = false;
            }
        }
    }

    /// The request is over.
    pub fn ended(mut self, verdict: Verdict) {
        self.tell(verdict);
    }

    fn tell(&mut self, verdict: Verdict) {
        let circuit = Arc::clone(&self.circuit);
        let mut state = circuit.state();
        if state.generation != self.generation {
            return;
        }
        let now = Instant::now();
        let config = circuit.config;
        match (&mut state.phase, verdict) {
            (Phase::Closed { failures, since }, Verdict::Fails) => {
                if *failures == 0 || now.saturating_duration_since(*since) >= config.interval {
                    (*failures, *since) = (0, now);
                }
                *failures += 1;
                if *failures >= config.failures {
                    let open = Phase::Open { until: now + config.open };
                    circuit.change(&mut state, open, &self.metrics);
                }
            }
            (Phase::Closed { failures, .. }, Verdict::Works) => *failures = 0,
            (Phase::Trial { .. }, Verdict::Fails) => {
                let open = Phase::Open { until: now + config.open };
                circuit.change(&mut state, open, &self.metrics);
            }
            (Phase::Trial { asked, .. }, Verdict::Unknown) if !self.is_told => {
                *asked = asked.saturating_sub(1);
            }
            _ => {}
        }
        self.is_told = true;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.is_told {
            self.tell(Verdict::Unknown);
        }
    }
}

#[cfg(test)]
mod tests;
