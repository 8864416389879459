//! What became of a request, gathered while it passes and handed to the ledger exactly once.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use keybridge_ledger::{
    Entry, NewThought, NewToolUsage, Opening, Recorder, ServedBy, Settlement, record::Outcome,
};
use keybridge_mcp::ToolSet;
use keybridge_providers::{
    breaker::{Permit, Verdict},
    credential::Credential,
    failure::Failure,
    provider::{Attempts, Provider},
};
use keybridge_wire::observe::{Observation, ToolCall};
use tokio_util::task::TaskTracker;

use crate::{
    config::RecordPolicy,
    metrics::ToolMetrics,
    tools::turns::{CallLog, CallRecord},
};

pub(crate) use observing::Observing;
use usage::token_usage;

mod observing;
mod usage;

/// Longest error message kept, in characters.
const MESSAGE_CHARS: usize = 2_000;

/// Where the record goes.
#[derive(Debug)]
pub(crate) enum Destination {
    /// Opened before the provider was asked.
    Opened(Entry),
    /// A side request: recorded only if its answer turns out to carry usage.
    IfUsed { recorder: Recorder, opening: Box<Opening>, tasks: TaskTracker },
}

/// The guard of one record: completed by [`Settling::end`], or by its `Drop` as cancelled.
#[derive(Debug)]
pub(crate) struct Settling {
    destination: Option<Destination>,
    observing: Option<Observing>,
    /// The credential that the record was opened with.
    credential: Arc<Credential>,
    policy: RecordPolicy,
    counting: Counting,
    attempts: Attempts,
    /// What the circuit breaker is told.
    permit: Option<Permit>,
    upstream_status: Option<StatusCode>,
    first_byte_at: Option<Timestamp>,
    response_bytes: u64,
    is_noted: bool,
    /// What the provider answered in the turns of an inner loop that are over.
    past: Vec<Observation>,
    inner: Option<InnerLoop>,
    /// What the provider said when it refused a further turn.
    refusal: Option<Observation>,
}

/// What the record needs to know of an inner loop.
#[derive(Debug)]
pub(crate) struct InnerLoop {
    pub(crate) tools: Arc<ToolSet>,
    pub(crate) calls: CallLog,
    pub(crate) offered: HashSet<String>,
}

/// Where the calls of clients' tools are counted.
#[derive(Debug)]
pub(crate) struct Counting {
    pub(crate) metrics: Arc<ToolMetrics>,
    pub(crate) provider: Arc<Provider>,
}

