//! The tool loop: runs the calls of injected tools and sends their results to the provider, until the
//! model calls none of them.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesOrdered};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use keybridge_identity::Access;
use keybridge_mcp::{Content, ToolResult, ToolSet};
use keybridge_net::encoding::{codings, decoded};
use keybridge_providers::{
    attempt::AttemptLog,
    body::AnswerBody,
    credential::Credential,
    dump::Dump,
    failure::{Failure, Retry, kind_of},
    outgoing::Outgoing,
    provider::Provider,
    target::Target,
};
use keybridge_wire::{
    Dialect,
    error::ErrorKind,
    observe::{Observation, Observer},
    tool_loop::{ClientView, Continuation, InjectedCall, OutputPart, ToolOutput, Turn},
};
use tracing::Instrument;
use uuid::Uuid;

use super::InjectedTools;
use crate::{
    admission::memory::Memory,
    metrics::ToolLabels,
    relay::refusal::{is_key_refused, key_refused},
    settlement::calls::{CallRecord, ToolCallLog},
};

/// Maximum number of calls of one turn that run at the same time; further ones wait.
const MAX_PARALLEL_CALLS: usize = 16;
/// Maximum size of an error answer that is read for its message.
const MAX_ERROR_BYTES: usize = 64 * 1024;
/// Timeout of reading an error answer.
const ERROR_READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The tool loop of one request.
pub(crate) struct ToolLoop {
    pub(crate) injected: Arc<InjectedTools>,
    /// Ends the wait for a provider or a tool.
    pub(crate) access: Arc<Access>,
    /// Maximum size of a turn's whole answer, in bytes.
    pub(crate) max_answer: usize,
    pub(crate) provider: Arc<Provider>,
    pub(crate) dialect: Dialect,
    pub(crate) interception: Uuid,
    pub(crate) user: Uuid,
    pub(crate) endpoint: String,
    pub(crate) model: Option<String>,
    /// The name of the key that made the stored objects which the request names.
    pub(crate) bound_key: Option<String>,
    /// Whether the client asked for a stream.
    pub(crate) streams: bool,
    pub(crate) tools: Arc<ToolSet>,
    pub(crate) client: ClientView,
    /// The request of the last turn, without content encoding.
    pub(crate) outgoing: Outgoing,
    pub(crate) attempts: AttemptLog,
    /// The memory of the request's body, which is needed for further turns.
    pub(crate) _memory: Memory,
    pub(crate) calls: ToolCallLog,
    /// The number of further turns so far.
    pub(crate) turns: u32,
}

/// The outcome of a turn whose injected calls were run.
pub(crate) struct TurnOutcome {
    pub(crate) turn: Turn,
    /// The results in the dialect's own values.
    pub(crate) results: Vec<String>,
    /// The provider's answer to the next turn, if there is one.
    pub(crate) next: Option<Result<Response<AnswerBody>, RefusedTurn>>,
    pub(crate) body: Bytes,
    pub(crate) dump: Option<Dump>,
}

/// A further turn that could not be sent, or that the provider answered with an error.
pub(crate) struct RefusedTurn {
    pub(crate) failure: Failure,
    /// The provider's status, if it answered.
    pub(crate) status: Option<StatusCode>,
    /// What was observed in the provider's error.
    pub(crate) observed: Option<Observation>,
}

impl RefusedTurn {
    /// The same without the company's key, if the provider quotes it.
    pub(crate) fn masked(mut self, provider: &Provider, credential: &Credential) -> Self {
        if is_key_refused(self.failure.status, credential) {
            self.failure.detail = key_refused(provider);
            self.failure.retry = Retry::Useless;
        } else if credential.is_centralized() {
            let detail = std::mem::take(&mut self.failure.detail);
            self.failure.detail = provider.secrets.mask_in(detail.into()).into_owned();
        }
        self
    }
}

/// The provider's answer to the next turn, and its dump.
type NextAnswer = (Result<Response<AnswerBody>, RefusedTurn>, Option<Dump>);

