//! Openings that are not committed yet, in a file of this machine: what makes it safe to ask a provider
//! before the commit, as long as the machine goes on.
//!
//! An entry is written before the provider is asked, and not synced: it outlives the process, not the
//! machine. A file goes when the last of its records is in the store or in the spool; one that a dead
//! process left is adopted with its spool.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    store::Write,
    write::entries::Shape,
    write::spool::{JOURNAL, create},
};

/// About the length of an entry.
const ENTRY: usize = 2_048;
/// From this size on a file whose records are all done begins anew, and any other is left for a new one.
const BEGINS_ANEW: u64 = 64 * 1024;
const FULL: u64 = 4 * 1024 * 1024;

/// Where openings are written.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    current: Mutex<Option<Current>>,
}

/// The file that is written to.
#[derive(Debug)]
struct Current {
    held: Arc<JournalFile>,
    length: u64,
}

/// A file of the journal, removed when nobody needs it any more.
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
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), current: Mutex::new(None) }
    }

    /// Hands a write to the operating system. After an error nothing of it counts.
    pub(crate) fn append(&self, write: &Write) -> io::Result<Ticket> {
        let mut entry = Vec::with_capacity(ENTRY);
        Shape::Frames.push(&mut entry, write)?;
        let mut slot = self.lock();
        let mut current = match slot.take() {
            Some(current) if current.length < FULL => current,
            _ => Current::create(&self.dir)?,
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
    fn create(dir: &Path) -> io::Result<Self> {
        let (path, file) = create(dir, JOURNAL)?;
        Ok(Self { held: Arc::new(JournalFile { path, file }), length: 0 })
    }

    fn append(&mut self, entry: &[u8]) -> io::Result<Ticket> {
        let mut file = &self.held.file;
        let is_done = Arc::strong_count(&self.held) == 1;
        if is_done && self.length >= BEGINS_ANEW {
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
