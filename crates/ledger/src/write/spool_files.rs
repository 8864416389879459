//! The spool's directory as an operator sees it: what is in its files, and the way back to the store for
//! what was set aside.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    LedgerError,
    store::{Receipt, StoreWriter, Write},
    word_enum,
    write::{
        aside::{self, AsideReader, Found, SetAside},
        entries::EntryFormat,
        files::{
            ASIDE, CORRUPT, CORRUPT_JOURNAL, JOURNAL, REJECTED, SPOOL, at, files, is_foreign,
            store_of, try_lock,
        },
        room::Room,
        segment::contents,
    },
};

/// Maximum number of writes that a command returns to the store in one commit.
const MAX_REPLAY_WRITES: usize = 100;
/// Maximum number of different reasons that are told of a file.
const MAX_REASONS: usize = 20;

word_enum! {
    /// What a file of the spool's directory has.
    SpoolFileKind {
        /// Openings that a process has not committed yet.
        Journal = "journal",
        /// Writes that wait for the store.
        Spool = "spool",
        /// Writes that the store refused, with the reasons.
        Aside = "aside",
        /// Writes that the store refused, of an earlier release.
        Rejected = "rejected",
        /// A spool with damaged entries; all others of it are in the store.
        Corrupt = "corrupt",
        /// A journal with damaged entries; all others of it are in the store.
        CorruptJournal = "corrupt-journal",
    }
}

impl SpoolFileKind {
    /// Everything there is, in the order in which it is replayed: a record is opened before it is settled.
    const ALL: [(Self, &'static str); 6] = [
        (Self::CorruptJournal, CORRUPT_JOURNAL),
        (Self::Journal, JOURNAL),
        (Self::Corrupt, CORRUPT),
        (Self::Spool, SPOOL),
        (Self::Rejected, REJECTED),
        (Self::Aside, ASIDE),
    ];

    /// Whether all of its entries that can be read are in the store.
    const fn is_in_store(self) -> bool {
        matches!(self, Self::Corrupt | Self::CorruptJournal)
    }
}

/// A file of the spool's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpoolFile {
    /// Its path.
    pub path: PathBuf,
    /// What it has.
    pub kind: SpoolFileKind,
    /// The id of the store that it belongs to; earlier releases did not write it.
    pub store_id: Option<Uuid>,
    /// Whether a process uses it at the moment.
    pub in_use: bool,
    /// Entries in it.
    pub entries: u64,
    /// Parts that are not readable.
    pub damaged: u64,
    /// Bytes of a last entry that was not written completely, and never acknowledged.
    pub torn_bytes: u64,
    /// Its size.
    pub bytes: u64,
    /// When it was last written to.
    #[serde(serialize_with = "crate::record::serialize_time")]
    pub modified_at: Timestamp,
    /// Why entries were set aside, and how many for each reason.
    pub reasons: BTreeMap<String, u64>,
}

/// An entry of a file, or a damaged part.
#[derive(Debug, Serialize)]
pub struct ExportedEntry<'a> {
    /// The file.
    pub path: &'a Path,
    /// What the file has.
    pub kind: SpoolFileKind,
    /// The id of the store that it belongs to.
    pub store_id: Option<Uuid>,
    /// Why it was set aside.
    pub reason: Option<String>,
    /// When it was set aside.
    #[serde(serialize_with = "crate::record::serialize_optional_time")]
    pub set_aside_at: Option<Timestamp>,
    /// Whether it cannot be read.
    pub damaged: bool,
    /// What was to be written.
    pub write: Option<Value>,
}

/// What a replay did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SpoolReplay {
    /// Entries that are in the store now, or were before.
    pub committed: u64,
    /// Entries that the store still refuses; they stay set aside.
    pub refused: u64,
    /// Parts that are not readable; their files stay.
    pub damaged: u64,
    /// Files of other stores, left alone.
    pub foreign_files: u64,
    /// Files that a process uses, left alone.
    pub files_in_use: u64,
}

/// The files of a spool's directory, without touching anything.
///
/// # Errors
///
/// When the directory or a file in it cannot be read.
pub fn spool_files(dir: &Path) -> io::Result<Vec<SpoolFile>> {
    let mut found = Vec::new();
    for (kind, extension) in SpoolFileKind::ALL {
        for path in files(dir, extension)? {
            if let Some(file) = open(&path)? {
                found.push(describe(path.clone(), kind, &file).map_err(|error| at(&path, &error))?);
            }
        }
    }
    Ok(found)
}

