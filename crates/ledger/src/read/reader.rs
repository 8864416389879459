//! Reads of the records. They are limited in number and time, run on their own threads with a low
//! priority, and are cancelled when their caller has left, so that they cannot delay a model request.

use std::{fmt, sync::Arc, thread, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    InterceptionDetail, InterceptionFilter, InterceptionItem, LedgerError, Page, ProviderLatency,
    Session, SessionFilter, TrailEntry, Usage, UsageFilter,
    read::{export, interceptions, latencies, lists, sessions, trail, usage},
    store::{
        self, Store,
        read_limit::{ReadLimit, WalkBudget},
        sql::Database,
    },
};

/// The nice value that is added for reading threads: while the data path is busy, a reader gets a tenth
/// of a core, otherwise all of it.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// Admits reads until it is closed.
#[derive(Debug)]
pub(crate) struct Readers {
    slots: Arc<Semaphore>,
    timeout: Duration,
    walk: WalkBudget,
    cancellation: CancellationToken,
}

impl Readers {
    pub(crate) fn new(max_concurrent: usize, timeout: Duration, walk: WalkBudget) -> Self {
        let slots = Arc::new(Semaphore::new(max_concurrent));
        Self { slots, timeout, walk, cancellation: CancellationToken::new() }
    }

    /// How far a list without an index goes back.
    pub(crate) const fn walk(&self) -> WalkBudget {
        self.walk
    }

    /// Waits for a free reader.
    pub(crate) async fn admit(&self) -> Result<OwnedSemaphorePermit, LedgerError> {
        match timeout(self.timeout, Arc::clone(&self.slots).acquire_owned()).await {
            Ok(Ok(slot)) => Ok(slot),
            Ok(Err(_closed)) => Err(LedgerError::Closing),
            Err(_elapsed) => Err(LedgerError::ReadersBusy(self.timeout)),
        }
    }

    /// The limit of a read that starts now and is cancelled when the ledger closes.
    pub(crate) fn limit(&self) -> ReadLimit {
        ReadLimit::new(self.timeout, self.cancellation.child_token())
    }

    /// The limit of a read that starts now and is not cancelled.
    pub(crate) fn time_limit(&self) -> ReadLimit {
        ReadLimit::new(self.timeout, CancellationToken::new())
    }

    /// Cancels all reads and admits no more.
    pub(crate) fn close(&self) {
        self.slots.close();
        self.cancellation.cancel();
    }
}

/// Runs a read on its own thread, which holds the slot until it ends. It is cancelled when this future
/// is dropped.
pub(crate) async fn run<T: Send + 'static>(
    store: Arc<dyn Store>,
    limit: ReadLimit,
    walk: WalkBudget,
    slot: OwnedSemaphorePermit,
    read: impl FnOnce(&Reader<'_>) -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, LedgerError> {
    let _cancellation = limit.cancel_on_drop();
    let (sender, result) = oneshot::channel();
    // Not a blocking thread of the async runtime, which would wait for it at shutdown.
    thread::Builder::new()
        .name("ledger-reader".into())
        .spawn(move || {
            lower_priority();
            let result = read(&Reader::new(&*store, limit, walk));
            drop(slot);
            // The caller may have left.
            let _sent = sender.send(result);
        })
        .map_err(|error| {
            LedgerError::Database(format!("cannot start a reading thread: {error}"))
        })?;
    result.await.map_err(|_dropped| LedgerError::Database("the reading thread panicked".into()))?
}

/// Lowers the priority of this thread. Only on Linux: elsewhere it is that of the whole process.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(NICENESS) {
        tracing::debug!(%error, "cannot lower the priority of a reading thread");
    }
}

/// One read of the records; its statements share one time limit. Calls block.
pub struct Reader<'a> {
    database: Box<dyn Database + 'a>,
    walk: WalkBudget,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(store: &'a dyn Store, limit: ReadLimit, walk: WalkBudget) -> Self {
        Self { database: store.reader(limit), walk }
    }

    /// A page of interceptions, newest first. Where no index serves the filter, it may have fewer rows than
    /// there are, and says how far it has searched.
    ///
    /// # Errors
    ///
    /// When the store fails, the cursor or `q` is not valid, or the limit of the read is reached.
    pub fn interceptions(
        &self,
        filter: &InterceptionFilter,
    ) -> Result<Page<InterceptionItem>, LedgerError> {
        interceptions::interceptions(&*self.database, filter, self.walk)
    }

    /// One interception with its child rows.
    ///
    /// # Errors
    ///
    /// When the store fails or the limit of the read is reached.
    pub fn interception(&self, id: Uuid) -> Result<Option<InterceptionDetail>, LedgerError> {
        lists::interception(&*self.database, id)
    }

    /// Requests and tokens summed over a period.
    ///
    /// # Errors
    ///
    /// [`LedgerError::TooManyGroups`]; when the store fails or the limit of the read is reached.
    pub fn usage(&self, filter: &UsageFilter) -> Result<Usage, LedgerError> {
        usage::usage(&*self.database, filter)
    }

    /// A page of interceptions with their child rows, oldest first, after the one with the id `after`. The
    /// page is bounded in rows and in bytes; [`InterceptionFilter::cursor`] is ignored.
    ///
    /// # Errors
    ///
    /// When the store fails or the limit of the read is reached.
    pub fn export_page(
        &self,
        filter: &InterceptionFilter,
        after: Option<Uuid>,
    ) -> Result<Page<InterceptionDetail>, LedgerError> {
        export::page(&*self.database, filter, after)
    }

    /// How long providers took to the first byte of their answers, in the half hours from one time to another.
    ///
    /// # Errors
    ///
    /// When the store fails or the limit of the read is reached.
    pub fn first_byte_latencies(
        &self,
        since: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<ProviderLatency>, LedgerError> {
        latencies::first_bytes(&*self.database, since, until)
    }

    /// Sessions with a request at or after `since` and at least so many requests, the largest first.
    ///
    /// # Errors
    ///
    /// When the store fails or the limit of the read is reached.
    pub fn large_sessions(
        &self,
        user_id: Option<Uuid>,
        since: Timestamp,
        requests: u64,
    ) -> Result<Vec<Session>, LedgerError> {
        sessions::large(&*self.database, user_id, since, requests)
    }

    /// A page of sessions, latest activity first.
    ///
    /// # Errors
    ///
    /// When the store fails, the cursor is not valid, or the limit of the read is reached.
    pub fn sessions(&self, filter: &SessionFilter) -> Result<Page<Session>, LedgerError> {
        sessions::sessions(&*self.database, filter, self.walk)
    }
}

impl Reader<'_> {
    /// A page of the trail: the entries after a position, in order. The next page begins after the position of
    /// the last entry.
    ///
    /// # Errors
    ///
    /// When the store fails or the limit of the read is reached.
    pub fn trail(&self, after: u64, limit: u32) -> Result<Page<TrailEntry>, LedgerError> {
        trail::entries(&*self.database, after, limit)
    }

    /// The last position of the trail; 0 while it is empty.
    ///
    /// # Errors
    ///
    /// When the store fails or the limit of the read is reached.
    pub fn trail_head(&self) -> Result<u64, LedgerError> {
        store::trail::head(&*self.database)
    }

    /// A position after which are the entries of all requests that started at or after a time. It looks through
    /// the trail from its beginning.
    ///
    /// # Errors
    ///
    /// When the store fails or the limit of the read is reached.
    pub fn trail_position_before(&self, since: Timestamp) -> Result<u64, LedgerError> {
        trail::position_before(&*self.database, since)
    }
}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}
