//! Upstream exchanges as files, for debugging; off unless a provider has a `dump_dir`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, header};
use keybridge_wire::mask::mask;
use tokio::time::Instant;

use crate::{
    config::DumpConfig,
    headers::{X_API_KEY, carries_token},
    provider::Outgoing,
};

/// Parts of the names of headers whose values are not shown, whatever they are.
const SECRET_NAMES: [&str; 4] = ["auth", "key", "secret", "token"];

/// Longest file; the rest of an exchange is left out.
const LARGEST_FILE: u64 = 64 << 20;
/// How often old files are looked for, at least while exchanges are written.
const PRUNED_EVERY: Duration = Duration::from_secs(60);

/// Where a provider's exchanges are written.
#[derive(Debug)]
pub(crate) struct Dumps {
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
    pub(crate) fn new(provider: &str, config: DumpConfig) -> Self {
        let dir = config.dir.display();
        tracing::warn!(provider, %dir, "exchanges are dumped, with prompts and answers");
        let state = Mutex::new(Written { bytes: 0, pruned_at: None });
        Self { provider: provider.into(), config, state }
    }

    /// Writes the request and makes ready for the response. A directory that cannot be written is
    /// logged and does not stop the request.
    pub(crate) fn request(&self, id: &str, sent: &Sent<'_>) -> Option<Dump> {
        let dir = &self.config.dir;
        self.prune_if_due(sent.outgoing.body.len());
        self.try_request(id, sent)
            .inspect_err(|error| tracing::warn!(%error, dir = %dir.display(), "no dump is written"))
            .ok()
    }

    fn try_request(&self, id: &str, sent: &Sent<'_>) -> io::Result<Dump> {
        let dir = &self.config.dir;
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let create = |name: String| {
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(dir.join(name))
        };
        let mut request = create(format!("{id}.request"))?;
        let Outgoing { method, uri, headers, body } = sent.outgoing;
        let mut head = format!("{method} {uri}\n");
        push_headers(&mut head, headers, sent.set_headers);
        request.write_all(head.as_bytes())?;
        request.write_all(body)?;
        Ok(Dump { response: create(format!("{id}.response"))?, left: LARGEST_FILE })
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
pub(crate) struct Dump {
    response: File,
    /// Bytes that may still be written.
    left: u64,
}

/// A request as it goes to the provider.
#[derive(Debug)]
pub(crate) struct Sent<'a> {
    pub(crate) outgoing: &'a Outgoing,
    /// Headers set by the configuration, which may hold secrets.
    pub(crate) set_headers: &'a [(HeaderName, http::HeaderValue)],
}

impl Dump {
    pub(crate) fn response_head(&mut self, status: StatusCode, headers: &HeaderMap) {
        let mut head = format!("{status}\n");
        push_headers(&mut head, headers, &[]);
        self.write(head.as_bytes());
    }

    pub(crate) fn response_chunk(&mut self, chunk: &Bytes) {
        self.write(chunk);
    }

    fn write(&mut self, bytes: &[u8]) {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if length > self.left {
            self.left = 0;
            return;
        }
        self.left -= length;
        if let Err(error) = self.response.write_all(bytes) {
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
            || carries_token(value.as_bytes());
        let shown = if is_secret { mask(&value_text) } else { value_text.into_owned() };
        text.push_str(&format!("{name}: {shown}\n"));
    }
    text.push('\n');
}
