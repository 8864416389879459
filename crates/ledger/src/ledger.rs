//! The handle to a store: reads, the recorder, and the database for the statements of other crates.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout},
};
use uuid::Uuid;

use crate::{
    Comparison, Condition, InterceptionDetail, InterceptionFilter, InterceptionItem, LedgerError,
    OutagePolicy, Page, ProviderLogEntry, RecordedRun, Recorder, Recount, RetentionCheck,
    RetentionPolicy, Session, SessionFilter, SpoolConfig, SpoolReplay, StoreCheck, TrailEntry,
    read::{
        continuations::ContinuationStore,
        objects::ObjectStore,
        reader::{self, Reader, Readers},
        verify,
    },
    remembered, retention,
    store::{
        COMMIT_TIMEOUT, Dead, IndexStep, Store, migrations,
        postgres::{PostgresStore, Server, without_password},
        read_limit::ReadOptions,
        retention_run::{self, RetentionRun},
        rollups::{
            self,
            rebuild::{self, Rebuilt},
            unsummed,
        },
        settings,
        sql::{Database, Flavour},
        sqlite::{self, SqliteStore},
        trail,
    },
    write::{
        journal::Journal,
        outage::{Outage, Reconnection},
        queue::Queue,
        reap, replay,
        spool::Spool,
        spool_files, writer,
    },
};

mod connection;

use self::connection::Connection;
pub use self::connection::{Claim, KnownStore};

/// Interceptions deleted in one transaction: few, so that the writer waits at most milliseconds.
const RETENTION_STEP: u32 = 50;
/// Maximum pause between two such transactions.
const MAX_RETENTION_PAUSE: Duration = Duration::from_millis(100);
/// How long a read waits for queued records to be committed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a start waits for the replay of what dead processes left in the spool.
const START_REPLAY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a commit may take for which no request waits.
const PATIENT_COMMIT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a health check waits for the store.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
const SERVER_SECRET: &str = "server_secret";
const STORE_ID: &str = "store_id";

/// Which failure a record must survive before its request is sent to a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// A crash of the machine: the record is committed to the store, or synced to the spool.
    Disk,
    /// A crash of the process: the record is written, but not synced, to the journal in the spool's
    /// directory. It is committed milliseconds later, and lost if the machine crashes in between.
    /// Without a spool, the same as `Disk`.
    Process,
}

/// Options of opening a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerOptions {
    /// What happens to new requests while the store is down.
    pub on_outage: OutagePolicy,
    /// Where records wait while the store is down; `None`: in memory, and new ones are refused.
    pub spool: Option<SpoolConfig>,
    /// Which failure a record must survive before its request is sent to a provider.
    pub durability: Durability,
    /// Limits of reads.
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

/// Whether a ledger accepts records, and where they go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Readiness {
    /// `ready`, or `degraded` while records go to the spool.
    pub status: &'static str,
    /// Number of writes in the spool.
    pub spooled_records: u64,
}

/// A store of records; clones share it. All calls except the recorder's and `async` ones block.
#[derive(Clone)]
pub struct Ledger {
    store: Arc<dyn Store>,
    recorder: Recorder,
    outage: Arc<Outage>,
    readers: Arc<Readers>,
    /// Admits one health check at a time to the store.
    health_check: Arc<Semaphore>,
    /// Shared with the claim, and with the replayer if the store was away at the opening.
    connection: Arc<Connection>,
    threads: Arc<Mutex<Option<WorkerThreads>>>,
}

/// The writing threads, and the queue to the writer.
struct WorkerThreads {
    queue: Queue,
    writer: JoinHandle<()>,
    replayer: JoinHandle<()>,
}

/// A parsed URL of a store.
enum StoreUrl<'a> {
    Sqlite(&'a Path),
    Postgres(Box<Server>),
}

