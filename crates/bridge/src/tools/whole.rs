//! The tool loop of whole answers: reads each turn to its end and responds with the merged answer.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode, header, response};
use http_body_util::BodyExt;
use keybridge_net::encoding::{codings, decoded};
use keybridge_providers::{body::AnswerBody, dump::Dump, failure::Failure};
use keybridge_wire::{
    error::ErrorKind,
    observe::Observer,
    tool_loop::{BodyMerger, Turn},
};
use tokio::time::timeout;
use uuid::Uuid;

use super::tool_loop::{ToolLoop, TurnOutcome};
use crate::{
    access::run_until_ended,
    headers,
    settlement::{AnswerObserver, SettlementGuard},
};

/// The result of a tool loop.
pub(crate) enum Finished {
    /// The response to the client.
    Answer(Response<Body>),
    /// The provider's error to a later turn, which is relayed unchanged.
    Unchanged(Response<AnswerBody>),
}

/// A turn's answer, read to its end.
struct TurnAnswer {
    head: response::Parts,
    bytes: Bytes,
    /// Without content encoding.
    plain: Bytes,
}

/// Runs the loop to its end.
pub(crate) async fn run(
    inner: &mut ToolLoop,
    mut answer: Response<AnswerBody>,
    guard: &mut SettlementGuard,
    mut dump: Option<Dump>,
) -> Result<Finished, Failure> {
    let mut merger = BodyMerger::new(inner.dialect, inner.client.clone());
    loop {
        let read = read_answer(inner, answer, guard, &mut dump).await?;
        let Some(turn) = merger.read_turn(&read.plain) else {
            return Ok(Finished::Answer(client_response(
                inner.interception,
                read.head,
                read.bytes,
            )));
        };
        inner.note_calls(&turn);
        let (turn, results) = if turn.should_run_calls() {
            inner.check_limits(&turn)?;
            guard.end_turn();
            let outcome = run_until_ended(&inner.access, inner.run_turn(turn)).await?;
            let TurnOutcome { turn, results, next, body, dump: next_dump } = outcome;
            match next {
                None => (turn, results),
                Some(Err(refusal)) => return Err(refusal.failure),
                Some(Ok(next)) if !next.status().is_success() => {
                    return Ok(Finished::Unchanged(next));
                }
                Some(Ok(next)) => {
                    merger.next_turn(&turn, &results);
                    inner.turns += 1;
                    inner.outgoing.body = body;
                    (answer, dump) = (next, next_dump);
                    continue;
                }
            }
        } else {
            (turn, Vec::new())
        };
        store_continuation(inner, &merger, &turn, &results, guard).await;
        let merged = merger.merge(&read.plain, &turn);
        let merged = merged.map_err(|error| {
            bad_gateway(&format!("cannot merge the answers of several turns: {error}"))
        })?;
        let mut head = read.head;
        let body = if merged == read.plain {
            read.bytes
        } else {
            head.headers.remove(header::CONTENT_ENCODING);
            merged.into()
        };
        return Ok(Finished::Answer(client_response(inner.interception, head, body)));
    }
}

async fn store_continuation(
    inner: &ToolLoop,
    merger: &BodyMerger,
    turn: &Turn,
    results: &[String],
    guard: &SettlementGuard,
) {
    let first = guard.first_response_id();
    let continuation = merger.continuation(turn, results);
    let continuation = inner.link_responses(continuation, first.as_deref(), turn);
    if let Some(storing) = inner.store_continuation(&continuation, guard.entry()) {
        storing.await;
    }
}

/// Reads an answer to its end and observes it for the record.
async fn read_answer(
    inner: &ToolLoop,
    answer: Response<AnswerBody>,
    guard: &mut SettlementGuard,
    dump: &mut Option<Dump>,
) -> Result<TurnAnswer, Failure> {
    let (head, body) = answer.into_parts();
    if let Some(dump) = dump {
        dump.response_head(head.status, &head.headers);
    }
    let answer_codings = codings(&head.headers);
    let observer = Observer::body(inner.dialect);
    guard.start_answer(head.status, AnswerObserver::new(observer, answer_codings.clone()));
    let idle = inner.provider.config.timeouts.idle;
    let reading = read_body(body, inner.max_answer, idle);
    let bytes = run_until_ended(&inner.access, reading).await??;
    guard.observe(&bytes);
    if let Some(dump) = dump {
        dump.response_chunk(&bytes);
    }
    let limit = inner.max_answer;
    let plain = match decoded(&answer_codings, &bytes, limit) {
        Ok(plain) if answer_codings.is_empty() => {
            drop(plain);
            bytes.clone()
        }
        Ok(plain) => Bytes::from(plain.into_owned()),
        Err(error) => {
            return Err(bad_gateway(&format!("cannot decode the provider's answer: {error}")));
        }
    };
    Ok(TurnAnswer { head, bytes, plain })
}

/// Reads a body of at most `limit` bytes to its end; each part must come within `idle`.
pub(crate) async fn read_body(
    mut body: AnswerBody,
    limit: usize,
    idle: Duration,
) -> Result<Bytes, Failure> {
    let mut bytes = BytesMut::new();
    loop {
        let frame = match timeout(idle, body.frame()).await {
            Ok(None) => return Ok(bytes.freeze()),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                tracing::warn!(%error, "the provider closed the connection before its answer was complete");
                return Err(bad_gateway(
                    "the provider closed the connection before its answer was complete",
                ));
            }
            Err(_elapsed) => return Err(Failure::idle(idle)),
        };
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            let detail = format!("the provider's answer is larger than the limit of {limit} bytes");
            return Err(bad_gateway(&detail));
        }
        bytes.extend_from_slice(&data);
    }
}

fn bad_gateway(detail: &str) -> Failure {
    Failure::upstream(StatusCode::BAD_GATEWAY, ErrorKind::Api, detail.into())
}

/// The response to the client.
pub(crate) fn client_response(id: Uuid, mut head: response::Parts, body: Bytes) -> Response<Body> {
    headers::to_client(&mut head.headers);
    head.headers.remove(header::CONTENT_LENGTH);
    headers::set_interception_id(&mut head.headers, id);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
}
