//! Exchanges with a provider as files, for debugging; off unless a provider has a `dump_dir`.
//!
//! A request only puts bytes into a bounded queue, which a thread per provider writes to the disk: a
//! slow or hanging file system delays no request. What the queue has no room for is left out, and the
//! log says so. What is queued when the process ends is lost.

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use keybridge_identity::token::{contains_token, mask_tokens};
use keybridge_wire::mask::mask;
use tokio::time::Instant;

use crate::{
    config::{DumpConfig, ProviderConfig},
    outgoing::Outgoing,
    query,
};

/// Parts of the names of headers whose values are masked, whatever they are.
const SECRET_NAMES: [&str; 4] = ["auth", "key", "secret", "token"];

/// Longest file; the rest of an exchange is left out.
const MAX_FILE_BYTES: usize = 64 << 20;
/// Most bytes of one provider that wait to be written.
const MAX_QUEUED_BYTES: usize = 128 << 20;
/// Memory of a queued job beside its bytes, about.
const JOB_BYTES: usize = 128;
/// Old files are removed this often, as long as exchanges are written.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

/// Where a provider's exchanges are written.
#[derive(Debug)]
pub struct Dumps {
    queue: Queue,
    next_exchange: AtomicU64,
}

/// The way to the writer; clones lead to the same one.
#[derive(Debug, Clone)]
struct Queue {
    jobs: mpsc::Sender<Job>,
    bytes: Arc<AtomicUsize>,
}

/// What the writer does next.
#[derive(Debug)]
enum Job {
    /// Writes a request and creates the file of its response.
    Request { exchange: u64, id: String, head: String, body: Bytes },
    /// Appends to a response.
    Response { exchange: u64, bytes: Bytes },
    /// Closes the file of a response.
    Close { exchange: u64 },
}

/// The thread that writes the files of one provider.
#[derive(Debug)]
struct Writer {
    provider: String,
    config: DumpConfig,
    jobs: mpsc::Receiver<Job>,
    queued_bytes: Arc<AtomicUsize>,
    /// Responses that are not complete yet.
    responses: HashMap<u64, DumpFile>,
    /// Bytes of requests since old files were removed.
    unpruned_bytes: u64,
    pruned_at: Option<Instant>,
}

/// The files of one exchange: `<id>.request` and `<id>.response`, in an inner loop's further turns
/// `<id>.<turn>.request` and so on.
#[derive(Debug)]
pub struct Dump {
    id: String,
    exchange: u64,
    queue: Queue,
    /// Something was left out, so all that follows is.
    is_incomplete: bool,
}

/// A file of limited length.
#[derive(Debug)]
struct DumpFile {
    file: File,
    path: PathBuf,
    /// Bytes that may still be written.
    left: usize,
}

impl Dumps {
    /// Starts the writer of a provider's exchanges.
    pub fn new(provider: &str, config: DumpConfig) -> Self {
        let dir = config.dir.display();
        tracing::warn!(provider, %dir, "exchanges are dumped, with prompts and answers");
        let (dumps, writer) = Self::with_writer(provider, config);
        let thread = thread::Builder::new().name(format!("dumps-{provider}"));
        if let Err(error) = thread.spawn(move || writer.run()) {
            tracing::error!(provider, %error, "cannot start the thread that writes dumps");
        }
        dumps
    }

    fn with_writer(provider: &str, config: DumpConfig) -> (Self, Writer) {
        let (sender, jobs) = mpsc::channel();
        let bytes = Arc::new(AtomicUsize::new(0));
        let writer = Writer {
            provider: provider.into(),
            config,
            jobs,
            queued_bytes: Arc::clone(&bytes),
            responses: HashMap::new(),
            unpruned_bytes: 0,
            pruned_at: None,
        };
        let queue = Queue { jobs: sender, bytes };
        (Self { queue, next_exchange: AtomicU64::new(0) }, writer)
    }

    /// Queues the request and returns where its response goes; `None` when the queue is full. The headers and
    /// query parameters that the provider's settings add may hold secrets.
    pub fn request(&self, id: &str, outgoing: &Outgoing, config: &ProviderConfig) -> Option<Dump> {
        let Outgoing { method, uri, headers, body, .. } = outgoing;
        let mut head = format!("{method} {}\n", masked_uri(config, uri));
        push_headers(&mut head, headers, &config.set_headers);
        let exchange = self.next_exchange.fetch_add(1, Ordering::Relaxed);
        let body = body.slice(..body.len().min(MAX_FILE_BYTES));
        if !self.queue.push(Job::Request { exchange, id: id.into(), head, body }) {
            tracing::warn!(id, "no dump is written: the disk is slower than the traffic");
            return None;
        }
        let queue = self.queue.clone();
        Some(Dump { id: id.into(), exchange, queue, is_incomplete: false })
    }
}

