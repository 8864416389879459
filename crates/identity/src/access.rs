//! Whether the requests that were made with a token may go on.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use jiff::Timestamp;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::UserStatus;

/// Why open requests must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessEnd {
    /// Their token was revoked.
    Revoked,
    /// Their user was suspended.
    Suspended,
    /// The process shuts down.
    ShuttingDown,
}

impl AccessEnd {
    /// Why a token is no longer accepted, if so; its expiry does not end open requests.
    pub(crate) fn of(revoked_at: Option<Timestamp>, user: UserStatus) -> Option<Self> {
        if revoked_at.is_some() {
            return Some(Self::Revoked);
        }
        (user == UserStatus::Suspended).then_some(Self::Suspended)
    }
}

/// The access of all open requests that were made with one token. Once it has ended it stays ended.
#[derive(Debug)]
pub struct Access {
    /// Read for each frame of an answer, so not behind a lock as the state of `signal` is.
    end: OnceLock<AccessEnd>,
    /// Cancelled after `end` is set, or after the access of the process has ended.
    signal: CancellationToken,
    process: Arc<ProcessAccess>,
}

/// The access of all requests of a process.
#[derive(Debug, Default)]
pub(crate) struct ProcessAccess {
    has_ended: AtomicBool,
    signal: CancellationToken,
}

impl ProcessAccess {
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
        self.signal.cancel();
    }
}

impl Access {
    pub(crate) fn new(process: &Arc<ProcessAccess>) -> Self {
        let signal = process.signal.child_token();
        Self { end: OnceLock::new(), signal, process: Arc::clone(process) }
    }

    /// Ends the requests that are open; a later end changes nothing.
    pub(crate) fn end(&self, end: AccessEnd) {
        let _first = self.end.set(end);
        self.signal.cancel();
    }

    /// Why requests must end, if they must.
    pub fn ended(&self) -> Option<AccessEnd> {
        let has_process_ended = || self.process.has_ended.load(Ordering::Acquire);
        self.end.get().copied().or_else(|| has_process_ended().then_some(AccessEnd::ShuttingDown))
    }

    /// Waits until requests must end.
    pub async fn wait(&self) -> AccessEnd {
        self.signal.cancelled().await;
        self.ended().unwrap_or(AccessEnd::ShuttingDown)
    }

    /// Like [`Access::wait`], as a future that owns its state; [`Access::ended`] then says why.
    pub fn wait_owned(&self) -> WaitForCancellationFutureOwned {
        self.signal.clone().cancelled_owned()
    }
}
