//! What a serving process holds of its store, from the start or, if the store was away then, from when it
//! is back.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::{SetOnce, watch};
use uuid::Uuid;

use super::{SERVER_SECRET, STORE_ID};
use crate::{
    LedgerError,
    store::{Hold, Store, migrations, settings},
    write::{heartbeat::Heartbeat, indexer::Indexer, sequencer::Sequencer},
};

/// The right of one process to serve from a store; released when dropped.
#[derive(Debug)]
pub struct Claim {
    /// Number of records of dead processes that were marked as interrupted.
    pub interrupted: u64,
    /// Number of writes of dead processes that were replayed from the spool.
    pub replayed: u64,
    pub(super) connection: Arc<Connection>,
}

/// What a process must know of a store to serve while it cannot be reached.
#[derive(Clone, PartialEq, Eq)]
pub struct KnownStore {
    /// Its URL without user and password.
    pub url: String,
    /// Its id.
    pub id: Uuid,
    /// Its secret.
    pub secret: [u8; 32],
}

/// The connection of a serving process to its store.
pub(super) struct Connection {
    pub(super) store: Arc<dyn Store>,
    /// The id of this process among those that serve from the store.
    pub(super) replica: Uuid,
    pub(super) access: Arc<AccessChanges>,
    /// Set if the ledger was opened without its store.
    pub(super) known: Option<KnownStore>,
    held: Mutex<Option<Held>>,
    is_claimed: SetOnce<()>,
}

struct Held {
    _sequencer: Sequencer,
    // Dropped before the hold: it removes this process from the store.
    _heartbeat: Heartbeat,
    _indexer: Indexer,
    _hold: Hold,
}

/// Announced changes of users or tokens.
#[derive(Debug)]
pub(super) struct AccessChanges {
    /// Their number, which each request reads.
    number: AtomicU64,
    sender: watch::Sender<()>,
}

impl Connection {
    pub(super) fn new(store: &Arc<dyn Store>, known: Option<KnownStore>) -> Arc<Self> {
        let access = AccessChanges { number: AtomicU64::new(0), sender: watch::Sender::new(()) };
        Arc::new(Self {
            store: Arc::clone(store),
            replica: Uuid::now_v7(),
            access: Arc::new(access),
            known,
            held: Mutex::default(),
            is_claimed: SetOnce::new(),
        })
    }

    /// Serves from the store from now on: writes heartbeats and gives positions in the trail until the claim is
    /// dropped.
    pub(super) fn hold(&self, hold: Hold) -> Result<(), LedgerError> {
        let heartbeat = Heartbeat::start(Arc::clone(&self.store), self.replica)?;
        let sequencer = Sequencer::start(Arc::clone(&self.store))?;
        let indexer = Indexer::start(Arc::clone(&self.store))?;
        *self.held() = Some(Held {
            _sequencer: sequencer,
            _heartbeat: heartbeat,
            _indexer: indexer,
            _hold: hold,
        });
        let _first = self.is_claimed.set(());
        Ok(())
    }

    /// Notes the changes of users and tokens that any process announces.
    pub(super) fn listen_for_changes(&self) {
        let access = Arc::clone(&self.access);
        self.store.on_access_change(Box::new(move || access.note()));
    }

    /// Waits until the store is claimed.
    pub(super) async fn claimed(&self) {
        self.is_claimed.wait().await;
    }

    /// What is done before the first commit when the store is back after a start without it. Each step can
    /// be repeated. The heartbeat marks what dead processes left open, once their settlements are replayed.
    pub(super) fn reconnect(&self, known: &KnownStore) -> Result<(), LedgerError> {
        let store = &*self.store;
        // Nothing is created in a store that may be another one.
        let has = |key, value: &[u8]| {
            settings::stored(store, key).map(|stored| stored.as_deref() == Some(value))
        };
        if migrations::is_new(&store.pending()?)
            || !has(STORE_ID, known.id.as_bytes())?
            || !has(SERVER_SECRET, &known.secret)?
        {
            return Err(LedgerError::OtherStore { url: known.url.clone() });
        }
        for name in store.migrate()? {
            tracing::info!(name, "migration applied");
        }
        let hold = store.claim(self.replica)?;
        store.maintain()?;
        self.hold(hold)?;
        self.listen_for_changes();
        tracing::info!("the store is back; it was away since the start of this process");
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AccessChanges {
    pub(super) fn note(&self) {
        self.number.fetch_add(1, Ordering::Release);
        self.sender.send_replace(());
    }

    pub(super) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.sender.subscribe()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        drop(self.connection.held().take());
    }
}

impl fmt::Debug for KnownStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, id, secret: _ } = self;
        f.debug_struct("KnownStore").field("url", url).field("id", id).finish_non_exhaustive()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("replica", &self.replica).finish_non_exhaustive()
    }
}