/// How a request ended.
#[derive(Debug)]
pub(crate) enum Ending<'a> {
    /// The answer was relayed to its end; the observation says whether it is a success.
    Relayed,
    /// The bridge answered with an error of its own.
    Failed(&'a Failure),
    /// The provider broke off, or the bridge ended the stream.
    Broken(&'a Failure),
    /// The client left.
    ClientLeft,
}

impl Settling {
    pub(crate) fn new(
        destination: Destination,
        credential: Arc<Credential>,
        policy: RecordPolicy,
        counting: Counting,
        permit: Option<Permit>,
    ) -> Self {
        let attempts = Attempts::new(Arc::clone(&credential));
        Self {
            counting,
            destination: Some(destination),
            observing: None,
            credential,
            policy,
            attempts,
            permit,
            upstream_status: None,
            first_byte_at: None,
            response_bytes: 0,
            is_noted: false,
            past: Vec::new(),
            inner: None,
            refusal: None,
        }
    }

    /// Tools were injected: the answer may take several turns.
    pub(crate) fn loops(&mut self, inner: InnerLoop) {
        self.inner = Some(inner);
    }

    /// The open record, unless this is a side request or it has been handed over.
    pub(crate) fn entry(&self) -> Option<&Entry> {
        match &self.destination {
            Some(Destination::Opened(entry)) => Some(entry),
            Some(Destination::IfUsed { .. }) | None => None,
        }
    }

    /// A turn of the inner loop is over: its figures are kept even if the process dies now.
    pub(crate) fn turn_over(&mut self) {
        let turn = self.turn();
        if let Some(observing) = &mut self.observing {
            observing.finish();
            let usage = token_usage(observing.observer.observation(), turn, true);
            if let (Some(entry), Some(usage)) = (self.entry(), usage) {
                entry.note(usage);
            }
        }
    }

    /// The number of the current turn.
    fn turn(&self) -> u16 {
        u16::try_from(self.past.len()).unwrap_or(u16::MAX)
    }

    /// The provider's id of the first turn's answer.
    pub(crate) fn first_response_id(&self) -> Option<String> {
        let current = self.observing.as_ref().map(|observing| observing.observer.observation());
        self.past.iter().chain(current).next()?.response_id.clone()
    }

    /// The provider refused to go on, after it has answered before.
    pub(crate) fn refused(&mut self, status: StatusCode, observed: Option<Observation>) {
        self.upstream_status = Some(status);
        if let Some(mut observing) = self.observing.take() {
            self.past.push(observing.observer.take());
        }
        self.refusal = observed;
    }

    /// Another instance is asked instead.
    pub(crate) fn moves(
        &mut self,
        provider: Arc<Provider>,
        credential: Arc<Credential>,
        permit: Option<Permit>,
    ) {
        self.counting.provider = provider;
        self.permit = permit;
        self.attempts.change(credential);
    }

    /// Counts how often the provider is asked.
    pub(crate) fn attempts(&self) -> Attempts {
        self.attempts.clone()
    }

    /// The provider has begun to answer; in an inner loop, once in each turn.
    pub(crate) fn head(&mut self, status: StatusCode, observing: Observing) {
        self.upstream_status = Some(status);
        if let Some(permit) = &mut self.permit {
            let kind = self.attempts.credential().trace.kind;
            permit.answered(Verdict::of_status(status, kind));
        }
        if let Some(mut over) = self.observing.replace(observing) {
            self.past.push(over.observer.take());
            self.is_noted = false;
        }
    }

    /// A piece of the answer passes.
    pub(crate) fn observe(&mut self, chunk: &Bytes) {
        if self.destination.is_none() {
            return;
        }
        if self.first_byte_at.is_none() {
            self.first_byte_at = Some(Timestamp::now());
        }
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        self.response_bytes = self.response_bytes.saturating_add(length);
        if let Some(observing) = &mut self.observing {
            observing.observe(chunk);
        }
        if !self.is_noted {
            self.note();
        }
    }

    /// Records the answer's id and first figures as soon as they are known: a provider has begun to
    /// count, and this process may be killed before the answer ends.
    fn note(&mut self) {
        let (Some(Destination::Opened(entry)), Some(observing)) =
            (&self.destination, &self.observing)
        else {
            return;
        };
        let observed = observing.observer.observation();
        if observed.response_id.is_some() {
            self.is_noted = true;
            if !observing.observer.is_terminal()
                && let Some(usage) = token_usage(observed, self.turn(), true)
            {
                entry.note(usage);
            }
        }
    }

    /// Nothing more comes: what is held is read, and an event that lacks its blank line counts.
    pub(crate) fn read_out(&mut self) {
        if let Some(observing) = &mut self.observing {
            observing.finish();
        }
    }

    /// Whether the answer's last event has passed.
    pub(crate) fn is_terminal(&self) -> bool {
        self.observing.as_ref().is_some_and(|observing| observing.observer.is_terminal())
    }

    /// Whether the bytes so far end within an event.
    pub(crate) fn is_mid_event(&self) -> bool {
        self.observing.as_ref().is_some_and(|observing| observing.observer.is_mid_event())
    }

    /// The sequence number of the next event of a Responses stream.
    pub(crate) fn next_sequence_number(&self) -> u64 {
        self.observing.as_ref().map_or(0, |observing| observing.observer.next_sequence_number())
    }

    /// Whether the record has been handed over.
    pub(crate) fn is_settled(&self) -> bool {
        self.destination.is_none()
    }

    /// Hands the record over; later calls do nothing.
    pub(crate) fn end(&mut self, ending: &Ending<'_>) {
        let Some(destination) = self.destination.take() else { return };
        let current = self.observing.as_mut().map(|observing| {
            observing.finish();
            observing.observer.take()
        });
        let last = self.refusal.take().or(current).unwrap_or_default();
        let is_used = last.usage.is_some();
        let verdict = self.verdict(ending, &last);
        let mut settlement = self.settlement(ending, last);
        self.tell_provider(&settlement);
        if let Some(permit) = self.permit.take() {
            permit.ended(verdict);
        }
        match destination {
            Destination::Opened(entry) => {
                self.log(entry.id(), &settlement);
                entry.settle(settlement);
            }
            Destination::IfUsed { recorder, opening, tasks } if is_used => {
                for usage in &mut settlement.token_usages {
                    usage.once_per_response = true;
                }
                self.log(opening.interception.id, &settlement);
                tasks.spawn(async move {
                    if let Err(error) = recorder.record(opening, settlement).await {
                        tracing::error!(%error, "the usage of a side request was not recorded");
                    }
                });
            }
            Destination::IfUsed { .. } => {}
        }
    }

    fn settlement(&self, ending: &Ending<'_>, last: Observation) -> Settlement {
        let outcome = self.outcome(ending, &last);
        let (error_kind, error_message) = self.error(ending, outcome, &last);
        let status_code = match ending {
            Ending::Failed(failure) => Some(failure.status),
            Ending::Relayed | Ending::Broken(_) | Ending::ClientLeft => self.upstream_status,
        };
        let is_accepted = self.upstream_status.is_some_and(|status| status.is_success());
        let turns = || {
            let past = self.past.iter().map(|turn| (turn, true));
            (0_u16..).zip(past.chain([(&last, is_accepted)]))
        };
        let token_usages = turns()
            .filter_map(|(turn, (observed, accepted))| token_usage(observed, turn, accepted));
        let tool_usages = turns().flat_map(|(turn, (observed, _))| {
            observed.tool_calls.iter().map(move |call| self.tool_usage(turn, observed, call))
        });
        let thoughts = turns().flat_map(|(_, (observed, _))| &observed.thoughts);
        let thoughts = thoughts.filter(|_| self.policy.thoughts).map(|thought| NewThought {
            source: thought.source.as_str().into(),
            content: thought.content.clone(),
        });
        let response_id = turns().find_map(|(_, (observed, _))| observed.response_id.clone());
        let served = turns().filter_map(|(_, (observed, _))| observed.model.clone()).last();
        Settlement {
            ended_at: Timestamp::now(),
            first_byte_at: self.first_byte_at,
            outcome,
            status_code: status_code.map(|status| status.as_u16()),
            upstream_status: self.upstream_status.map(|status| status.as_u16()),
            error_kind,
            error_message,
            attempts: self.attempts.count(),
            inner_turns: u32::from(self.turn()),
            response_bytes: self.response_bytes,
            token_usages: token_usages.collect(),
            tool_usages: tool_usages.collect(),
            thoughts: thoughts.collect(),
            model_served: served,
            provider_response_id: response_id,
            stop_reason: last.stop_reason,
            served_by: self.served_by(),
        }
    }

    /// What a request's end says of its provider.
    fn verdict(&self, ending: &Ending<'_>, last: &Observation) -> Verdict {
        let kind = self.attempts.credential().trace.kind;
        match ending {
            Ending::Failed(failure) | Ending::Broken(failure) => {
                // A connection that could not be made; what breaks off later may be the loop's doing.
                let is_silent = failure.status == StatusCode::GATEWAY_TIMEOUT
                    || failure.status == StatusCode::BAD_GATEWAY && self.upstream_status.is_none();
                if is_silent { Verdict::Fails } else { Verdict::Unknown }
            }
            Ending::Relayed => match (&last.error, self.upstream_status) {
                (Some(error), Some(status)) if status.is_success() => {
                    Verdict::of_error(&error.kind, kind)
                }
                (_, Some(status)) => Verdict::of_status(status, kind),
                (_, None) => Verdict::Unknown,
            },
            Ending::ClientLeft => Verdict::Unknown,
        }
    }

    /// Notes an error where administrators look for it.
    fn tell_provider(&self, settlement: &Settlement) {
        let provider = &self.counting.provider;
        let credential = self.attempts.credential();
        let kind = credential.trace.kind;
        if matches!(settlement.upstream_status, Some(401 | 403)) {
            provider.metrics.credential_refused(&provider.config.name, kind);
        }
        if settlement.outcome == Outcome::Failed {
            let error = settlement.error_kind.as_deref();
            provider.last_errors.note(kind, self.upstream_status, error);
        }
    }

    /// Who answered, where that is not as the record was opened.
    fn served_by(&self) -> Option<ServedBy> {
        let credential = self.attempts.credential();
        let trace = &credential.trace;
        (!Arc::ptr_eq(&credential, &self.credential)).then(|| ServedBy {
            provider: self.counting.provider.config.name.clone(),
            credential_source: trace.source.clone(),
            credential_hint: trace.hint.clone(),
            credential_length: trace.length,
            credential_fingerprint: trace.fingerprint.clone(),
        })
    }

    /// The row of a tool call; of an injected one with what became of it.
    fn tool_usage(&self, turn: u16, observed: &Observation, call: &ToolCall) -> NewToolUsage {
        let row = NewToolUsage {
            provider_response_id: observed.response_id.clone(),
            tool_call_id: Some(call.id.clone()),
            tool: call.name.clone(),
            arguments: self.policy.tool_arguments.then(|| call.arguments.clone()),
            ..NewToolUsage::default()
        };
        let inner = self.inner.as_ref().filter(|inner| inner.offered.contains(&call.name));
        let Some((inner, tool)) =
            inner.and_then(|inner| Some((inner, inner.tools.find(&call.name)?)))
        else {
            self.counting.metrics.selected(
                &self.counting.provider.config.name,
                observed.model.as_deref(),
                &call.name,
            );
            return row;
        };
        let record = inner.calls.find(turn.into(), &call.id);
        let not_made = || Some("the call was not made".to_owned());
        NewToolUsage {
            tool: tool.name.clone(),
            injected: true,
            server_url: Some(tool.server_url.clone()),
            invocation_error: record.as_ref().map_or_else(not_made, CallRecord::error),
            duration_ms: record.as_ref().and_then(CallRecord::duration).map(milliseconds),
            result_bytes: record.as_ref().and_then(CallRecord::result_bytes),
            result_is_error: record.as_ref().and_then(CallRecord::result_is_error),
            ..row
        }
    }

    fn outcome(&self, ending: &Ending<'_>, observed: &Observation) -> Outcome {
        let is_error = self.upstream_status.is_some_and(|status| !status.is_success())
            || observed.error.is_some();
        match ending {
            Ending::Failed(_) | Ending::Broken(_) => Outcome::Failed,
            Ending::Relayed if is_error || !self.is_terminal() => Outcome::Failed,
            Ending::Relayed => Outcome::Completed,
            Ending::ClientLeft => Outcome::Cancelled,
        }
    }

    /// Kind and message of what went wrong, never with the credential in them.
    fn error(
        &self,
        ending: &Ending<'_>,
        outcome: Outcome,
        observed: &Observation,
    ) -> (Option<String>, Option<String>) {
        if let Some(error) = &observed.error {
            let message: String = error.message.chars().take(MESSAGE_CHARS).collect();
            return (
                Some(error.kind.clone()),
                Some(self.attempts.credential().masked_in(&message)),
            );
        }
        match ending {
            Ending::Failed(failure) | Ending::Broken(failure) => {
                (Some(failure.kind.as_str().into()), Some(failure.detail.clone()))
            }
            Ending::Relayed if outcome == Outcome::Failed => {
                let what = match self.upstream_status {
                    Some(status) if !status.is_success() => {
                        format!("the provider answered {}", status.as_u16())
                    }
                    _ => "the provider's answer is not what its API describes".into(),
                };
                (Some("api_error".into()), Some(what))
            }
            Ending::Relayed | Ending::ClientLeft => (None, None),
        }
    }

    fn log(&self, id: uuid::Uuid, settlement: &Settlement) {
        let credential = self.attempts.credential();
        let trace = &credential.trace;
        tracing::info!(
            interception_id = %id,
            outcome = settlement.outcome.as_str(),
            status = settlement.status_code,
            upstream_status = settlement.upstream_status,
            model_served = settlement.model_served,
            credential_kind = trace.kind,
            credential_source = trace.source,
            credential_hint = trace.hint,
            response_bytes = settlement.response_bytes,
            "settled"
        );
        if matches!(settlement.upstream_status, Some(401 | 403)) {
            tracing::warn!(
                interception_id = %id,
                credential_kind = trace.kind,
                credential_source = trace.source,
                credential_hint = trace.hint,
                "the provider refused the credential"
            );
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The settlement of a request that the bridge said no to.
pub(crate) fn refusal(failure: &Failure) -> Settlement {
    Settlement {
        status_code: Some(failure.status.as_u16()),
        error_kind: Some(failure.kind.as_str().into()),
        error_message: Some(failure.detail.clone()),
        ..Settlement::new(Timestamp::now(), Outcome::Refused)
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        self.end(&Ending::ClientLeft);
    }
}
