//! The body of an outgoing request: held as a whole, or passed on as it arrives.

use std::{
    cell::Cell,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Streamed = Pin<Box<dyn Body<Data = Bytes, Error = Error> + Send>>;

/// Is notified when a connection takes a request to send it.
pub trait SendObserver: Send + Sync {
    /// Notes that a connection has taken the request: an idle one, or a new one that is established by then.
    fn note_connection(&self);
}

/// The body of an outgoing request.
pub struct RequestBody {
    form: Form,
    /// Taken when it is notified.
    observer: Cell<Option<Arc<dyn SendObserver>>>,
}

enum Form {
    Held(Full<Bytes>),
    Streamed(Streamed),
}

impl RequestBody {
    /// A body that is sent as it arrives.
    pub fn streamed(body: impl Body<Data = Bytes, Error = Error> + Send + 'static) -> Self {
        Self::new(Form::Streamed(Box::pin(body)))
    }

    const fn new(form: Form) -> Self {
        Self { form, observer: Cell::new(None) }
    }

    /// Notifies `observer` when a connection takes the request.
    pub fn set_observer(&mut self, observer: Arc<dyn SendObserver>) {
        self.observer = Cell::new(Some(observer));
    }
}

impl From<Bytes> for RequestBody {
    fn from(bytes: Bytes) -> Self {
        Self::new(Form::Held(Full::new(bytes)))
    }
}

impl Default for RequestBody {
    fn default() -> Self {
        Self::from(Bytes::new())
    }
}

impl fmt::Debug for RequestBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").field("size", &self.size_hint()).finish()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.get_mut().form {
            Form::Held(body) => {
                Pin::new(body).poll_frame(cx).map_err(|infallible| match infallible {})
            }
            Form::Streamed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        // hyper asks when it writes the head, whether there is a body or not. Its pool tells only through a
        // channel, which would be made for each request.
        if let Some(observer) = self.observer.take() {
            observer.note_connection();
        }
        match &self.form {
            Form::Held(body) => body.is_end_stream(),
            Form::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.form {
            Form::Held(body) => body.size_hint(),
            Form::Streamed(body) => body.size_hint(),
        }
    }
}
