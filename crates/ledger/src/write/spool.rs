//! What could not be committed, in files of this machine until the store is back.
//!
//! A file `….spool` belongs to the process that holds its lock; one that no process holds was left
//! behind and is adopted, and so is a `….journal`, unless it belongs to another store. Entries are only
//! ever appended; those of the spool are synced before they count. How they stand in a file is in
//! `entries.rs`.

use std::{
    collections::{HashSet, VecDeque},
    fmt::Display,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    private_file,
    store::Write,
    write::{
        aside::{self, Refused},
        entries::EntryFormat,
        files::{ASIDE, JOURNAL, SPOOL, files, is_foreign, new_path},
        segment::{Batch, Segment},
    },
};

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
    /// The id of the store whose records these are.
    store: Option<Uuid>,
    /// Left behind by others, oldest first; they are replayed before `own`.
    adopted: VecDeque<Segment>,
    /// What this process appends to.
    own: Option<Segment>,
    /// Where this process sets aside what never was in the spool.
    aside: PathBuf,
    /// Files that are left alone, of which the log tells once.
    left_alone: HashSet<PathBuf>,
}

/// What is in the spool and not yet committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

impl Spool {
    pub(crate) fn new(config: SpoolConfig, store: Option<Uuid>) -> Self {
        let aside = new_path(&config.dir, store, ASIDE);
        let (adopted, left_alone) = (VecDeque::new(), HashSet::new());
        Self { config, store, adopted, own: None, aside, left_alone }
    }

    /// Creates the directory, and checks that a file in it can be written and synced.
    pub(crate) fn prepare(&self) -> io::Result<()> {
        let trial = Segment::create(&self.config.dir, self.store)?;
        fs::remove_file(&trial.path)
    }

    /// Adopts the files that no process holds, and returns the number of their records. A file that
    /// belongs to another store, or that cannot be read, is left alone.
    pub(crate) fn adopt(&mut self) -> io::Result<u64> {
        let mut records = 0;
        // A record is opened in the journal before its end is in the spool.
        for extension in [JOURNAL, SPOOL] {
            for path in files(&self.config.dir, extension)? {
                if is_foreign(&path, self.store) {
                    self.leave_to_others(path);
                    continue;
                }
                match Segment::adopt(&path) {
                    Ok(None) => {}
                    Ok(Some(segment)) => {
                        records += segment.entries;
                        self.adopted.push_back(segment);
                    }
                    Err(error) => self.leave_alone(&path, &error),
                }
            }
        }
        Ok(records)
    }

    fn leave_to_others(&mut self, path: PathBuf) {
        if !self.left_alone.contains(&path) {
            tracing::warn!(path = %path.display(),
                "a file of the spool belongs to another store and is left alone");
            self.left_alone.insert(path);
        }
    }

    fn leave_alone(&mut self, path: &Path, reason: impl Display) {
        if self.left_alone.insert(path.to_owned()) {
            tracing::error!(path = %path.display(), %reason,
                "a file of the spool cannot be replayed and is left alone");
        }
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
            None => Segment::create(&self.config.dir, self.store)?,
        };
        // A file that could not be cut back is left to the process that adopts it.
        let appended = own.append(&bytes, entries);
        if appended.is_ok() || own.cut().is_ok() {
            self.own = Some(own);
        }
        appended
    }

    /// The next writes to commit, at most so many, in order; `None` when nothing waits. An adopted file
    /// that cannot be read is left alone until the next adoption.
    pub(crate) fn next_batch(&mut self, max_writes: usize) -> io::Result<Option<Batch>> {
        while let Some(mut segment) = self.adopted.pop_front() {
            match segment.next_batch(max_writes) {
                Ok(Some(batch)) => {
                    self.adopted.push_front(segment);
                    return Ok(Some(batch));
                }
                Ok(None) => {
                    let path = segment.path.clone();
                    if let Err(error) = segment.retire() {
                        self.leave_alone(&path, &error);
                    }
                }
                Err(error) => self.leave_alone(&segment.path, &error),
            }
        }
        let Some(own) = &mut self.own else { return Ok(None) };
        own.next_batch(max_writes)
    }

    /// Notes that a batch is done; `refused` are the writes that the store does not take, which are set
    /// aside first. Returns how many were set aside now, and not before a crash.
    pub(crate) fn committed(
        &mut self,
        batch: &Batch,
        mut refused: Vec<Refused<'_>>,
    ) -> io::Result<u64> {
        let is_own = self.own.as_ref().is_some_and(|own| own.path == batch.path);
        if !refused.is_empty() && !is_own {
            let known = aside::known(&self.config.dir)?;
            let mut new = Vec::new();
            for refused in refused {
                if !known.contains(&aside::fingerprint(refused.write)?) {
                    new.push(refused);
                }
            }
            refused = new;
        }
        if !refused.is_empty() {
            aside::append(&batch.path.with_extension(ASIDE), &refused)?;
        }
        let segments = self.adopted.iter_mut().chain(&mut self.own);
        for segment in segments.filter(|segment| segment.path == batch.path) {
            segment.committed(batch);
        }
        Ok(u64::try_from(refused.len()).unwrap_or(u64::MAX))
    }

    /// Sets writes aside that never were in the spool.
    pub(crate) fn set_aside(&mut self, refused: &[Refused<'_>]) -> io::Result<()> {
        private_file::create_dir(&self.config.dir)?;
        self.aside = aside::append(&self.aside, refused)?;
        Ok(())
    }

    /// Whether files that others left behind wait.
    pub(crate) fn has_adopted(&self) -> bool {
        !self.adopted.is_empty()
    }

    /// How many writes wait in files that others left behind.
    pub(crate) fn adopted_records(&self) -> u64 {
        self.adopted.iter().map(|segment| segment.entries).sum()
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

#[cfg(test)]
mod tests;
