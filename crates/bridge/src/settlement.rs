//! The outcome of a request, collected while it is relayed and settled exactly once.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use keybridge_ledger::{Entry, NewTokenUsage, Opening, Recorder};
use keybridge_mcp::ToolSet;
use keybridge_providers::{
    attempt::AttemptLog,
    breaker::{Permit, Verdict},
    credential::Credential,
    failure::{Failure, kind_of},
    provider::{Conclusion, Provider},
    upload::Upload,
};
use keybridge_wire::{observe::Observation, request::HostedServer};
use tokio_util::task::TaskTracker;
use tracing::Span;

use self::{
    calls::ToolCallLog, event::SettlementEvent, mask::AnswerMask, objects::ObjectOwner,
    usage::token_usage,
};
use crate::{
    admission::{IdentifiedRequest, route::Purpose},
    config::RecordPolicy,
    metrics::ToolMetrics,
    phases::PhaseTimes,
};

pub(crate) use self::{answer_observer::AnswerObserver, event::refusal};

mod answer_observer;
pub(crate) mod calls;
mod event;
mod mask;
pub(crate) mod objects;
pub(crate) mod opening;
mod usage;

/// Where the record goes.
#[derive(Debug)]
pub(crate) enum Destination {
    /// Opened before the request went upstream.
    Opened(Entry),
    /// A side request that changes nothing: recorded only if its answer carries usage.
    IfUsageReported { recorder: Recorder, opening: Box<Opening>, tasks: TaskTracker },
}

/// The guard of one record: completed by [`SettlementGuard::end`], or by its `Drop` as cancelled.
#[derive(Debug)]
pub(crate) struct SettlementGuard {
    destination: Option<Destination>,
    purpose: Purpose,
    answer: Option<AnswerObserver>,
    /// The credential that the record was opened with.
    opened_with: Arc<Credential>,
    policy: RecordPolicy,
    metrics: Arc<ToolMetrics>,
    /// The instance that currently serves the request.
    dispatch: DispatchRecord,
    /// The dispatches before the current one: before a fallback, or with another body.
    earlier_dispatches: Vec<EarlierDispatch>,
    /// Whether edits were made that the record was not opened with.
    has_new_edits: bool,
    attempts: AttemptLog,
    upstream_status: Option<StatusCode>,
    first_byte_at: Option<Timestamp>,
    response_bytes: u64,
    is_progress_recorded: bool,
    /// The observed answers of the earlier turns of a tool loop.
    past: Vec<Observation>,
    tools: Option<Box<OfferedTools>>,
    /// The MCP servers that the request told the provider to call.
    hosted_servers: Vec<HostedServer>,
    /// The provider's observed answer when it refused a further turn.
    /// Boxed like the tools, because few requests have one and each open stream has this struct.
    refusal: Option<Box<Observation>>,
    /// Set if the request's body goes to the provider while it arrives.
    pub(crate) upload: Option<Upload>,
    /// The characters of the request's input, if they are metered.
    pub(crate) input_characters: Option<u64>,
    /// When the phases before the request was sent ended.
    phases: PhaseTimes,
    /// The events that the client was sent, where the bridge makes the stream from those of several turns.
    merged_events: Option<u64>,
    /// The events of the provider that were withheld.
    withheld_events: u64,
    /// Whom the objects belong to that the answer makes at the provider.
    owner: ObjectOwner,
    /// The span of the request, which identifies it in each log line.
    span: Span,
}

/// A provider instance that a request is sent to.
#[derive(Debug)]
pub(crate) struct DispatchRecord {
    pub(crate) provider: Arc<Provider>,
    pub(crate) credential: Arc<Credential>,
    /// The names of the edits of its body.
    pub(crate) edits: Vec<String>,
    /// The permit of its circuit breaker.
    pub(crate) permit: Option<Permit>,
}

/// What the record keeps of a dispatch that another one followed.
#[derive(Debug)]
struct EarlierDispatch {
    provider: Arc<Provider>,
    edits: Vec<String>,
}

