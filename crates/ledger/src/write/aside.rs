//! Entries that the store refuses, each with the reason, in files of their own until somebody returns
//! them to the store.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufReader, Seek as _, SeekFrom, Write as _},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    private_file::{self, sync_dir},
    record::key_hash,
    store::Write,
    write::{
        entries::{Entries, EntryFormat},
        files::{self, ASIDE, REJECTED, at, try_lock},
    },
};

/// What is known of an entry that an earlier release set aside.
const REJECTED_REASON: &str = "the store did not take it";

/// An entry that was set aside, as it stands in its file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SetAside<W> {
    /// What the store said.
    pub(crate) reason: String,
    pub(crate) set_aside_at: Timestamp,
    pub(crate) write: W,
}

/// A write that the store refuses.
#[derive(Debug)]
pub(crate) struct Refused<'a> {
    pub(crate) write: &'a Write,
    pub(crate) reason: String,
}

/// Adds refused writes to a file, synced; returns its path, which is another one while a command works
/// on the file.
pub(crate) fn append(path: &Path, refused: &[Refused<'_>]) -> io::Result<PathBuf> {
    let mut bytes = Vec::new();
    for Refused { write, reason } in refused {
        let (reason, set_aside_at) = (reason.clone(), Timestamp::now());
        EntryFormat::Lines.push(&mut bytes, &SetAside { reason, set_aside_at, write })?;
    }
    let (path, mut file) = open(path)?;
    let length = file.metadata()?.len();
    let written = file.write_all(&bytes).and_then(|()| file.sync_data());
    if let Err(error) = written {
        // What is left of it would be damage in the middle of the file.
        file.set_len(length)?;
        return Err(at(&path, &error));
    }
    sync_dir(path.parent().unwrap_or(Path::new(".")))?;
    for Refused { write, reason } in refused {
        tracing::error!(path = %path.display(), reason, kind = write.kind(),
            interception_id = ?write.record_id(),
            "the store does not take a record; it was set aside: see `keybridge ledger spool`");
    }
    Ok(path)
}

/// Fingerprints of what is set aside in a directory: after a crash a process may adopt a file whose entries
/// were set aside already.
pub(crate) fn known(dir: &Path) -> io::Result<HashSet<String>> {
    let mut known = HashSet::new();
    for path in files::files(dir, ASIDE)? {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(at(&path, &error)),
        };
        let mut reader = AsideReader::new(&path, &file)?;
        while let Some(found) = reader.next()? {
            if let Found::Entry(entry) = found {
                known.insert(fingerprint(&entry.write)?);
            }
        }
    }
    Ok(known)
}

/// What two writes have in common only if they are equal.
pub(crate) fn fingerprint(write: &Write) -> io::Result<String> {
    Ok(key_hash(&serde_json::to_string(write)?))
}

/// Opens a file to add to it, locked.
fn open(path: &Path) -> io::Result<(PathBuf, File)> {
    let file = private_file::options()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|error| at(path, &error))?;
    // A command that returns its entries to the store holds the lock, and removes the file.
    if try_lock(&file)? && file.metadata()?.nlink() > 0 {
        return Ok((path.to_owned(), file));
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    files::create(dir, files::store_of(path), ASIDE)
}

/// Reads a file of whatever kind, entry by entry.
#[derive(Debug)]
pub(crate) struct AsideReader<'a> {
    entries: Entries<BufReader<&'a File>>,
    extension: &'a str,
    modified_at: Timestamp,
}

/// What is found in a file.
#[derive(Debug)]
pub(crate) enum Found {
    /// An entry; the reason is empty where it was not set aside.
    Entry(Box<SetAside<Write>>),
    Damaged,
}

impl<'a> AsideReader<'a> {
    pub(crate) fn new(path: &'a Path, mut file: &'a File) -> io::Result<Self> {
        file.seek(SeekFrom::Start(0))?;
        let extension = path.extension().and_then(|extension| extension.to_str());
        Ok(Self {
            entries: Entries::new(BufReader::new(file), EntryFormat::of(path)),
            extension: extension.unwrap_or_default(),
            modified_at: Timestamp::try_from(file.metadata()?.modified()?).unwrap_or_default(),
        })
    }

    /// The next entry; `None` at the end of the file, or at a torn entry.
    pub(crate) fn next(&mut self) -> io::Result<Option<Found>> {
        let Some(piece) = self.entries.next()?.filter(|piece| !piece.is_torn()) else {
            return Ok(None);
        };
        let entry = if self.extension == ASIDE {
            piece.parse()
        } else {
            let reason = if self.extension == REJECTED { REJECTED_REASON } else { "" };
            let (reason, set_aside_at) = (reason.to_owned(), self.modified_at);
            piece.parse().map(|write| SetAside { reason, set_aside_at, write })
        };
        Ok(Some(entry.map_or(Found::Damaged, |entry| Found::Entry(Box::new(entry)))))
    }
}

/// Replaces what is in a file by these entries, or removes it when there are none.
pub(crate) fn replace(path: &Path, entries: &[SetAside<Write>]) -> io::Result<()> {
    if entries.is_empty() {
        return fs::remove_file(path);
    }
    let mut bytes = Vec::new();
    for entry in entries {
        EntryFormat::Lines.push(&mut bytes, entry)?;
    }
    let dir = path.parent().unwrap_or(Path::new("."));
    let (new, mut file) = files::create(dir, files::store_of(path), "new")?;
    file.write_all(&bytes)?;
    file.sync_data()?;
    if path.extension().is_some_and(|extension| extension == ASIDE) {
        fs::rename(new, path)?;
    } else {
        fs::rename(&new, new.with_extension(ASIDE))?;
        fs::remove_file(path)?;
    }
    sync_dir(dir)
}
