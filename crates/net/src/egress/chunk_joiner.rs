//! Joins the chunks of an answer that arrive together into one.
//!
//! A provider sends each event as a chunk of its own, and under load several arrive in one read. hyper
//! passes chunks from the connection to the body one at a time, each with two turns of the scheduler
//! and in the end with a write of its own: for 30 events that arrived together, that was most of the
//! cost of a stream. Here, below hyper, the whole chunks of one read become one chunk. Chunk framing
//! belongs to one connection and may be changed by a proxy (RFC 9112, section 7.1); the content stays
//! the same, byte for byte.
//!
//! Anything that is not understood passes unchanged, and hyper judges it.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};

use super::head_counter::HeadCounter;

/// Bytes read at once, into a buffer on the stack, so that idle streams hold no memory for it.
const READ_SIZE: usize = 16 * 1024;
/// Largest response head that is parsed.
const MAX_HEAD: usize = 64 * 1024;
const HEAD_END: &[u8] = b"\n\r\n";
const BARE_HEAD_END: &[u8] = b"\n\n";
/// Most interim responses to one request; hyper reads any number of them.
pub(super) const MAX_INTERIM_RESPONSES: u8 = 16;
/// Longest line with the size of a chunk, extensions included.
const MAX_SIZE_LINE: usize = 256;

/// How the requests begin that are sent to providers and MCP servers and can have a body in their answer.
const REQUEST_STARTS: [&[u8]; 3] = [b"POST /", b"GET /", b"DELETE /"];

/// A connection to a provider.
#[derive(Debug)]
pub struct ChunkJoiner<S> {
    inner: S,
    framing: Framing,
}

/// More interim responses to one request than a provider has reason to send.
#[derive(Debug, thiserror::Error)]
#[error("more than {MAX_INTERIM_RESPONSES} interim responses to one request")]
pub(super) struct TooManyInterimResponses;

/// The position within the answers of a connection.
#[derive(Debug)]
enum Framing {
    /// In a head, of which this much was read, after so many interim responses to the same request.
    Head { read: Vec<u8>, interim: u8 },
    /// In a body, or in a chunk with its line end, of which `left` bytes remain; they pass unchanged.
    Passing { left: u64, is_chunk: bool },
    /// At the size line of a chunk, of which this much was read and is held back.
    Size(Vec<u8>),
    /// After the last chunk, in a trailer line, which is empty so far or not.
    Trailer { is_empty: bool },
    /// HTTP/2, which passes unchanged.
    Http2(HeadCounter),
    /// The framing is not understood; everything passes unchanged.
    Off,
    /// There were too many interim responses.
    Refused,
}

/// How the head of an answer frames its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    /// The head is an interim response (1xx), and another head follows.
    Interim,
    None,
    Length(u64),
    Chunked,
    /// Until the connection closes, or ambiguous.
    Unknown,
}

impl<S> ChunkJoiner<S> {
    pub(super) fn new(inner: S, is_http1: bool) -> Self {
        let framing =
            if is_http1 { Framing::begin() } else { Framing::Http2(HeadCounter::default()) };
        Self { inner, framing }
    }
}

impl Framing {
    const fn begin() -> Self {
        Self::begin_after(0)
    }

    const fn begin_after(interim: u8) -> Self {
        Self::Head { read: Vec::new(), interim }
    }

    /// Returns what was read and not passed on yet.
    fn held(&self) -> &[u8] {
        match self {
            Self::Size(held) => held,
            _ => &[],
        }
    }

    /// Processes the bytes read after those held, and passes them to `put` with whole chunks joined:
    /// never more bytes than were held and read.
    fn process(&mut self, read: &[u8], put: &mut impl FnMut(&[u8])) {
        let joined;
        let mut rest = match self {
            Self::Size(held) if !held.is_empty() => {
                held.extend_from_slice(read);
                joined = std::mem::take(held);
                joined.as_slice()
            }
            _ => read,
        };
        while !rest.is_empty() {
            rest = self.step(rest, put);
        }
    }

