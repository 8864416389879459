//! How entries are encoded in the files of the spool and of the journal, and how they are found again.
//!
//! The spool can be read by people: a line of JSON per write, with its checksum. The journal is written
//! for every request: frames of MessagePack with named fields as in JSON, so that a later release can
//! read them. Both encodings end by themselves, so that one wrong byte damages one entry: the next ones
//! are found by their checksums.

use std::{
    collections::VecDeque,
    io::{self, BufRead},
    ops::Range,
    path::Path,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned, de::IgnoredAny};

/// Bytes before the MessagePack of a frame.
const HEADER_BYTES: usize = 8;
/// Bytes before the JSON of a line: the checksum and a space.
const LINE_HEADER_BYTES: usize = 9;
/// The first byte of every entry's MessagePack: a map of one pair, the kind of the write and its fields.
const MAP_OF_ONE: u8 = 0x81;
/// Maximum depth of nesting of an entry.
const MAX_DEPTH: usize = 64;
/// How many times the size of a damaged file is read in search of its entries: text in it may look like
/// the beginnings of many.
const SEARCH_EFFORT: usize = 64;
/// At least this many zeros at the end of a file are what a power cut leaves.
const MIN_ZERO_FILL: usize = 16;

/// How entries are encoded in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryFormat {
    /// The CRC-32 of a piece of JSON in eight hex digits, a space, the JSON, and a line end.
    Lines,
    /// The length of a piece of MessagePack and its CRC-32, each in four bytes, the lowest first, and
    /// the MessagePack.
    Frames,
}

impl EntryFormat {
    /// That of a file, by its extension.
    pub(crate) fn of(path: &Path) -> Self {
        let extension = path.extension().and_then(|extension| extension.to_str());
        let is_journal = extension.is_some_and(|extension| extension.ends_with("journal"));
        if is_journal { Self::Frames } else { Self::Lines }
    }

    /// Adds an entry.
    pub(crate) fn push(self, bytes: &mut Vec<u8>, entry: &impl Serialize) -> io::Result<()> {
        match self {
            Self::Lines => {
                let json = serde_json::to_vec(entry)?;
                bytes.extend_from_slice(format!("{:08x} ", crc32fast::hash(&json)).as_bytes());
                bytes.extend_from_slice(&json);
                bytes.push(b'\n');
            }
            Self::Frames => {
                let start = bytes.len();
                bytes.extend_from_slice(&[0; HEADER_BYTES]);
                rmp_serde::encode::write_named(bytes, entry).map_err(io::Error::other)?;
                let packed = bytes.get(start + HEADER_BYTES..).unwrap_or_default();
                let length = u32::try_from(packed.len()).map_err(io::Error::other)?;
                let [length, sum] = [length, crc32fast::hash(packed)].map(u32::to_le_bytes);
                if let Some(head) = bytes.get_mut(start..start + HEADER_BYTES) {
                    head.copy_from_slice(&[length, sum].concat());
                }
            }
        }
        Ok(())
    }

    /// The parts of a piece of a file, in order and without gaps: a line, or a whole file of frames.
    fn split(self, bytes: &[u8]) -> VecDeque<Part> {
        let mut search = Search {
            bytes,
            effort: bytes.len().saturating_mul(SEARCH_EFFORT),
            parts: VecDeque::new(),
        };
        match self {
            Self::Lines => search.split_line(),
            Self::Frames => search.split_frames(),
        }
        search.parts
    }

    fn parse<T: DeserializeOwned>(self, payload: &[u8]) -> Option<T> {
        match self {
            Self::Lines => serde_json::from_slice(payload).ok(),
            Self::Frames => rmp_serde::from_slice(payload).ok(),
        }
    }
}

/// What a part of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    /// An entry whose checksum is right, and where its JSON or MessagePack is.
    Entry(Range<usize>),
    /// Bytes that are no entry, and no torn end of the file.
    Damaged,
    /// The end of a file that was not written completely: it was never acknowledged.
    Torn,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    end: usize,
    content: Content,
}

