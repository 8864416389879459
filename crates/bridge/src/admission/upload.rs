//! Uploads: bodies of allowed routes that are no JSON, such as forms with files. They are passed on while they
//! arrive; small ones are held, so that they can be retried.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use keybridge_net::encoding::codings;
use keybridge_providers::{failure::Failure, upload::Upload};
use keybridge_wire::{multipart, request::RequestView};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

use super::{
    body::{
        BodyLimits, Pace, Received, RequestBody, announced_length, discard, incomplete, too_large,
    },
    memory::Memory,
};

/// Maximum size of an upload that is held; of a larger one, this much is read before it is sent, to find its
/// model.
const MAX_HELD_UPLOAD: usize = 256 * 1024;

/// Reads the whole body if it is small, else its beginning.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    limits: BodyLimits,
    mut memory: Memory,
) -> Result<RequestBody, Failure> {
    let announced = announced_length(headers).unwrap_or(0);
    if announced > limits.max_bytes {
        discard(body, limits.max_bytes).await;
        return Err(too_large(limits.max_bytes));
    }
    memory.grow(announced.min(MAX_HELD_UPLOAD)).await?;
    let mut pace = Pace::new(limits);
    let mut received = Received::default();
    while received.len() < MAX_HELD_UPLOAD {
        let frame = match timeout_at(pace.deadline, body.frame()).await {
            Err(_elapsed) => return Err(pace.too_slow()),
            Ok(None) => return Ok(RequestBody::held(received, headers, memory)),
            Ok(Some(Err(_error))) => return Err(incomplete()),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        memory.grow(received.len() + data.len()).await?;
        pace.note_data(data.len());
        received.push(data);
    }
    if received.len() > limits.max_bytes {
        discard(body, limits.max_bytes).await;
        return Err(too_large(limits.max_bytes));
    }
    let mut held = RequestBody::held(received, headers, memory);
    if !body.is_end_stream() {
        let source = ClientUpload {
            beginning: Some(held.bytes.clone()),
            received_bytes: held.bytes.len(),
            body,
            max_bytes: limits.max_bytes,
            pace,
            returned_at: Some(Instant::now()),
            alarm: None,
        };
        held.upload = Some(Upload::new(Box::pin(source)));
    }
    Ok(held)
}

/// What is read of an upload: the model and whether a stream is asked for, if it is a form that has them
/// before its files.
pub(crate) fn view(headers: &HeaderMap, beginning: &[u8]) -> RequestView {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let boundary = content_type.and_then(multipart::boundary);
    let Some(boundary) = boundary.filter(|_| codings(headers).is_empty()) else {
        return RequestView::default();
    };
    let field = |name| multipart::text_field(beginning, boundary, name);
    RequestView {
        model: field("model").map(str::to_owned),
        streaming: field("stream") == Some("true"),
        ..RequestView::default()
    }
}

/// An upload as it arrives from the client.
struct ClientUpload {
    /// What was read before.
    beginning: Option<Bytes>,
    body: Body,
    received_bytes: usize,
    max_bytes: usize,
    pace: Pace,
    /// When the last data was handed over: from then on the provider is waited for, not the client.
    returned_at: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl ClientUpload {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Failure>>> {
        loop {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(_error))) => return Poll::Ready(Some(Err(incomplete()))),
                Poll::Ready(Some(Ok(frame))) => {
                    // The provider's connection has not announced any trailers.
                    let Ok(data) = frame.into_data() else { continue };
                    self.received_bytes = self.received_bytes.saturating_add(data.len());
                    if self.received_bytes > self.max_bytes {
                        let limit = self.max_bytes;
                        // The rest may be read to be discarded.
                        self.max_bytes = usize::MAX;
                        return Poll::Ready(Some(Err(too_large(limit))));
                    }
                    self.pace.note_data(data.len());
                    return Poll::Ready(Some(Ok(data)));
                }
                Poll::Pending => {}
            }
            let deadline = self.pace.deadline;
            let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if alarm.deadline() != deadline {
                alarm.as_mut().reset(deadline);
            }
            return alarm.as_mut().poll(cx).map(|()| Some(Err(self.pace.too_slow())));
        }
    }
}

impl http_body::Body for ClientUpload {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = self.get_mut();
        if let Some(returned_at) = this.returned_at.take() {
            this.pace.extend(returned_at.elapsed());
        }
        let data = match this.beginning.take() {
            Some(beginning) => Poll::Ready(Some(Ok(beginning))),
            None => this.poll_data(cx),
        };
        if data.is_ready() {
            this.returned_at = Some(Instant::now());
        }
        data.map(|data| {
            data.map(|data| match data {
                Ok(data) => Ok(Frame::data(data)),
                // It ended because of its sender, and the provider is not to blame.
                Err(failure) => {
                    Err(Failure { record_kind: Some(failure.kind.as_str()), ..failure })
                }
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.beginning.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let beginning = self.beginning.as_ref().map_or(0, Bytes::len);
        let beginning = u64::try_from(beginning).unwrap_or(u64::MAX);
        let rest = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(beginning));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(beginning));
        }
        hint
    }
}
