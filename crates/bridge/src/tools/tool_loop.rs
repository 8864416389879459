//! The tool loop: calls of injected tools are made and answered here, and the provider is asked again
//! until the model calls none of them.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesOrdered};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use keybridge_mcp::{CallOutcome, Content, ToolResult, ToolSet};
use keybridge_net::encoding::{codings, decoded};
use keybridge_providers::{
    attempt::AttemptLog,
    body::AnswerBody,
    dump::{Dump, Sent},
    failure::{Failure, kind_of},
    outgoing::Outgoing,
    provider::Provider,
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
    admission::limits::Memory,
    drain::Drain,
    metrics::ToolLabels,
    settlement::calls::{CallRecord, ToolCallLog},
};

/// Calls of one turn that are under way at the same time; further ones wait.
const PARALLEL_CALLS: usize = 16;
/// Largest error answer that is read for its message, and the time for that.
const ERROR_BYTES: usize = 64 * 1024;
const ERROR_TIME: Duration = Duration::from_secs(5);

/// The loop of one request: the model's calls of injected tools are made, and the model is asked again.
pub(crate) struct ToolLoop {
    pub(crate) injected: Arc<InjectedTools>,
    /// Ends the wait for a provider or a tool when the process shuts down.
    pub(crate) drain: Drain,
    /// Largest whole answer of a turn, in bytes.
    pub(crate) max_answer: usize,
    pub(crate) provider: Arc<Provider>,
    pub(crate) dialect: Dialect,
    pub(crate) interception: Uuid,
    pub(crate) user: Uuid,
    pub(crate) model: Option<String>,
    pub(crate) tools: Arc<ToolSet>,
    pub(crate) client: ClientView,
    /// The request as it went to the provider the last time, without content encoding.
    pub(crate) outgoing: Outgoing,
    pub(crate) attempts: AttemptLog,
    /// Of the request's body, which is needed for further turns.
    pub(crate) _memory: Arc<Memory>,
    pub(crate) calls: ToolCallLog,
    /// How often the provider has been asked again.
    pub(crate) turns: u32,
}

/// A turn whose injected calls have been answered.
pub(crate) struct Answered {
    pub(crate) turn: Turn,
    /// The results in the dialect's own values.
    pub(crate) results: Vec<String>,
    /// The provider's next answer, if the model was asked again.
    pub(crate) next: Option<Result<Response<AnswerBody>, Refusal>>,
    pub(crate) body: Bytes,
    pub(crate) dump: Option<Dump>,
}

/// The provider could not be asked again, or answered with an error.
pub(crate) struct Refusal {
    pub(crate) failure: Failure,
    /// The provider's status, if it answered.
    pub(crate) status: Option<StatusCode>,
    /// What the provider said of it.
    pub(crate) observed: Option<Observation>,
}

/// The provider's next answer, and where it is dumped.
type Asked = (Result<Response<AnswerBody>, Refusal>, Option<Dump>);

