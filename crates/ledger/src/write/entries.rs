//! How writes are encoded in the files of the spool and of the journal.
//!
//! The spool can be read by people: a line of JSON per write, with its checksum. The journal is written
//! for every request: frames of MessagePack with named fields as in JSON, so that a later release can
//! read them.

use std::{
    io::{self, BufRead, Read},
    path::Path,
};

use crate::store::Write;

/// Bytes before the MessagePack of a frame.
const HEADER_BYTES: usize = 8;
/// Maximum size of an entry; a larger one is corrupt.
const MAX_WRITE_BYTES: u64 = 1 << 30;

/// How writes are encoded in a file.
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

    /// Adds a write.
    pub(crate) fn push(self, bytes: &mut Vec<u8>, write: &Write) -> io::Result<()> {
        match self {
            Self::Lines => {
                let json = serde_json::to_vec(write)?;
                bytes.extend_from_slice(format!("{:08x} ", crc32fast::hash(&json)).as_bytes());
                bytes.extend_from_slice(&json);
                bytes.push(b'\n');
            }
            Self::Frames => {
                let start = bytes.len();
                bytes.extend_from_slice(&[0; HEADER_BYTES]);
                rmp_serde::encode::write_named(bytes, write).map_err(io::Error::other)?;
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
}

/// Reads the writes of a file, one after the other.
#[derive(Debug)]
pub(crate) struct Entries<'a, R> {
    reader: &'a mut R,
    shape: EntryFormat,
    entry: Vec<u8>,
}

impl<'a, R: BufRead> Entries<'a, R> {
    pub(crate) const fn new(reader: &'a mut R, shape: EntryFormat) -> Self {
        Self { reader, shape, entry: Vec::new() }
    }

    /// Reads the next complete entry and returns its size in bytes; `None` at the end of the file, or at
    /// a torn entry.
    pub(crate) fn next(&mut self) -> io::Result<Option<u64>> {
        self.entry.clear();
        let (read, is_whole) = match self.shape {
            EntryFormat::Lines => {
                let read = self.reader.read_until(b'\n', &mut self.entry)?;
                (read, self.entry.ends_with(b"\n"))
            }
            EntryFormat::Frames => self.frame()?,
        };
        Ok(is_whole.then(|| u64::try_from(read).unwrap_or(u64::MAX)))
    }

    fn frame(&mut self) -> io::Result<(usize, bool)> {
        let head = u64::try_from(HEADER_BYTES).unwrap_or_default();
        let mut read = self.reader.by_ref().take(head).read_to_end(&mut self.entry)?;
        let Some(length) = self.entry.first_chunk() else { return Ok((read, false)) };
        let length = u64::from(u32::from_le_bytes(*length));
        if read < HEADER_BYTES || length > MAX_WRITE_BYTES {
            return Ok((read, false));
        }
        read += self.reader.by_ref().take(length).read_to_end(&mut self.entry)?;
        Ok((read, u64::try_from(read).is_ok_and(|read| read == head + length)))
    }

    /// What it went to; none if it is corrupt.
    pub(crate) fn parsed(&self) -> Option<Write> {
        match self.shape {
            EntryFormat::Lines => {
                let line = self.entry.strip_suffix(b"\n")?;
                let (sum, json) = (line.get(..8)?, line.get(9..)?);
                let sum = u32::from_str_radix(str::from_utf8(sum).ok()?, 16).ok()?;
                (sum == crc32fast::hash(json)).then(|| serde_json::from_slice(json).ok())?
            }
            EntryFormat::Frames => {
                let (head, packed) = self.entry.split_first_chunk::<HEADER_BYTES>()?;
                let sum = u32::from_le_bytes(*head.last_chunk()?);
                (sum == crc32fast::hash(packed)).then(|| rmp_serde::from_slice(packed).ok())?
            }
        }
    }
}
