//! Starts the response to the client: relays the provider's answer, or runs its tool loop.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Response, StatusCode, header, response};
use http_body_util::BodyExt;
use keybridge_identity::Access;
use keybridge_net::encoding::codings;
use keybridge_providers::{bedrock::Estimated, body::AnswerBody, dump::Dump, failure::Failure};
use keybridge_wire::{
    error::ErrorKind,
    observe::{Observer, UsageChunkFilter},
    sse::Beginning,
};
use uuid::Uuid;

use super::{
    body::{ClientBody, RelayBody, StartedBody},
    key_mask::KeyMask,
    pump::{Pump, PumpParts, Truncation},
    refusal::{self, ErrorAnswer, mask_headers, must_read},
    watch::Watch,
};
use crate::{
    admission::{
        limits::InFlight,
        route::{Purpose, Route},
    },
    config::error_shape,
    headers::{self, is_event_stream},
    settlement::{AnswerObserver, Ending, SettlementGuard, opening::dialect_of},
    tools::{
        stream::ToolLoopStream,
        tool_loop::ToolLoop,
        whole::{self, Finished},
    },
};

/// How many bytes are read, at most, to see whether an answer is an event stream.
const MAX_FIRST_BYTES: usize = 1024;

/// The request that an answer belongs to.
#[derive(Debug)]
pub(crate) struct AnsweredRequest {
    pub(crate) id: Uuid,
    pub(crate) route: Route,
    pub(crate) in_flight: InFlight,
    pub(crate) access: Arc<Access>,
}

/// The provider's answer, and what is needed to relay it.
pub(crate) struct ProviderAnswer {
    pub(crate) answer: Response<AnswerBody>,
    pub(crate) filter: Option<UsageChunkFilter>,
    /// Whether it was found to be an event stream under another content type.
    pub(crate) has_events: bool,
    pub(crate) guard: Box<SettlementGuard>,
    pub(crate) dump: Option<Dump>,
}

/// Responds to a request with injected tools: with a stream at once, or with a whole answer after its tool
/// loop.
pub(crate) async fn respond_with_tools(
    request: AnsweredRequest,
    answer: ProviderAnswer,
    mut tool_loop: ToolLoop,
) -> Result<Response<Body>, Failure> {
    let answer = judge_format(&request, answer).await?;
    let head = answer.answer.headers();
    let has_events = is_event_stream(head) || answer.has_events;
    if has_events && codings(head).is_empty() {
        let answer = ProviderAnswer { filter: None, ..answer };
        let tool_loop = Box::new(ToolLoopStream::new(tool_loop));
        return relay(request, answer, Some(tool_loop)).await;
    }
    let ProviderAnswer { answer, mut guard, dump, .. } = answer;
    let finished = if has_events {
        Err(Failure::upstream(
            StatusCode::BAD_GATEWAY,
            ErrorKind::Api,
            "the provider sent an encoded event stream although no encoding was requested".into(),
        ))
    } else {
        whole::run(&mut tool_loop, answer, &mut guard, dump).await
    };
    match finished {
        Ok(Finished::Answer(response)) => {
            guard.end(&Ending::Relayed);
            Ok(hold_in_flight(response, request.in_flight))
        }
        Ok(Finished::Unchanged(answer)) => {
            let answer =
                ProviderAnswer { answer, filter: None, has_events: false, guard, dump: None };
            relay(request, answer, None).await
        }
        Err(failure) => Err(guard.fail(failure)),
    }
}

/// Looks into an answer that has another content type than an event stream: many servers send one under
/// a wrong label.
async fn judge_format(
    request: &AnsweredRequest,
    answer: ProviderAnswer,
) -> Result<ProviderAnswer, Failure> {
    let head = answer.answer.headers();
    if is_event_stream(head) || !codings(head).is_empty() {
        return Ok(answer);
    }
    let ProviderAnswer { answer, filter, mut guard, dump, .. } = answer;
    let idle = guard.provider().config.timeouts.idle;
    let mut watch = Watch::new(idle, Arc::clone(&request.access));
    let (head, mut body) = answer.into_parts();
    let first_bytes = read_first_bytes(&mut body, &mut watch, true)
        .await
        .map_err(|failure| guard.fail(failure))?
        .unwrap_or_default();
    let has_events = Beginning::of(&first_bytes) == Beginning::Events;
    let answer = Response::from_parts(head, body.unread(first_bytes));
    Ok(ProviderAnswer { answer, filter, has_events, guard, dump })
}