fn describe(path: PathBuf, kind: SpoolFileKind, file: &File) -> io::Result<SpoolFile> {
    let metadata = file.metadata()?;
    let in_use = file.try_lock_shared().is_err();
    let contents = contents(file, EntryFormat::of(&path))?;
    let (mut entries, mut damaged) = (contents.entries, contents.damaged);
    let mut reasons = BTreeMap::new();
    if kind == SpoolFileKind::Aside {
        (entries, damaged) = (0, 0);
        let mut reader = AsideReader::new(&path, file)?;
        while let Some(found) = reader.next()? {
            let Found::Entry(entry) = found else {
                damaged += 1;
                continue;
            };
            entries += 1;
            if reasons.len() < MAX_REASONS || reasons.contains_key(&entry.reason) {
                *reasons.entry(entry.reason).or_default() += 1;
            }
        }
    }
    Ok(SpoolFile {
        store_id: store_of(&path),
        path,
        kind,
        in_use,
        entries,
        damaged,
        torn_bytes: contents.torn,
        bytes: metadata.len(),
        modified_at: Timestamp::try_from(metadata.modified()?).unwrap_or_default(),
        reasons,
    })
}

/// Records that wait in a directory, were set aside there or are damaged, without touching anything. Those
/// of other stores than this one do not count.
///
/// # Errors
///
/// When the directory or a file in it cannot be read.
pub fn spool_leftovers(dir: &Path, store: Option<Uuid>) -> io::Result<u64> {
    let files = spool_files(dir)?;
    let own = files.iter().filter(|file| store.is_none() || !is_foreign(&file.path, store));
    Ok(own
        .map(|file| match file.kind {
            // What a living process has in its journal is as good as committed.
            SpoolFileKind::Journal if file.in_use => 0,
            kind if kind.is_in_store() => file.damaged,
            _ => file.entries + file.damaged,
        })
        .sum())
}

/// Calls `each` with what is in the files that no process uses.
///
/// # Errors
///
/// When a file cannot be read, or those of `each`.
pub fn export_spool(
    dir: &Path,
    each: &mut dyn FnMut(ExportedEntry<'_>) -> io::Result<()>,
) -> io::Result<()> {
    for (kind, extension) in SpoolFileKind::ALL {
        for path in files(dir, extension)? {
            let Some(file) = open(&path)?.filter(|file| file.try_lock_shared().is_ok()) else {
                continue;
            };
            let failed = |error: io::Error| at(&path, &error);
            let mut reader = AsideReader::new(&path, &file).map_err(failed)?;
            while let Some(found) = reader.next().map_err(failed)? {
                each(exported(&path, kind, found)?)?;
            }
        }
    }
    Ok(())
}

fn exported(path: &Path, kind: SpoolFileKind, found: Found) -> io::Result<ExportedEntry<'_>> {
    let store_id = store_of(path);
    let (mut reason, mut set_aside_at, mut write) = (None, None, None);
    let damaged = matches!(found, Found::Damaged);
    if let Found::Entry(entry) = found {
        if !entry.reason.is_empty() {
            (reason, set_aside_at) = (Some(entry.reason), Some(entry.set_aside_at));
        }
        write = Some(serde_json::to_value(entry.write)?);
    }
    Ok(ExportedEntry { path, kind, store_id, reason, set_aside_at, damaged, write })
}

/// Returns the entries of all files of these stores to the store.
pub(crate) fn replay(
    dir: &Path,
    stores: &[Option<Uuid>],
    connection: &mut dyn StoreWriter,
) -> Result<SpoolReplay, LedgerError> {
    let mut done = SpoolReplay::default();
    let mut found = Vec::new();
    for (kind, extension) in SpoolFileKind::ALL {
        let files = files(dir, extension).map_err(|error| spool_error(dir, &error))?;
        found.extend(files.into_iter().map(|path| (kind, path)));
    }
    // What is refused goes to new files, which are not tried again in the same pass.
    for (kind, path) in found {
        if stores.iter().all(|store| is_foreign(&path, *store)) {
            done.foreign_files += 1;
        } else {
            replay_file(&path, kind, connection, &mut done)?;
        }
    }
    if done.committed > 0 && done.refused > 0 {
        // A settlement may have been tried before the opening of its record, which is in another file.
        let mut again = SpoolReplay::default();
        for path in files(dir, ASIDE).map_err(|error| spool_error(dir, &error))? {
            if stores.iter().any(|store| !is_foreign(&path, *store)) {
                replay_file(&path, SpoolFileKind::Aside, connection, &mut again)?;
            }
        }
        done.committed += again.committed;
        done.refused = again.refused;
    }
    Ok(done)
}

