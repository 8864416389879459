//! For the fuzz targets: what is found in the bytes of a file of the journal or of the spool.

use crate::{
    store::Write,
    write::entries::{Entries, EntryFormat},
};

/// What is found in a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Each entry as JSON.
    pub entries: Vec<String>,
    /// Sizes of the parts that are no entries, or entries of an unknown kind.
    pub damaged: Vec<u64>,
    /// Bytes of a torn end.
    pub torn: u64,
    /// The sizes of all parts together: those of the file.
    pub bytes: u64,
}

/// Reads a file of the journal.
pub fn journal(bytes: &[u8]) -> Found {
    read(EntryFormat::Frames, bytes)
}

/// Reads a file of the spool.
pub fn spool(bytes: &[u8]) -> Found {
    read(EntryFormat::Lines, bytes)
}

/// Encodes entries again, which were found in a file of either kind: as a file of the journal and as one of
/// the spool.
pub fn encode(entries: &[String]) -> (Vec<u8>, Vec<u8>) {
    let (mut journal, mut spool) = (Vec::new(), Vec::new());
    for entry in entries {
        let Ok(write) = serde_json::from_str::<Write>(entry) else { continue };
        // Writing to memory does not fail.
        let _pushed = EntryFormat::Frames.push(&mut journal, &write);
        let _pushed = EntryFormat::Lines.push(&mut spool, &write);
    }
    (journal, spool)
}

fn read(format: EntryFormat, bytes: &[u8]) -> Found {
    let mut found = Found::default();
    let mut entries = Entries::new(bytes, format);
    // Reading from memory does not fail.
    while let Ok(Some(piece)) = entries.next() {
        found.bytes += piece.bytes;
        if piece.is_torn() {
            found.torn += piece.bytes;
            continue;
        }
        match piece.parse::<Write>().and_then(|write| serde_json::to_string(&write).ok()) {
            Some(json) => found.entries.push(json),
            None => found.damaged.push(piece.bytes),
        }
    }
    found
}
