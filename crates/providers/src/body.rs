//! The body of a provider's answer as the relay reads it, in the shape of its dialect.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use keybridge_wire::first_event::{FirstEvent, first_event};

use crate::bedrock::events::EventBody;

/// How long the head of an answer waits for the first event of its stream.
const FIRST_EVENT_WAIT: Duration = Duration::from_secs(3);
/// Maximum size of a first event that is waited for.
const MAX_FIRST_EVENT: usize = 16 * 1024;

/// The body of a provider's answer.
#[derive(Debug)]
pub struct AnswerBody {
    source: Source,
    /// What was read before the relay begins.
    held: Option<Bytes>,
    /// Why the body ended then.
    failure: Option<BodyError>,
    /// The status that says the same as the first event, if that is an error that a retry may cure.
    first_error: Option<StatusCode>,
}

/// Where the body comes from.
#[derive(Debug)]
enum Source {
    /// The provider's own bytes.
    AsItCame(Incoming),
    /// A complete body, translated into the dialect.
    Whole(Full<Bytes>),
    /// A binary event stream, decoded frame by frame.
    Events(Box<EventBody>),
}

/// Why a body ended before its end.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl AnswerBody {
    /// The provider's own bytes.
    pub(crate) const fn as_it_came(body: Incoming) -> Self {
        Self::new(Source::AsItCame(body))
    }

    /// A complete body.
    pub(crate) fn whole(body: impl Into<Bytes>) -> Self {
        Self::new(Source::Whole(Full::new(body.into())))
    }

    /// A decoded event stream.
    pub(crate) fn events(body: EventBody) -> Self {
        Self::new(Source::Events(Box::new(body)))
    }

    /// The body as it was before these bytes were read from it.
    #[must_use]
    pub fn unread(mut self, bytes: Bytes) -> Self {
        self.held = match self.held.take() {
            Some(held) => Some([bytes, held].concat().into()),
            None => (!bytes.is_empty()).then_some(bytes),
        };
        self
    }

    const fn new(source: Source) -> Self {
        Self { source, held: None, failure: None, first_error: None }
    }

    /// Reads the first event of a stream, unless it is late or large: an error there is an answer of which
    /// nothing has been relayed.
    pub(crate) async fn read_first_event(&mut self) {
        let _late = tokio::time::timeout(FIRST_EVENT_WAIT, poll_fn(|cx| self.poll_held(cx))).await;
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let chunk = match ready!(Pin::new(&mut self.source).poll_frame(cx)) {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => {
                    self.failure = Some(error);
                    return Poll::Ready(());
                }
                None => {
                    self.source = Source::Whole(Full::default());
                    return Poll::Ready(());
                }
            };
            let held = match self.held.take() {
                Some(held) => [held, chunk].concat().into(),
                None => chunk,
            };
            let judged = first_event(&held);
            let is_held = judged == FirstEvent::Incomplete && held.len() < MAX_FIRST_EVENT;
            self.held = Some(held);
            if let FirstEvent::Failed(status) = judged {
                self.first_error = StatusCode::from_u16(status).ok();
            }
            if !is_held {
                return Poll::Ready(());
            }
        }
    }
}

/// The status of an answer; that of its first event, if that is an error that a retry may cure.
pub fn judged_status(answer: &Response<AnswerBody>) -> StatusCode {
    answer.body().first_error.unwrap_or(answer.status())
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(held) = this.held.take() {
            return Poll::Ready(Some(Ok(Frame::data(held))));
        }
        if let Some(failure) = this.failure.take() {
            return Poll::Ready(Some(Err(failure)));
        }
        Pin::new(&mut this.source).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.failure.is_none() && self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.held.is_some() || self.failure.is_some() {
            return SizeHint::default();
        }
        self.source.size_hint()
    }
}

impl Body for Source {
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
