//! The files of a store: their names and permissions. They hold prompts and hashes of tokens.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions, Permissions},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

/// Only the owner reads and writes.
pub(super) const PRIVATE: u32 = 0o600;
/// The permissions of users who are neither the owner nor in the file's group.
const OTHERS: u32 = 0o007;
/// What SQLite and the lock add to the name of the file.
const SUFFIXES: [&str; 5] = ["", "-wal", "-shm", "-journal", "-lock"];

/// The path of a file beside another one.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// The absolute path of a file without symbolic links, which need not exist yet.
pub(super) fn resolve(path: &Path) -> PathBuf {
    if let Ok(resolved) = fs::canonicalize(path) {
        return resolved;
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (fs::canonicalize(dir), path.file_name()) {
        (Ok(dir), Some(name)) => dir.join(name),
        _ => path.to_owned(),
    }
}

/// Creates a store's file where there is none, so that only its owner can read it, whatever the umask.
/// SQLite gives the files beside it the same permissions. An existing file is not opened: closing it
/// again would release the locks of other connections of this process.
pub(super) fn create_private(path: &Path) {
    let created = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path);
    // SQLite, which opens it next, reports why a file cannot be created.
    drop(created);
}

/// Takes the permissions of everyone away from the files of a store. Permissions of a group alone were
/// set on purpose and stay.
pub(super) fn make_private(path: &Path) {
    let path = resolve(path);
    for file in SUFFIXES.map(|suffix| beside(&path, suffix)) {
        let Ok(metadata) = fs::metadata(&file) else { continue };
        let mode = metadata.permissions().mode();
        if mode & OTHERS == 0 {
            continue;
        }
        let shown = format!("{:04o}", mode & 0o7777);
        match fs::set_permissions(&file, Permissions::from_mode(PRIVATE)) {
            Ok(()) => tracing::warn!(path = %file.display(), mode = shown,
                "every user of this machine had access to a file of the store; now only its owner has"),
            Err(error) => tracing::error!(%error, path = %file.display(), mode = shown,
                "every user of this machine has access to a file of the store"),
        }
    }
}
