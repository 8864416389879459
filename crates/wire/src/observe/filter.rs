//! Keeps from a Chat Completions stream the chunk with the usage that the client did not ask for.

use bytes::Bytes;
use memchr::memmem;

use super::{chat::is_usage_only, with_json};
use crate::sse::{Frame, Framer};

/// Relays a stream event by event, without the chunk that has no choice and carries the usage.
///
/// An event that is cut waits until it is whole, as it could be that chunk.
#[derive(Debug, Default)]
pub struct UsageChunkFilter {
    framer: Framer,
    /// Whether the last event was withheld: the LF of its last line end may still come.
    last_withheld: bool,
}

impl UsageChunkFilter {
    /// A filter at the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next chunk in and gives what may go to the client, which can be nothing.
    ///
    /// Nothing is copied if the chunk begins with an event and no event of it is withheld.
    pub fn push(&mut self, chunk: &Bytes) -> Bytes {
        let Self { framer, last_withheld } = self;
        let mut passed = 0;
        let mut copied = framer.is_mid_event().then(Vec::new);
        framer.push(chunk, |frame| {
            let is_line_end = *last_withheld && frame.raw() == b"\n";
            *last_withheld = is_usage_chunk(&frame);
            match (&mut copied, is_line_end || *last_withheld) {
                (Some(copied), false) => copied.extend_from_slice(frame.raw()),
                (Some(_), true) => {}
                (None, false) => passed += frame.raw().len(),
                (None, true) => copied = Some(chunk.get(..passed).unwrap_or_default().to_vec()),
            }
        });
        copied.map_or_else(|| chunk.slice(..passed), Bytes::from)
    }

    /// Ends the stream and gives what is still held.
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
    // Quotes in a text are escaped, so these are keys.
    let may_be = memmem::find(raw, br#""usage""#).is_some()
        && memmem::find(raw, br#""usage":null"#).is_none();
    may_be && with_json(&frame.data(), |chunk| is_usage_only(&chunk)).unwrap_or_default()
}