impl<'a> StoreUrl<'a> {
    fn parse(url: &'a str) -> Result<Self, LedgerError> {
        let invalid = |reason: &str| LedgerError::Url {
            url: without_password(url),
            reason: reason.to_owned(),
        };
        match url.split_once("://") {
            Some(("sqlite", "")) => Err(invalid("the path of a file is missing")),
            Some(("sqlite", path)) => Ok(Self::Sqlite(path.as_ref())),
            Some(("postgres" | "postgresql", _)) => {
                let server = Server::parse(url).map_err(|reason| invalid(&reason))?;
                Ok(Self::Postgres(Box::new(server)))
            }
            Some(_) | None => {
                Err(invalid("use sqlite://<path> or postgres://<user>@<host>/<database>"))
            }
        }
    }

    /// The store; it is not connected to before its first use.
    fn store(self, reads: &ReadOptions) -> Result<Arc<dyn Store>, LedgerError> {
        Ok(match self {
            Self::Sqlite(path) => Arc::new(SqliteStore::new(path)),
            Self::Postgres(server) => Arc::new(PostgresStore::new(*server, reads)?),
        })
    }
}

impl Ledger {
    /// Opens a store with the default options; creates it and applies migrations where needed.
    ///
    /// # Errors
    ///
    /// When the URL is invalid or the store cannot be used.
    pub fn open(url: &str) -> Result<Self, LedgerError> {
        Self::open_with(url, &LedgerOptions::default())
    }

    /// Opens an existing store for a command that runs beside a serving process: nothing is created and
    /// no migration is applied.
    ///
    /// # Errors
    ///
    /// [`LedgerError::NoStore`] when there is none, [`LedgerError::OutOfDate`] when it lacks
    /// migrations; when the URL is invalid or the store cannot be used.
    pub fn open_existing(url: &str, options: &LedgerOptions) -> Result<Self, LedgerError> {
        let store = StoreUrl::parse(url)?.store(&options.reads)?;
        let pending = store.pending()?;
        if migrations::is_new(&pending) {
            return Err(LedgerError::NoStore { url: without_password(url) });
        }
        if !pending.is_empty() {
            return Err(LedgerError::OutOfDate { url: without_password(url), pending });
        }
        Self::with_store(store, options, None, None)
    }

    /// Opens a store as [`Self::open_existing`] does; creates it when there is none, unless one is
    /// remembered in its place in a directory. Says whether it was created.
    ///
    /// # Errors
    ///
    /// Those of [`Self::open_existing`], the first of them when one is remembered.
    pub fn open_or_create(
        url: &str,
        options: &LedgerOptions,
        remembered_in: Option<&Path>,
    ) -> Result<(Self, bool), LedgerError> {
        let store = StoreUrl::parse(url)?.store(&options.reads)?;
        let is_new = migrations::is_new(&store.pending()?);
        if is_new && !remembered_in.is_some_and(|dir| remembered::is_known(&*store, dir)) {
            store.migrate()?;
        }
        drop(store);
        Ok((Self::open_existing(url, options)?, is_new))
    }

    /// Opens a store for a serving process; creates it and applies migrations where needed.
    ///
    /// # Errors
    ///
    /// When the URL is invalid, or the store or the spool cannot be used; [`LedgerError::Unreachable`]
    /// when it does not answer.
    pub fn open_with(url: &str, options: &LedgerOptions) -> Result<Self, LedgerError> {
        let store = StoreUrl::parse(url)?.store(&options.reads)?;
        for name in store.migrate()? {
            tracing::info!(name, "migration applied");
        }
        let store_id = options.spool.is_some().then(|| store_id(&*store)).transpose()?;
        Self::with_store(store, options, store_id, None)
    }

    /// Opens a store that cannot be reached, for the reason in `error`: the ledger begins with an outage.
    /// When the store is back, and is the known one, its migrations are applied and it is claimed before
    /// anything is written to it.
    ///
    /// # Errors
    ///
    /// When the URL is invalid or the spool cannot be used.
    pub fn open_unreachable(
        url: &str,
        options: &LedgerOptions,
        known: KnownStore,
        error: &LedgerError,
    ) -> Result<Self, LedgerError> {
        let store = StoreUrl::parse(url)?.store(&options.reads)?;
        let store_id = Some(known.id);
        Self::with_store(store, options, store_id, Some((known, error)))
    }

    /// The URL of a store as it is shown: without user and password.
    pub fn shown_url(url: &str) -> String {
        without_password(url)
    }

