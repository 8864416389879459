//! A store behind one handle: reading, the recorder, and the statements of other crates.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use uuid::Uuid;

use crate::{
    Comparison, Condition, HandedOut, InterceptionDetail, InterceptionFilter, InterceptionItem,
    LedgerError, OutagePolicy, Page, Recorder, Recount, Session, SessionFilter, SpoolConfig,
    read::{
        continuations::ContinuationStore,
        reader::{self, Reader, Readers},
        verify,
    },
    store::{
        Dead, Hold, Store, migrations,
        postgres::{PostgresStore, Server, without_password},
        read_limit::ReadOptions,
        settings,
        sql::Database,
        sqlite::SqliteStore,
    },
    write::{
        heartbeat::Heartbeat,
        journal::Journal,
        outage::{self, Outage},
        queue::Queue,
        spool::Spool,
        writer,
    },
};

/// Interceptions deleted in one transaction, so that a writer waits milliseconds at most.
const RETENTION_STEP: u32 = 50;
/// Longest pause between two of them.
const MAX_RETENTION_PAUSE: Duration = Duration::from_millis(100);
/// Longest that a read waits for records that are about to be committed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest that a health check waits for the store.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
const SERVER_SECRET: &str = "server_secret";

/// The right of one process to serve from a store; given back when dropped.
#[derive(Debug)]
pub struct Claim {
    /// How many records of dead processes were marked as interrupted.
    pub interrupted: u64,
    /// How many writes of dead processes were taken from the spool.
    pub replayed: u64,
    // Before the hold: it tells the store that this process ends.
    _heartbeat: Heartbeat,
    _hold: Hold,
}

/// What a record must outlive before its request goes to a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The machine: it is committed to the store, or synced to the spool.
    Disk,
    /// The process: the operating system has it, in the journal of the spool's directory. It is
    /// committed milliseconds later, and lost if the machine stops in between. Without a spool it is as
    /// `Disk`.
    Process,
}

/// How a ledger is opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerOptions {
    /// What happens to new requests while the store is down.
    pub on_outage: OutagePolicy,
    /// Where records wait meanwhile; `None`: in memory, and new ones are refused.
    pub spool: Option<SpoolConfig>,
    /// What a record must outlive before its request goes to a provider.
    pub durability: Durability,
    /// How reads of the records are limited.
    pub reads: ReadOptions,
}

impl Default for LedgerOptions {
    fn default() -> Self {
        Self {
            on_outage: OutagePolicy::Refuse,
            spool: None,
            durability: Durability::Disk,
            reads: ReadOptions::default(),
        }
    }
}

/// Whether and how a ledger takes records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// `ready`, or `degraded` while records go to the spool.
    pub status: &'static str,
    /// Writes that wait in the spool.
    pub spooled_records: u64,
}

/// A store of records; clones share it. All calls but the recorder's block.
#[derive(Clone)]
pub struct Ledger {
    store: Arc<dyn Store>,
    recorder: Recorder,
    outage: Arc<Outage>,
    readers: Arc<Readers>,
    /// Only one health check at a time reaches the store.
    health_check: Arc<Semaphore>,
    /// This process among those that serve from the store.
    replica: Uuid,
    /// How often users or tokens have changed.
    access: Arc<AtomicU64>,
    threads: Arc<Mutex<Option<Running>>>,
}

/// The threads that write, and the way to the first of them.
struct Running {
    queue: Queue,
    writer: JoinHandle<()>,
    replayer: JoinHandle<()>,
}

/// An address of a store that was understood.
enum Address<'a> {
    Sqlite(&'a Path),
    Postgres(Box<Server>),
}

impl<'a> Address<'a> {
    fn parse(url: &'a str) -> Result<Self, LedgerError> {
        let wrong = |reason: &str| LedgerError::Url {
            url: without_password(url),
            reason: reason.to_owned(),
        };
        match url.split_once("://") {
            Some(("sqlite", "")) => Err(wrong("the path of a file is missing")),
            Some(("sqlite", path)) => Ok(Self::Sqlite(path.as_ref())),
            Some(("postgres" | "postgresql", _)) => {
                let server = Server::parse(url).map_err(|reason| wrong(&reason))?;
                Ok(Self::Postgres(Box::new(server)))
            }
            Some(_) | None => {
                Err(wrong("use sqlite://<path> or postgres://<user>@<host>/<database>"))
            }
        }
    }