/// Relays the answer.
pub(crate) async fn relay(
    request: AnsweredRequest,
    answer: ProviderAnswer,
    tool_loop: Option<Box<ToolLoopStream>>,
) -> Result<Response<Body>, Failure> {
    let ProviderAnswer { answer, filter, mut guard, mut dump, has_events } = answer;
    let AnsweredRequest { id, route, in_flight, access } = request;
    let (mut head, mut upstream) = answer.into_parts();
    if let Some(dump) = &mut dump {
        dump.response_head(head.status, &head.headers);
    }
    let credential = guard.attempts().credential();
    let answer_codings = codings(&head.headers);
    let is_plain = answer_codings.is_empty();
    // An error passes as it is, whatever its content type.
    let is_success = head.status.is_success();
    let mut is_stream = is_success && (has_events || is_event_stream(&head.headers));
    let observer = observer(&route, &head, is_stream);
    guard.start_answer(head.status, AnswerObserver::new(observer, answer_codings));
    let mut watch = Watch::new(guard.provider().config.timeouts.idle, access);
    if !is_success && credential.is_centralized() {
        mask_headers(&mut head.headers, &mut guard);
    }
    if must_read(&head, &credential) {
        let shape = error_shape(dialect_of(&route));
        let error = ErrorAnswer { head, body: upstream, dump };
        return match refusal::respond(id, shape, error, &mut guard, &mut watch).await {
            Ok(response) => Ok(hold_in_flight(response, in_flight)),
            Err(failure) => Err(guard.fail(failure)),
        };
    }
    let has_length = headers::states_length(&head.headers);
    // What the client gets has another length than the provider announced.
    let is_changed = filter.is_some() || tool_loop.is_some();
    let added = route.stream_dialect().filter(|_| is_plain && (!has_length || is_changed));
    let may_be_stream = is_success && is_plain && matches!(route.purpose, Purpose::Intercept(_));
    let first_chunk = if !is_stream {
        Some(read_first_bytes(&mut upstream, &mut watch, may_be_stream).await)
    } else if added.is_some() {
        None
    } else {
        // A stream may be silent for long, and its head shows that it is open.
        read_first_bytes(&mut upstream, &mut watch, false).now_or_never()
    };
    let first_chunk = first_chunk.transpose().map_err(|failure| guard.fail(failure))?;
    if let (false, true, Some(Some(first))) = (is_stream, may_be_stream, &first_chunk) {
        is_stream = Beginning::of(first) == Beginning::Events;
    }
    let filter = filter.filter(|_| is_stream && is_plain);
    let is_changed = filter.is_some() || tool_loop.is_some();
    // An event can be added to a stream whose length was not announced.
    let truncation = match added {
        Some(dialect) if is_stream => Truncation::ErrorEvent(dialect),
        _ => Truncation::Abort,
    };
    let key_mask = (is_plain && credential.is_centralized()).then(KeyMask::default);
    headers::to_client(&mut head.headers);
    if is_changed {
        head.headers.remove(header::CONTENT_LENGTH);
    }
    headers::set_interception_id(&mut head.headers, id);
    if head.extensions.remove::<Estimated>().is_some() {
        headers::set_estimated(&mut head.headers);
    }
    let pump = Pump::new(PumpParts { truncation, filter, tool_loop, key_mask, guard, dump });
    let upstream = StartedBody { body: upstream, first_chunk };
    let body = RelayBody::new(upstream, pump, watch, in_flight);
    let mut response = Response::new(Body::new(ClientBody::new(body)));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    if let Some(reason) = head.extensions.remove::<hyper::ext::ReasonPhrase>() {
        response.extensions_mut().insert(reason);
    }
    Ok(response)
}

/// Reads the first bytes of an answer that cannot carry an error of the bridge: if there are none, the
/// client can still be sent an error response. `None` if the body is empty.
///
/// If the answer `may_be_stream`, so many are read that they show whether it is one.
async fn read_first_bytes(
    upstream: &mut AnswerBody,
    watch: &mut Watch,
    may_be_stream: bool,
) -> Result<Option<Bytes>, Failure> {
    let mut first_bytes = read_chunk(upstream, watch).await?;
    while let Some(bytes) = first_bytes.as_ref().filter(|_| may_be_stream)
        && bytes.len() < MAX_FIRST_BYTES
        && Beginning::of(bytes) == Beginning::Undecided
        && let Some(more) = read_chunk(upstream, watch).await?
    {
        first_bytes = Some([bytes.as_ref(), &more].concat().into());
    }
    Ok(first_bytes)
}

/// Reads the next chunk; `None` at the end.
async fn read_chunk(
    upstream: &mut AnswerBody,
    watch: &mut Watch,
) -> Result<Option<Bytes>, Failure> {
    let frame = watch.next_frame(upstream).await?.transpose().map_err(|error| {
        tracing::warn!(%error, "the provider closed the stream before its first byte");
        Failure::truncated()
    })?;
    // Nothing comes after trailers.
    Ok(frame.and_then(|frame| frame.into_data().ok()))
}

fn observer(route: &Route, head: &response::Parts, is_stream: bool) -> Observer {
    match (is_stream, route.purpose) {
        (true, Purpose::Allowed(_)) => Observer::any_stream(),
        (true, _) => Observer::stream(dialect_of(route)),
        (false, _) if !head.status.is_success() => Observer::body(dialect_of(route)),
        (false, Purpose::Allowed(_)) if !headers::may_be_json(&head.headers) => {
            Observer::unread_body()
        }
        (false, Purpose::Intercept(dialect)) => Observer::body(dialect),
        (
            false,
            Purpose::Metered(_)
            | Purpose::Change
            | Purpose::Allowed(_)
            | Purpose::Count(_)
            | Purpose::PassThrough,
        ) => Observer::any_body(),
    }
}

/// Counts the request as in flight until the response has been sent.
pub(super) fn hold_in_flight(response: Response<Body>, in_flight: InFlight) -> Response<Body> {
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &in_flight;
            frame
        }))
    })
}
