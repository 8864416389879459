//! What could not be committed, in files of this machine until the store is back.
//!
//! A file `<uuid>.spool` belongs to the process that holds its lock; one that no process holds was left
//! behind and is adopted, and so is a `<uuid>.journal`. Entries are only ever appended; those of the
//! spool are synced before they count. How they stand in a file is in `entries.rs`.

use std::{
    collections::VecDeque,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, BufReader, Read, Seek, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    store::Write,
    write::entries::{Entries, EntryFormat},
};

/// Maximum number of writes and bytes that are read for one commit.
const MAX_BATCH_WRITES: usize = 1_000;
const MAX_BATCH_BYTES: u64 = 16 * 1024 * 1024;
const SPOOL: &str = "spool";
/// Prefix of the files with the openings that a process has not committed yet.
pub(crate) const JOURNAL: &str = "journal";
/// Where entries go that cannot be read, or that the store rejects.
const CORRUPT: &str = "corrupt";
const CORRUPT_JOURNAL: &str = "corrupt-journal";
const REJECTED: &str = "rejected";

/// Where the spool is, and how large and how old it may grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolConfig {
    /// The directory; created when it is needed.
    pub dir: PathBuf,
    /// From this size on no new records are taken.
    pub max_bytes: u64,
    /// From this age of the oldest waiting record on no new records are taken.
    pub max_age: Duration,
}

/// The files of a process, and those it adopted.
#[derive(Debug)]
pub(crate) struct Spool {
    config: SpoolConfig,
    /// Left behind by others, oldest first; they are replayed before `own`.
    adopted: VecDeque<Segment>,
    /// What this process appends to.
    own: Option<Segment>,
}

/// What is in the spool and not yet committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

/// Writes read for one commit, and the position after them.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) writes: Vec<Write>,
    path: PathBuf,
    end: u64,
    entries: u64,
    corrupt: u64,
}

/// One file, locked.
#[derive(Debug)]
struct Segment {
    path: PathBuf,
    file: File,
    shape: EntryFormat,
    created_at: Timestamp,
    /// Up to here all is synced.
    length: u64,
    /// Up to here all is committed.
    done: u64,
    /// How many wait.
    entries: u64,
    corrupt: u64,
}

impl Spool {
    pub(crate) const fn new(config: SpoolConfig) -> Self {
        Self { config, adopted: VecDeque::new(), own: None }
    }

    /// Creates the directory, and checks that a file in it can be written and synced.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        let trial = Segment::create(&self.config.dir)?;
        fs::remove_file(&trial.path)
    }

    /// Adopts the files that no process holds, and returns the number of their records.
    pub(crate) fn adopt(&mut self) -> io::Result<u64> {
        let mut records = 0;
        // A record is opened in the journal before its end is in the spool.
        for extension in [JOURNAL, SPOOL] {
            for path in files(&self.config.dir, extension)? {
                if let Some(segment) = Segment::adopt(&path)? {
                    records += segment.entries;
                    self.adopted.push_back(segment);
                }
            }
        }
        Ok(records)
    }

    /// Appends writes and syncs them; after an error none of them is kept.
    pub(crate) fn append<'a>(&mut self, writes: impl Iterator<Item = &'a Write>) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut entries = 0;
        for write in writes.filter(|write| !matches!(write, Write::Nothing)) {
            EntryFormat::Lines.push(&mut bytes, write)?;
            entries += 1;
        }
        if entries == 0 {
            return Ok(());
        }
        let mut own = match self.own.take() {
            Some(own) => own,
            None => Segment::create(&self.config.dir)?,
        };
        // A file that could not be cut back is left to the process that adopts it.
        let appended = own.append(&bytes, entries);
        if appended.is_ok() || own.cut().is_ok() {
            self.own = Some(own);
        }
        appended
    }

    /// The next writes to commit, in order; `None` when nothing waits.
    pub(crate) fn next_batch(&mut self) -> io::Result<Option<Batch>> {
        while let Some(segment) = self.adopted.front_mut() {
            if let Some(batch) = segment.next_batch()? {
                return Ok(Some(batch));
            }
            if let Some(segment) = self.adopted.pop_front() {
                segment.retire()?;
            }
        }
        let Some(own) = &mut self.own else { return Ok(None) };
        own.next_batch()
    }

    /// Notes that a batch is committed; `rejected` are the writes that the store will never take.
    pub(crate) fn committed(&mut self, batch: &Batch, rejected: &[&Write]) -> io::Result<()> {
        if !rejected.is_empty() {
            let mut bytes = Vec::new();
            for write in rejected {
                EntryFormat::Lines.push(&mut bytes, write)?;
            }
            let path = batch.path.with_extension(REJECTED);
            tracing::error!(path = %path.display(), records = rejected.len(),
                "the store does not take these records; they are kept in this file");
            private().append(true).create(true).open(&path)?.write_all(&bytes)?;
        }
        let segments = self.adopted.iter_mut().chain(&mut self.own);
        for segment in segments.filter(|segment| segment.path == batch.path) {
            segment.done = batch.end;
            segment.entries = segment.entries.saturating_sub(batch.entries);
            segment.corrupt += batch.corrupt;
        }
        Ok(())
    }

    /// Whether files that others left behind wait.
    pub(crate) fn has_adopted(&self) -> bool {
        !self.adopted.is_empty()
    }

    /// Removes this process's file, all of which is committed.
    pub(crate) fn retire(&mut self) -> io::Result<()> {
        self.own.take().map_or(Ok(()), Segment::retire)
    }

    pub(crate) fn backlog(&self) -> Backlog {
        let segments = self.adopted.iter().chain(&self.own);
        segments.fold(Backlog::default(), |sum, segment| Backlog {
            records: sum.records + segment.entries,
            bytes: sum.bytes + segment.length,
        })
    }

    /// Why no new records are taken, if so.
    pub(crate) fn is_full(&self) -> Option<String> {
        let bytes = self.backlog().bytes;
        if bytes >= self.config.max_bytes {
            return Some(format!("the spool has {bytes} bytes"));
        }
        let created_at =
            self.adopted.iter().chain(&self.own).map(|segment| segment.created_at).min()?;
        // Negative when the clock was set back.
        let age =
            Duration::try_from(Timestamp::now().duration_since(created_at)).unwrap_or_default();
        (age >= self.config.max_age).then(|| format!("the spool is {} s old", age.as_secs()))
    }
}

