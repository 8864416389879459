//! The body of a provider's answer as the relay reads it, in the shape of its dialect.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;

use crate::bedrock::events::EventBody;

/// The body of a provider's answer.
#[derive(Debug)]
pub enum AnswerBody {
    /// The provider's own bytes.
    AsItCame(Incoming),
    /// A complete body, translated into the dialect.
    Whole(Full<Bytes>),
    /// A binary event stream, decoded frame by frame.
    Events(Box<EventBody>),
}

/// Why a body ended before its end.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::AsItCame(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| Some(frame?.map_err(Into::into)))
            }
            Self::Whole(body) => {
                Pin::new(body).poll_frame(cx).map(|frame| Some(frame?.map_err(Into::into)))
            }
            Self::Events(body) => {
                Pin::new(body.as_mut()).poll_frame(cx).map(|frame| Some(frame?.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::AsItCame(body) => body.is_end_stream(),
            Self::Whole(body) => body.is_end_stream(),
            Self::Events(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::AsItCame(body) => body.size_hint(),
            Self::Whole(body) => body.size_hint(),
            Self::Events(_) => SizeHint::default(),
        }
    }
}
