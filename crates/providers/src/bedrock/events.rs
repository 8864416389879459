//! Decodes Amazon's binary event stream into events of the Messages API, frame by frame.
//!
//! The framing is described in
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html>: lengths and their
//! checksum, headers, payload, checksum of the whole.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use aws_smithy_eventstream::frame::read_message_from;
use aws_smithy_types::event_stream::Message;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use keybridge_wire::{
    Dialect,
    error::{ErrorKind, stream_event},
    json::Value,
};

/// Largest frame: AWS's limit of a payload, and room for its headers.
const MAX_FRAME_BYTES: usize = 24 * 1024 * 1024;
/// Lengths and their checksum.
const PRELUDE_BYTES: usize = 12;
/// Prelude and the checksum at the end.
const MIN_FRAME_BYTES: usize = PRELUDE_BYTES + 4;

/// Why a stream cannot be decoded further.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The checksum of a frame's lengths does not match.
    #[error("the checksum of a frame's lengths does not match")]
    Prelude,
    /// The length of a frame is out of range.
    #[error("invalid frame length: {0} bytes")]
    Length(usize),
    /// A frame is corrupt.
    #[error("corrupt frame: {0}")]
    Frame(#[from] aws_smithy_eventstream::error::Error),
    /// A frame holds no event of the Messages API.
    #[error("a frame holds no event: {0}")]
    Payload(&'static str),
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Truncated,
    /// The connection to AWS failed.
    #[error(transparent)]
    Connection(#[from] hyper::Error),
}

/// Decodes frames into events.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    buffer: BytesMut,
    /// An exception has ended the stream; what follows is ignored.
    is_finished: bool,
}

impl Decoder {
    /// Decodes a chunk and appends its complete events to `events`, also those before an error.
    pub(crate) fn push(&mut self, chunk: &[u8], events: &mut Vec<u8>) -> Result<(), EventError> {
        if self.is_finished {
            return Ok(());
        }
        self.buffer.extend_from_slice(chunk);
        while let Some(length) = self.next_length()? {
            if self.buffer.len() < length {
                break;
            }
            let message = read_message_from(self.buffer.split_to(length).freeze())?;
            self.write(&message, events)?;
            if self.is_finished {
                self.buffer.clear();
            }
        }
        Ok(())
    }

    /// Checks that the stream ended after a whole frame.
    pub(crate) fn finish(&self) -> Result<(), EventError> {
        if self.buffer.is_empty() { Ok(()) } else { Err(EventError::Truncated) }
    }

    /// The length of the next frame, once its checksum is known to match.
    fn next_length(&self) -> Result<Option<usize>, EventError> {
        let Some([l0, l1, l2, l3, h0, h1, h2, h3, crc @ ..]) =
            self.buffer.first_chunk::<PRELUDE_BYTES>()
        else {
            return Ok(None);
        };
        let lengths = [*l0, *l1, *l2, *l3, *h0, *h1, *h2, *h3];
        if crc32fast::hash(&lengths) != u32::from_be_bytes(*crc) {
            return Err(EventError::Prelude);
        }
        let length =
            usize::try_from(u32::from_be_bytes([*l0, *l1, *l2, *l3])).unwrap_or(usize::MAX);
        if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&length) {
            return Err(EventError::Length(length));
        }
        Ok(Some(length))
    }

    fn write(&mut self, message: &Message, events: &mut Vec<u8>) -> Result<(), EventError> {
        match header(message, ":message-type") {
            Some("event") if header(message, ":event-type") == Some("chunk") => {
                write_event(message.payload(), events)
            }
            Some("exception" | "error") => {
                self.is_finished = true;
                let name = header(message, ":exception-type")
                    .or_else(|| header(message, ":error-code"))
                    .unwrap_or("exception");
                let payload = Value::parse(message.payload()).ok();
                let text = payload.and_then(|value| value.get("message")?.as_str());
                let text = text.or_else(|| header(message, ":error-message").map(Into::into));
                let text = text.map_or_else(|| name.to_owned(), |text| format!("{name}: {text}"));
                let event = stream_event(Dialect::Messages, kind_of_exception(name), &text, 0);
                events.extend_from_slice(&event);
                Ok(())
            }
            // Unknown kinds of events are not part of the Messages API.
            _ => Ok(()),
        }
    }
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    let header = message.headers().iter().find(|header| header.name().as_str() == name)?;
    header.value().as_string().ok().map(|value| value.as_str())
}

