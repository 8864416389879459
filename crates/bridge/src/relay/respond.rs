//! Starts the response to the client: relays the provider's answer, or runs its tool loop.

use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll};

use axum::body::Body;
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt;
use keybridge_identity::Access;
use keybridge_net::encoding::codings;
use keybridge_providers::{bedrock::Estimated, body::AnswerBody, dump::Dump, failure::Failure};
use keybridge_wire::{
    error::ErrorKind,
    observe::{Observer, UsageChunkFilter},
};
use uuid::Uuid;

use super::{
    body::{RelayBody, StartedBody},
    pump::{Pump, PumpParts, Truncation},
    watch::Watch,
};
use crate::{
    admission::{
        limits::InFlight,
        route::{Purpose, Route},
    },
    headers::{self, is_event_stream},
    settlement::{AnswerObserver, Ending, SettlementGuard, opening::dialect_of},
    tools::{
        stream::ToolLoopStream,
        tool_loop::ToolLoop,
        whole::{self, Finished},
    },
};

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
    pub(crate) guard: SettlementGuard,
    pub(crate) dump: Option<Dump>,
}

/// Responds to the client: with a stream at once, or with a whole answer after its tool loop.
pub(crate) async fn respond(
    request: AnsweredRequest,
    answer: ProviderAnswer,
    tool_loop: Option<ToolLoop>,
) -> Result<Response<Body>, Failure> {
    // An error of the first turn passes untouched.
    let is_success = answer.answer.status().is_success();
    let Some(mut tool_loop) = tool_loop.filter(|_| is_success) else {
        return relay(request, answer, None).await;
    };
    let head = answer.answer.headers();
    if is_event_stream(head) && codings(head).is_empty() {
        let answer = ProviderAnswer { filter: None, ..answer };
        let tool_loop = Box::new(ToolLoopStream::new(tool_loop));
        return relay(request, answer, Some(tool_loop)).await;
    }
    let ProviderAnswer { answer, mut guard, dump, .. } = answer;
    let finished = if is_event_stream(answer.headers()) {
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
            let answer = ProviderAnswer { answer, filter: None, guard, dump: None };
            relay(request, answer, None).await
        }
        Err(failure) => {
            guard.end(&Ending::Failed(&failure));
            Err(failure)
        }
    }
}

/// Relays the answer.
async fn relay(
    request: AnsweredRequest,
    answer: ProviderAnswer,
    tool_loop: Option<Box<ToolLoopStream>>,
) -> Result<Response<Body>, Failure> {
    let ProviderAnswer { answer, filter, mut guard, mut dump } = answer;
    let AnsweredRequest { id, route, in_flight, access } = request;
    let (mut head, mut upstream) = answer.into_parts();
    if let Some(dump) = &mut dump {
        dump.response_head(head.status, &head.headers);
    }
    // An error passes untouched, whatever its content type.
    let is_stream = head.status.is_success() && is_event_stream(&head.headers);
    let answer_codings = codings(&head.headers);
    let is_plain_stream = is_stream && answer_codings.is_empty();
    let filter = filter.filter(|_| is_plain_stream);
    let is_changed = filter.is_some() || tool_loop.is_some();
    let has_length = headers::states_length(&head.headers);
    // An event can be added to a stream whose length was not announced.
    let truncation = match route.stream_dialect() {
        Some(dialect) if is_plain_stream && (!has_length || is_changed) => {
            Truncation::ErrorEvent(dialect)
        }
        _ => Truncation::Abort,
    };
    guard.start_answer(
        head.status,
        AnswerObserver::new(observer(&route, is_stream), answer_codings),
    );
    let mut watch = Watch::new(guard.provider().config.timeouts.idle, access);
    let first_chunk = match truncation {
        Truncation::ErrorEvent(_) => None,
        // A stream may be silent for long, and its head shows that it is open.
        Truncation::Abort if is_stream => {
            read_first_chunk(&mut upstream, &mut watch).now_or_never()
        }
        Truncation::Abort => Some(read_first_chunk(&mut upstream, &mut watch).await),
    };
    let first_chunk = match first_chunk.transpose() {
        Ok(first_chunk) => first_chunk,
        Err(failure) => {
            guard.end(&Ending::Failed(&failure));
            return Err(failure);
        }
    };
    headers::to_client(&mut head.headers);
    if is_changed {
        head.headers.remove(header::CONTENT_LENGTH);
    }
    headers::set_interception_id(&mut head.headers, id);
    if head.extensions.remove::<Estimated>().is_some() {
        headers::set_estimated(&mut head.headers);
    }
    let pump = Pump::new(PumpParts { is_stream, truncation, filter, tool_loop, guard, dump });
    let upstream = StartedBody { body: upstream, first_chunk };
    let mut response = Response::new(Body::new(RelayBody::new(upstream, pump, watch, in_flight)));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    if let Some(reason) = head.extensions.remove::<hyper::ext::ReasonPhrase>() {
        response.extensions_mut().insert(reason);
    }
    Ok(response)
}

/// Reads the first chunk of an answer that cannot carry an error of the bridge: if there is none, the
/// client can still be sent an error response. `None` if the body is empty.
async fn read_first_chunk(
    upstream: &mut AnswerBody,
    watch: &mut Watch,
) -> Result<Option<Bytes>, Failure> {
    let frame = poll_fn(|cx| match Pin::new(&mut *upstream).poll_frame(cx) {
        Poll::Ready(frame) => Poll::Ready(Ok(frame)),
        Poll::Pending => watch.poll(cx).map(Err),
    });
    let frame = frame.await?.transpose().map_err(|error| {
        tracing::warn!(%error, "the provider closed the stream before its first byte");
        Failure::truncated()
    })?;
    // Nothing comes after trailers.
    Ok(frame.and_then(|frame| frame.into_data().ok()))
}

fn observer(route: &Route, is_stream: bool) -> Observer {
    match (is_stream, route.purpose) {
        (true, Purpose::Allowed(_)) => Observer::any_stream(),
        (true, _) => Observer::stream(dialect_of(route)),
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
fn hold_in_flight(response: Response<Body>, in_flight: InFlight) -> Response<Body> {
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &in_flight;
            frame
        }))
    })
}