/// Work that outlives a poll.
pub(crate) type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl ToolLoop {
    /// Notes the calls of a turn as not made yet.
    pub(crate) fn note_calls(&self, turn: &Turn) {
        for call in &turn.calls {
            self.calls.put(self.turns, &call.id, CallRecord::default());
        }
    }

    /// Checks that the loop may run the calls of a turn and continue.
    pub(crate) fn check_limits(&self, turn: &Turn) -> Result<(), Failure> {
        let limit = self.injected.config.max_turns;
        if turn.overflowed {
            return Err(Failure::upstream(
                StatusCode::BAD_GATEWAY,
                ErrorKind::Api,
                "the answer calls an injected tool but is too large to continue from".into(),
            ));
        }
        if turn.should_continue() && self.turns >= limit {
            return Err(Failure::upstream(
                StatusCode::BAD_GATEWAY,
                ErrorKind::Api,
                format!(
                    "the model called injected tools in more than {limit} turns, the limit of `injected_tools.max_turns`"
                ),
            ));
        }
        Ok(())
    }

    /// Runs the calls of a turn and, if the model waits for nothing else, sends the next turn.
    pub(crate) fn run_turn(&self, turn: Turn) -> Work<TurnOutcome> {
        let calls: Vec<_> = turn.calls.iter().map(|call| self.run_call(call)).collect();
        let (dialect, body) = (self.dialect, self.outgoing.body.clone());
        let send_next = turn.should_continue().then(|| self.send_next_turn());
        Box::pin(async move {
            let outputs = if turn.should_run_calls() { run_all(calls).await } else { Vec::new() };
            let results = turn.results(dialect, &outputs);
            let Some(send_next) = send_next else {
                return TurnOutcome { turn, results, next: None, body, dump: None };
            };
            match turn.append_to(dialect, &body, &results) {
                Ok(body) => {
                    let body = Bytes::from(body);
                    let (next, dump) = send_next(body.clone()).await;
                    TurnOutcome { turn, results, next: Some(next), body, dump }
                }
                Err(error) => {
                    let detail = format!("cannot add tool results to the request: {error}");
                    let failure = Failure::invalid(&detail);
                    let refused = RefusedTurn { failure, status: None, observed: None };
                    TurnOutcome { turn, results, next: Some(Err(refused)), body, dump: None }
                }
            }
        })
    }

    /// Links the response id that the client knows to the last one.
    pub(crate) fn link_responses(
        &self,
        continuation: Continuation,
        first: Option<&str>,
        turn: &Turn,
    ) -> Continuation {
        match self.dialect {
            Dialect::Responses => continuation.with_response(first, turn.response_id.as_deref()),
            Dialect::Messages | Dialect::ChatCompletions => continuation,
        }
    }

    /// Stores what later requests of the conversation need; the end of the answer waits for it.
    pub(crate) fn store_continuation(
        &self,
        continuation: &Continuation,
        entry: Option<&keybridge_ledger::Entry>,
    ) -> Option<Work<()>> {
        let entry = entry.filter(|_| !continuation.entries.is_empty())?;
        let storing = entry.keep(self.user, &continuation.entries);
        let id = self.interception;
        Some(Box::pin(async move {
            if let Err(error) = storing.await {
                // The client still gets its answer; its next request is sent without the hidden calls.
                tracing::error!(%error, interception_id = %id, "cannot store hidden tool calls");
            }
        }))
    }

    /// Runs one call and notes its outcome.
    fn run_call(&self, call: &InjectedCall) -> Work<ToolOutput> {
        let (id, turn, log) = (call.id.clone(), self.turns, self.calls.clone());
        let Some(tool) = self.tools.find(&call.name).cloned() else {
            let output = ToolOutput::error(&format!("unknown tool `{}`", call.name));
            return Box::pin(std::future::ready(output));
        };
        let metrics = Arc::clone(&self.injected.metrics);
        let labels = ToolLabels {
            provider: self.provider.config.name.clone(),
            model: keybridge_telemetry::label_value(self.model.as_deref().unwrap_or_default()),
            server: tool.server_name.clone(),
            name: keybridge_telemetry::label_value(&tool.name),
        };
        let span = tracing::info_span!(
            "intercept.tool_call",
            interception_id = %self.interception,
            server = %tool.server_name,
            tool = %tool.name,
            tool_call_id = %id,
        );
        let arguments = call.object();
        let running = async move {
            let Some(arguments) = arguments else {
                let error = "the arguments are not a JSON object; the tool was not called";
                log.put(turn, &id, CallRecord::failed(error.into()));
                metrics.count_invocation(&labels, false, Duration::ZERO);
                return ToolOutput::error(error);
            };
            log.put(turn, &id, CallRecord::started());
            let outcome = tool.call(arguments).await;
            let error = match &outcome.result {
                Ok(result) => result.is_error.then(|| first_text(result)),
                Err(error) => Some(error.clone()),
            };
            tracing::info!(duration_ms = outcome.duration.as_millis(), error, "called a tool");
            metrics.count_invocation(&labels, error.is_none(), outcome.duration);
            log.end(turn, &id, error, &outcome);
            match outcome.result {
                Ok(result) => tool_output(result),
                Err(error) => ToolOutput::error(&error),
            }
        };
        Box::pin(running.instrument(span))
    }

    /// A function that sends the next turn's request with a body.
    fn send_next_turn(&self) -> impl FnOnce(Bytes) -> Work<NextAnswer> + use<> {
        let (provider, outgoing) = (Arc::clone(&self.provider), self.outgoing.clone());
        let attempts = self.attempts.clone();
        let (id, turn) = (self.interception, self.turns + 1);
        let (endpoint, model) = (self.endpoint.clone(), self.model.clone());
        let (bound_key, is_model_stream) = (self.bound_key.clone(), self.streams);
        move |body| {
            Box::pin(async move {
                let outgoing = Outgoing { body, ..outgoing };
                attempts.start_turn();
                let mut dump = provider.dumps.as_ref().and_then(|dumps| {
                    dumps.request(&format!("{id}.{turn}"), &outgoing, &provider.config)
                });
                // The first turn has chosen the key.
                let target = Target {
                    endpoint: &endpoint,
                    model: model.as_deref(),
                    session: None,
                    bound_key: bound_key.as_deref(),
                    is_model_stream,
                };
                let answer = provider.send(&outgoing, &target, &attempts).await;
                if let (Some(dump), Ok(answer)) = (&mut dump, &answer) {
                    dump.response_head(answer.status(), answer.headers());
                }
                let refused = |failure| RefusedTurn { failure, status: None, observed: None };
                (answer.map_err(refused), dump)
            })
        }
    }
}

