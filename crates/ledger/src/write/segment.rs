//! One file of the spool or of a journal, held by this process.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Seek, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    private_file::sync_dir,
    store::Write,
    write::{
        entries::{Entries, EntryFormat},
        files::{CORRUPT, CORRUPT_JOURNAL, SPOOL, at, create, try_lock},
        room::Room,
    },
};

/// Writes read for one commit, and the position after them.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) writes: Vec<Write>,
    pub(crate) path: PathBuf,
    pub(crate) end: u64,
    /// Where damaged entries end, which are not among the writes.
    pub(crate) damaged: Vec<u64>,
}

/// How much there is in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) entries: u64,
    pub(crate) damaged: u64,
    /// Bytes up to the torn end.
    pub(crate) length: u64,
    /// Bytes of the torn end.
    pub(crate) torn: u64,
}

/// One file, locked.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    file: File,
    format: EntryFormat,
    pub(crate) created_at: Timestamp,
    /// Up to here all is synced.
    pub(crate) length: u64,
    /// Up to here all is committed.
    done: u64,
    /// How many wait.
    pub(crate) entries: u64,
    damaged: u64,
}

impl Segment {
    pub(crate) fn create(dir: &Path, store: Option<Uuid>) -> io::Result<Self> {
        let (path, file) = create(dir, store, SPOOL)?;
        sync_dir(dir)?;
        let (format, created_at) = (EntryFormat::Lines, Timestamp::now());
        Ok(Self { path, file, format, created_at, length: 0, done: 0, entries: 0, damaged: 0 })
    }

    /// Takes a file over, unless a process holds it.
    pub(crate) fn adopt(path: &Path) -> io::Result<Option<Self>> {
        let file = match OpenOptions::new().read(true).append(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(path, &error)),
        };
        if !try_lock(&file).map_err(|error| at(path, &error))? {
            return Ok(None);
        }
        // The process that held it may have removed it in between.
        if !path.exists() {
            return Ok(None);
        }
        let created_at = Timestamp::try_from(file.metadata()?.modified()?).unwrap_or_default();
        let format = EntryFormat::of(path);
        let contents = contents(&file, format)?;
        if contents.torn > 0 {
            tracing::warn!(path = %path.display(), bytes = contents.torn,
                "the last entry of a spool file is torn; it was never acknowledged");
        }
        Ok(Some(Self {
            path: path.to_owned(),
            file,
            format,
            created_at,
            length: contents.length,
            done: 0,
            entries: contents.entries,
            damaged: 0,
        }))
    }

    pub(crate) fn append(&mut self, bytes: &[u8], entries: u64) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.file.sync_data()?;
        self.length += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.entries += entries;
        Ok(())
    }

    /// Takes back what a failed append may have left.
    pub(crate) fn cut(&self) -> io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.sync_data()
    }

    /// The next writes to commit, at most so many.
    pub(crate) fn next_batch(&mut self, max_writes: usize) -> io::Result<Option<Batch>> {
        if self.done >= self.length {
            return Ok(None);
        }
        self.file.seek(SeekFrom::Start(self.done))?;
        let reader = BufReader::new((&self.file).take(self.length - self.done));
        let mut batch = Batch {
            writes: Vec::new(),
            path: self.path.clone(),
            end: self.done,
            damaged: Vec::new(),
        };
        let mut room = Room::new(max_writes);
        let mut entries = Entries::new(reader, self.format);
        while !room.is_full() {
            let Some(piece) = entries.next()? else { break };
            let end = batch.end + piece.bytes;
            match piece.parse() {
                Some(write) if room.admit(&write) => batch.writes.push(write),
                Some(_too_large) => break,
                None => batch.damaged.push(end),
            }
            batch.end = end;
        }
        Ok(Some(batch))
    }

    /// Notes that a batch is done.
    pub(crate) fn committed(&mut self, batch: &Batch) {
        for ends_at in &batch.damaged {
            tracing::error!(path = %self.path.display(), ends_at,
                "an entry of the spool is damaged; the file will be kept for you to look at");
        }
        let count = |length: usize| u64::try_from(length).unwrap_or(u64::MAX);
        self.done = batch.end;
        self.entries = self.entries.saturating_sub(count(batch.writes.len()));
        self.damaged += count(batch.damaged.len());
    }

    /// Removes the file, or moves it aside when it has damaged entries.
    pub(crate) fn retire(self) -> io::Result<()> {
        if self.damaged == 0 {
            return fs::remove_file(&self.path);
        }
        let aside = self.path.with_extension(match self.format {
            EntryFormat::Lines => CORRUPT,
            EntryFormat::Frames => CORRUPT_JOURNAL,
        });
        tracing::error!(from = %self.path.display(), to = %aside.display(), entries = self.damaged,
            "a spool file with damaged entries was moved aside; all its others are in the store");
        fs::rename(&self.path, aside)
    }
}

/// Counts what is in a file.
pub(crate) fn contents(file: &File, format: EntryFormat) -> io::Result<Contents> {
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(0))?;
    let mut found = Contents::default();
    let mut entries = Entries::new(reader, format);
    while let Some(piece) = entries.next()? {
        if piece.is_torn() {
            found.torn += piece.bytes;
            continue;
        }
        found.length += piece.bytes;
        if piece.is_entry() {
            found.entries += 1;
        } else {
            found.damaged += 1;
        }
    }
    Ok(found)
}