    /// Checks the URL of a store without connecting to a server.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Url`] when it is invalid, [`LedgerError::Open`] when its root certificates cannot
    /// be read, [`LedgerError::ReadOnly`] when its file cannot be written.
    pub fn check_url(url: &str) -> Result<(), LedgerError> {
        match StoreUrl::parse(url)? {
            StoreUrl::Sqlite(path) => sqlite::check_writable(path),
            StoreUrl::Postgres(server) => server.tls().map(|_tls| ()),
        }
    }

    /// The names of the migrations that a store lacks; nothing is changed.
    ///
    /// # Errors
    ///
    /// When the URL is invalid or the store cannot be read.
    pub fn pending_migrations(url: &str) -> Result<Vec<&'static str>, LedgerError> {
        StoreUrl::parse(url)?.store(&ReadOptions::default())?.pending()
    }

    /// Applies the migrations that a store lacks and returns their names. Concurrent calls wait for
    /// each other.
    ///
    /// # Errors
    ///
    /// When the URL is invalid or the store cannot be changed.
    pub fn migrate(url: &str) -> Result<Vec<&'static str>, LedgerError> {
        StoreUrl::parse(url)?.store(&ReadOptions::default())?.migrate()
    }

    /// A ledger over a store; its files beside the store carry the store's id.
    fn with_store(
        store: Arc<dyn Store>,
        options: &LedgerOptions,
        store_id: Option<Uuid>,
        away: Option<(KnownStore, &LedgerError)>,
    ) -> Result<Self, LedgerError> {
        let spool = options.spool.clone().map(|config| Spool::new(config, store_id));
        let journal = options.spool.as_ref().filter(|_| options.durability == Durability::Process);
        let journal = journal.map(|spool| Journal::new(&spool.dir, store_id));
        let needs_spool = options.on_outage == OutagePolicy::Spool || journal.is_some();
        if let Some(spool) = spool.as_ref().filter(|_| needs_spool) {
            spool.prepare().map_err(|error| LedgerError::Spool(error.to_string()))?;
        }
        let outage = Arc::new(Outage::new(options.on_outage, spool));
        let connection = Connection::new(&store, away.as_ref().map(|(known, _)| known.clone()));
        if let Some((known, error)) = away {
            let connection = Arc::clone(&connection);
            let reconnection = Reconnection::new(move || connection.reconnect(&known));
            outage.begin_unconnected(error, reconnection);
        }
        let (queue, writer) = writer::start(store.writer(COMMIT_TIMEOUT)?, &outage)?;
        let replayer = replay::start(&outage, store.writer(COMMIT_TIMEOUT)?)?;
        let recorder = Recorder::new(connection.replica, queue.clone(), journal);
        let threads = Arc::new(Mutex::new(Some(WorkerThreads { queue, writer, replayer })));
        let reads = &options.reads;
        let max_reads = store.concurrent_reads(reads.max_concurrent);
        let readers = Arc::new(Readers::new(max_reads, reads.timeout, reads.walk));
        let health_check = Arc::new(Semaphore::new(1));
        Ok(Self { store, recorder, outage, readers, health_check, connection, threads })
    }

    /// Claims the right to serve from the store: replays the spool files of dead processes, marks their
    /// open records as interrupted, and starts the heartbeat of this process. What cannot be replayed soon
    /// is replayed in the background. If the ledger was opened without its store, all this is done when the
    /// store is back.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Claimed`] when another process serves from a store that supports only one.
    pub fn claim(&self) -> Result<Claim, LedgerError> {
        let connection = Arc::clone(&self.connection);
        if self.was_opened_away() {
            let replayed = self.outage.adopt(Duration::ZERO);
            return Ok(Claim { interrupted: 0, replayed, connection });
        }
        let hold = self.store.claim(connection.replica)?;
        connection.listen_for_changes();
        let replayed = self.outage.adopt(START_REPLAY_TIMEOUT);
        let interrupted = reap::reap(&*self.store, connection.replica, Dead::Ended)?;
        self.store.maintain()?;
        connection.hold(hold)?;
        Ok(Claim { interrupted, replayed, connection })
    }

    /// What a later start needs to know of this store while it cannot be reached.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn known_store(&self, url: &str) -> Result<KnownStore, LedgerError> {
        let (id, secret) = (self.store_id()?, self.server_secret()?);
        Ok(KnownStore { url: without_password(url), id, secret })
    }

    /// Whether the ledger was opened without its store.
    pub fn was_opened_away(&self) -> bool {
        self.connection.known.is_some()
    }

    /// Waits until this process has claimed its store, which it has not after a start without it.
    pub async fn claimed(&self) {
        self.connection.claimed().await;
    }

    /// Returns to the store what was set aside and what dead processes left in a spool's directory, and
    /// keeps what the store still refuses; blocks. The files of the store `of` count as those of this one.
    ///
    /// # Errors
    ///
    /// When the store or a file fails; what was returned before stays in the store.
    pub fn replay_spool(&self, dir: &Path, of: Option<Uuid>) -> Result<SpoolReplay, LedgerError> {
        // Where a bridge waits for the same lock, a commit must not take longer than usual.
        let is_shared = self.store.flavour() == Flavour::Sqlite
            && self.store.alive_condition()? == sqlite::IS_SERVED;
        let limit = if is_shared { COMMIT_TIMEOUT } else { PATIENT_COMMIT_TIMEOUT };
        let mut connection = self.store.writer(limit)?;
        let stores = [Some(self.store_id()?), of];
        // The connection blocks, which the thread of a runtime must not.
        let replayed = thread::scope(|scope| {
            let replay = || {
                let mut replayed = None;
                connection.write(&mut |store| {
                    replayed = Some(spool_files::replay(dir, &stores, store));
                });
                replayed
            };
            scope.spawn(replay).join()
        });
        let panicked = || Err(LedgerError::Spool("the replay panicked".into()));
        replayed.ok().flatten().unwrap_or_else(panicked)
    }

    /// The id of this process among those that serve from the store.
    pub fn replica(&self) -> Uuid {
        self.connection.replica
    }

    /// Whether the ledger accepts records; answers within [`HEALTH_TIMEOUT`].
    ///
    /// # Errors
    ///
    /// The reason why it does not.
    pub async fn ready(&self) -> Result<Readiness, LedgerError> {
        let status = match self.recorder.condition() {
            Condition::Refusing(reason) => return Err(LedgerError::Refusing(reason)),
            Condition::Spooling => "degraded",
            Condition::Storing => {
                match timeout(HEALTH_TIMEOUT, self.ping()).await {
                    Ok(result) => result?,
                    Err(_elapsed) => return Err(LedgerError::no_answer(HEALTH_TIMEOUT)),
                }
                "ready"
            }
        };
        Ok(Readiness { status, spooled_records: self.outage.spooled() })
    }

    /// Queries the store on a blocking thread, through the connection for health checks.
    async fn ping(&self) -> Result<(), LedgerError> {
        let failed = |error: String| LedgerError::Database(error);
        let permit = Arc::clone(&self.health_check).acquire_owned().await;
        let permit = permit.map_err(|error| failed(error.to_string()))?;
        let store = Arc::clone(&self.store);
        let pinged = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            settings::ping(store.health())
        });
        pinged.await.map_err(|error| failed(error.to_string()))?
    }

    /// Whether new records are accepted while the store is down.
    pub fn spools(&self) -> bool {
        self.outage.spools()
    }

    /// Registers the ledger's metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.outage.metrics.register(registry);
    }

    /// The database, for the statements of crates that have their own tables in it.
    pub fn database(&self) -> &dyn Database {
        &*self.store
    }

    /// The database, for statements that a model request waits for: no other statement delays them.
    pub fn authentication(&self) -> &dyn Database {
        self.store.authentication()
    }

    /// A number that increases with every announced change of users or tokens: by this process or, in
    /// PostgreSQL, by any process.
    pub fn access_version(&self) -> u64 {
        self.connection.access.number()
    }

    /// Receives each announced change of users or tokens.
    pub fn access_changes(&self) -> watch::Receiver<()> {
        self.connection.access.subscribe()
    }

    /// Announces to all processes that a user or a token has changed.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn announce_access_change(&self) -> Result<(), LedgerError> {
        self.connection.access.note();
        self.store.announce_access_change()
    }

    /// Counts the records in the store, and the inconsistencies among them.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn recount(&self) -> Result<Recount, LedgerError> {
        verify::recount(&*self.store, &self.store.alive_condition()?)
    }

    /// Compares a provider's log of its responses with the records.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn compare(&self, log: &[ProviderLogEntry]) -> Result<Comparison, LedgerError> {
        verify::compare(&*self.store, log)
    }

    /// The random secret of this store, generated once.
    ///
    /// # Errors
    ///
    /// When the store fails or no random bytes are available.
    pub fn server_secret(&self) -> Result<[u8; 32], LedgerError> {
        if let Some(known) = &self.connection.known {
            return Ok(known.secret);
        }
        let mut initial = [0; 32];
        SystemRandom::new().fill(&mut initial).map_err(|_unspecified| {
            LedgerError::Database("no random bytes are available".into())
        })?;
        let stored = settings::setting(&*self.store, SERVER_SECRET, &initial)?;
        <[u8; 32]>::try_from(stored)
            .map_err(|stored| LedgerError::Row(format!("the secret has {} bytes", stored.len())))
    }

    /// The random id of this store, generated once. It tells a store from an emptied or exchanged one, and
    /// the files of one store's spool from those of another.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn store_id(&self) -> Result<Uuid, LedgerError> {
        match &self.connection.known {
            Some(known) => Ok(known.id),
            None => store_id(&*self.store),
        }
    }

    /// The id of this store, if it has one: a release that gave stores no id may have created it.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn known_store_id(&self) -> Result<Option<Uuid>, LedgerError> {
        settings::stored(&*self.store, STORE_ID)?.map(|stored| parse_store_id(&stored)).transpose()
    }

    /// Runs a read, which sees all records that this process queued before the call. It waits for a
    /// free reader, has a time limit, and is cancelled when the future is dropped.
    ///
    /// # Errors
    ///
    /// Those of the read; [`LedgerError::ReadersBusy`] when no reader becomes free in time,
    /// [`LedgerError::ReadTimeout`] when it takes too long, and [`LedgerError::Closing`] after
    /// [`Self::cancel_reads`].
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Reader<'_>) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let slot = self.readers.admit().await?;
        // While the store accepts no writes, the committed records can still be read.
        let _drained = timeout(DRAIN_TIMEOUT, self.recorder.drained()).await;
        let (limit, walk) = (self.readers.limit(), self.readers.walk());
        reader::run(Arc::clone(&self.store), limit, walk, slot, read).await
    }

    /// Cancels the running and waiting reads, and refuses later ones.
    pub fn cancel_reads(&self) {
        self.readers.close();
    }

    /// A reader for the caller's thread, with the same time limit. It is not cancelled.
    fn reader(&self) -> Reader<'_> {
        Reader::new(&*self.store, self.readers.time_limit(), self.readers.walk())
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

    /// One interception with its child rows; blocks.
    ///
    /// # Errors
    ///
    /// When the store fails or the limit of the read is reached.
    pub fn interception(&self, id: Uuid) -> Result<Option<InterceptionDetail>, LedgerError> {
        self.reader().interception(id)
    }

    /// Brings the indexes of searches up to date, which a claim does in the background; blocks. Searches find
    /// what is not indexed too, but take longer.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn complete_search_index(&self) -> Result<(), LedgerError> {
        while self.store.index_step()? != IndexStep::Complete {}
        Ok(())
    }

    /// A page of the trail: the entries after a position, in order; blocks. Each record that has ended is in the
    /// trail once as [`TrailKind::Settled`](crate::TrailKind::Settled), after all that a reader who remembers
    /// the last position has read.
    ///
    /// # Errors
    ///
    /// When the store fails or the limit of the read is reached.
    pub fn trail(&self, after: u64, limit: u32) -> Result<Page<TrailEntry>, LedgerError> {
        self.reader().trail(after, limit)
    }

    /// The last position of the trail; 0 while it is empty. Blocks.
    ///
    /// # Errors
    ///
    /// When the store fails or the limit of the read is reached.
    pub fn trail_head(&self) -> Result<u64, LedgerError> {
        self.reader().trail_head()
    }

    /// A position after which are the entries of all requests that started at or after a time; blocks. It looks
    /// through the trail from its beginning.
    ///
    /// # Errors
    ///
    /// When the store fails or the limit of the read is reached.
    pub fn trail_position_before(&self, since: Timestamp) -> Result<u64, LedgerError> {
        self.reader().trail_position_before(since)
    }

    /// Does a step of what the sequencer of a serving process does: appends at most `limit` records of an earlier
    /// release to the trail, and gives positions to at most `limit` entries that wait for one. Returns the
    /// sum of both numbers, 0 when nothing waits; blocks. Several processes may do this concurrently.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn order_trail(&self, limit: u32) -> Result<u64, LedgerError> {
        let appended = trail::append_earlier(&*self.store, limit)?;
        Ok(appended + trail::sequence(&*self.store, limit)?)
    }

    /// The values that [`crate::Entry::keep`] stored.
    pub fn continuations(&self) -> ContinuationStore {
        ContinuationStore::new(Arc::clone(&self.store))
    }

    /// The makers of the objects that providers store.
    pub fn objects(&self) -> ObjectStore {
        ObjectStore::new(Arc::clone(&self.store), self.recorder())
    }

    /// A page of sessions, latest activity first; blocks.
    ///
    /// # Errors
    ///
    /// When the store fails, the cursor is not valid, or the limit of the read is reached.
    pub fn sessions(&self, filter: &SessionFilter) -> Result<Page<Session>, LedgerError> {
        self.reader().sessions(filter)
    }

    /// Deletes the interceptions that started before a time, with their child rows; those in progress
    /// are kept. What is removed is recorded in the table `retention_runs`.
    ///
    /// Blocks until all are deleted, in small transactions. After each it pauses for as long as the
    /// transaction took, so that the writer gets its share of the store.
    ///
    /// # Errors
    ///
    /// When the store fails; what was deleted before stays deleted.
    pub fn apply_retention(&self, older_than: Timestamp) -> Result<u64, LedgerError> {
        let mut run = RetentionRun::new(older_than, self.connection.replica);
        let removed = self.remove(&mut run);
        self.outage.metrics.retention_removed.inc_by(run.removed.interceptions());
        removed.map(|()| run.removed.interceptions())
    }

    fn remove(&self, run: &mut RetentionRun) -> Result<(), LedgerError> {
        // Sums outlive the records.
        self.sum_all_records(RETENTION_STEP, &mut |_summed, _took| {})?;
        self.store.drop_before(run)?;
        loop {
            let started = Instant::now();
            let deleted = self.store.delete_before(run, RETENTION_STEP)?;
            if deleted < u64::from(RETENTION_STEP) {
                return Ok(());
            }
            thread::sleep(started.elapsed().min(MAX_RETENTION_PAUSE));
        }
    }

    /// What retention would remove now, and whether the clock can be trusted for it; changes nothing.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn check_retention(
        &self,
        policy: &RetentionPolicy,
        now: Timestamp,
    ) -> Result<RetentionCheck, LedgerError> {
        retention::check(&*self.store, policy, now)
    }

    /// Writes the time down, so that the next check need not doubt what lies before it.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn trust_clock(&self, now: Timestamp) -> Result<(), LedgerError> {
        retention::trust(&*self.store, now)
    }

    /// Checks the clock and writes the time down, if it can be trusted; returns what retention removes.
    ///
    /// # Errors
    ///
    /// [`LedgerError::ImplausibleClock`] when it cannot be trusted; when the store fails.
    pub fn witness_clock(
        &self,
        policy: &RetentionPolicy,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, LedgerError> {
        let RetentionCheck { cutoff, refusal, .. } = self.check_retention(policy, now)?;
        self.outage.metrics.retention_refused.set(i64::from(refusal.is_some()));
        if let Some(refusal) = refusal {
            return Err(LedgerError::ImplausibleClock(refusal));
        }
        self.trust_clock(now)?;
        Ok(cutoff)
    }

    /// The runs of retention that removed something, oldest first.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn retention_runs(&self) -> Result<Vec<RecordedRun>, LedgerError> {
        retention_run::recorded(&*self.store)
    }

    /// Compares the store with what this machine remembers of it in a directory.
    ///
    /// # Errors
    ///
    /// When the store fails or the file cannot be read.
    pub fn check_store(&self, dir: &Path) -> Result<StoreCheck, LedgerError> {
        remembered::check(&*self.store, dir)
    }

    /// Writes down in a directory which store this is and how far its records go, for
    /// [`Self::check_store`]. A store that was exchanged or emptied meanwhile is not remembered in its
    /// place.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Replaced`] when it was; when the store fails or the file cannot be written.
    pub fn remember_store(&self, dir: &Path) -> Result<StoreCheck, LedgerError> {
        remembered::remember(&*self.store, dir)
    }

    /// Sums the next records that an earlier release wrote, at most `limit`, newest first, and returns their
    /// number; blocks. Several processes may do this concurrently.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn sum_records(&self, limit: u32) -> Result<u64, LedgerError> {
        let shard = rollups::shard(self.store.flavour(), self.connection.replica);
        let mut summed = 0;
        self.store.transaction(&mut |transaction| {
            rollups::lock(transaction, rollups::Lock::Shared)?;
            summed = unsummed::sum_next(transaction, limit, shard)?;
            Ok(())
        })?;
        Ok(summed)
    }

    /// Sums all records that an earlier release wrote, in transactions of at most `limit`, and returns their
    /// number; blocks. `progress` is called after each transaction with the number so far and how long it took.
    ///
    /// # Errors
    ///
    /// When the store fails; what was summed before stays.
    pub fn sum_all_records(
        &self,
        limit: u32,
        progress: &mut dyn FnMut(u64, Duration),
    ) -> Result<u64, LedgerError> {
        let mut summed = 0;
        loop {
            let started = Instant::now();
            let step = self.sum_records(limit)?;
            if step == 0 {
                return Ok(summed);
            }
            summed += step;
            progress(summed, started.elapsed());
        }
    }

    /// The number of records that are not summed yet.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn records_to_sum(&self) -> Result<u64, LedgerError> {
        unsummed::count(&*self.store)
    }

    /// Sums anew what has records at or after `since`, in small transactions; blocks. What retention has
    /// removed records of stays as it is. `progress` is called after each transaction.
    ///
    /// # Errors
    ///
    /// When the store fails; what was summed before stays.
    pub fn rebuild_rollups(
        &self,
        since: Option<Timestamp>,
        progress: &mut dyn FnMut(&Rebuilt),
    ) -> Result<Rebuilt, LedgerError> {
        rebuild::rebuild(&*self.store, since, progress)
    }

    /// The recorder of this ledger.
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Cancels reads, commits the queued writes and stops the threads; later records are lost. Writes
    /// in the spool stay there for the next start.
    pub fn close(&self) {
        self.cancel_reads();
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(WorkerThreads { queue, writer, replayer }) = threads else { return };
        queue.stop();
        let writer = writer.join();
        self.recorder.close();
        self.outage.stop();
        if writer.is_err() || replayer.join().is_err() {
            tracing::error!("a ledger thread panicked");
        }
        let records = self.outage.spooled();
        if records > 0 {
            tracing::warn!(records, "records remain in the spool; the next start replays them");
        }
    }
}

pub(crate) fn store_id(database: &dyn Database) -> Result<Uuid, LedgerError> {
    parse_store_id(&settings::setting(database, STORE_ID, Uuid::now_v7().as_bytes())?)
}

/// The id of a store, if a serving process has given it one.
pub(crate) fn known_store_id(database: &dyn Database) -> Result<Option<Uuid>, LedgerError> {
    settings::stored(database, STORE_ID)?.map(|stored| parse_store_id(&stored)).transpose()
}

fn parse_store_id(stored: &[u8]) -> Result<Uuid, LedgerError> {
    Uuid::from_slice(stored).map_err(|error| LedgerError::Row(format!("the store's id: {error}")))
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").finish_non_exhaustive()
    }
}
