//! Server-sent events: splitting a byte stream into events, and reading their fields.
//!
//! Follows <https://html.spec.whatwg.org/multipage/server-sent-events.html>, but keeps every byte, so
//! that an event can be relayed unchanged.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

/// The maximum size of an event that is read; larger ones pass unread.
pub const MAX_EVENT_BYTES: usize = 16 << 20;

/// How far into an oversized event its name is searched for.
const MAX_NAME_BYTES: usize = 128;

/// The maximum capacity of the buffer that is kept from one event to the next.
const MAX_KEPT_CAPACITY: usize = 64 << 10;

/// The byte order mark.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What an event stream may begin with: a comment or a field.
const FIRST_FIELDS: [&[u8]; 5] = [b":", b"data:", b"event:", b"id:", b"retry:"];

/// Splits a byte stream into events.
///
/// An event that lies within one chunk is borrowed from it; one that spans chunks is assembled in a
/// bounded buffer. Every input byte comes out again, in order, in the raw bytes of the frames, except
/// for those still in [`Framer::pending`].
#[derive(Debug)]
pub struct Framer {
    limit: usize,
    pending: Vec<u8>,
    state: EventState,
    /// Whether the current line is still empty.
    at_line_start: bool,
    /// Whether the last byte was a CR, so that a following LF belongs to it.
    after_cr: bool,
    at_stream_start: bool,
    skipped_events: u64,
}

/// The state of the current event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EventState {
    Readable,
    /// It exceeds the size limit.
    Oversized,
    /// The stream ended inside it.
    Truncated,
}

/// The format of a body, by its first bytes: the content types of providers are not reliable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// More bytes are needed.
    Undecided,
    /// Server-sent events.
    Events,
    /// A JSON object or array.
    Json,
    /// Anything else.
    Other,
}

/// Counts the events of a stream as a client reads them: those with data that end with a blank line.
#[derive(Debug, Default)]
pub struct EventCounter {
    framer: Framer,
    events: u64,
}

/// A section of the stream that ends where an event ends.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    raw: &'a [u8],
    /// The text without a byte order mark; of an oversized event only its name.
    text: &'a [u8],
    kind: FrameKind,
}

/// How much of an event a frame contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FrameKind {
    Complete,
    /// Its blank line is missing.
    Truncated,
    /// It exceeds the size limit.
    Fragment {
        /// Whether the event ends with it.
        is_last: bool,
    },
}

impl Beginning {
    /// The format of a body that begins with these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let text = bytes.trim_ascii_start();
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text).trim_ascii_start();
        match text.first() {
            None => Self::Undecided,
            Some(b'{' | b'[') => Self::Json,
            Some(_) if FIRST_FIELDS.iter().any(|field| text.starts_with(field)) => Self::Events,
            Some(_) if FIRST_FIELDS.iter().any(|field| field.starts_with(text)) => Self::Undecided,
            Some(_) if BYTE_ORDER_MARK.starts_with(text) => Self::Undecided,
            Some(_) => Self::Other,
        }
    }
}

impl EventCounter {
    /// Reads the next chunk.
    pub fn push(&mut self, chunk: &[u8]) {
        let Self { framer, events } = self;
        framer.push(chunk, |frame| *events += u64::from(frame.completes_event()));
    }

    /// The number of events so far.
    #[must_use]
    pub const fn events(&self) -> u64 {
        self.events
    }
}

impl Default for Framer {
    fn default() -> Self {
        Self::new()
    }
}