    /// The store, which is not reached before it is used.
    fn store(self, reads: &ReadOptions) -> Result<Arc<dyn Store>, LedgerError> {
        Ok(match self {
            Self::Sqlite(path) => Arc::new(SqliteStore::new(path)),
            Self::Postgres(server) => Arc::new(PostgresStore::new(*server, reads)?),
        })
    }
}

impl Ledger {
    /// Opens a store, making it and bringing its schema up to date where needed.
    ///
    /// # Errors
    ///
    /// When the address is not understood or the store cannot be used.
    pub fn open(url: &str) -> Result<Self, LedgerError> {
        Self::open_with(url, &LedgerOptions::default())
    }

    /// Opens a store that exists, as a command beside a serving process does: nothing is created and
    /// no migration is applied.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NoStore`] when there is none, [`LedgerError::OutOfDate`] when it lacks
    /// migrations; when the address is not understood or the store cannot be used.
    pub fn open_existing(url: &str, options: &LedgerOptions) -> Result<Self, LedgerError> {
        let store = Address::parse(url)?.store(&options.reads)?;
        let pending = store.pending()?;
        if migrations::is_new(&pending) {
            return Err(LedgerError::NoStore { url: without_password(url) });
        }
        if !pending.is_empty() {
            return Err(LedgerError::OutOfDate { url: without_password(url), pending });
        }
        Self::with_store(store, options)
    }

    /// Opens a store as a process that serves does.
    ///
    /// # Errors
    ///
    /// When the address is not understood, or the store or the spool cannot be used.
    pub fn open_with(url: &str, options: &LedgerOptions) -> Result<Self, LedgerError> {
        let store = Address::parse(url)?.store(&options.reads)?;
        for name in store.migrate()? {
            tracing::info!(name, "the store was migrated");
        }
        Self::with_store(store, options)
    }

    /// Whether an address is understood; nothing is reached.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Url`] when it is not, [`LedgerError::Open`] when the authorities that it names
    /// cannot be read.
    pub fn check_url(url: &str) -> Result<(), LedgerError> {
        match Address::parse(url)? {
            Address::Sqlite(_) => Ok(()),
            Address::Postgres(server) => server.tls().map(|_tls| ()),
        }
    }