/// The injected tools that a request's answer may call.
#[derive(Debug)]
pub(crate) struct OfferedTools {
    pub(crate) tools: Arc<ToolSet>,
    pub(crate) calls: ToolCallLog,
    pub(crate) offered: HashSet<String>,
}

/// How a request ended.
#[derive(Debug)]
pub(crate) enum Ending<'a> {
    /// The whole answer was relayed; the observation shows whether it is a success.
    Relayed,
    /// The bridge responded with an error.
    Failed(&'a Failure),
    /// The answer was truncated, by the provider or by the bridge.
    Truncated(&'a Failure),
    /// The client disconnected.
    ClientDisconnected,
}

impl Ending<'_> {
    /// Whether the request was ended because of its caller.
    fn is_access_ended(&self) -> bool {
        match self {
            Self::Failed(failure) | Self::Truncated(failure) => failure.record_kind.is_some(),
            Self::Relayed | Self::ClientDisconnected => false,
        }
    }
}

impl SettlementGuard {
    pub(crate) fn new(
        destination: Destination,
        request: &IdentifiedRequest,
        policy: RecordPolicy,
        metrics: Arc<ToolMetrics>,
        dispatch: DispatchRecord,
    ) -> Self {
        let purpose = request.route.purpose;
        Self {
            destination: Some(destination),
            purpose,
            answer: None,
            opened_with: Arc::clone(&dispatch.credential),
            policy,
            metrics,
            attempts: AttemptLog::new(Arc::clone(&dispatch.credential)),
            dispatch,
            earlier_dispatches: Vec::new(),
            has_new_edits: false,
            upstream_status: None,
            first_byte_at: None,
            response_bytes: 0,
            // A side request has no figures unless its answer reports them.
            is_progress_recorded: !purpose.is_billed(),
            past: Vec::new(),
            tools: None,
            hosted_servers: Vec::new(),
            refusal: None,
            upload: None,
            input_characters: None,
            phases: request.phases,
            merged_events: None,
            withheld_events: 0,
            owner: ObjectOwner::of(request),
            span: Span::current(),
        }
    }

    /// The provider instance that currently serves the request.
    pub(crate) fn provider(&self) -> &Provider {
        &self.dispatch.provider
    }

    /// Whether the request is sent with a company's key.
    pub(crate) fn is_centralized(&self) -> bool {
        self.attempts.credential().is_centralized()
    }

    /// The provider instance and the edits of a dispatch, from 0.
    fn dispatched(&self, dispatch: usize) -> (&Provider, &[String]) {
        match self.earlier_dispatches.get(dispatch) {
            Some(earlier) => (&earlier.provider, &earlier.edits),
            None => (&self.dispatch.provider, &self.dispatch.edits),
        }
    }

    /// The span of the request.
    pub(crate) const fn span(&self) -> &Span {
        &self.span
    }

    /// Notes that tools were injected: the answer may take several turns.
    pub(crate) fn expect_tool_calls(&mut self, tools: OfferedTools) {
        self.tools = Some(Box::new(tools));
    }

    /// Notes the MCP servers that the provider may call.
    pub(crate) fn expect_hosted_calls(&mut self, servers: Vec<HostedServer>) {
        self.hosted_servers = servers;
    }

    /// The open record, unless this is a side request or it has been handed over.
    pub(crate) fn entry(&self) -> Option<&Entry> {
        match &self.destination {
            Some(Destination::Opened(entry)) => Some(entry),
            Some(Destination::IfUsageReported { .. }) | None => None,
        }
    }

    /// Ends a turn of the tool loop: its figures are recorded even if the process is killed now.
    pub(crate) fn end_turn(&mut self) {
        let turn = self.turn();
        if let Some(answer) = &mut self.answer {
            answer.finish();
            let observed = answer.observer.observation();
            let usage = token_usage(observed, turn, true, &self.dispatch.provider);
            self.note(usage);
        }
    }