    /// Processes the next part; returns the rest.
    fn step<'a>(&mut self, rest: &'a [u8], put: &mut impl FnMut(&[u8])) -> &'a [u8] {
        let (passed, after) = match self {
            Self::Off | Self::Refused => (rest, [].as_slice()),
            Self::Http2(counter) => {
                if counter.read(rest).is_err() {
                    *self = Self::Refused;
                }
                (rest, [].as_slice())
            }
            Self::Head { read, .. } if read.is_empty() && is_line_end(rest.first()) => {
                // hyper skips empty lines before a head.
                rest.split_at(rest.iter().take_while(|byte| is_line_end(Some(*byte))).count())
            }
            Self::Head { read: head, interim } => {
                let (length, is_complete) = extend_head(head, rest);
                let (passed, after) = rest.split_at(length);
                if is_complete {
                    *self = match parse_framing(head) {
                        Body::Interim if *interim == MAX_INTERIM_RESPONSES => Self::Refused,
                        Body::Interim => Self::begin_after(*interim + 1),
                        body => body.framing(),
                    };
                } else if head.len() > MAX_HEAD {
                    *self = Self::Off;
                }
                (passed, after)
            }
            Self::Passing { left, is_chunk } => {
                let now = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                *left -= u64::try_from(now).unwrap_or_default();
                if *left == 0 {
                    *self = if *is_chunk { Self::Size(Vec::new()) } else { Self::begin() };
                }
                rest.split_at(now)
            }
            Self::Size(_) => return self.join_chunks(rest, put),
            Self::Trailer { is_empty } => {
                let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
                let (line, after) = rest.split_at(end);
                *is_empty &= line.iter().all(|byte| matches!(byte, b'\r' | b'\n'));
                if line.ends_with(b"\n") {
                    let is_last = std::mem::replace(is_empty, true);
                    if is_last {
                        *self = Self::begin();
                    }
                }
                (line, after)
            }
        };
        put(passed);
        after
    }

    /// Joins all whole chunks from a size line on; returns the rest.
    fn join_chunks<'a>(&mut self, rest: &'a [u8], put: &mut impl FnMut(&[u8])) -> &'a [u8] {
        let (mut count, mut total, mut at) = (0_usize, 0_usize, 0_usize);
        let next = loop {
            let here = rest.get(at..).unwrap_or_default();
            let (line, size) = match parse_size_line(here) {
                ChunkSize::Complete { line, size } => (line, size),
                ChunkSize::Incomplete => break Self::Size(here.to_vec()),
                ChunkSize::Invalid => break Self::Off,
            };
            if size == 0 {
                // The line of the size 0 is not the empty line that ends the trailers.
                break Self::Trailer { is_empty: false };
            }
            let Some(end) = whole_chunk_end(here, line, size) else {
                let line = u64::try_from(line).unwrap_or_default();
                break Self::Passing { left: line + size + 2, is_chunk: true };
            };
            (count, total, at) = (count + 1, total + end - line - 2, at + end);
        };
        let (whole, left) = rest.split_at(at);
        match count {
            0 => {}
            1 => put(whole),
            _ => put_joined(whole, total, put),
        }
        *self = next;
        if matches!(self, Self::Size(_)) { &[] } else { left }
    }
}

impl Body {
    fn framing(&self) -> Framing {
        match self {
            Self::Interim | Self::None | Self::Length(0) => Framing::begin(),
            Self::Length(left) => Framing::Passing { left: *left, is_chunk: false },
            Self::Chunked => Framing::Size(Vec::new()),
            Self::Unknown => Framing::Off,
        }
    }
}

/// Appends to a head what belongs to it; returns how many bytes that was, and whether the head is
/// complete. Like hyper, it takes a line feed alone for the end of a line.
fn extend_head(head: &mut Vec<u8>, rest: &[u8]) -> (usize, bool) {
    let before = head.len();
    let room = (MAX_HEAD + 1).saturating_sub(before).min(rest.len());
    head.extend_from_slice(rest.get(..room).unwrap_or_default());
    // The empty line may start in the bytes read before.
    let from = before.saturating_sub(HEAD_END.len() - 1);
    let tail = head.get(from..).unwrap_or_default();
    let end = memchr::memchr_iter(b'\n', tail).find_map(|at| {
        let rest = tail.get(at..).unwrap_or_default();
        let empty_line = [BARE_HEAD_END, HEAD_END].into_iter().find(|end| rest.starts_with(end))?;
        Some(at + empty_line.len())
    });
    if let Some(end) = end {
        head.truncate(from + end);
    }
    (head.len() - before, end.is_some())
}

const fn is_line_end(byte: Option<&u8>) -> bool {
    matches!(byte, Some(b'\r' | b'\n'))
}

/// Determines the body framing from a response head (RFC 9112, section 6.3).
fn parse_framing(head: &[u8]) -> Body {
    let status = head.strip_prefix(b"HTTP/1.").and_then(|line| line.get(2..5));
    let status = status.and_then(|status| std::str::from_utf8(status).ok()?.parse::<u16>().ok());
    match status {
        None | Some(101) => return Body::Unknown,
        Some(100..200) => return Body::Interim,
        Some(_) if !head.starts_with(b"HTTP/1.1 ") => return Body::Unknown,
        Some(204 | 304) => return Body::None,
        Some(_) => {}
    }
    let mut body = Body::Unknown;
    let mut rest = head;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let (line, after) = rest.split_at(end + 1);
        rest = after;
        let declared = if let Some(value) = value_of(line, b"transfer-encoding") {
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Body::Unknown;
            }
            Body::Chunked
        } else if let Some(value) = value_of(line, b"content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
            let Some(length) = length else { return Body::Unknown };
            Body::Length(length)
        } else {
            continue;
        };
        if body != Body::Unknown {
            // Declared twice, or both ways: hyper decides which one counts.
            return Body::Unknown;
        }
        body = declared;
    }
    body
}