/// The kind of an exception within a stream.
fn kind_of_exception(name: &str) -> ErrorKind {
    match name {
        "throttlingException" => ErrorKind::RateLimit,
        "validationException" => ErrorKind::InvalidRequest,
        "modelTimeoutException" => ErrorKind::Timeout,
        "serviceUnavailableException" => ErrorKind::Overloaded,
        _ => ErrorKind::Api,
    }
}

/// Writes the event of a payload, its JSON byte for byte.
fn write_event(payload: &[u8], events: &mut Vec<u8>) -> Result<(), EventError> {
    let value = Value::parse(payload).map_err(|_error| EventError::Payload("invalid JSON"))?;
    let encoded = value.get("bytes").and_then(|bytes| bytes.as_str());
    let encoded = encoded.ok_or(EventError::Payload("no member `bytes`"))?;
    let json = STANDARD.decode(encoded.as_bytes());
    let json = json.map_err(|_error| EventError::Payload("invalid base64"))?;
    let event =
        Value::parse(&json).map_err(|_error| EventError::Payload("invalid JSON in `bytes`"))?;
    let name = event.get("type").and_then(|kind| kind.as_str());
    let name = name.filter(|name| !name.contains(['\n', '\r']));
    let name = name.ok_or(EventError::Payload("no `type`"))?;
    events.extend_from_slice(b"event: ");
    events.extend_from_slice(name.as_bytes());
    // JSON has raw line breaks only between its tokens, and a field of an event has none.
    for line in json.split(|byte| matches!(byte, b'\n' | b'\r')) {
        events.extend_from_slice(b"\ndata: ");
        events.extend_from_slice(line);
    }
    events.extend_from_slice(b"\n\n");
    Ok(())
}

/// The body of an answer, decoded frame by frame.
#[derive(Debug)]
pub struct EventBody {
    upstream: Incoming,
    decoder: Decoder,
    state: BodyState,
}

#[derive(Debug)]
enum BodyState {
    Reading,
    /// The events before the error have been returned.
    Failed(EventError),
    Ended,
}

impl EventBody {
    pub(crate) fn new(upstream: Incoming) -> Self {
        Self { upstream, decoder: Decoder::default(), state: BodyState::Reading }
    }

    /// The events of a chunk; none if it completes none.
    fn decode(&mut self, chunk: &[u8]) -> Option<Result<Frame<Bytes>, EventError>> {
        let mut events = Vec::new();
        let decoded = self.decoder.push(chunk, &mut events);
        match decoded {
            Err(error) if events.is_empty() => {
                self.state = BodyState::Ended;
                return Some(Err(error));
            }
            Err(error) => self.state = BodyState::Failed(error),
            Ok(()) => {}
        }
        (!events.is_empty()).then(|| Ok(Frame::data(events.into())))
    }
}

impl Body for EventBody {
    type Data = Bytes;
    type Error = EventError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, EventError>>> {
        let this = self.get_mut();
        loop {
            match std::mem::replace(&mut this.state, BodyState::Ended) {
                BodyState::Ended => return Poll::Ready(None),
                BodyState::Failed(error) => return Poll::Ready(Some(Err(error))),
                BodyState::Reading => this.state = BodyState::Reading,
            }
            match std::task::ready!(Pin::new(&mut this.upstream).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    let Ok(chunk) = frame.into_data() else { continue };
                    if let Some(decoded) = this.decode(&chunk) {
                        return Poll::Ready(Some(decoded));
                    }
                }
                Some(Err(error)) => {
                    this.state = BodyState::Ended;
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => {
                    this.state = BodyState::Ended;
                    return match this.decoder.finish() {
                        Ok(()) => Poll::Ready(None),
                        Err(error) => Poll::Ready(Some(Err(error))),
                    };
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, BodyState::Ended)
    }
}

#[cfg(test)]
mod tests;