    /// Records first figures of an answer.
    fn note(&self, usage: Option<NewTokenUsage>) {
        if let (Some(entry), Some(mut usage)) = (self.entry(), usage) {
            // It is stored once, with the settlement.
            usage.raw = None;
            usage.clean(&AnswerMask::of(self));
            entry.note(usage);
        }
    }

    /// The number of the current turn.
    fn turn(&self) -> u16 {
        u16::try_from(self.past.len()).unwrap_or(u16::MAX)
    }

    /// The provider's id of the first turn's answer.
    pub(crate) fn first_response_id(&self) -> Option<String> {
        let current = self.answer.as_ref().map(|answer| answer.observer.observation());
        self.past.iter().chain(current).next()?.response_id.clone()
    }

    /// Notes that the provider refused a further turn.
    pub(crate) fn refuse_turn(&mut self, status: StatusCode, observed: Option<Observation>) {
        self.upstream_status = Some(status);
        if let Some(mut answer) = self.answer.take() {
            self.past.push(answer.observer.take());
        }
        self.refusal = observed.map(Box::new);
    }

    /// Switches to another instance, because the first one refused every key of its pool. The outcome at
    /// the first instance is concluded now.
    pub(crate) fn fall_back(&mut self, status: StatusCode, dispatch: DispatchRecord) {
        let credential = self.attempts.credential();
        let credential_kind = credential.trace.kind;
        let kind = kind_of(status);
        let first = std::mem::replace(&mut self.dispatch, dispatch);
        first.provider.conclude(
            first.permit,
            &Conclusion {
                verdict: Verdict::of_status(status, credential_kind),
                credential_kind,
                status: Some(status),
                error: Some(Some(kind.as_str())),
            },
        );
        self.attempts.start_dispatch(Arc::clone(&self.dispatch.credential));
        self.earlier_dispatches
            .push(EarlierDispatch { provider: first.provider, edits: first.edits });
    }

    /// Notes that the request is sent to the same instance again, with other edits.
    pub(crate) fn send_again(&mut self, edits: Vec<String>) {
        let provider = Arc::clone(&self.dispatch.provider);
        let edits = std::mem::replace(&mut self.dispatch.edits, edits);
        self.earlier_dispatches.push(EarlierDispatch { provider, edits });
        self.has_new_edits = true;
        self.attempts.start_dispatch(self.attempts.credential());
    }

    /// Notes an edit of the answer.
    pub(crate) fn note_edit(&mut self, name: &str) {
        if !self.dispatch.edits.iter().any(|edit| edit == name) {
            self.dispatch.edits.push(name.to_owned());
            self.has_new_edits = true;
        }
    }

    /// The attempts of this request.
    pub(crate) fn attempts(&self) -> AttemptLog {
        self.attempts.clone()
    }

    /// Notes the head of the provider's answer; in a tool loop, once in each turn.
    pub(crate) fn start_answer(&mut self, status: StatusCode, mut answer: AnswerObserver) {
        if self.policy.answers {
            answer.observer.collect_answer();
        }
        self.upstream_status = Some(status);
        if let Some(permit) = &mut self.dispatch.permit {
            let kind = self.attempts.credential().trace.kind;
            permit.record_head(Verdict::of_status(status, kind));
        }
        if let Some(mut past) = self.answer.replace(answer) {
            self.past.push(past.observer.take());
            self.is_progress_recorded = false;
        }
    }

    /// Observes a chunk of the answer.
    pub(crate) fn observe(&mut self, chunk: &Bytes) {
        if self.destination.is_none() {
            return;
        }
        if self.first_byte_at.is_none() {
            self.first_byte_at = Some(Timestamp::now());
        }
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        self.response_bytes = self.response_bytes.saturating_add(length);
        if let Some(answer) = &mut self.answer {
            answer.observe(chunk);
        }
        if !self.is_progress_recorded {
            self.record_progress();
        }
    }

