//! Takes a streaming HTTP/1.1 response that pauses from hyper, so that an idle stream holds no buffers.
//!
//! hyper holds 16 KiB of buffers and more for each connection, also while a response has nothing to say
//! for minutes. At the first pause of a streaming response, its body is therefore taken from hyper,
//! hyper's connection is dropped, and [`write_rest`] writes the rest of the body to the socket. A
//! connection of hyper's is made anew for the next request. `server.idle_stream_handoff` turns this off.
//!
//! What must hold, each point tested against hyper's own output in `handoff/tests.rs`:
//!
//! - **Which responses.** The request is a `POST` over HTTP/1.1 that does not end the connection, the
//!   status is 200, and hyper frames the body as chunks: the response has no length, no trailers, no
//!   upgrade, and does not end the connection either. All others stay with hyper.
//! - **When.** The body is pending, the request's body has been read to its end, and everything that
//!   hyper has written is flushed: the head is out, whole chunks are out, and hyper holds no state of
//!   the exchange except that its chunked body continues.
//! - **Framing.** From then on chunks are written as in RFC 9112, section 7.1. Frames that are ready at
//!   the same time may share a chunk; an empty frame writes nothing (an empty chunk would end the body).
//!   Trailers end the body and are not sent, as hyper sends none that were not announced.
//! - **End.** The last chunk is written if and only if the body ends without an error.
//! - **Errors.** If the body fails, what came before it is written, then the connection is closed
//!   without the last chunk, so that the client sees a truncated response. hyper may close before it
//!   has written all that came before. If the client disconnects, or takes nothing for the write stall
//!   timeout, the body is dropped at once.
//! - **Keep-alive.** After the last chunk the connection serves the next request as after any other
//!   response, and with the same time limits.
//! - **Pipelining.** Bytes of the next request that hyper has read are put back into the stream; those
//!   that arrive during the response are kept (up to 256 bytes, then nothing more is read). While any
//!   are kept, a client that disconnects is noticed at the next write only. So it is with hyper.
//! - **Shutdown.** A response that was handed off ends as usual; the connection is closed after it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};

pub(super) use self::writer::write_rest;
use super::exchange::Exchange;

mod writer;

/// Headers of a response that hyper may not frame as plain chunks.
const FRAMING_HEADERS: [header::HeaderName; 4] =
    [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::TRAILER, header::UPGRADE];

/// Where a connection's response body waits while it is pending; one per connection.
#[derive(Debug)]
pub(super) struct Handoff {
    pending_body: Mutex<Option<Body>>,
    exchange: Arc<Exchange>,
    is_enabled: bool,
}

/// Whether the response to a request may be handed off, as far as the request decides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Eligibility {
    Eligible,
    Ineligible,
}

/// The body of a response. While it is pending it lies in the [`Handoff`], if it may be handed off.
#[derive(Debug)]
pub(super) struct ResponseBody {
    /// None: it lies there, or was handed off.
    body: Option<Body>,
    eligibility: Eligibility,
    handoff: Arc<Handoff>,
}

impl Handoff {
    pub(super) const fn new(exchange: Arc<Exchange>, is_enabled: bool) -> Self {
        Self { pending_body: Mutex::new(None), exchange, is_enabled }
    }

    pub(super) fn check_request<B>(&self, request: &Request<B>) -> Eligibility {
        let is_eligible = self.is_enabled
            && *request.method() == Method::POST
            && request.version() == Version::HTTP_11
            && !ends_connection(request.headers());
        if is_eligible { Eligibility::Eligible } else { Eligibility::Ineligible }
    }

    /// Wraps the response that hyper is to write.
    pub(super) fn wrap_response(
        self: Arc<Self>,
        response: Response<Body>,
        request: Eligibility,
    ) -> Response<ResponseBody> {
        let is_eligible = request == Eligibility::Eligible
            && response.status() == StatusCode::OK
            && !ends_connection(response.headers())
            && FRAMING_HEADERS.iter().all(|name| !response.headers().contains_key(name))
            && response.body().size_hint().exact().is_none();
        let eligibility = if is_eligible { Eligibility::Eligible } else { Eligibility::Ineligible };
        response.map(|body| ResponseBody { body: Some(body), eligibility, handoff: self })
    }

    /// Takes the pending body, once hyper has nothing left to read or write of this exchange.
    pub(super) fn take(&self) -> Option<Body> {
        let is_due = self.exchange.is_request_read() && self.exchange.is_flushed();
        if is_due { self.retrieve() } else { None }
    }

    fn put(&self, body: Option<Body>) {
        *self.pending_body.lock().unwrap_or_else(PoisonError::into_inner) = body;
    }

    fn retrieve(&self) -> Option<Body> {
        self.pending_body.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, eligibility, handoff } = self.get_mut();
        if body.is_none() {
            *body = handoff.retrieve();
        }
        let Some(present) = body else { return Poll::Ready(None) };
        let polled = Pin::new(present).poll_frame(cx);
        if polled.is_pending() && *eligibility == Eligibility::Eligible {
            handoff.put(body.take());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.handoff.exchange.end();
        if self.body.is_none() {
            // A response that hyper gives up is given up at once.
            drop(self.handoff.retrieve());
        }
    }
}

/// Whether the connection ends after the message with these headers.
fn ends_connection(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| {
        let mut options = value.as_bytes().split(|byte| *byte == b',');
        !options.all(|option| option.trim_ascii().eq_ignore_ascii_case(b"keep-alive"))
    })
}

#[cfg(test)]
mod tests;
