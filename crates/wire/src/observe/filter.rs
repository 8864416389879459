//! Removes from a Chat Completions stream the usage chunk that the client did not ask for.

use bytes::Bytes;
use memchr::memmem;

use super::{chat::is_usage_only, with_json};
use crate::sse::{Frame, Framer};

/// Relays a stream event by event, except for the chunk that carries usage and has no choice.
///
/// An incomplete event is buffered until it is complete, because it could be that chunk.
#[derive(Debug, Default)]
pub struct UsageChunkFilter {
    framer: Framer,
    /// Whether the last event was withheld: the LF of its last CRLF may still follow.
    last_withheld: bool,
    withheld_events: u64,
}

impl UsageChunkFilter {
    /// Creates a filter for a new stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The number of events that were withheld.
    #[must_use]
    pub const fn withheld_events(&self) -> u64 {
        self.withheld_events
    }

    /// Reads the next chunk and returns what may go to the client, possibly nothing.
    ///
    /// Nothing is copied if the chunk starts at an event and none of its events is withheld.
    pub fn push(&mut self, chunk: &Bytes) -> Bytes {
        let Self { framer, last_withheld, withheld_events } = self;
        let mut passed = 0;
        let mut copied = framer.is_mid_event().then(Vec::new);
        framer.push(chunk, |frame| {
            let is_line_end = *last_withheld && frame.raw() == b"\n";
            *last_withheld = is_usage_chunk(&frame);
            *withheld_events += u64::from(*last_withheld);
            match (&mut copied, is_line_end || *last_withheld) {
                (Some(copied), false) => copied.extend_from_slice(frame.raw()),
                (Some(_), true) => {}
                (None, false) => passed += frame.raw().len(),
                (None, true) => copied = Some(chunk.get(..passed).unwrap_or_default().to_vec()),
            }
        });
        copied.map_or_else(|| chunk.slice(..passed), Bytes::from)
    }

    /// Ends the stream and returns what is still buffered.
    pub fn finish(&mut self) -> Bytes {
        let mut held = Vec::new();
        self.framer.finish(|frame| {
            if !is_usage_chunk(&frame) {
                held.extend_from_slice(frame.raw());
            }
        });
        held.into()
    }
}

fn is_usage_chunk(frame: &Frame<'_>) -> bool {
    let raw = frame.raw();
    // Quotes in strings are escaped, so these are keys.
    let may_be = memmem::find(raw, br#""usage""#).is_some()
        && memmem::find(raw, br#""usage":null"#).is_none();
    may_be && with_json(&frame.data(), |chunk| is_usage_only(&chunk)).unwrap_or_default()
}
