//! Chunks of an answer that arrive together are handed on as one.
//!
//! A provider sends each event as a chunk of its own, and under load several arrive in one read. hyper
//! hands chunks from the connection to the body one at a time, each with two turns of the scheduler and
//! in the end with a write of its own: for 30 events that arrived together that was most of what a
//! stream cost. Here, below hyper, the whole chunks of one read become one chunk. The framing of a
//! connection is nobody else's business (RFC 9112, section 7.1); the content is the same, byte for byte.
//!
//! Whatever is not understood passes as it is, for hyper to judge.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use memchr::memmem;

/// Most that is read at once; it lies on the stack, so that idle streams hold nothing for it.
const READ: usize = 16 * 1024;
/// Largest head of an answer that is looked at.
const MOST_HEAD: usize = 64 * 1024;
const HEAD_END: &[u8] = b"\r\n\r\n";
/// Longest line with the size of a chunk.
const MOST_LINE: usize = 256;

/// A connection to a provider.
#[derive(Debug)]
pub struct Merging<S> {
    inner: S,
    framing: Framing,
}

/// Where the reading is within the answers of a connection.
#[derive(Debug)]
enum Framing {
    /// In a head, of which this has come.
    Head(Vec<u8>),
    /// So many bytes of a body, or of a chunk with its line end, pass; then what is after them.
    Passing { left: u64, is_chunk: bool },
    /// At a chunk's size, of which this has come and is held back.
    Size(Vec<u8>),
    /// After the last chunk, within the line of a trailer; whether that line is empty so far.
    Trailer { is_empty: bool },
    /// Nothing is understood any more.
    Off,
}

/// What the head of an answer says of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    None,
    Length(u64),
    Chunked,
    /// Until the end, or nobody knows.
    Unknown,
}

impl<S> Merging<S> {
    pub(super) const fn new(inner: S, is_http1: bool) -> Self {
        let framing = if is_http1 { Framing::Head(Vec::new()) } else { Framing::Off };
        Self { inner, framing }
    }
}

impl Framing {
    const fn begin() -> Self {
        Self::Head(Vec::new())
    }

    /// What was read and not handed on.
    fn held(&self) -> &[u8] {
        match self {
            Self::Size(held) => held,
            _ => &[],
        }
    }

    /// Takes in what was read after what is held, and gives it to `put` with whole chunks joined: never
    /// more bytes than were held and read.
    fn take(&mut self, read: &[u8], put: &mut impl FnMut(&[u8])) {
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

    /// Goes on by one part; gives what is left.
    fn step<'a>(&mut self, rest: &'a [u8], put: &mut impl FnMut(&[u8])) -> &'a [u8] {
        let (passed, after) = match self {
            Self::Off => (rest, [].as_slice()),
            Self::Head(head) => {
                let (passed, after) = rest.split_at(gather(head, rest));
                if head.ends_with(HEAD_END) {
                    *self = body_of(head).framing();
                } else if head.len() > MOST_HEAD {
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
            Self::Size(_) => return self.chunks(rest, put),
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

    /// From the size of a chunk on: puts all whole chunks as one; gives what is left.
    fn chunks<'a>(&mut self, rest: &'a [u8], put: &mut impl FnMut(&[u8])) -> &'a [u8] {
        let (mut count, mut total, mut at) = (0_usize, 0_usize, 0_usize);
        let next = loop {
            let here = rest.get(at..).unwrap_or_default();
            let (line, size) = match chunk_size(here) {
                ChunkSize::Is { line, size } => (line, size),
                ChunkSize::Short => break Self::Size(here.to_vec()),
                ChunkSize::Wrong => break Self::Off,
            };
            if size == 0 {
                // Its own line is not empty.
                break Self::Trailer { is_empty: false };
            }
            let Some(end) = whole_chunk(here, line, size) else {
                let line = u64::try_from(line).unwrap_or_default();
                break Self::Passing { left: line + size + 2, is_chunk: true };
            };
            (count, total, at) = (count + 1, total + end - line - 2, at + end);
        };
        let (whole, left) = rest.split_at(at);
        match count {
            0 => {}
            1 => put(whole),
            _ => join(whole, total, put),
        }
        *self = next;
        if matches!(self, Self::Size(_)) { &[] } else { left }
    }
}

impl Body {
    fn framing(&self) -> Framing {
        match self {
            Self::None | Self::Length(0) => Framing::begin(),
            Self::Length(left) => Framing::Passing { left: *left, is_chunk: false },
            Self::Chunked => Framing::Size(Vec::new()),
            Self::Unknown => Framing::Off,
        }
    }
}

/// Adds to a head what belongs to it; gives how much that was.
fn gather(head: &mut Vec<u8>, rest: &[u8]) -> usize {
    let before = head.len();
    let room = (MOST_HEAD + 1).saturating_sub(before).min(rest.len());
    head.extend_from_slice(rest.get(..room).unwrap_or_default());
    // The end may have begun before.
    let from = before.saturating_sub(HEAD_END.len() - 1);
    let found = head.get(from..).and_then(|tail| memmem::find(tail, HEAD_END));
    if let Some(at) = found {
        head.truncate(from + at + HEAD_END.len());
    }
    head.len() - before
}

/// Reads the head of an answer (RFC 9112, section 6.3).
fn body_of(head: &[u8]) -> Body {
    let Ok(head) = std::str::from_utf8(head) else { return Body::Unknown };
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3));
    match status.and_then(|status| status.parse::<u16>().ok()) {
        None | Some(101) => return Body::Unknown,
        Some(100..200 | 204 | 304) => return Body::None,
        Some(_) => {}
    }
    let mut body = Body::Unknown;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        let said = if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                return Body::Unknown;
            }
            Body::Chunked
        } else if name.eq_ignore_ascii_case("content-length") {
            let Ok(length) = value.parse() else { return Body::Unknown };
            Body::Length(length)
        } else {
            continue;
        };
        if body != Body::Unknown {
            // Twice, or both: who is right is not for this to say.
            return Body::Unknown;
        }
        body = said;
    }
    body
}