impl Segment {
    fn create(dir: &Path) -> io::Result<Self> {
        let (path, file) = create(dir, SPOOL)?;
        // The name is as durable as what will stand in the file.
        File::open(dir)?.sync_all()?;
        let (shape, created_at) = (EntryFormat::Lines, Timestamp::now());
        Ok(Self { path, file, shape, created_at, length: 0, done: 0, entries: 0, corrupt: 0 })
    }

    /// Takes a file over, unless a process holds it.
    fn adopt(path: &Path) -> io::Result<Option<Self>> {
        let file = match OpenOptions::new().read(true).append(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(path, &error)),
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(at(path, &error)),
        }
        // The process that held it may have removed it in between.
        if !path.exists() {
            return Ok(None);
        }
        let created_at = Timestamp::try_from(file.metadata()?.modified()?).unwrap_or_default();
        let shape = EntryFormat::of(path);
        let (entries, length) = whole(&file, shape)?;
        let torn = file.metadata()?.len() - length;
        if torn > 0 {
            tracing::warn!(path = %path.display(), bytes = torn,
                "the last entry of a spool file is torn; it was never acknowledged");
        }
        let path = path.to_owned();
        Ok(Some(Self { path, file, shape, created_at, length, done: 0, entries, corrupt: 0 }))
    }

    fn append(&mut self, bytes: &[u8], entries: u64) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.file.sync_data()?;
        self.length += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.entries += entries;
        Ok(())
    }

    /// Takes back what a failed append may have left.
    fn cut(&self) -> io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.sync_data()
    }

    fn next_batch(&mut self) -> io::Result<Option<Batch>> {
        if self.done >= self.length {
            return Ok(None);
        }
        self.file.seek(SeekFrom::Start(self.done))?;
        let mut reader = BufReader::new((&self.file).take(self.length - self.done));
        let mut batch = Batch {
            writes: Vec::new(),
            path: self.path.clone(),
            end: self.done,
            entries: 0,
            corrupt: 0,
        };
        let mut entries = Entries::new(&mut reader, self.shape);
        while batch.writes.len() < MAX_BATCH_WRITES && batch.end - self.done < MAX_BATCH_BYTES {
            let Some(length) = entries.next()? else { break };
            batch.end += length;
            batch.entries += 1;
            match entries.parsed() {
                Some(write) => batch.writes.push(write),
                None => {
                    tracing::error!(path = %self.path.display(), ends_at = batch.end,
                        "an entry of the spool is corrupt; the file will be kept for you to look at");
                    batch.corrupt += 1;
                }
            }
        }
        Ok(Some(batch))
    }

    /// Removes the file, or moves it aside when it has entries that could not be read.
    fn retire(self) -> io::Result<()> {
        if self.corrupt == 0 {
            return fs::remove_file(&self.path);
        }
        let aside = self.path.with_extension(match self.shape {
            EntryFormat::Lines => CORRUPT,
            EntryFormat::Frames => CORRUPT_JOURNAL,
        });
        tracing::error!(from = %self.path.display(), to = %aside.display(), entries = self.corrupt,
            "a spool file with corrupt entries was moved aside; all its others are in the store");
        fs::rename(&self.path, aside)
    }
}

/// Records that wait in a directory, or were moved aside there, without touching anything.
///
/// # Errors
///
/// When the directory or a file in it cannot be read.
pub fn spool_leftovers(dir: &Path) -> io::Result<u64> {
    let mut entries = 0;
    for extension in [JOURNAL, SPOOL, CORRUPT, CORRUPT_JOURNAL, REJECTED] {
        for path in files(dir, extension)? {
            match File::open(&path) {
                // What a living process has in its journal is as good as committed.
                Ok(file) if extension == JOURNAL && file.try_lock_shared().is_err() => {}
                Ok(file) => entries += whole(&file, EntryFormat::of(&path))?.0,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(at(&path, &error)),
            }
        }
    }
    Ok(entries)
}

/// Creates a file of a kind, locked by this process.
pub(crate) fn create(dir: &Path, extension: &str) -> io::Result<(PathBuf, File)> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let path = dir.join(Uuid::now_v7().to_string()).with_extension(extension);
    let file = private().read(true).append(true).create_new(true).open(&path)?;
    file.try_lock().map_err(io::Error::from)?;
    Ok((path, file))
}

/// Files of a kind in a directory by name, which begins with their time.
fn files(dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at(dir, &error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// How many entries of a file are whole, and where the last of them ends.
fn whole(file: &File, shape: EntryFormat) -> io::Result<(u64, u64)> {
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(0))?;
    let (mut count, mut length) = (0, 0);
    let mut entries = Entries::new(&mut reader, shape);
    while let Some(read) = entries.next()? {
        count += 1;
        length += read;
    }
    Ok((count, length))
}

/// Options for files that only their owner reads: they hold prompts.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
