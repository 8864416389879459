//! What became of a request, gathered while it passes and settled exactly once.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use keybridge_ledger::{Entry, Opening, Recorder};
use keybridge_mcp::ToolSet;
use keybridge_providers::{
    attempt::AttemptLog,
    breaker::{Permit, Verdict},
    credential::Credential,
    failure::{Failure, kind_of},
    provider::{Conclusion, Provider},
};
use keybridge_wire::observe::Observation;
use tokio_util::task::TaskTracker;
use tracing::Span;

use self::{calls::ToolCallLog, event::SettlementEvent, usage::token_usage};
use crate::{config::RecordPolicy, metrics::ToolMetrics};

pub(crate) use self::{event::refusal, observing::Observing};

pub(crate) mod calls;
mod event;
mod observing;
pub(crate) mod opening;
mod usage;

/// Where the record goes.
#[derive(Debug)]
pub(crate) enum Destination {
    /// Opened before the provider was asked.
    Opened(Entry),
    /// A side request: recorded only if its answer turns out to carry usage.
    IfUsed { recorder: Recorder, opening: Box<Opening>, tasks: TaskTracker },
}

/// The guard of one record: completed by [`SettlementGuard::end`], or by its `Drop` as cancelled.
#[derive(Debug)]
pub(crate) struct SettlementGuard {
    destination: Option<Destination>,
    observing: Option<Observing>,
    /// The credential that the record was opened with.
    opened_with: Arc<Credential>,
    policy: RecordPolicy,
    metrics: Arc<ToolMetrics>,
    /// The instance that the request is at.
    dispatch: DispatchRecord,
    /// The instance that it was at before it fell back to another one.
    first_dispatch: Option<FirstDispatch>,
    attempts: AttemptLog,
    upstream_status: Option<StatusCode>,
    first_byte_at: Option<Timestamp>,
    response_bytes: u64,
    is_noted: bool,
    /// What the provider answered in the past turns of a tool loop.
    past: Vec<Observation>,
    tools: Option<OfferedTools>,
    /// What the provider said when it refused a further turn.
    refusal: Option<Observation>,
    /// Of the request, so that each log line names it.
    span: Span,
}

/// A provider instance that a request is sent to.
#[derive(Debug)]
pub(crate) struct DispatchRecord {
    pub(crate) provider: Arc<Provider>,
    pub(crate) credential: Arc<Credential>,
    /// The edits of the body that it got.
    pub(crate) edits: Vec<String>,
    /// Of its circuit breaker.
    pub(crate) permit: Option<Permit>,
}

/// What remains to be recorded of the instance before a fallback.
#[derive(Debug)]
struct FirstDispatch {
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
    /// The answer was relayed to its end; the observation says whether it is a success.
    Relayed,
    /// The bridge answered with an error of its own.
    Failed(&'a Failure),
    /// The answer was truncated, by the provider or by the bridge.
    Truncated(&'a Failure),
    /// The client disconnected.
    ClientLeft,
}

impl SettlementGuard {
    pub(crate) fn new(
        destination: Destination,
        policy: RecordPolicy,
        metrics: Arc<ToolMetrics>,
        dispatch: DispatchRecord,
    ) -> Self {
        Self {
            destination: Some(destination),
            observing: None,
            opened_with: Arc::clone(&dispatch.credential),
            policy,
            metrics,
            attempts: AttemptLog::new(Arc::clone(&dispatch.credential)),
            dispatch,
            first_dispatch: None,
            upstream_status: None,
            first_byte_at: None,
            response_bytes: 0,
            is_noted: false,
            past: Vec::new(),
            tools: None,
            refusal: None,
            span: Span::current(),
        }
    }

    /// The provider instance that the request is at.
    pub(crate) fn provider(&self) -> &Provider {
        &self.dispatch.provider
    }

    /// The provider instance and the edits of a dispatch, from 0.
    fn dispatched(&self, dispatch: usize) -> (&Provider, &[String]) {
        match &self.first_dispatch {
            Some(first) if dispatch == 0 => (&first.provider, &first.edits),
            _ => (&self.dispatch.provider, &self.dispatch.edits),
        }
    }

    /// The span of the request.
    pub(crate) const fn span(&self) -> &Span {
        &self.span
    }

    /// Tools were injected: the answer may take several turns.
    pub(crate) fn expect_tool_calls(&mut self, tools: OfferedTools) {
        self.tools = Some(tools);
    }

    /// The open record, unless this is a side request or it has been handed over.
    pub(crate) fn entry(&self) -> Option<&Entry> {
        match &self.destination {
            Some(Destination::Opened(entry)) => Some(entry),
            Some(Destination::IfUsed { .. }) | None => None,
        }
    }

    /// A turn of the tool loop is over: its figures are kept even if the process dies now.
    pub(crate) fn end_turn(&mut self) {
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
    pub(crate) fn refuse_turn(&mut self, status: StatusCode, observed: Option<Observation>) {
        self.upstream_status = Some(status);
        if let Some(mut observing) = self.observing.take() {
            self.past.push(observing.observer.take());
        }
        self.refusal = observed;
    }

    /// The first instance refused with every key that it has: the request goes to another one. What
    /// became of it at the first is concluded now.
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
        self.attempts.begin_dispatch(Arc::clone(&self.dispatch.credential));
        self.first_dispatch = Some(FirstDispatch { provider: first.provider, edits: first.edits });
    }

    /// The attempts of this request.
    pub(crate) fn attempts(&self) -> AttemptLog {
        self.attempts.clone()
    }

    /// The provider has begun to answer; in a tool loop, once in each turn.
    pub(crate) fn begin_answer(&mut self, status: StatusCode, observing: Observing) {
        self.upstream_status = Some(status);
        if let Some(permit) = &mut self.dispatch.permit {
            let kind = self.attempts.credential().trace.kind;
            permit.answered(Verdict::of_status(status, kind));
        }
        if let Some(mut past) = self.observing.replace(observing) {
            self.past.push(past.observer.take());
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
    pub(crate) fn finish_observing(&mut self) {
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

    /// Settles the record; later calls do nothing.
    pub(crate) fn end(&mut self, ending: &Ending<'_>) {
        let Some(destination) = self.destination.take() else { return };
        let current = self.observing.as_mut().map(|observing| {
            observing.finish();
            observing.observer.take()
        });
        let last = self.refusal.take().or(current).unwrap_or_default();
        let span = self.span.clone();
        let _entered = span.enter();
        let permit = self.dispatch.permit.take();
        SettlementEvent::new(self, ending, last).publish(destination, permit);
    }
}

impl Drop for SettlementGuard {
    fn drop(&mut self) {
        self.end(&Ending::ClientLeft);
    }
}