impl Dump {
    /// Queues the head of the response.
    pub fn response_head(&mut self, status: StatusCode, headers: &HeaderMap) {
        let mut head = format!("{status}\n");
        push_headers(&mut head, headers, &[]);
        self.push(head.into());
    }

    /// Queues a part of the response's body.
    pub fn response_chunk(&mut self, chunk: &Bytes) {
        // A slice would keep the whole read buffer of the connection in memory.
        self.push(Bytes::copy_from_slice(chunk));
    }

    fn push(&mut self, bytes: Bytes) {
        if self.is_incomplete {
            return;
        }
        self.is_incomplete = !self.queue.push(Job::Response { exchange: self.exchange, bytes });
        if self.is_incomplete {
            let id = &self.id;
            tracing::warn!(id, "a dump is truncated: the disk is slower than the traffic");
        }
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        self.queue.push(Job::Close { exchange: self.exchange });
    }
}

impl Queue {
    /// Adds a job if there is room for it; a job without bytes always has room.
    fn push(&self, job: Job) -> bool {
        let size = job.size();
        let grow = |bytes: usize| bytes.checked_add(size).filter(|sum| *sum <= MAX_QUEUED_BYTES);
        if size > 0 && self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).is_err()
        {
            return false;
        }
        self.jobs.send(job).is_ok()
    }
}

impl Job {
    fn size(&self) -> usize {
        match self {
            Self::Request { head, body, .. } => head.len() + body.len() + JOB_BYTES,
            Self::Response { bytes, .. } => bytes.len() + JOB_BYTES,
            Self::Close { .. } => 0,
        }
    }
}

impl Writer {
    /// Writes until the provider and all its exchanges are dropped.
    fn run(mut self) {
        while let Ok(job) = self.jobs.recv() {
            let size = job.size();
            self.write(job);
            self.queued_bytes.fetch_sub(size, Ordering::Relaxed);
        }
    }

    /// A directory or file that cannot be written is logged, and its exchange is left out.
    fn write(&mut self, job: Job) {
        match job {
            Job::Request { exchange, id, head, body } => {
                self.prune_if_due(body.len());
                match self.write_request(&id, &head, &body) {
                    Ok(response) => {
                        self.responses.insert(exchange, response);
                    }
                    Err(error) => {
                        let dir = self.config.dir.display();
                        tracing::warn!(id, %error, %dir, "no dump is written");
                    }
                }
            }
            Job::Response { exchange, bytes } => {
                let Some(response) = self.responses.get_mut(&exchange) else { return };
                if let Err(error) = response.write(&bytes) {
                    let path = response.path.display();
                    tracing::warn!(%error, %path, "a dump is truncated");
                    self.responses.remove(&exchange);
                }
            }
            Job::Close { exchange } => {
                self.responses.remove(&exchange);
            }
        }
    }

    fn write_request(&self, id: &str, head: &str, body: &[u8]) -> io::Result<DumpFile> {
        let dir = &self.config.dir;
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut request = DumpFile::create(dir.join(format!("{id}.request")))?;
        request.write(head.as_bytes())?;
        match str::from_utf8(body) {
            Ok(text) => request.write(mask_tokens(text).as_bytes())?,
            // An encoded body shows nothing.
            Err(_encoded) => request.write(body)?,
        }
        DumpFile::create(dir.join(format!("{id}.response")))
    }

    /// Removes old files from time to time, and logs that exchanges are written.
    fn prune_if_due(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.unpruned_bytes = self.unpruned_bytes.saturating_add(bytes);
        let is_due = self.unpruned_bytes > self.config.max_bytes / 4
            || self.pruned_at.is_none_or(|at| at.elapsed() >= PRUNE_INTERVAL);
        if !is_due {
            return;
        }
        (self.unpruned_bytes, self.pruned_at) = (0, Some(Instant::now()));
        let (provider, dir) = (&self.provider, self.config.dir.display());
        tracing::warn!(provider, %dir, "exchanges are dumped, with prompts and answers");
        match prune(&self.config) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, %dir, "old dumps are not removed");
            }
            _ => {}
        }
    }
}

/// Removes files that are too old, then the oldest ones until the rest is small enough.
fn prune(config: &DumpConfig) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(&config.dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_dump = name
            .to_str()
            .is_some_and(|name| name.ends_with(".request") || name.ends_with(".response"));
        if is_dump && let Ok(metadata) = entry.metadata() {
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

impl DumpFile {
    /// Always creates a new file: an existing one, such as a link to elsewhere, is removed first.
    fn create(path: PathBuf) -> io::Result<Self> {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file, path, left: MAX_FILE_BYTES })
    }

    /// Writes up to the longest length of a file.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let kept = bytes.get(..self.left).unwrap_or(bytes);
        if kept.len() < bytes.len() && self.left > 0 {
            let path = self.path.display();
            tracing::warn!(%path, max_bytes = MAX_FILE_BYTES, "a dump is truncated");
        }
        self.left -= kept.len();
        self.file.write_all(kept)
    }
}

