//! A provider instance: its settings, keys, connections and retries.

use std::sync::Arc;

use aws_lc_rs::hmac;
use http::{Response, StatusCode, header};

use crate::{
    ProviderError,
    attempt::AttemptLog,
    bedrock::Bedrock,
    body::{AnswerBody, judged_status},
    breaker::{self, Breakers, Permit},
    config::{ProviderConfig, ProviderType},
    cooldown::KeyVerdict as Verdict,
    credential::{self, Credential},
    dump::Dumps,
    failure::{Failure, kind_of},
    health::{LastErrors, ProviderState},
    metrics::{CircuitLabels, ProviderMetrics},
    outgoing::Outgoing,
    pool::Pool,
    retry::{self, Budget},
    secrets::Secrets,
    target::Target,
    upstream::Upstream,
    usage_refusals::UsageRefusals,
    vendors::AskUsage,
};

/// The outcome of a request at one provider instance.
#[derive(Debug, Clone, Copy)]
pub struct Conclusion<'a> {
    /// What it shows about the provider's health.
    pub verdict: breaker::Verdict,
    /// `centralized` or `byok`.
    pub credential_kind: &'static str,
    /// The provider's status, if it answered.
    pub status: Option<StatusCode>,
    /// Set when the request failed: the kind of the error, where it is known.
    pub error: Option<Option<&'a str>>,
}

/// One provider instance.
#[derive(Debug)]
pub struct Provider {
    pub config: ProviderConfig,
    pub(crate) pool: Pool,
    /// What stands in the place of a key if this instance needs none.
    pub(crate) no_credential: Option<Arc<Credential>>,
    pub breakers: Breakers,
    pub last_errors: LastErrors,
    pub dumps: Option<Dumps>,
    /// What is masked in recorded and logged texts.
    pub secrets: Secrets,
    upstream: Upstream,
    bedrock: Option<Bedrock>,
    budget: Budget,
    /// The models whose streams are not made to include usage, because the provider refused it.
    usage_refusals: UsageRefusals,
    /// The metrics of all providers.
    pub metrics: Arc<ProviderMetrics>,
}

impl Provider {
    /// Creates an instance from its settings.
    ///
    /// # Errors
    ///
    /// When the base URL is not an http or https address, or a key fits into no header.
    pub fn new(
        config: ProviderConfig,
        fingerprint_key: &hmac::Key,
        metrics: Arc<ProviderMetrics>,
    ) -> Result<Self, ProviderError> {
        if config.base_url.authority().is_none()
            || !matches!(config.base_url.scheme_str(), Some("http" | "https"))
        {
            return Err(ProviderError::BaseUrl { provider: config.name });
        }
        let upstream = Upstream::new(&config);
        let bedrock = config.bedrock.clone().map(|bedrock| Bedrock::new(&config.name, bedrock));
        if bedrock.is_none() && config.kind == ProviderType::Bedrock {
            return Err(ProviderError::Bedrock { provider: config.name });
        }
        let credentials = credential::centralized_credentials(&config, fingerprint_key)
            .map_err(|_unfit| ProviderError::Key { provider: config.name.clone() })?;
        let pool = Pool::new(&config, credentials);
        let no_credential = config.is_keyless().then(|| Arc::new(Credential::none()));
        let dumps = config.dump.clone().map(|dump| Dumps::new(&config.name, dump));
        let breakers = Breakers::new(&config.name, config.circuit_breaker, Arc::clone(&metrics));
        let secrets = Secrets::of(&config);
        Ok(Self {
            config,
            pool,
            no_credential,
            breakers,
            last_errors: LastErrors::default(),
            dumps,
            secrets,
            upstream,
            bedrock,
            budget: Budget::default(),
            usage_refusals: UsageRefusals::default(),
            metrics,
        })
    }

    /// Copies the key states of another instance, for the keys that both have.
    pub fn copy_key_states(&self, other: &Self) {
        self.pool.copy_cooldowns(&other.pool);
    }

    /// Whether the key of a request depends on the conversation that it belongs to.
    pub fn chooses_key_by_session(&self) -> bool {
        self.pool.chooses_by_session()
    }