fn replay_file(
    path: &Path,
    kind: SpoolFileKind,
    connection: &mut dyn StoreWriter,
    done: &mut SpoolReplay,
) -> Result<(), LedgerError> {
    let failed = |error: io::Error| spool_error(path, &error);
    let file = match OpenOptions::new().read(true).append(true).open(path) {
        Ok(file) => file,
        // A bridge has replayed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !try_lock(&file).map_err(failed)? {
        done.files_in_use += 1;
        return Ok(());
    }
    let (mut damaged, mut refused) = (0, Vec::new());
    let mut batch = ReplayBatch::default();
    let mut room = Room::new(MAX_REPLAY_WRITES);
    let mut reader = AsideReader::new(path, &file).map_err(failed)?;
    loop {
        let found = reader.next().map_err(failed)?;
        let is_full = match &found {
            Some(Found::Entry(entry)) => !room.admit(&entry.write),
            Some(Found::Damaged) => false,
            None => true,
        };
        if is_full && !batch.writes.is_empty() {
            let (refused_now, committed) = batch.commit(connection)?;
            refused.extend(refused_now);
            done.committed += committed;
            room = Room::new(MAX_REPLAY_WRITES);
        }
        match found {
            Some(Found::Entry(entry)) => {
                if is_full {
                    room.admit(&entry.write);
                }
                batch.writes.push(entry.write);
                batch.times.push(entry.set_aside_at);
            }
            Some(Found::Damaged) => damaged += 1,
            None => break,
        }
    }
    done.damaged += damaged;
    done.refused += count(refused.len());
    // Damaged parts stay where they are, and with them their file.
    if damaged == 0 && !kind.is_in_store() {
        aside::replace(path, &refused).map_err(failed)?;
    }
    Ok(())
}

/// Entries that are committed together.
#[derive(Debug, Default)]
struct ReplayBatch {
    writes: Vec<Write>,
    /// When each was set aside.
    times: Vec<Timestamp>,
}

impl ReplayBatch {
    /// Commits them, one by one where that fails; returns those that the store refuses, and the number of
    /// the others.
    fn commit(
        &mut self,
        connection: &mut dyn StoreWriter,
    ) -> Result<(Vec<SetAside<Write>>, u64), LedgerError> {
        let Self { writes, times } = std::mem::take(self);
        let reasons: Vec<Option<String>> = match connection.commit(&writes) {
            Ok(receipts) => receipts.into_iter().map(reason).collect(),
            Err(error) if error.may_concern_the_writes() => {
                let each = writes.iter().map(|write| commit_one(connection, write));
                each.collect::<Result<_, _>>()?
            }
            Err(error) => return Err(error),
        };
        let total = count(writes.len());
        let entries = writes.into_iter().zip(times).zip(reasons);
        let refused: Vec<_> = entries
            .filter_map(|((write, set_aside_at), reason)| {
                Some(SetAside { reason: reason?, set_aside_at, write })
            })
            .collect();
        let committed = total - count(refused.len());
        Ok((refused, committed))
    }
}

/// Commits a write; returns the reason why the store does not take it.
fn commit_one(
    connection: &mut dyn StoreWriter,
    write: &Write,
) -> Result<Option<String>, LedgerError> {
    match connection.commit(std::slice::from_ref(write)) {
        Ok(receipts) => Ok(receipts.into_iter().find_map(reason)),
        Err(error) if error.may_concern_the_writes() => {
            connection.probe()?;
            Ok(Some(error.to_string()))
        }
        Err(error) => Err(error),
    }
}

fn reason(receipt: Result<Receipt, LedgerError>) -> Option<String> {
    receipt.err().map(|error| error.to_string())
}

/// Opens a file to read it; none when it was removed in between.
fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path, &error)),
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

fn spool_error(path: &Path, error: &io::Error) -> LedgerError {
    LedgerError::Spool(at(path, error).to_string())
}

#[cfg(test)]
mod tests;
