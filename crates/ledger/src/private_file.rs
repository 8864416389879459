//! Small files that only their owner may read, replaced as a whole.

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
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
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
    File::open(dir)?.sync_all()
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}
