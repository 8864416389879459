//! The state of the exchange in progress on an HTTP/1.1 connection.
//!
//! hyper does not say where it is within an exchange, so the parts around it note what passes them: the
//! socket below, and the request's and response's bodies above. All of them run in the connection's own
//! task; the atomics only make the state shareable.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

/// One per connection; there is at most one exchange at a time.
#[derive(Debug)]
pub(super) struct Exchange {
    /// Whether an exchange began since this was last asked.
    has_begun: AtomicBool,
    /// From the request's head until hyper drops the response's body.
    is_in_flight: AtomicBool,
    /// Whether the request's body has been read to its end.
    is_request_read: AtomicBool,
    /// Whether everything that was written to the socket has been flushed.
    is_flushed: AtomicBool,
    /// Whether bytes have been received since this was last cleared.
    has_received: AtomicBool,
}

/// The body of a request; notes when it has been read to its end.
#[derive(Debug)]
pub(super) struct RequestBody {
    inner: Incoming,
    exchange: Arc<Exchange>,
}

impl Default for Exchange {
    fn default() -> Self {
        Self {
            has_begun: false.into(),
            is_in_flight: false.into(),
            is_request_read: false.into(),
            is_flushed: true.into(),
            has_received: false.into(),
        }
    }
}

impl Exchange {
    /// Begins an exchange with a request.
    pub(super) fn begin(self: &Arc<Self>, request: Request<Incoming>) -> Request<RequestBody> {
        self.has_begun.store(true, Relaxed);
        self.is_in_flight.store(true, Relaxed);
        self.is_request_read.store(request.body().is_end_stream(), Relaxed);
        request.map(|inner| RequestBody { inner, exchange: Arc::clone(self) })
    }

    /// Notes that hyper has dropped the response's body: all of it was written, or it was given up.
    pub(super) fn end(&self) {
        self.is_in_flight.store(false, Relaxed);
    }

    pub(super) fn note_write(&self) {
        self.is_flushed.store(false, Relaxed);
    }

    pub(super) fn note_flush(&self) {
        self.is_flushed.store(true, Relaxed);
    }

    pub(super) fn note_receive(&self) {
        self.has_received.store(true, Relaxed);
    }

    pub(super) fn clear_received(&self) {
        self.has_received.store(false, Relaxed);
    }

    /// Whether an exchange began since the last call, even if it has ended.
    pub(super) fn take_begun(&self) -> bool {
        // A load is cheaper than a swap, and only this task writes.
        let has_begun = self.has_begun.load(Relaxed);
        if has_begun {
            self.has_begun.store(false, Relaxed);
        }
        has_begun
    }

    /// Whether a request is being answered, or its answer is not flushed yet.
    pub(super) fn is_in_progress(&self) -> bool {
        self.is_in_flight.load(Relaxed) || !self.is_flushed.load(Relaxed)
    }

    pub(super) fn is_request_read(&self) -> bool {
        self.is_request_read.load(Relaxed)
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.is_flushed.load(Relaxed)
    }

    pub(super) fn has_received(&self) -> bool {
        self.has_received.load(Relaxed)
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self { inner, exchange } = self.get_mut();
        let polled = Pin::new(&mut *inner).poll_frame(cx);
        let is_over = match &polled {
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(_))) => inner.is_end_stream(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if is_over {
            exchange.is_request_read.store(true, Relaxed);
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