impl Framer {
    /// Creates a framer for a new stream.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(MAX_EVENT_BYTES)
    }

    /// Creates a framer with its own maximum size of an event.
    #[must_use]
    pub fn with_limit(bytes: usize) -> Self {
        Self {
            limit: bytes,
            pending: Vec::new(),
            state: EventState::Readable,
            at_line_start: true,
            after_cr: false,
            at_stream_start: true,
            skipped_events: 0,
        }
    }

    /// Reads the next chunk and passes on each event that it completes.
    ///
    /// An oversized event is passed on in fragments as they arrive; see [`Frame::is_fragment`].
    pub fn push(&mut self, chunk: &[u8], mut on_event: impl FnMut(Frame<'_>)) {
        if chunk.is_empty() {
            return;
        }
        let mut begin = 0;
        let mut at = 0;
        if std::mem::take(&mut self.after_cr) && chunk.first() == Some(&b'\n') {
            at = 1;
            // After a blank line it belongs to no event and need not wait for one.
            if !self.is_mid_event() {
                self.emit(chunk.get(..1).unwrap_or_default(), &mut on_event);
                begin = 1;
            }
        }
        while let Some(length) = memchr2(b'\n', b'\r', chunk.get(at..).unwrap_or_default()) {
            let line_end = at + length;
            let is_blank = length == 0 && self.at_line_start;
            at = match chunk.get(line_end..).unwrap_or_default() {
                [b'\r', b'\n', ..] => line_end + 2,
                line_end_and_rest => {
                    self.after_cr = line_end_and_rest == b"\r";
                    line_end + 1
                }
            };
            self.at_line_start = true;
            if is_blank {
                self.complete(chunk, begin..line_end, at, &mut on_event);
                begin = at;
            }
        }
        if at < chunk.len() {
            self.at_line_start = false;
        }
        self.buffer(chunk.get(begin..).unwrap_or_default(), &mut on_event);
    }

    /// Ends the stream and passes on the last event if it lacks its blank line.
    ///
    /// The specification does not count that as an event, hence [`Frame::is_complete`].
    pub fn finish(&mut self, mut on_event: impl FnMut(Frame<'_>)) {
        let state = if self.is_mid_event() { EventState::Truncated } else { EventState::Readable };
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            on_event(Frame { kind: FrameKind::Truncated, ..self.frame(&pending) });
        }
        let skipped_events = self.skipped_events;
        *self = Self { state, skipped_events, ..Self::with_limit(self.limit) };
    }

    /// Whether bytes arrived since the last blank line; remains true if the stream ends there.
    #[must_use]
    pub fn is_mid_event(&self) -> bool {
        !self.pending.is_empty() || self.state != EventState::Readable
    }

    /// The bytes of an incomplete event.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        &self.pending
    }

    /// The number of oversized events.
    #[must_use]
    pub fn skipped_events(&self) -> u64 {
        self.skipped_events
    }

    /// Completes an event that ends in the chunk: `event` is its part there, `end` the end of its blank line.
    fn complete(
        &mut self,
        chunk: &[u8],
        event: std::ops::Range<usize>,
        end: usize,
        on_event: &mut impl FnMut(Frame<'_>),
    ) {
        let size = self.pending.len() + event.len();
        let part = chunk.get(event.start..end).unwrap_or_default();
        if size > self.limit {
            self.skip(part, true, on_event);
        } else if self.state == EventState::Oversized {
            emit_fragment(part, true, on_event);
        } else if self.pending.is_empty() {
            self.emit(part, on_event);
        } else {
            let mut whole = std::mem::take(&mut self.pending);
            whole.extend_from_slice(part);
            self.emit(&whole, on_event);
            if whole.capacity() <= MAX_KEPT_CAPACITY {
                whole.clear();
                self.pending = whole;
            }
        }
        self.state = EventState::Readable;
        self.at_stream_start = false;
    }

    /// Buffers the start of an event that continues in the next chunk.
    fn buffer(&mut self, part: &[u8], on_event: &mut impl FnMut(Frame<'_>)) {
        if self.state == EventState::Oversized {
            emit_fragment(part, false, on_event);
        } else if self.pending.len() + part.len() > self.limit {
            self.skip(part, false, on_event);
        } else {
            self.pending.extend_from_slice(part);
        }
    }

    fn skip(&mut self, part: &[u8], is_last: bool, on_event: &mut impl FnMut(Frame<'_>)) {
        let pending = std::mem::take(&mut self.pending);
        let mut first = Vec::new();
        if self.state != EventState::Oversized {
            self.state = EventState::Oversized;
            self.skipped_events += 1;
            let head = pending.iter().chain(part).take(self.limit.min(MAX_NAME_BYTES));
            first.extend(head);
        }
        let mut text = name_line(&first);
        for (raw, is_last) in [(&*pending, false), (part, is_last)] {
            if !raw.is_empty() {
                let kind = FrameKind::Fragment { is_last };
                on_event(Frame { raw, text: std::mem::take(&mut text), kind });
            }
        }
    }

    fn emit(&self, raw: &[u8], on_event: &mut impl FnMut(Frame<'_>)) {
        on_event(self.frame(raw));
    }

    fn frame<'a>(&self, raw: &'a [u8]) -> Frame<'a> {
        let text = match raw.strip_prefix(BYTE_ORDER_MARK) {
            Some(text) if self.at_stream_start => text,
            _ => raw,
        };
        Frame { raw, text, kind: FrameKind::Complete }
    }
}

impl<'a> Frame<'a> {
    /// The bytes as received, including the blank line.
    #[must_use]
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// The name of the event.
    #[must_use]
    pub fn event(&self) -> Option<&'a [u8]> {
        self.parts().0
    }

    /// The data of the event, its lines joined with LF; borrowed if it is a single line.
    #[must_use]
    pub fn data(&self) -> Cow<'a, [u8]> {
        self.parts().1
    }

    /// The name and the data of the event, found in one pass.
    #[must_use]
    pub fn parts(&self) -> (Option<&'a [u8]>, Cow<'a, [u8]>) {
        let mut event = None;
        let mut data: Option<Cow<'a, [u8]>> = None;
        for (name, value) in self.fields() {
            match (name, &mut data) {
                (b"event", _) => event = (!value.is_empty()).then_some(value),
                (b"data", None) => data = Some(Cow::Borrowed(value)),
                (b"data", Some(data)) => {
                    let data = data.to_mut();
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                _ => {}
            }
        }
        (event, data.unwrap_or_default())
    }

    /// Writes the event with ranges of its [`Frame::data`] replaced; the edits must be in order.
    ///
    /// Everything else stays unchanged, but edited data of several lines keeps only the event's name.
    pub fn write_edited(&self, edits: Vec<(std::ops::Range<usize>, String)>, out: &mut Vec<u8>) {
        let (event, data) = self.parts();
        let mut changed = Vec::with_capacity(data.len());
        let mut at = 0;
        for (range, text) in edits {
            changed.extend_from_slice(data.get(at..range.start).unwrap_or_default());
            changed.extend_from_slice(text.as_bytes());
            at = range.end;
        }
        changed.extend_from_slice(data.get(at..).unwrap_or_default());
        if let Cow::Borrowed(data) = data {
            // The data is a single line of the event.
            let start = data.as_ptr().addr().saturating_sub(self.raw.as_ptr().addr());
            out.extend_from_slice(self.raw.get(..start).unwrap_or_default());
            out.extend_from_slice(&changed);
            out.extend_from_slice(self.raw.get(start + data.len()..).unwrap_or_default());
            return;
        }
        if let Some(event) = event {
            out.extend_from_slice(b"event: ");
            out.extend_from_slice(event);
            out.push(b'\n');
        }
        for line in changed.split(|byte| *byte == b'\n') {
            out.extend_from_slice(b"data: ");
            out.extend_from_slice(line);
            out.push(b'\n');
        }
        out.push(b'\n');
    }

    /// Whether it contains only comments and blank lines, which a client ignores.
    #[must_use]
    pub fn is_comment_only(&self) -> bool {
        self.fields().all(|(name, _)| name.is_empty())
    }

    /// Whether the event ended with its blank line.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.kind != FrameKind::Truncated
    }

    /// Whether it is a fragment of an oversized event.
    ///
    /// A fragment has no data; the first one has the event's name if that was on the first line.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        matches!(self.kind, FrameKind::Fragment { .. })
    }

    /// Whether its event ends with it.
    #[must_use]
    pub fn ends_event(&self) -> bool {
        matches!(self.kind, FrameKind::Complete | FrameKind::Fragment { is_last: true })
    }

    /// Whether an event with data ends with it; one of several fragments is taken to have data.
    fn completes_event(&self) -> bool {
        self.ends_event()
            && (self.is_fragment()
                || self.fields().any(|(name, value)| name == b"data" && !value.is_empty()))
    }

    /// The name and value of each line; a comment has an empty name.
    fn fields(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let mut rest = self.text;
        std::iter::from_fn(move || {
            loop {
                if rest.is_empty() {
                    return None;
                }
                let end = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
                let (line, after) = rest.split_at_checked(end)?;
                // The LF of a CRLF looks like an extra blank line, which is skipped.
                rest = after.get(1..).unwrap_or_default();
                if !line.is_empty() {
                    return Some(field(line));
                }
            }
        })
    }
}

fn field(line: &[u8]) -> (&[u8], &[u8]) {
    let Some((name, value)) = memchr(b':', line).and_then(|colon| line.split_at_checked(colon))
    else {
        return (line, &[]);
    };
    let value = value.get(1..).unwrap_or_default();
    (name, value.strip_prefix(b" ").unwrap_or(value))
}

/// The first line of an event if it is complete and holds the event's name.
fn name_line(head: &[u8]) -> &[u8] {
    let line = memchr2(b'\n', b'\r', head).and_then(|end| head.get(..end)).unwrap_or_default();
    if field(line).0 == b"event" { line } else { &[] }
}

fn emit_fragment(raw: &[u8], is_last: bool, on_event: &mut impl FnMut(Frame<'_>)) {
    if !raw.is_empty() {
        on_event(Frame { raw, text: &[], kind: FrameKind::Fragment { is_last } });
    }
}

#[cfg(test)]
mod tests;
