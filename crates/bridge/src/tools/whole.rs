//! Whole answers of an inner loop: each turn is read to its end, the last one goes to the client.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, response};
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

use crate::{
    Shared,
    admission::limits::InFlight,
    headers::{self, X_KEYBRIDGE_INTERCEPTION_ID},
    settlement::{Observing, Settling},
    tools::turns::{Answered, Loop},
};

/// What came of an inner loop.
pub(crate) enum Finished {
    /// This is the client's.
    Answer(Response<Body>),
    /// The provider's own answer passes untouched: an error of a later turn.
    Passes(Response<AnswerBody>),
}

/// A turn's answer, read to its end.
struct Read {
    head: response::Parts,
    bytes: Bytes,
    /// Without content encoding.
    plain: Bytes,
}

/// Carries the loop to its end.
pub(crate) async fn finish(
    inner: &mut Loop,
    mut answer: Response<AnswerBody>,
    settling: &mut Settling,
    mut dump: Option<Dump>,
) -> Result<Finished, Failure> {
    let mut merger = BodyMerger::new(inner.dialect, inner.client.clone());
    loop {
        let read = read(inner, answer, settling, &mut dump).await?;
        let Some(turn) = merger.read_turn(&read.plain) else {
            return Ok(Finished::Answer(given(inner.interception, read.head, read.bytes)));
        };
        inner.note_calls(&turn);
        let (turn, results) = if turn.should_run_calls() {
            inner.may_go_on(&turn)?;
            settling.turn_over();
            let answered = unless_ending(&inner.shared, inner.answer(turn)).await?;
            let Answered { turn, results, next, body, dump: next_dump } = answered;
            match next {
                None => (turn, results),
                Some(Err(refusal)) => return Err(refusal.failure),
                Some(Ok(next)) if !next.status().is_success() => {
                    return Ok(Finished::Passes(next));
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
        keep(inner, &merger, &turn, &results, settling).await;
        let merged = merger.merge(&read.plain, &turn);
        let merged = merged.map_err(|error| broken(&format!("the answer is odd: {error}")))?;
        let mut head = read.head;
        let body = if merged == read.plain {
            read.bytes
        } else {
            head.headers.remove(header::CONTENT_ENCODING);
            merged.into()
        };
        return Ok(Finished::Answer(given(inner.interception, head, body)));
    }
}

async fn keep(
    inner: &Loop,
    merger: &BodyMerger,
    turn: &Turn,
    results: &[String],
    settling: &Settling,
) {
    let first = settling.first_response_id();
    let continuation = merger.continuation(turn, results);
    let continuation = inner.linked(continuation, first.as_deref(), turn);
    if let Some(keeping) = inner.keep(&continuation, settling.entry()) {
        keeping.await;
    }
}

/// Reads an answer to its end and lets the record see it.
async fn read(
    inner: &Loop,
    answer: Response<AnswerBody>,
    settling: &mut Settling,
    dump: &mut Option<Dump>,
) -> Result<Read, Failure> {
    let (head, body) = answer.into_parts();
    let answer_codings = codings(&head.headers);
    let observer = Observer::body(inner.dialect);
    settling.head(head.status, Observing::new(observer, answer_codings.clone()));
    let bytes = unless_ending(&inner.shared, gather(inner, body)).await??;
    settling.observe(&bytes);
    if let Some(dump) = dump {
        dump.response_chunk(&bytes);
    }
    let limit = inner.shared.config.max_body;
    let plain = match decoded(&answer_codings, &bytes, limit) {
        Ok(plain) if answer_codings.is_empty() => {
            drop(plain);
            bytes.clone()
        }
        Ok(plain) => Bytes::from(plain.into_owned()),
        Err(error) => return Err(broken(&format!("the provider's answer: {error}"))),
    };
    Ok(Read { head, bytes, plain })
}

async fn gather(inner: &Loop, mut body: AnswerBody) -> Result<Bytes, Failure> {
    let limit = inner.shared.config.max_body;
    let idle = inner.provider.config.timeouts.idle;
    let mut bytes = BytesMut::new();
    loop {
        let frame = match timeout(idle, body.frame()).await {
            Ok(None) => return Ok(bytes.freeze()),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                tracing::warn!(%error, "the provider broke off its answer");
                return Err(broken("the provider broke off its answer"));
            }
            Err(_elapsed) => return Err(Failure::idle(idle)),
        };
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(broken(&format!("the provider's answer is larger than {limit} bytes")));
        }
        bytes.extend_from_slice(&data);
    }
}

/// Waits for work, but not beyond the end of the process.
async fn unless_ending<T>(shared: &Shared, work: impl Future<Output = T>) -> Result<T, Failure> {
    tokio::select! {
        done = work => Ok(done),
        () = shared.drain.begun() => Err(Failure::shutting_down()),
    }
}

fn broken(detail: &str) -> Failure {
    Failure::upstream(StatusCode::BAD_GATEWAY, ErrorKind::Api, detail.into())
}

/// The answer for the client.
fn given(id: Uuid, mut head: response::Parts, body: Bytes) -> Response<Body> {
    headers::to_client(&mut head.headers);
    head.headers.remove(header::CONTENT_LENGTH);
    identify(&mut head.headers, id);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
}

/// Tells the client under which id its request is recorded.
pub(crate) fn identify(headers: &mut HeaderMap, id: Uuid) {
    if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
        headers.insert(X_KEYBRIDGE_INTERCEPTION_ID, id);
    }
}

/// A body that counts as in flight until it has been sent.
pub(crate) fn in_flight(response: Response<Body>, place: InFlight) -> Response<Body> {
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &place;
            frame
        }))
    })
}