/// Runs calls concurrently; returns their outputs in the order of the calls.
async fn run_all(calls: Vec<Work<ToolOutput>>) -> Vec<ToolOutput> {
    let mut outputs = Vec::with_capacity(calls.len());
    let mut waiting = calls.into_iter();
    let mut running: FuturesOrdered<_> = waiting.by_ref().take(MAX_PARALLEL_CALLS).collect();
    while let Some(output) = running.next().await {
        outputs.push(output);
        running.extend(waiting.next());
    }
    outputs
}

/// The output of a tool as sent to the model.
fn tool_output(result: ToolResult) -> ToolOutput {
    let parts = result.content.into_iter().map(|content| match content {
        Content::Text(text) => OutputPart::Text(text),
        Content::Image { mime_type, data } => OutputPart::Image { media_type: mime_type, data },
        Content::Other { kind, .. } => OutputPart::Other(kind),
    });
    let mut parts: Vec<OutputPart> = parts.collect();
    if parts.is_empty() {
        parts.push(OutputPart::Text(result.structured.unwrap_or_default()));
    }
    ToolOutput { parts, json: result.raw, is_error: result.is_error }
}

/// The error message of a tool, truncated for the record.
fn first_text(result: &ToolResult) -> String {
    let text = result.content.iter().find_map(|content| match content {
        Content::Text(text) => Some(text.chars().take(500).collect()),
        Content::Image { .. } | Content::Other { .. } => None,
    });
    text.unwrap_or_else(|| "the tool reports an error".into())
}

/// Reads the provider's error answer to a further turn, so that it can be sent to the client.
pub(crate) async fn read_refusal(dialect: Dialect, answer: Response<AnswerBody>) -> RefusedTurn {
    let (head, body) = answer.into_parts();
    let reading = Limited::new(body, MAX_ERROR_BYTES).collect();
    let read = tokio::time::timeout(ERROR_READ_TIMEOUT, reading).await;
    let bytes = read.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes);
    let bytes = bytes.unwrap_or_default();
    let plain = decoded(&codings(&head.headers), &bytes, MAX_ERROR_BYTES).unwrap_or_default();
    let mut observer = Observer::body(dialect);
    observer.observe(&plain);
    observer.finish();
    let observed = observer.take();
    let message = observed.error.as_ref().map(|error| error.message.clone());
    let message = message.filter(|message| !message.is_empty());
    let detail = message.unwrap_or_else(|| {
        format!("the provider returned status {} in a later turn", head.status.as_u16())
    });
    RefusedTurn {
        failure: Failure::upstream(head.status, kind_of(head.status), detail),
        status: Some(head.status),
        observed: Some(observed),
    }
}