    /// The migrations that a store lacks, by name; nothing is changed.
    ///
    /// # Errors
    ///
    /// When the address is not understood or the store cannot be read.
    pub fn pending_migrations(url: &str) -> Result<Vec<&'static str>, LedgerError> {
        Address::parse(url)?.store(&ReadOptions::default())?.pending()
    }

    /// Brings the schema of a store up to date and gives the names of what it lacked. Whoever does
    /// it at the same time waits.
    ///
    /// # Errors
    ///
    /// When the address is not understood or the store cannot be changed.
    pub fn migrate(url: &str) -> Result<Vec<&'static str>, LedgerError> {
        Address::parse(url)?.store(&ReadOptions::default())?.migrate()
    }

    fn with_store(store: Arc<dyn Store>, options: &LedgerOptions) -> Result<Self, LedgerError> {
        let spool = options.spool.clone().map(Spool::new);
        let journal = options.spool.as_ref().filter(|_| options.durability == Durability::Process);
        let journal = journal.map(|spool| Journal::new(&spool.dir));
        let needs_spool = options.on_outage == OutagePolicy::Spool || journal.is_some();
        if let Some(spool) = spool.as_ref().filter(|_| needs_spool) {
            spool.prepare().map_err(|error| LedgerError::Spool(error.to_string()))?;
        }
        let replica = Uuid::now_v7();
        let outage = Arc::new(Outage::new(options.on_outage, spool));
        let (queue, writer) = writer::start(store.writer()?, &outage)?;
        let replayer = outage::start(&outage, store.writer()?)?;
        let recorder = Recorder::new(replica, queue.clone(), journal);
        let access = Arc::new(AtomicU64::new(0));
        let threads = Arc::new(Mutex::new(Some(Running { queue, writer, replayer })));
        let reads = &options.reads;
        let max_reads = store.concurrent_reads(reads.max_concurrent);
        let readers = Arc::new(Readers::new(max_reads, reads.timeout));
        let health_check = Arc::new(Semaphore::new(1));
        Ok(Self { store, recorder, outage, readers, health_check, replica, access, threads })
    }

    /// Takes the right to serve from the store: writes what dead processes left in the spool, marks
    /// as interrupted what they left open, and says from now on that this process lives.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Claimed`] while another process serves from a store that only one can serve
    /// from.
    pub fn claim(&self) -> Result<Claim, LedgerError> {
        let hold = self.store.claim(self.replica)?;
        let changed = Arc::clone(&self.access);
        self.store.on_access_change(Box::new(move || {
            changed.fetch_add(1, Ordering::Release);
        }));
        let replayed = self.outage.adopt(&mut *self.store.writer()?)?;
        let interrupted = self.store.reap(self.replica, Dead::Ended)?;
        self.store.maintain()?;
        let heartbeat = Heartbeat::start(Arc::clone(&self.store), self.replica)?;
        Ok(Claim { interrupted, replayed, _heartbeat: heartbeat, _hold: hold })
    }

    /// Whether the ledger takes records; known within [`HEALTH_TIMEOUT`].
    ///
    /// # Errors
    ///
    /// Why not.
    pub async fn ready(&self) -> Result<Readiness, LedgerError> {
        let status = match self.recorder.condition() {
            Condition::Refusing(reason) => return Err(LedgerError::Refusing(reason)),
            Condition::Spooling => "degraded",
            Condition::Storing => {
                match timeout(HEALTH_TIMEOUT, self.ping()).await {
                    Ok(answer) => answer?,
                    Err(_elapsed) => return Err(LedgerError::no_answer(HEALTH_TIMEOUT)),
                }
                "ready"
            }
        };
        Ok(Readiness { status, spooled_records: self.outage.spooled() })
    }

    /// Reaches the store from a thread that may block, on a connection for this alone.
    async fn ping(&self) -> Result<(), LedgerError> {
        let failed = |error: String| LedgerError::Database(error);
        let turn = Arc::clone(&self.health_check).acquire_owned().await;
        let turn = turn.map_err(|error| failed(error.to_string()))?;
        let store = Arc::clone(&self.store);
        let pinged = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            settings::ping(store.health())
        });
        pinged.await.map_err(|error| failed(error.to_string()))?
    }

    /// Whether new records are taken while the store is down.
    pub fn spools(&self) -> bool {
        self.outage.spools()
    }

    /// Registers the ledger's metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.outage.metrics.register(registry);
    }

    /// The database, for the statements of crates that keep tables of their own in it.
    pub fn database(&self) -> &dyn Database {
        &*self.store
    }

    /// The database, for what a model request waits for: no other statement delays these.
    pub fn authentication(&self) -> &dyn Database {
        self.store.authentication()
    }

    /// A number that changes with every change of users or tokens that was announced: by this
    /// process or, in PostgreSQL, by any.
    pub fn access_version(&self) -> u64 {
        self.access.load(Ordering::Acquire)
    }

    /// Announces to all processes that a user or a token was changed.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn announce_access_change(&self) -> Result<(), LedgerError> {
        self.access.fetch_add(1, Ordering::Release);
        self.store.announce_access_change()
    }

    /// Counts what is in the store.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn recount(&self) -> Result<Recount, LedgerError> {
        verify::recount(&*self.store, &self.store.alive()?)
    }

    /// Compares what a provider says it handed out with what is recorded.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn compare(&self, handed_out: &[HandedOut]) -> Result<Comparison, LedgerError> {
        verify::compare(&*self.store, handed_out)
    }

    /// The random secret of this store, made once.
    ///
    /// # Errors
    ///
    /// When the store fails or there is no randomness.
    pub fn server_secret(&self) -> Result<[u8; 32], LedgerError> {
        let mut initial = [0; 32];
        SystemRandom::new()
            .fill(&mut initial)
            .map_err(|_unspecified| LedgerError::Database("no random bytes".into()))?;
        let stored = settings::setting(&*self.store, SERVER_SECRET, &initial)?;
        <[u8; 32]>::try_from(stored)
            .map_err(|stored| LedgerError::Row(format!("a secret of {} bytes", stored.len())))
    }

    /// Runs a read of the records with all that this process had of them when it was called. It waits
    /// for its turn, has a time limit, and is cancelled when the future is dropped.
    ///
    /// # Errors
    ///
    /// Those of the read, [`LedgerError::ReadersBusy`] and [`LedgerError::ReadTimeout`] at its limits, and
    /// [`LedgerError::Closing`] once reads are cancelled.
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader<'_>) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let slot = self.readers.admit().await?;
        // While the store is down what is there can be read all the same.
        let _drained = timeout(DRAIN_TIMEOUT, self.recorder.drained()).await;
        reader::run(Arc::clone(&self.store), self.readers.limit(), slot, read).await
    }

    /// Cancels the reads that run or wait, and refuses later ones.
    pub fn cancel_reads(&self) {
        self.readers.close();
    }

    /// A read on the thread of the caller, with the same time limit. It is not cancelled.
    fn reader(&self) -> Reader<'_> {
        Reader::new(&*self.store, self.readers.time_limit())
    }

    /// A page of interceptions, newest first; blocks.
    ///
    /// # Errors
    ///
    /// When the store fails, the cursor is not valid, or the limit of the read is reached.
    pub fn interceptions(
        &self,
        filter: &InterceptionFilter,
    ) -> Result<Page<InterceptionItem>, LedgerError> {
        self.reader().interceptions(filter)
    }

    /// One interception with all that belongs to it; blocks.
    ///
    /// # Errors
    ///
    /// When the store fails or the limit of the read is reached.
    pub fn interception(&self, id: Uuid) -> Result<Option<InterceptionDetail>, LedgerError> {
        self.reader().interception(id)
    }

    /// Finds what [`crate::Entry::keep`] kept.
    pub fn continuations(&self) -> ContinuationStore {
        ContinuationStore::new(Arc::clone(&self.store))
    }

    /// A page of sessions, latest activity first; blocks.
    ///
    /// # Errors
    ///
    /// When the store fails, the cursor is not valid, or the limit of the read is reached.
    pub fn sessions(&self, filter: &SessionFilter) -> Result<Page<Session>, LedgerError> {
        self.reader().sessions(filter)
    }

    /// Deletes the interceptions that began before a time, with all that belongs to them; those in
    /// progress stay.
    ///
    /// Blocks for as long as it takes, in small transactions. After each, the store is left to the
    /// writer for as long as it took.
    ///
    /// # Errors
    ///
    /// When the store fails; what was deleted until then stays deleted.
    pub fn apply_retention(&self, older_than: Timestamp) -> Result<u64, LedgerError> {
        let mut total = self.store.drop_before(older_than)?;
        loop {
            let started = Instant::now();
            let deleted = self.store.delete_before(older_than, RETENTION_STEP)?;
            total += deleted;
            if deleted < u64::from(RETENTION_STEP) {
                return Ok(total);
            }
            thread::sleep(started.elapsed().min(MAX_RETENTION_PAUSE));
        }
    }

    /// The recorder of this ledger.
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Cancels reads, writes what waits and ends the threads; later records are lost. What waits in the
    /// spool stays there for the next start.
    pub fn close(&self) {
        self.cancel_reads();
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { queue, writer, replayer }) = threads else { return };
        queue.stop();
        let writer = writer.join();
        self.recorder.close();
        self.outage.stop();
        if writer.is_err() || replayer.join().is_err() {
            tracing::error!("a thread of the ledger panicked");
        }
        let records = self.outage.spooled();
        if records > 0 {
            tracing::warn!(records, "records wait in the spool; the next start writes them");
        }
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}