    /// Records the answer's id and first figures as soon as they are known: the provider already bills
    /// the request, and this process may be killed before the answer ends.
    fn record_progress(&mut self) {
        let (Some(Destination::Opened(_)), Some(answer)) = (&self.destination, &self.answer) else {
            return;
        };
        let observed = answer.observer.observation();
        if observed.response_id.is_some() {
            if !answer.observer.is_terminal() {
                let provider = &self.dispatch.provider;
                self.note(token_usage(observed, self.turn(), true, provider));
                self.record_stored_answer();
            }
            self.is_progress_recorded = true;
        }
    }

    /// Notes how many events the client was sent of a stream that is merged from several turns; `None` if it
    /// is no such stream.
    pub(crate) fn note_merged_events(&mut self, events: Option<u64>) {
        self.merged_events = events;
    }

    /// Notes how many events of the provider were withheld from the client.
    pub(crate) fn note_withheld_events(&mut self, events: u64) {
        self.withheld_events = events;
    }

    /// The events that were passed on; `None` if the answer is no stream.
    fn events_relayed(&self) -> Option<u64> {
        let observed = || self.answer.as_ref()?.observer.events();
        let passed = || Some(observed()?.saturating_sub(self.withheld_events));
        self.merged_events.or_else(passed)
    }

    /// Observes the end of the answer: an encoded answer is decoded, and a last event without its blank
    /// line counts.
    pub(crate) fn finish_observing(&mut self) {
        if let Some(answer) = &mut self.answer {
            answer.finish();
        }
    }

    /// Whether the answer's terminal event was observed.
    pub(crate) fn is_terminal(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.observer.is_terminal())
    }

    /// Whether the model has finished and nothing but its usage and the terminal event is to come.
    pub(crate) fn has_finished(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.observer.has_finished())
    }

    /// Whether the final usage of the answer was observed.
    pub(crate) fn has_final_usage(&self) -> bool {
        let answer = self.answer.as_ref();
        answer.is_some_and(|answer| answer.observer.observation().usage_is_final)
    }

    /// Whether an error of the provider was observed.
    pub(crate) fn has_error(&self) -> bool {
        let answer = self.answer.as_ref();
        answer.is_some_and(|answer| answer.observer.observation().error.is_some())
    }

    /// Whether the answer is an event stream, by what was observed of it.
    pub(crate) fn is_event_stream(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.observer.is_event_stream())
    }

    /// Whether the observed bytes end within an event.
    pub(crate) fn is_mid_event(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.observer.is_mid_event())
    }

    /// The sequence number of the next event of a Responses stream.
    pub(crate) fn next_sequence_number(&self) -> u64 {
        self.answer.as_ref().map_or(0, |answer| answer.observer.next_sequence_number())
    }

    /// Whether the record has been handed over.
    pub(crate) fn is_settled(&self) -> bool {
        self.destination.is_none()
    }

    /// Settles the record with a failure, which the caller passes on.
    pub(crate) fn fail(&mut self, failure: Failure) -> Failure {
        self.end(&Ending::Failed(&failure));
        failure
    }

    /// Settles the record; later calls do nothing.
    pub(crate) fn end(&mut self, ending: &Ending<'_>) {
        let Some(destination) = self.destination.take() else { return };
        if let Ending::Failed(failure) = ending {
            self.upstream_status = self.upstream_status.or(failure.upstream_status);
        }
        let current = self.answer.as_mut().map(|answer| {
            answer.finish();
            answer.observer.take()
        });
        let last = self.refusal.take().map(|observed| *observed).or(current).unwrap_or_default();
        let span = self.span.clone();
        let _entered = span.enter();
        self.record_objects(&destination, &last);
        let permit = self.dispatch.permit.take();
        SettlementEvent::new(self, ending, last).publish(destination, permit);
    }
}

impl Drop for SettlementGuard {
    fn drop(&mut self) {
        self.end(&Ending::ClientDisconnected);
    }
}