/// The search for the entries of a line, or of a file of frames.
struct Search<'a> {
    bytes: &'a [u8],
    /// How many more bytes may be read.
    effort: usize,
    parts: VecDeque<Part>,
}

impl<'a> Search<'a> {
    fn slice(&self, range: Range<usize>) -> &'a [u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// Where the parts found so far end.
    fn found(&self) -> usize {
        self.parts.back().map_or(0, |part| part.end)
    }

    fn push(&mut self, end: usize, content: Content) {
        if end > self.found() {
            self.parts.push_back(Part { end, content });
        }
    }

    /// Adds an entry that begins at `start`, and what is between the last part and it as damaged.
    fn push_entry(&mut self, start: usize, payload: Range<usize>) {
        self.push(start, Content::Damaged);
        self.push(payload.end, Content::Entry(payload));
    }

    fn split_line(&mut self) {
        let is_complete = self.bytes.ends_with(b"\n");
        let end = self.bytes.len() - usize::from(is_complete);
        let mut at = 0;
        while at < end {
            match self.line_at(at, end) {
                Some(payload) => {
                    let next = payload.end;
                    self.push_entry(at, payload);
                    at = next;
                }
                None => at += 1,
            }
        }
        match self.parts.back_mut() {
            // The line end belongs to its entry.
            Some(last) if is_complete && last.end == end => last.end += 1,
            _ => {
                let rest = if is_complete { Content::Damaged } else { Content::Torn };
                self.push(self.bytes.len(), rest);
            }
        }
    }

    /// The JSON of an entry that begins here, if its checksum is right.
    fn line_at(&mut self, at: usize, end: usize) -> Option<Range<usize>> {
        let start = at + LINE_HEADER_BYTES;
        let (sum, space) = self.slice(at..start).split_at_checked(8)?;
        if space != b" " || !sum.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let sum = u32::from_str_radix(str::from_utf8(sum).ok()?, 16).ok()?;
        self.spend(end.saturating_sub(start))?;
        // Nearly always the line has one entry.
        if self.has_sum(start..end, sum) {
            return Some(start..end);
        }
        let json = self.slice(start..end);
        let mut values = serde_json::Deserializer::from_slice(json).into_iter::<IgnoredAny>();
        values.next()?.ok()?;
        let payload = start..start + values.byte_offset();
        self.has_sum(payload.clone(), sum).then_some(payload)
    }

    fn split_frames(&mut self) {
        let length = self.bytes.len();
        let mut at = 0;
        while at < length {
            let Some((start, payload)) = self.next_frame(at) else {
                let rest = if self.is_torn(at) { Content::Torn } else { Content::Damaged };
                self.push(length, rest);
                return;
            };
            at = payload.end;
            self.push_entry(start, payload);
        }
    }

    /// The first frame at or after a position: its start and its MessagePack.
    fn next_frame(&mut self, at: usize) -> Option<(usize, Range<usize>)> {
        if let Some(payload) = self.frame_at(at) {
            return Some((at, payload));
        }
        // A damaged frame is skipped by its length, if another follows there.
        if let Some(next) = self.declared_end(at)
            && let Some(payload) = self.frame_at(next)
        {
            return Some((next, payload));
        }
        let mut start = at + 1;
        loop {
            let from = start + HEADER_BYTES;
            let rest = self.bytes.get(from..)?;
            start += rest.iter().position(|byte| *byte == MAP_OF_ONE)?;
            if let Some(payload) = self.frame_at(start) {
                return Some((start, payload));
            }
            start += 1;
        }
    }

