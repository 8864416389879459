//! The events of an MCP server's stream, each of bounded size.

use std::{io, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use http_body_util::BodyDataStream;
use hyper::body::{Bytes, Incoming};
use sse_stream::{Error, Sse, SseStream};
use tokio::time::timeout;

use super::http_client::last_cause;

/// Counts the bytes of the event that a stream is in.
#[derive(Debug)]
struct Meter {
    limit: usize,
    event: usize,
    line: usize,
    after_cr: bool,
}

/// Shortest retry delay that a server may ask for: a shorter one would be a busy loop.
const MIN_RETRY_MS: u64 = 500;

/// The events of a body; one that is larger than `limit` ends it with an error. A stream on which
/// nothing comes for `idle` ends, so that it is opened again.
pub(super) fn events(
    body: Incoming,
    limit: usize,
    idle: Option<Duration>,
) -> impl Stream<Item = Result<Sse, Error>> + Send {
    let mut meter = Meter { limit, event: 0, line: 0, after_cr: false };
    let chunks = BodyDataStream::new(body).map(move |chunk: Result<Bytes, hyper::Error>| {
        let chunk = chunk.map_err(|error| io::Error::other(last_cause(&error)))?;
        if meter.is_over(&chunk) {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        Ok(chunk)
    });
    let events = SseStream::from_bytes_stream(chunks.boxed());
    stream::unfold(events, move |mut events| async move {
        let event = match idle {
            None => events.next().await,
            Some(idle) => timeout(idle, events.next()).await.unwrap_or_default(),
        };
        let event = event?.map(|mut event| {
            event.retry = event.retry.map(|delay| delay.max(MIN_RETRY_MS));
            event
        });
        Some((event, events))
    })
}

/// Whether a stream ended because an event was too large.
pub(super) fn is_too_large(error: &Error) -> bool {
    let Error::Body(cause) = error else { return false };
    let cause = cause.downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::FileTooLarge)
}

impl Meter {
    fn is_over(&mut self, chunk: &[u8]) -> bool {
        chunk.iter().any(|byte| {
            let ends_line = match byte {
                b'\n' => !std::mem::take(&mut self.after_cr),
                b'\r' => true,
                _ => false,
            };
            self.after_cr = *byte == b'\r';
            if ends_line {
                // A blank line ends the event.
                self.event = if self.line == 0 { 0 } else { self.event + self.line };
                self.line = 0;
            } else if *byte != b'\n' {
                self.line += 1;
            }
            self.event + self.line > self.limit
        })
    }
}
