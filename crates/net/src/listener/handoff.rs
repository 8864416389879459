//! Where hyper's connection gives away an answer that pauses.
//!
//! hyper holds 16 KiB of buffers and more for each connection, also while an answer has nothing to say
//! for minutes. The body of an answer in chunks, the beginning of which is out, is therefore taken
//! from it at its first pause, hyper's connection is dropped, and `writer.rs` relays what comes.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

pub(super) mod writer;

/// What one connection's parts know of each other; one answer at a time. All run in one task.
#[derive(Debug, Default)]
pub(super) struct Handover {
    /// The body that pauses.
    body: Mutex<Option<Body>>,
    /// Whether the request has been read to its end.
    is_request_read: AtomicBool,
    /// Whether everything that was written has gone out.
    is_flushed: AtomicBool,
}

/// A request body; tells when it has been read.
#[derive(Debug)]
pub(super) struct Asking {
    inner: Incoming,
    handover: Arc<Handover>,
}

/// The body of an answer; while it pauses it lies in the handover, if it may be given away.
#[derive(Debug)]
pub(super) struct Pausing {
    body: Option<Body>,
    handover: Option<Arc<Handover>>,
}

impl Handover {
    /// Prepares for a request; says whether its answer may be given away.
    pub(super) fn asked(
        self: &Arc<Self>,
        request: Request<Incoming>,
    ) -> (Request<Asking>, Option<Arc<Self>>) {
        let is_apt = *request.method() == Method::POST
            && request.version() == Version::HTTP_11
            && !closes(request.headers());
        self.is_request_read.store(request.body().is_end_stream(), Ordering::Relaxed);
        let request = request.map(|inner| Asking { inner, handover: Arc::clone(self) });
        (request, is_apt.then(|| Arc::clone(self)))
    }

    pub(super) fn writing(&self) {
        self.is_flushed.store(false, Ordering::Relaxed);
    }

    pub(super) fn flushed(&self) {
        self.is_flushed.store(true, Ordering::Relaxed);
    }

    /// The body that pauses, once hyper has nothing left to read or write of this exchange.
    pub(super) fn take(&self) -> Option<Body> {
        let is_done =
            self.is_request_read.load(Ordering::Relaxed) && self.is_flushed.load(Ordering::Relaxed);
        if is_done { self.retrieve() } else { None }
    }

    fn put(&self, body: Option<Body>) {
        *self.body.lock().unwrap_or_else(PoisonError::into_inner) = body;
    }

    fn retrieve(&self) -> Option<Body> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Pausing {
    /// The body of an answer; without a handover, or with a framing that is not known to be chunks,
    /// hyper keeps it.
    pub(super) fn answer(
        response: Response<Body>,
        handover: Option<Arc<Handover>>,
    ) -> Response<Self> {
        const FRAMING: [header::HeaderName; 4] =
            [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::TRAILER, header::UPGRADE];
        let is_apt = response.status() == StatusCode::OK
            && !closes(response.headers())
            && FRAMING.iter().all(|name| !response.headers().contains_key(name))
            && response.body().size_hint().exact().is_none();
        let handover = handover.filter(|_| is_apt);
        response.map(|body| Self { body: Some(body), handover })
    }
}

impl HttpBody for Pausing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, handover } = self.get_mut();
        if body.is_none() {
            *body = handover.as_ref().and_then(|handover| handover.retrieve());
        }
        let Some(present) = body else { return Poll::Ready(None) };
        let polled = Pin::new(present).poll_frame(cx);
        if polled.is_pending()
            && let Some(handover) = handover
        {
            handover.put(body.take());
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

impl Drop for Pausing {
    fn drop(&mut self) {
        // An answer that hyper gives up is given up at once.
        drop(self.handover.as_ref().and_then(|handover| handover.retrieve()));
    }
}

impl HttpBody for Asking {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { inner, handover } = self.get_mut();
        let polled = Pin::new(&mut *inner).poll_frame(cx);
        let is_over = match &polled {
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(_))) => inner.is_end_stream(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if is_over {
            handover.is_request_read.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Whether the connection may not go on after the message with these headers.
fn closes(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONNECTION).iter().any(|value| {
        let mut names = value.as_bytes().split(|byte| *byte == b',');
        !names.all(|name| name.trim_ascii().eq_ignore_ascii_case(b"keep-alive"))
    })
}
