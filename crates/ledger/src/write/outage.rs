//! What happens while the store is down: who is let in, and what waits where. How it comes back is in
//! `replay.rs`.

use std::{
    fmt, io,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{LedgerError, write::aside::Refused, write::metrics::Metrics, write::spool::Spool};

/// How often the spool files of dead processes are looked for.
const ADOPTION_INTERVAL: Duration = Duration::from_secs(30);

/// What happens to new requests while the store is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutagePolicy {
    /// They are refused; open requests continue, and their settlements wait in the spool.
    Refuse,
    /// They are recorded in the spool.
    Spool,
}

/// Whether the ledger takes records, and where they go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Records are committed to the store.
    Storing,
    /// Records go to the spool: the store is down, or does not take one of them.
    Spooling,
    /// New records are refused, for this reason.
    Refusing(String),
}

/// What the writer, the replayer and the recorder know of the store.
#[derive(Debug)]
pub(crate) struct Outage {
    policy: OutagePolicy,
    /// Without a spool, what cannot be committed waits in memory.
    spool: Option<Mutex<Spool>>,
    is_down: AtomicBool,
    /// While it is down: whether the store can be reached, and only some of the writes cannot be
    /// committed. All of them take the way over the spool until these are found.
    is_detour: AtomicBool,
    /// What the store said when it failed.
    reason: Mutex<String>,
    /// Why the spool takes no new records, as of its last change.
    full: Mutex<Option<String>>,
    /// Set while not even the spool can be written.
    is_stuck: AtomicBool,
    control: Mutex<Control>,
    wake: Condvar,
    /// What comes before the first commit, after a start without the store.
    reconnection: Mutex<Option<Reconnection>>,
    pub(crate) metrics: Metrics,
}

/// What the replayer is asked to do.
#[derive(Debug)]
struct Control {
    is_stopping: bool,
    adoption: Adoption,
    /// When files were adopted last, and how many writes they had.
    adopted_at: Instant,
    adopted: u64,
}

/// The adoption of the files of dead processes that a start waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Adoption {
    Idle,
    Requested,
    Running,
}

/// What the replayer does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Look for the files of dead processes.
    Adopt,
    /// Commit what waits.
    Replay,
    Stop,
}

/// What is done once when the store can be reached, before anything is written to it.
pub(crate) struct Reconnection(Box<dyn FnMut() -> Result<(), LedgerError> + Send>);

impl Reconnection {
    pub(crate) fn new(connect: impl FnMut() -> Result<(), LedgerError> + Send + 'static) -> Self {
        Self(Box::new(connect))
    }
}

impl fmt::Debug for Reconnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reconnection")
    }
}

impl Outage {
    pub(crate) fn new(policy: OutagePolicy, spool: Option<Spool>) -> Self {
        Self {
            policy,
            spool: spool.map(Mutex::new),
            is_down: AtomicBool::new(false),
            is_detour: AtomicBool::new(false),
            reason: Mutex::default(),
            full: Mutex::default(),
            is_stuck: AtomicBool::new(false),
            control: Mutex::new(Control {
                is_stopping: false,
                adoption: Adoption::Idle,
                adopted_at: Instant::now(),
                adopted: 0,
            }),
            wake: Condvar::new(),
            reconnection: Mutex::default(),
            metrics: Metrics::default(),
        }
    }