    /// Whether a stream of this model is made to include usage that its client did not ask for.
    pub fn asks_usage(&self, model: Option<&str>) -> bool {
        self.config.profile.ask_usage == AskUsage::Yes && !self.usage_refusals.contains(model)
    }

    /// Remembers that the provider refused to include usage in a stream of this model.
    pub fn note_usage_refusal(&self, model: Option<&str>) {
        let (provider, model) = (&self.config.name, model.unwrap_or_default());
        tracing::warn!(%provider, model, "the provider refuses `stream_options`; its streams are no longer made to include usage");
        self.usage_refusals.insert(model);
    }

    /// Sends a request, with other keys of the pool if the provider refuses one, and with retries where
    /// they may help: nothing of an answer has been relayed yet.
    pub async fn send(
        &self,
        outgoing: &Outgoing,
        target: &Target<'_>,
        attempts: &AttemptLog,
    ) -> Result<Response<AnswerBody>, Failure> {
        self.budget.earn();
        let mut retries = 0;
        let mut max_delay = retry::max_requested_delay(&outgoing.method, target.endpoint);
        loop {
            let answered = self.send_with_pool(outgoing, target, attempts).await;
            let outcome = answered.as_ref().map(|answer| (judged_status(answer), answer.headers()));
            // The fallback serves it at once, while this instance may be rate limited for a minute.
            let falls_back = self.config.fallback.is_some()
                && target.bound_key.is_none()
                && outcome.is_ok_and(|(status, _)| is_refused(status, &attempts.credential()));
            let may_retry =
                retries < self.config.max_retries && !falls_back && outgoing.is_sendable();
            let decision = may_retry.then(|| retry::decide(outcome, retries, max_delay)).flatten();
            let Some(decision) = decision else { return answered };
            let backoff = decision.backoff;
            let used = attempts.credential();
            let credential = match used.key {
                None => Some(used),
                Some(key) => self.pool.pick_after(backoff, target, key),
            };
            let Some(credential) = credential else { return answered };
            let (provider, reason) = (&self.config.name, decision.reason.label());
            if !self.budget.spend() {
                tracing::warn!(%provider, reason, "too many retries; the provider's answer is passed on");
                return answered;
            }
            retries += 1;
            max_delay = max_delay.saturating_sub(backoff);
            tracing::info!(%provider, reason, retries, ?backoff, "retrying the request");
            self.metrics.retried(provider, &reason);
            drop(answered);
            tokio::time::sleep(backoff).await;
            attempts.use_credential(credential);
        }
    }

    /// Sends a request once with each key, until one is neither refused nor rate limited.
    async fn send_with_pool(
        &self,
        outgoing: &Outgoing,
        target: &Target<'_>,
        attempts: &AttemptLog,
    ) -> Result<Response<AnswerBody>, Failure> {
        let (mut tried, mut forbidden) = (Vec::new(), Vec::new());
        loop {
            let credential = attempts.start_attempt();
            let mut answer = match self.send_once(outgoing, &credential, attempts).await {
                Ok(answer) => answer,
                Err(failure) => {
                    attempts.record_failure(&failure);
                    return Err(failure);
                }
            };
            attempts.record_head(answer.status(), answer.headers());
            if target.is_model_stream && may_fail_late(&answer) {
                answer.body_mut().read_first_event().await;
            }
            let status = judged_status(&answer);
            if status != answer.status() {
                attempts.record_first_error(kind_of(status));
            }
            let Some(key) = credential.key else { return Ok(answer) };
            match Verdict::of(status, answer.headers()) {
                Verdict::Accepted => {
                    self.apply_verdict(key, target, Verdict::Accepted);
                    // One key is allowed to do this, so the fault is with the other keys.
                    for key in forbidden {
                        self.apply_verdict(key, target, Verdict::Forbidden);
                    }
                    return Ok(answer);
                }
                Verdict::Forbidden => forbidden.push(key),
                verdict @ (Verdict::RateLimited(_) | Verdict::Invalid) => {
                    self.apply_verdict(key, target, verdict);
                }
            }
            tried.push(key);
            if !outgoing.is_sendable() {
                return Ok(answer);
            }
            let Some(next) = self.pool.pick(target, &tried) else { return Ok(answer) };
            let (provider, status) = (&self.config.name, status.as_u16());
            self.metrics.retried(provider, &status.to_string());
            let source = &next.trace.source;
            tracing::info!(%provider, status, source, "retrying the request with another key");
            drop(answer);
            attempts.use_credential(next);
        }
    }