/// The value of a header line, if it is the header of this name.
fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    start.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

/// The size line of a chunk.
enum ChunkSize {
    /// The length of the line, its end included, and the size it states.
    Complete {
        line: usize,
        size: u64,
    },
    /// The line has not been read to its end.
    Incomplete,
    Invalid,
}

fn parse_size_line(bytes: &[u8]) -> ChunkSize {
    let prefix = bytes.get(..MAX_SIZE_LINE).unwrap_or(bytes);
    let Some(end) = memchr::memchr(b'\n', prefix) else {
        return if bytes.len() < MAX_SIZE_LINE {
            ChunkSize::Incomplete
        } else {
            ChunkSize::Invalid
        };
    };
    let line = bytes.get(..end).and_then(|line| line.strip_suffix(b"\r"));
    let digits = line.and_then(|line| line.split(|byte| *byte == b';').next());
    let digits = digits.and_then(|digits| std::str::from_utf8(digits.trim_ascii_end()).ok());
    let is_hex = |digits: &&str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    // Few enough digits that adding the line to the size cannot overflow.
    let size = digits.filter(|digits| digits.len() < 16).filter(is_hex);
    match size.and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
        Some(size) => ChunkSize::Complete { line: end + 1, size },
        None => ChunkSize::Invalid,
    }
}

/// Returns where a chunk ends, its line end included, if all of it was read.
fn whole_chunk_end(bytes: &[u8], line: usize, size: u64) -> Option<usize> {
    let end = line.checked_add(usize::try_from(size).ok()?)?;
    (bytes.get(end..)?.first_chunk::<2>()? == b"\r\n").then_some(end + 2)
}

/// Passes several whole chunks on as one of the size `total`.
fn put_joined(mut whole: &[u8], total: usize, put: &mut impl FnMut(&[u8])) {
    put(format!("{total:x}\r\n").as_bytes());
    while let ChunkSize::Complete { line, size } = parse_size_line(whole) {
        let Some(end) = whole_chunk_end(whole, line, size) else { break };
        put(whole.get(line..end - 2).unwrap_or_default());
        whole = whole.get(end..).unwrap_or_default();
    }
    put(b"\r\n");
}

impl<S: Read + Unpin> Read for ChunkJoiner<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { inner, framing } = self.get_mut();
        loop {
            let room = buf.remaining().min(READ_SIZE).saturating_sub(framing.held().len());
            if room == 0 || matches!(framing, Framing::Off) {
                // Also a reader whose buffer has no room for the held line gets the bytes unchanged.
                buf.put_slice(framing.held());
                let had_held = !framing.held().is_empty();
                *framing = Framing::Off;
                return if had_held {
                    Poll::Ready(Ok(()))
                } else {
                    Pin::new(inner).poll_read(cx, buf)
                };
            }
            let mut space = [const { MaybeUninit::uninit() }; READ_SIZE];
            let mut read = ReadBuf::uninit(space.get_mut(..room).unwrap_or_default());
            ready!(Pin::new(&mut *inner).poll_read(cx, read.unfilled()))?;
            if read.filled().is_empty() {
                // End of stream.
                buf.put_slice(framing.held());
                *framing = Framing::Off;
                return Poll::Ready(Ok(()));
            }
            let before = buf.remaining();
            framing.process(read.filled(), &mut |bytes| buf.put_slice(bytes));
            if matches!(framing, Framing::Refused) {
                return Poll::Ready(Err(io::Error::other(TooManyInterimResponses)));
            }
            if buf.remaining() < before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S> ChunkJoiner<S> {
    /// Stops joining after a HEAD request: its answer has no body, whatever the head declares. After an
    /// answer whose framing was not understood, joining begins again with the next request.
    fn observe_request(&mut self, sent: &[u8]) {
        if sent.starts_with(b"HEAD ") {
            self.framing = Framing::Off;
        } else if matches!(self.framing, Framing::Off)
            && REQUEST_STARTS.iter().any(|start| sent.starts_with(start))
        {
            self.framing = Framing::begin();
        }
    }
}

impl<S: Write + Unpin> Write for ChunkJoiner<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.observe_request(buf);
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(first) = bufs.iter().find(|buf| !buf.is_empty()) {
            self.observe_request(first);
        }
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
}

impl<S: Connection> Connection for ChunkJoiner<S> {
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}

#[cfg(test)]
mod tests;
