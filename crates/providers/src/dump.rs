//! Upstream exchanges as files, for debugging; off unless a provider has a `dump_dir`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, header};
use keybridge_identity::token::contains_token;
use keybridge_wire::mask::mask;
use tokio::time::Instant;

use crate::{config::DumpConfig, credential::X_API_KEY, provider::Outgoing};

/// Parts of the names of headers whose values are not shown, whatever they are.
const SECRET_NAMES: [&str; 4] = ["auth", "key", "secret", "token"];

/// Longest file; the rest of an exchange is left out.
const LARGEST_FILE: usize = 64 << 20;
/// How often old files are looked for, at least while exchanges are written.
const PRUNED_EVERY: Duration = Duration::from_secs(60);

/// Where a provider's exchanges are written.
#[derive(Debug)]
pub struct Dumps {
    provider: String,
    config: DumpConfig,
    state: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    /// Bytes of requests since old files were looked for.
    bytes: u64,
    pruned_at: Option<Instant>,
}

impl Dumps {
    pub fn new(provider: &str, config: DumpConfig) -> Self {
        let dir = config.dir.display();
        tracing::warn!(provider, %dir, "exchanges are dumped, with prompts and answers");
        let state = Mutex::new(Written { bytes: 0, pruned_at: None });
        Self { provider: provider.into(), config, state }
    }

    /// Writes the request and makes ready for the response. A directory that cannot be written is
    /// logged and does not stop the request.
    pub fn request(&self, id: &str, sent: &Sent<'_>) -> Option<Dump> {
        let dir = &self.config.dir;
        self.prune_if_due(sent.outgoing.body.len());
        self.try_request(id, sent)
            .inspect_err(|error| tracing::warn!(%error, dir = %dir.display(), "no dump is written"))
            .ok()
    }

    fn try_request(&self, id: &str, sent: &Sent<'_>) -> io::Result<Dump> {
        let dir = &self.config.dir;
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut request = Bounded::create(&dir.join(format!("{id}.request")))?;
        let Outgoing { method, uri, headers, body } = sent.outgoing;
        let mut head = format!("{method} {uri}\n");
        push_headers(&mut head, headers, sent.set_headers);
        request.write(head.as_bytes())?;
        request.write(body)?;
        Ok(Dump { response: Bounded::create(&dir.join(format!("{id}.response")))? })
    }

    /// Removes old files in the background, and says that exchanges are written.
    fn prune_if_due(&self, bytes: usize) {
        let mut written = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        written.bytes = written.bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        let is_due = written.bytes > self.config.max_bytes / 4
            || written.pruned_at.is_none_or(|at| at.elapsed() >= PRUNED_EVERY);
        if !is_due {
            return;
        }
        (written.bytes, written.pruned_at) = (0, Some(Instant::now()));
        let config = self.config.clone();
        let dir = config.dir.display();
        tracing::warn!(provider = self.provider, %dir, "exchanges are dumped, with prompts and answers");
        let pruning = tokio::task::spawn_blocking(move || {
            if let Err(error) = prune(&config) {
                tracing::warn!(%error, dir = %config.dir.display(), "old dumps are not removed");
            }
        });
        drop(pruning);
    }
}

/// Removes files that are too old, then the oldest ones until the rest is small enough.
fn prune(config: &DumpConfig) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(&config.dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours = name
            .to_str()
            .is_some_and(|name| name.ends_with(".request") || name.ends_with(".response"));
        if is_ours && let Ok(metadata) = entry.metadata() {
            files.push((metadata.modified()?, metadata.len(), entry.path()));
        }
    }
    files.sort();
    let mut size: u64 = files.iter().map(|(_, size, _)| size).sum();
    for (modified, bytes, path) in files {
        let is_old = modified.elapsed().is_ok_and(|age| age > config.max_age);
        if is_old || size > config.max_bytes {
            fs::remove_file(path)?;
            size = size.saturating_sub(bytes);
        }
    }
    Ok(())
}

/// The files of one exchange: `<id>.request` and `<id>.response`, in an inner loop's further turns
/// `<id>.<turn>.request` and so on.
#[derive(Debug)]
pub struct Dump {
    response: Bounded,
}

/// A file of limited length.
#[derive(Debug)]
struct Bounded {
    file: File,
    /// Bytes that may still be written.
    left: usize,
}

impl Bounded {
    /// Always a new file: what is there, such as a link to elsewhere, is removed first.
    fn create(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self { file, left: LARGEST_FILE })
    }

    /// Writes what has room.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let bytes = bytes.get(..self.left).unwrap_or(bytes);
        self.left -= bytes.len();
        self.file.write_all(bytes)
    }
}

/// A request as it goes to the provider.
#[derive(Debug)]
pub struct Sent<'a> {
    pub outgoing: &'a Outgoing,
    /// Headers set by the configuration, which may hold secrets.
    pub set_headers: &'a [(HeaderName, http::HeaderValue)],
}

impl Dump {
    pub fn response_head(&mut self, status: StatusCode, headers: &HeaderMap) {
        let mut head = format!("{status}\n");
        push_headers(&mut head, headers, &[]);
        self.write(head.as_bytes());
    }

    pub fn response_chunk(&mut self, chunk: &Bytes) {
        self.write(chunk);
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Err(error) = self.response.write(bytes) {
            tracing::warn!(%error, "a dump is incomplete");
        }
    }
}

fn push_headers(
    text: &mut String,
    headers: &HeaderMap,
    secrets: &[(HeaderName, http::HeaderValue)],
) {
    for (name, value) in headers {
        let value_text = String::from_utf8_lossy(value.as_bytes());
        let is_secret = value.is_sensitive()
            || *name == header::AUTHORIZATION
            || *name == X_API_KEY
            || *name == header::SET_COOKIE
            || SECRET_NAMES.iter().any(|word| name.as_str().contains(word))
            || secrets.iter().any(|(secret, _)| secret == name)
            || contains_token(value.as_bytes());
        let shown = if is_secret { mask(&value_text) } else { value_text.into_owned() };
        text.push_str(&format!("{name}: {shown}\n"));
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::Bounded;

    #[test]
    fn what_is_there_is_replaced_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (elsewhere, path) = (dir.path().join("elsewhere"), dir.path().join("a.request"));
        fs::write(&elsewhere, "kept").unwrap();
        symlink(&elsewhere, &path).unwrap();
        Bounded::create(&path).unwrap().write(b"new").unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "kept");
        assert!(!path.is_symlink());
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        Bounded::create(&path).unwrap().write(b"newer").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "newer");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_has_no_room_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.response");
        let mut file = Bounded::create(&path).unwrap();
        file.left = 5;
        for piece in [b"abc", b"def", b"ghi"] {
            file.write(piece).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "abcde");
    }
}