    /// Records the outcome of a request at this instance in the circuit breaker, the last errors and the
    /// metrics.
    pub fn conclude(&self, permit: Option<Permit>, conclusion: &Conclusion<'_>) {
        let Conclusion { verdict, credential_kind, status, error } = *conclusion;
        if matches!(status.map(|status| status.as_u16()), Some(401 | 403)) {
            self.metrics.credential_refused(&self.config.name, credential_kind);
        }
        if let Some(kind) = error {
            self.last_errors.note(credential_kind, status, kind);
        }
        if let Some(permit) = permit {
            permit.record_end(verdict);
        }
    }

    /// Makes one attempt.
    async fn send_once(
        &self,
        outgoing: &Outgoing,
        credential: &Credential,
        attempts: &AttemptLog,
    ) -> Result<Response<AnswerBody>, Failure> {
        match &self.bedrock {
            None => {
                let (request, upload) = (outgoing.request(credential), outgoing.upload.as_ref());
                let answer = self.upstream.send(request, upload, attempts).await?;
                Ok(answer.map(AnswerBody::as_it_came))
            }
            // Boxed: few providers need it.
            Some(bedrock) => Box::pin(bedrock.send(&self.upstream, outgoing, attempts)).await,
        }
    }

    /// Set for providers on Amazon Bedrock.
    pub fn bedrock(&self) -> Option<&Bedrock> {
        self.bedrock.as_ref()
    }

    fn apply_verdict(&self, key: usize, target: &Target<'_>, verdict: Verdict) {
        if let Some((name, status)) = self.pool.apply_verdict(key, target, verdict) {
            let (provider, key) = (&self.config.name, name);
            self.metrics.key_state(provider, key, status);
            let status = status.as_str();
            tracing::warn!(%provider, key, status, "the status of a key has changed");
        }
    }

    /// The state of this instance.
    pub fn state(&self) -> ProviderState {
        let [last_centralized_error, last_byok_error] = self.last_errors.both();
        ProviderState {
            name: self.config.name.clone(),
            kind: self.config.kind,
            base_url: self.config.base_url.clone(),
            keys: self.pool.states(),
            circuits: self.breakers.states(),
            last_centralized_error,
            last_byok_error,
        }
    }

    /// Publishes the states of the keys in the metrics.
    pub fn publish_key_metrics(&self) {
        for key in self.pool.states() {
            self.metrics.key_state(&self.config.name, &key.name, key.status);
        }
    }

    /// Removes the keys and circuits of this instance from the metrics, when it is no longer used.
    pub fn remove_metrics(&self) {
        for key in self.pool.states() {
            self.metrics.forget_key(&self.config.name, &key.name);
        }
        for circuit in self.breakers.states() {
            self.metrics.forget_circuit(&CircuitLabels {
                provider: self.config.name.clone(),
                endpoint: circuit.endpoint,
                model: circuit.model,
                credential_kind: circuit.credential_kind.into(),
            });
        }
    }
}

/// Whether the stream of an answer may begin with an error in place of an error status.
fn may_fail_late(answer: &Response<AnswerBody>) -> bool {
    answer.status().is_success() && !answer.headers().contains_key(header::CONTENT_ENCODING)
}

/// Whether an answer shows that the provider has refused every key of its pool.
fn is_refused(status: StatusCode, credential: &Credential) -> bool {
    credential.is_of_pool() && matches!(status.as_u16(), 401 | 403 | 429)
}

/// Whether a fallback may serve a request with a key of the pool after this status: every key was refused,
/// or the provider is overloaded after all retries.
pub fn is_exhausted(status: StatusCode, credential: &Credential) -> bool {
    is_refused(status, credential)
        || credential.is_of_pool() && matches!(status.as_u16(), 503 | 529)
}
