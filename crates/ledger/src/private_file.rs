//! Files that only their owner may read.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    process,
};

/// Writes a file with mode 0600, in a directory that is created with mode 0700 if it is missing. A reader,
/// or a start after a crash, finds the old content or the new, whole.
///
/// # Errors
///
/// When it cannot be written; the old file, if any, is then unchanged.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_dir(dir)?;
    let mut name = OsString::from(path.file_name().unwrap_or_default());
    name.push(format!(".{}.new", process::id()));
    let new = dir.join(name);
    // Left by a crash of a process with this id.
    let _left = fs::remove_file(&new);
    let replaced = write_new(&new, content).and_then(|()| fs::rename(&new, path));
    if replaced.is_err() {
        let _left = fs::remove_file(&new);
    }
    replaced?;
    sync_dir(dir)
}

/// Options for files that only their owner reads.
pub(crate) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Creates a directory that only its owner reads.
pub(crate) fn create_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Makes the names in a directory as durable as what is in its files.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = options().write(true).create_new(true).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}
