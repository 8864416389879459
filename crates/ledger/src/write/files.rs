//! The files of a spool's directory: their names, their owners and their permissions.
//!
//! A file is named `<uuid>.<id of its store>.<kind>`; an earlier release left out the store.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use crate::private_file;

/// Extension of the files with what could not be committed.
pub(crate) const SPOOL: &str = "spool";
/// Extension of the files with the openings that a process has not committed yet.
pub(crate) const JOURNAL: &str = "journal";
/// Extension of the files with entries that the store refuses, and why.
pub(crate) const ASIDE: &str = "aside";
/// Extension of files with damaged entries; all others of them are in the store.
pub(crate) const CORRUPT: &str = "corrupt";
pub(crate) const CORRUPT_JOURNAL: &str = "corrupt-journal";
/// Extension of the files in which an earlier release kept what the store refused.
pub(crate) const REJECTED: &str = "rejected";

/// A new name for a file of a kind.
pub(crate) fn new_path(dir: &Path, store: Option<Uuid>, extension: &str) -> PathBuf {
    let id = Uuid::now_v7();
    dir.join(match store {
        Some(store) => format!("{id}.{store}.{extension}"),
        None => format!("{id}.{extension}"),
    })
}

/// The id of the store that a file belongs to, by its name.
pub(crate) fn store_of(path: &Path) -> Option<Uuid> {
    let stem = path.file_stem()?.to_str()?;
    stem.split_once('.')?.1.parse().ok()
}

/// Whether a file belongs to another store than this one.
pub(crate) fn is_foreign(path: &Path, store: Option<Uuid>) -> bool {
    store_of(path).is_some_and(|owner| Some(owner) != store)
}

/// Locks a file, unless another process holds it.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Creates a file of a kind, locked by this process.
pub(crate) fn create(
    dir: &Path,
    store: Option<Uuid>,
    extension: &str,
) -> io::Result<(PathBuf, File)> {
    private_file::create_dir(dir)?;
    let path = new_path(dir, store, extension);
    let file = private_file::options().read(true).append(true).create_new(true).open(&path)?;
    file.try_lock().map_err(io::Error::from)?;
    Ok((path, file))
}

/// Files of a kind in a directory by name, which begins with their time.
pub(crate) fn files(dir: &Path, extension: &str) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(at(dir, &error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