    pub(crate) fn spool(&self) -> Option<MutexGuard<'_, Spool>> {
        self.spool.as_ref().map(lock)
    }

    pub(crate) const fn has_spool(&self) -> bool {
        self.spool.is_some()
    }

    /// Whether new records are taken while the store is down.
    pub(crate) fn spools(&self) -> bool {
        self.policy == OutagePolicy::Spool && self.has_spool() && lock(&self.full).is_none()
    }

    pub(crate) fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Acquire)
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.is_stuck.load(Ordering::Acquire)
    }

    pub(crate) fn set_stuck(&self, is_stuck: bool) {
        self.is_stuck.store(is_stuck, Ordering::Release);
    }

    /// Starts an outage after the store failed: from now on only the replayer commits.
    pub(crate) fn begin(&self, error: &LedgerError) {
        self.set_reason(error);
        let was_detour = self.is_detour.swap(false, Ordering::AcqRel);
        if !self.is_down.swap(true, Ordering::AcqRel) || was_detour {
            tracing::error!(%error, policy = ?self.policy, "the store is down");
            self.metrics.outage.set(1);
        }
        self.wake();
    }

    /// Sends all writes over the spool, although the store can be reached: it does not take some of them,
    /// and requests do not wait until the replayer has found these.
    pub(crate) fn begin_detour(&self, reason: &str) {
        let was_detour = self.is_detour.swap(true, Ordering::AcqRel);
        if !self.is_down.swap(true, Ordering::AcqRel) || !was_detour {
            tracing::warn!(reason, "records go to the store by way of the spool for a while");
            self.metrics.outage.set(0);
        }
        self.wake();
    }

    pub(crate) fn is_detour(&self) -> bool {
        self.is_detour.load(Ordering::Acquire)
    }

    /// Notes why the store is down. What does not end by itself must be seen by someone.
    pub(crate) fn set_reason(&self, error: &LedgerError) {
        let reason = error.to_string();
        let mut known = lock(&self.reason);
        let is_lasting =
            matches!(error, LedgerError::OtherStore { .. } | LedgerError::Newer { .. });
        if is_lasting && *known != reason {
            tracing::error!(%error, "records stay in the spool");
        }
        *known = reason;
    }

    fn wake(&self) {
        let _control = lock(&self.control);
        self.wake.notify_all();
    }

    /// Starts with an outage; the store is used only after the reconnection.
    pub(crate) fn begin_unconnected(&self, error: &LedgerError, reconnection: Reconnection) {
        *lock(&self.reconnection) = Some(reconnection);
        self.begin(error);
    }

    /// Reconnects after a start without the store, if that is still to be done.
    pub(crate) fn reconnect(&self) -> Result<(), LedgerError> {
        let mut reconnection = lock(&self.reconnection);
        if let Some(Reconnection(connect)) = reconnection.as_mut() {
            connect()?;
            *reconnection = None;
        }
        Ok(())
    }

    /// The store is back and nothing waits; called with the spool locked.
    pub(crate) fn end(&self) {
        self.is_detour.store(false, Ordering::Release);
        if self.is_down.swap(false, Ordering::AcqRel) {
            tracing::info!("the store is back, and all waiting records are committed");
            self.metrics.outage.set(0);
        }
    }

    /// Whether the ledger takes records, and where they go. Never waits for a disk.
    pub(crate) fn condition(&self) -> Condition {
        if self.is_stuck() {
            return Condition::Refusing("neither the store nor the spool can be written".into());
        }
        if !self.is_down() {
            return Condition::Storing;
        }
        let full = lock(&self.full).clone();
        let accepts = self.policy == OutagePolicy::Spool || self.is_detour();
        match full {
            None if accepts && self.has_spool() => Condition::Spooling,
            Some(full) if accepts => Condition::Refusing(full),
            None | Some(_) => Condition::Refusing(lock(&self.reason).clone()),
        }
    }

    /// Tells the replayer to end.
    pub(crate) fn stop(&self) {
        lock(&self.control).is_stopping = true;
        self.wake.notify_all();
    }

    /// Waits for the end, or for the time to pass.
    pub(crate) fn pause(&self, time: Duration) {
        let control = lock(&self.control);
        drop(self.wake.wait_timeout_while(control, time, |control| !control.is_stopping));
    }

    /// Lets the replayer adopt what dead processes left in the spool, and waits until it is committed, or
    /// does not get on, or the time has passed; the rest is replayed in the background. Returns the
    /// number of the writes that were replayed.
    pub(crate) fn adopt(&self, limit: Duration) -> u64 {
        let mut control = lock(&self.control);
        control.adoption = Adoption::Requested;
        self.wake.notify_all();
        let waits =
            |control: &mut Control| control.adoption != Adoption::Idle && !control.is_stopping;
        let waited = self.wake.wait_timeout_while(control, limit, waits);
        let found = waited.unwrap_or_else(PoisonError::into_inner).0.adopted;
        found.saturating_sub(self.spool().map_or(0, |spool| spool.adopted_records()))
    }

    /// Notes that the replayer has adopted files with so many writes.
    pub(crate) fn adopted(&self, records: u64) {
        let mut control = lock(&self.control);
        control.adopted_at = Instant::now();
        control.adopted = records;
        if control.adoption == Adoption::Requested {
            control.adoption = Adoption::Running;
        }
    }

    /// Lets a start go on that waits for adopted files.
    pub(crate) fn release_start(&self) {
        let mut control = lock(&self.control);
        if control.adoption == Adoption::Running {
            control.adoption = Adoption::Idle;
            self.wake.notify_all();
        }
    }

    /// Waits for the replayer's next work.
    pub(crate) fn next_work(&self) -> Work {
        let has_adopted = self.spool().is_some_and(|spool| spool.has_adopted());
        let mut control = lock(&self.control);
        loop {
            if control.is_stopping {
                return Work::Stop;
            }
            let left = ADOPTION_INTERVAL.saturating_sub(control.adopted_at.elapsed());
            if control.adoption == Adoption::Requested || (left.is_zero() && !self.is_down()) {
                return Work::Adopt;
            }
            if has_adopted || self.is_down() {
                return Work::Replay;
            }
            let waited = self.wake.wait_timeout(control, left);
            control = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sets writes aside that the store refuses.
    pub(crate) fn set_aside(&self, refused: &[Refused<'_>]) -> io::Result<()> {
        let Some(mut spool) = self.spool() else {
            return Err(io::Error::other("there is no spool"));
        };
        spool.set_aside(refused)?;
        self.metrics.set_aside.inc_by(u64::try_from(refused.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Takes notice of what waits.
    pub(crate) fn show_backlog(&self, spool: &Spool) {
        *lock(&self.full) = spool.is_full();
        let backlog = spool.backlog();
        let shown = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.spooled_records.set(shown(backlog.records));
        self.metrics.spooled_bytes.set(shown(backlog.bytes));
    }

    /// How many writes wait in the spool.
    pub(crate) fn spooled(&self) -> u64 {
        self.spool().map_or(0, |spool| spool.backlog().records)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