/// The line with the size of a chunk.
enum ChunkSize {
    /// The line, its end included, and the size.
    Is {
        line: usize,
        size: u64,
    },
    /// It has not come whole.
    Short,
    Wrong,
}

fn chunk_size(bytes: &[u8]) -> ChunkSize {
    let looked_at = bytes.get(..MOST_LINE).unwrap_or(bytes);
    let Some(end) = memchr::memchr(b'\n', looked_at) else {
        return if bytes.len() < MOST_LINE { ChunkSize::Short } else { ChunkSize::Wrong };
    };
    let line = bytes.get(..end).and_then(|line| line.strip_suffix(b"\r"));
    let digits = line.and_then(|line| line.split(|byte| *byte == b';').next());
    let digits = digits.and_then(|digits| std::str::from_utf8(digits.trim_ascii_end()).ok());
    let is_hex = |digits: &&str| digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    // Fewer digits than could overflow what is added to it.
    let size = digits.filter(|digits| digits.len() < 16).filter(is_hex);
    match size.and_then(|digits| u64::from_str_radix(digits, 16).ok()) {
        Some(size) => ChunkSize::Is { line: end + 1, size },
        None => ChunkSize::Wrong,
    }
}

/// Where a chunk ends, its line end included, if it is there as a whole.
fn whole_chunk(bytes: &[u8], line: usize, size: u64) -> Option<usize> {
    let end = line.checked_add(usize::try_from(size).ok()?)?;
    (bytes.get(end..)?.first_chunk::<2>()? == b"\r\n").then_some(end + 2)
}

/// Puts several whole chunks as one of the size `total`.
fn join(mut whole: &[u8], total: usize, put: &mut impl FnMut(&[u8])) {
    put(format!("{total:x}\r\n").as_bytes());
    while let ChunkSize::Is { line, size } = chunk_size(whole) {
        let Some(end) = whole_chunk(whole, line, size) else { break };
        put(whole.get(line..end - 2).unwrap_or_default());
        whole = whole.get(end..).unwrap_or_default();
    }
    put(b"\r\n");
}

impl<S: Read + Unpin> Read for Merging<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { inner, framing } = self.get_mut();
        loop {
            let room = buf.remaining().min(READ).saturating_sub(framing.held().len());
            if room == 0 || matches!(framing, Framing::Off) {
                // A reader without room for a line is none that this is made for.
                buf.put_slice(framing.held());
                let had_held = !framing.held().is_empty();
                *framing = Framing::Off;
                return if had_held {
                    Poll::Ready(Ok(()))
                } else {
                    Pin::new(inner).poll_read(cx, buf)
                };
            }
            let mut space = [const { MaybeUninit::uninit() }; READ];
            let mut read = ReadBuf::uninit(space.get_mut(..room).unwrap_or_default());
            ready!(Pin::new(&mut *inner).poll_read(cx, read.unfilled()))?;
            if read.filled().is_empty() {
                // The end, after which nothing is read.
                buf.put_slice(framing.held());
                *framing = Framing::Off;
                return Poll::Ready(Ok(()));
            }
            let before = buf.remaining();
            framing.take(read.filled(), &mut |bytes| buf.put_slice(bytes));
            if buf.remaining() < before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: Write + Unpin> Merging<S> {
    /// The answer to HEAD has no body, whatever its head says.
    fn note_request(&mut self, sent: &[u8]) {
        if sent.starts_with(b"HEAD ") {
            self.framing = Framing::Off;
        }
    }
}

impl<S: Write + Unpin> Write for Merging<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.note_request(buf);
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
            self.note_request(first);
        }
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
}

impl<S: Connection> Connection for Merging<S> {
    fn connected(&self) -> Connected {
        self.inner.connected()
    }
}

#[cfg(test)]
mod tests;
