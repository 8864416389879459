//! Openings that are not yet committed, in a local file. With it a request is sent to its provider before
//! the commit, and its record survives a crash of the process, but not of the machine.
//!
//! An entry is written, but not synced, before the request is sent. A file is removed when all of its
//! records are in the store or the spool; a file of a dead process is adopted with its spool.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use uuid::Uuid;

use crate::{
    store::Write,
    write::entries::EntryFormat,
    write::files::{JOURNAL, create},
};

/// Capacity of the buffer of an entry.
const ENTRY_BYTES: usize = 2_048;
/// A file of at least this size whose records are all done is truncated; one of at least
/// `MAX_FILE_BYTES` is left for a new one.
const TRUNCATE_BYTES: u64 = 64 * 1024;
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// Where openings are written.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    /// The id of the store that the records are for.
    store: Option<Uuid>,
    current: Mutex<Option<Current>>,
}

/// The file that is written to.
#[derive(Debug)]
struct Current {
    held: Arc<JournalFile>,
    length: u64,
}

/// A file of the journal, removed with the last record that needs it.
#[derive(Debug)]
struct JournalFile {
    path: PathBuf,
    file: File,
}

/// Keeps a record in the journal until this is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    _file: Arc<JournalFile>,
}

impl Journal {
    pub(crate) fn new(dir: &Path, store: Option<Uuid>) -> Self {
        Self { dir: dir.to_owned(), store, current: Mutex::new(None) }
    }

    /// Hands a write to the operating system. After an error nothing of it counts.
    pub(crate) fn append(&self, write: &Write) -> io::Result<Ticket> {
        let mut entry = Vec::with_capacity(ENTRY_BYTES);
        EntryFormat::Frames.push(&mut entry, write)?;
        let mut slot = self.lock();
        let mut current = match slot.take() {
            Some(current) if current.length < MAX_FILE_BYTES => current,
            _ => Current::create(&self.dir, self.store)?,
        };
        // One that fails is left; what it may have of this entry is torn and counts for nothing.
        let ticket = current.append(&entry)?;
        *slot = Some(current);
        Ok(ticket)
    }

    /// Leaves the file, which goes when the last of its records is done.
    pub(crate) fn close(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Current {
    fn create(dir: &Path, store: Option<Uuid>) -> io::Result<Self> {
        let (path, file) = create(dir, store, JOURNAL)?;
        Ok(Self { held: Arc::new(JournalFile { path, file }), length: 0 })
    }

    fn append(&mut self, entry: &[u8]) -> io::Result<Ticket> {
        let mut file = &self.held.file;
        let is_done = Arc::strong_count(&self.held) == 1;
        if is_done && self.length >= TRUNCATE_BYTES {
            file.set_len(0)?;
            self.length = 0;
        }
        file.write_all(entry)?;
        self.length += u64::try_from(entry.len()).unwrap_or(u64::MAX);
        Ok(Ticket { _file: Arc::clone(&self.held) })
    }
}

impl Drop for JournalFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(),
                "a file of the journal cannot be removed; the next start sees to it");
        }
    }
}