/// Work that outlives a poll.
pub(crate) type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl ToolLoop {
    /// Notes the calls of a turn: until they are made they count as not made.
    pub(crate) fn note_calls(&self, turn: &Turn) {
        for call in &turn.calls {
            self.calls.put(self.turns, &call.id, CallRecord::default());
        }
    }

    /// Whether the model may be asked again; else why not.
    pub(crate) fn may_go_on(&self, turn: &Turn) -> Result<(), Failure> {
        let limit = self.injected.config.max_turns;
        if turn.overflowed {
            return Err(Failure::upstream(
                StatusCode::BAD_GATEWAY,
                ErrorKind::Api,
                "an answer that calls a tool of the bridge is too large to go on from".into(),
            ));
        }
        if turn.should_continue() && self.turns >= limit {
            return Err(Failure::upstream(
                StatusCode::BAD_GATEWAY,
                ErrorKind::Api,
                format!("the model called tools of the bridge in more than {limit} turns"),
            ));
        }
        Ok(())
    }

    /// Makes the calls of a turn and, where the model waits for nothing else, asks it again.
    pub(crate) fn answer(&self, turn: Turn) -> Work<Answered> {
        let calls: Vec<_> = turn.calls.iter().map(|call| self.call(call)).collect();
        let (dialect, body) = (self.dialect, self.outgoing.body.clone());
        let asking = turn.should_continue().then(|| self.asking());
        Box::pin(async move {
            let outputs = if turn.should_run_calls() { all(calls).await } else { Vec::new() };
            let results = turn.results(dialect, &outputs);
            let Some(asking) = asking else {
                return Answered { turn, results, next: None, body, dump: None };
            };
            match turn.append_to(dialect, &body, &results) {
                Ok(body) => {
                    let body = Bytes::from(body);
                    let (next, dump) = asking(body.clone()).await;
                    Answered { turn, results, next: Some(next), body, dump }
                }
                Err(error) => {
                    let failure = Failure::invalid(&format!("the request cannot go on: {error}"));
                    let refusal = Refusal { failure, status: None, observed: None };
                    Answered { turn, results, next: Some(Err(refusal)), body, dump: None }
                }
            }
        })
    }

    /// With the way from the answer that the client knows to the last one.
    pub(crate) fn linked(
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

    /// Keeps what later requests of the conversation need; the answer's end waits for it.
    pub(crate) fn keep(
        &self,
        continuation: &Continuation,
        entry: Option<&keybridge_ledger::Entry>,
    ) -> Option<Work<()>> {
        let entry = entry.filter(|_| !continuation.entries.is_empty())?;
        let keeping = entry.keep(self.user, &continuation.entries);
        let id = self.interception;
        Some(Box::pin(async move {
            if let Err(error) = keeping.await {
                // The client gets its answer all the same; its next request goes without.
                tracing::error!(%error, interception_id = %id, "hidden calls were not kept in time");
            }
        }))
    }

    /// One call, recorded as it goes.
    fn call(&self, call: &InjectedCall) -> Work<ToolOutput> {
        let (id, turn, log) = (call.id.clone(), self.turns, self.calls.clone());
        let Some(tool) = self.tools.find(&call.name).cloned() else {
            let output = ToolOutput::error("there is no such tool");
            return Box::pin(std::future::ready(output));
        };
        let metrics = Arc::clone(&self.injected.metrics);
        let labels = ToolLabels {
            provider: self.provider.config.name.clone(),
            model: keybridge_telemetry::label_value(self.model.as_deref().unwrap_or_default()),
            server: tool.server_name.clone(),
            name: tool.name.clone(),
        };
        let span = tracing::info_span!(
            "intercept.tool_call",
            interception_id = %self.interception,
            server = %tool.server_name,
            tool = %tool.name,
            tool_call_id = %id,
        );
        let arguments = call.object();
        let making = async move {
            let Some(arguments) = arguments else {
                let error = "the arguments are not a JSON object; the tool was not called";
                log.put(turn, &id, CallRecord::ended(Some(error.into()), Duration::ZERO, None));
                metrics.invoked(&labels, false, Duration::ZERO);
                return ToolOutput::error(error);
            };
            log.put(turn, &id, CallRecord::started());
            let CallOutcome { result, duration } = tool.call(arguments).await;
            let error = match &result {
                Ok(result) => result.is_error.then(|| first_text(result)),
                Err(error) => Some(error.clone()),
            };
            tracing::info!(duration_ms = duration.as_millis(), error, "a tool was called");
            metrics.invoked(&labels, error.is_none(), duration);
            log.put(turn, &id, CallRecord::ended(error, duration, result.as_ref().ok()));
            match result {
                Ok(result) => output(result),
                Err(error) => ToolOutput::error(&error),
            }
        };
        Box::pin(making.instrument(span))
    }

    /// Sends the next turn's request.
    fn asking(&self) -> impl FnOnce(Bytes) -> Work<Asked> + use<> {
        let (provider, outgoing) = (Arc::clone(&self.provider), self.outgoing.clone());
        let attempts = self.attempts.clone();
        let (id, turn) = (self.interception, self.turns + 1);
        move |body| {
            Box::pin(async move {
                let outgoing = Outgoing { body, ..outgoing };
                attempts.begin_turn();
                let mut dump = provider.dumps.as_ref().and_then(|dumps| {
                    let set_headers = &provider.config.set_headers;
                    let sent = Sent { outgoing: &outgoing, set_headers };
                    dumps.request(&format!("{id}.{turn}"), &sent)
                });
                let answer = provider.ask(&outgoing, &attempts).await;
                if let (Some(dump), Ok(answer)) = (&mut dump, &answer) {
                    dump.response_head(answer.status(), answer.headers());
                }
                let refused = |failure| Refusal { failure, status: None, observed: None };
                (answer.map_err(refused), dump)
            })
        }
    }
}

/// Runs calls at the same time; their outputs come in the order of the calls.
async fn all(calls: Vec<Work<ToolOutput>>) -> Vec<ToolOutput> {
    let mut outputs = Vec::with_capacity(calls.len());
    let mut waiting = calls.into_iter();
    let mut running: FuturesOrdered<_> = waiting.by_ref().take(PARALLEL_CALLS).collect();
    while let Some(output) = running.next().await {
        outputs.push(output);
        running.extend(waiting.next());
    }
    outputs
}

/// A result as the model is told of it.
fn output(result: ToolResult) -> ToolOutput {
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

/// What a tool says went wrong, shortened for the record.
fn first_text(result: &ToolResult) -> String {
    let text = result.content.iter().find_map(|content| match content {
        Content::Text(text) => Some(text.chars().take(500).collect()),
        Content::Image { .. } | Content::Other { .. } => None,
    });
    text.unwrap_or_else(|| "the tool reports an error".into())
}

/// Reads an error answer of the provider in mid-loop, so that the client can be told of it.
pub(crate) async fn refusal(dialect: Dialect, answer: Response<AnswerBody>) -> Refusal {
    let (head, body) = answer.into_parts();
    let reading = Limited::new(body, ERROR_BYTES).collect();
    let read = tokio::time::timeout(ERROR_TIME, reading).await;
    let bytes = read.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes);
    let bytes = bytes.unwrap_or_default();
    let plain = decoded(&codings(&head.headers), &bytes, ERROR_BYTES).unwrap_or_default();
    let mut observer = Observer::body(dialect);
    observer.observe(&plain);
    observer.finish();
    let observed = observer.take();
    let message = observed.error.as_ref().map(|error| error.message.clone());
    let message = message.filter(|message| !message.is_empty());
    let detail = message.unwrap_or_else(|| {
        format!("the provider answered {} in a later turn", head.status.as_u16())
    });
    Refusal {
        failure: Failure::upstream(head.status, kind_of(head.status), detail),
        status: Some(head.status),
        observed: Some(observed),
    }
}