/// A URI without the secrets of its query.
fn masked_uri(config: &ProviderConfig, uri: &Uri) -> String {
    match uri.to_string().split_once('?') {
        Some((before, query)) => format!("{before}?{}", query::masked(&config.set_query, query)),
        None => uri.to_string(),
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
            || *name == header::SET_COOKIE
            || SECRET_NAMES.iter().any(|word| name.as_str().contains(word))
            || secrets.iter().any(|(secret, _)| secret == name)
            || contains_token(value.as_bytes());
        let value = if is_secret { mask(&value_text) } else { value_text.into_owned() };
        text.push_str(&format!("{name}: {value}\n"));
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt, symlink},
        path::Path,
        time::Duration,
    };

    use bytes::Bytes;
    use http::{HeaderMap, Method, StatusCode};

    use super::{DumpFile, Dumps, MAX_QUEUED_BYTES};
    use crate::{
        config::{DumpConfig, ProviderConfig, ProviderType},
        outgoing::Outgoing,
    };

    fn config(dir: &Path) -> DumpConfig {
        DumpConfig { dir: dir.into(), max_bytes: 1 << 30, max_age: Duration::from_secs(3_600) }
    }

    fn provider() -> ProviderConfig {
        let url = http::Uri::from_static("http://localhost");
        ProviderConfig::new(ProviderType::Anthropic, url)
    }

    fn outgoing(body: Bytes) -> Outgoing {
        let uri = "http://localhost/v1/messages".parse().unwrap();
        Outgoing { method: Method::POST, uri, headers: HeaderMap::new(), body, upload: None }
    }

    #[test]
    fn a_disk_that_hangs_delays_no_exchange_and_what_has_no_room_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        // Nothing is written before the writer runs.
        let (dumps, writer) = Dumps::with_writer("anthropic", config(dir.path()));
        let small = outgoing(Bytes::from_static(b"prompt"));
        let provider = provider();
        let mut slow = dumps.request("slow", &small, &provider).unwrap();
        slow.response_head(StatusCode::OK, &HeaderMap::new());
        slow.response_chunk(&Bytes::from_static(b"beginning"));
        slow.response_chunk(&Bytes::from(vec![b'x'; MAX_QUEUED_BYTES]));
        slow.response_chunk(&Bytes::from_static(b"the rest"));
        let large = outgoing(Bytes::from(vec![b'x'; MAX_QUEUED_BYTES / 2 - 1_000]));
        drop(dumps.request("one", &large, &provider).unwrap());
        drop(dumps.request("two", &large, &provider).unwrap());
        assert!(dumps.request("late", &large, &provider).is_none());
        drop((slow, dumps));
        writer.run();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("slow.request"), "POST http://localhost/v1/messages\n\nprompt");
        assert_eq!(read("slow.response"), "200 OK\n\nbeginning", "without a hole");
        assert!(dir.path().join("two.response").exists());
        assert!(!dir.path().join("late.request").exists());
    }

    #[test]
    fn room_is_free_again_when_a_job_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (dumps, writer) = Dumps::with_writer("anthropic", config(dir.path()));
        let large = outgoing(Bytes::from(vec![b'x'; MAX_QUEUED_BYTES / 2 - 1_000]));
        drop(dumps.request("one", &large, &provider()).unwrap());
        let bytes = std::sync::Arc::clone(&dumps.queue.bytes);
        drop(dumps);
        assert!(bytes.load(std::sync::atomic::Ordering::Relaxed) > MAX_QUEUED_BYTES / 2 - 1_000);
        writer.run();
        assert_eq!(bytes.load(std::sync::atomic::Ordering::Relaxed), 0);
    }

    #[test]
    fn an_existing_file_is_replaced_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (elsewhere, path) = (dir.path().join("elsewhere"), dir.path().join("a.request"));
        fs::write(&elsewhere, "kept").unwrap();
        symlink(&elsewhere, &path).unwrap();
        DumpFile::create(path.clone()).unwrap().write(b"new").unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "kept");
        assert!(!path.is_symlink());
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        DumpFile::create(path.clone()).unwrap().write(b"newer").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "newer");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_is_cut_at_its_longest_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.response");
        let mut file = DumpFile::create(path.clone()).unwrap();
        file.left = 5;
        for piece in [b"abc", b"def", b"ghi"] {
            file.write(piece).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "abcde");
    }
}
