//! The body of an outgoing request: held as a whole, or passed on as it arrives.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Streamed = Pin<Box<dyn Body<Data = Bytes, Error = Error> + Send>>;

/// The body of an outgoing request.
pub struct RequestBody(Form);

enum Form {
    Held(Full<Bytes>),
    Streamed(Streamed),
}

impl RequestBody {
    /// A body that is sent as it arrives.
    pub fn streamed(body: impl Body<Data = Bytes, Error = Error> + Send + 'static) -> Self {
        Self(Form::Streamed(Box::pin(body)))
    }
}

impl From<Bytes> for RequestBody {
    fn from(bytes: Bytes) -> Self {
        Self(Form::Held(Full::new(bytes)))
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
        match &mut self.get_mut().0 {
            Form::Held(body) => {
                Pin::new(body).poll_frame(cx).map_err(|infallible| match infallible {})
            }
            Form::Streamed(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Form::Held(body) => body.is_end_stream(),
            Form::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Form::Held(body) => body.size_hint(),
            Form::Streamed(body) => body.size_hint(),
        }
    }
}