    /// The MessagePack of a frame that begins here, if its checksum is right. Its length may be wrong.
    fn frame_at(&mut self, at: usize) -> Option<Range<usize>> {
        let start = at + HEADER_BYTES;
        if *self.bytes.get(start)? != MAP_OF_ONE {
            return None;
        }
        let sum = u32::from_le_bytes(*self.slice(at + 4..start).first_chunk()?);
        if let Some(end) = self.declared_end(at) {
            self.spend(end - start)?;
            if self.has_sum(start..end, sum) {
                return Some(start..end);
            }
        }
        let rest = self.bytes.get(start..)?;
        let mut reader = rmp_serde::Deserializer::new(io::Cursor::new(rest));
        reader.set_max_depth(MAX_DEPTH);
        let is_whole = IgnoredAny::deserialize(&mut reader).is_ok();
        let read = usize::try_from(reader.position()).ok()?.min(rest.len());
        self.spend(read)?;
        let payload = start..start + read;
        (is_whole && self.has_sum(payload.clone(), sum)).then_some(payload)
    }

    /// Where a frame ends by its length, if that is within the file.
    fn declared_end(&self, at: usize) -> Option<usize> {
        let length = u32::from_le_bytes(*self.slice(at..at + 4).first_chunk()?);
        let end = (at + HEADER_BYTES).checked_add(usize::try_from(length).ok()?)?;
        (length > 0 && end <= self.bytes.len()).then_some(end)
    }

    /// Whether the end of a file, in which no frame was found, is one that was not written completely: cut
    /// off, or filled with zeros.
    fn is_torn(&self, at: usize) -> bool {
        let zeros = self.bytes.iter().rev().take_while(|byte| **byte == 0).count();
        let written = self.bytes.len() - if zeros >= MIN_ZERO_FILL { zeros } else { 0 };
        written <= at || self.declared_end(at).is_none_or(|end| end > written)
    }

    fn has_sum(&self, payload: Range<usize>, sum: u32) -> bool {
        !payload.is_empty() && crc32fast::hash(self.slice(payload)) == sum
    }

    /// Takes note of bytes read; `None` when it was enough.
    fn spend(&mut self, bytes: usize) -> Option<()> {
        self.effort = self.effort.checked_sub(bytes)?;
        Some(())
    }
}

/// Reads the parts of a file, one after the other.
#[derive(Debug)]
pub(crate) struct Entries<R> {
    reader: R,
    format: EntryFormat,
    /// A line, or the whole file.
    read: Vec<u8>,
    parts: VecDeque<Part>,
    /// Where in `read` the next part begins.
    start: usize,
}

/// A part of a file.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    format: EntryFormat,
    content: Content,
    read: &'a [u8],
    /// Its size in bytes.
    pub(crate) bytes: u64,
}

impl<R: BufRead> Entries<R> {
    pub(crate) const fn new(reader: R, format: EntryFormat) -> Self {
        Self { reader, format, read: Vec::new(), parts: VecDeque::new(), start: 0 }
    }

    /// The next part; `None` at the end of the file.
    pub(crate) fn next(&mut self) -> io::Result<Option<Piece<'_>>> {
        if self.parts.is_empty() {
            self.read.clear();
            match self.format {
                EntryFormat::Lines => self.reader.read_until(b'\n', &mut self.read)?,
                EntryFormat::Frames => self.reader.read_to_end(&mut self.read)?,
            };
            self.parts = self.format.split(&self.read);
            self.start = 0;
        }
        let Some(Part { end, content }) = self.parts.pop_front() else { return Ok(None) };
        let bytes = u64::try_from(end - self.start).unwrap_or(u64::MAX);
        self.start = end;
        Ok(Some(Piece { format: self.format, content, read: &self.read, bytes }))
    }
}

impl Piece<'_> {
    /// Whether its checksum is right.
    pub(crate) const fn is_entry(&self) -> bool {
        matches!(self.content, Content::Entry(_))
    }

    pub(crate) const fn is_torn(&self) -> bool {
        matches!(self.content, Content::Torn)
    }

    /// The entry; none if it is damaged, or of a kind that this release does not know.
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> Option<T> {
        let Content::Entry(payload) = &self.content else { return None };
        self.format.parse(self.read.get(payload.clone())?)
    }
}
