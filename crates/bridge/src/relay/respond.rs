//! The provider's answer is put on its way: relayed, or taken through an inner loop.

use std::sync::Arc;

use axum::body::Body;
use http::{HeaderMap, Response, StatusCode, header};
use keybridge_net::encoding::codings;
use keybridge_providers::{body::AnswerBody, dump::Dump, failure::Failure};
use keybridge_wire::{
    error::ErrorKind,
    observe::{Observer, UsageChunkFilter},
};

use crate::{
    Shared,
    admission::route::Purpose,
    call::{Arrival, Refused, dialect_of},
    headers,
    relay::pump::{BreakOff, Parts, Relay},
    settlement::{Ending, Observing, Settling},
    tools::stream::Looped,
    tools::turns::Loop,
    tools::whole::{self, Finished},
};

/// What the provider answered, and what it is relayed with.
pub(crate) struct ProviderAnswer {
    pub(crate) answer: Response<AnswerBody>,
    pub(crate) filter: Option<UsageChunkFilter>,
    pub(crate) settling: Settling,
    pub(crate) dump: Option<Dump>,
}

/// Gives the client its answer: a stream at once, a whole one after the turns of its inner loop.
pub(crate) async fn give(
    shared: &Arc<Shared>,
    arrival: Arrival,
    answered: ProviderAnswer,
    inner: Option<Loop>,
) -> Result<Response<Body>, Refused> {
    // An error of the first turn passes untouched.
    let is_success = answered.answer.status().is_success();
    let Some(mut inner) = inner.filter(|_| is_success) else {
        return Ok(relay(shared, arrival, answered, None));
    };
    let head = answered.answer.headers();
    if is_event_stream(head) && codings(head).is_empty() {
        let answered = ProviderAnswer { filter: None, ..answered };
        return Ok(relay(shared, arrival, answered, Some(Box::new(Looped::new(inner)))));
    }
    let ProviderAnswer { answer, mut settling, dump, .. } = answered;
    let finished = if is_event_stream(answer.headers()) {
        Err(Failure::upstream(
            StatusCode::BAD_GATEWAY,
            ErrorKind::Api,
            "the provider encoded a stream that it was asked not to".into(),
        ))
    } else {
        whole::finish(&mut inner, answer, &mut settling, dump).await
    };
    match finished {
        Ok(Finished::Answer(response)) => {
            settling.end(&Ending::Relayed);
            Ok(whole::in_flight(response, arrival.in_flight))
        }
        Ok(Finished::Passes(answer)) => {
            let answered = ProviderAnswer { answer, filter: None, settling, dump: None };
            Ok(relay(shared, arrival, answered, None))
        }
        Err(failure) => {
            settling.end(&Ending::Failed(&failure));
            Err((failure, Some(arrival.id)))
        }
    }
}

/// Puts the answer on its way.
fn relay(
    shared: &Shared,
    arrival: Arrival,
    answered: ProviderAnswer,
    looped: Option<Box<Looped>>,
) -> Response<Body> {
    let ProviderAnswer { answer, filter, mut settling, mut dump } = answered;
    let (mut head, upstream) = answer.into_parts();
    if let Some(dump) = &mut dump {
        dump.response_head(head.status, &head.headers);
    }
    // An error passes untouched, whatever its content type.
    let is_stream = head.status.is_success() && is_event_stream(&head.headers);
    let answer_codings = codings(&head.headers);
    let dialect = dialect_of(&arrival.route);
    let has_length = head.headers.contains_key(header::CONTENT_LENGTH);
    let filter = filter.filter(|_| is_stream && answer_codings.is_empty());
    let is_changed = filter.is_some() || looped.is_some();
    let can_add = is_stream && answer_codings.is_empty() && (!has_length || is_changed);
    let break_off = if can_add { BreakOff::Event(dialect) } else { BreakOff::Abort };
    let observer = match (is_stream, arrival.route.purpose) {
        (true, _) => Observer::stream(dialect),
        (false, Purpose::Intercept(dialect)) => Observer::body(dialect),
        (false, Purpose::Metered(_) | Purpose::Pass) => Observer::any_body(),
    };
    settling.head(head.status, Observing::new(observer, answer_codings));
    headers::to_client(&mut head.headers);
    if is_changed {
        head.headers.remove(header::CONTENT_LENGTH);
    }
    whole::identify(&mut head.headers, arrival.id);
    let relay = Relay::new(Parts {
        upstream,
        is_stream,
        break_off,
        filter,
        looped,
        settling,
        idle: arrival.route.provider.config.timeouts.idle,
        drain: shared.drain.clone(),
        dump,
        in_flight: arrival.in_flight,
    });
    let mut response = Response::new(Body::new(relay));
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    if let Some(reason) = head.extensions.remove::<hyper::ext::ReasonPhrase>() {
        response.extensions_mut().insert(reason);
    }
    response
}

pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        value.trim_start().to_ascii_lowercase().starts_with("text/event-stream")
    })
}
