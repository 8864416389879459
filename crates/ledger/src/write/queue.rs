//! The queue to the writer thread.
//!
//! A commit costs the same for one write as for a hundred, and waking the thread costs as much as some
//! requests. So only a job that a caller waits for wakes it at once; all others may wait a moment.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    write::outage::{Condition, Outage},
    write::recent_objects::RecentObjects,
    write::room::Room,
    write::writer::Job,
};

/// The queue to the writer thread; clones share it. It holds at most the jobs that the recorder's
/// capacity allows, a note for each of them, and one for each waiting caller.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    jobs: Arc<Jobs>,
    outage: Arc<Outage>,
}

#[derive(Debug, Default)]
struct Jobs {
    state: Mutex<State>,
    wake: Condvar,
    /// Includes the objects of queued jobs.
    recent_objects: RecentObjects,
}

#[derive(Debug, Default)]
struct State {
    queued: VecDeque<Job>,
    /// Whether a caller waits for one of them.
    is_urgent: bool,
    is_stopped: bool,
    /// What wakes the writer.
    wake_on: WakeOn,
}

/// What wakes the writer; closing the queue always does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum WakeOn {
    /// It is not asleep.
    #[default]
    Nothing,
    /// Any job.
    AnyJob,
    /// A job that a caller waits for.
    UrgentJob,
}

impl Queue {
    pub(crate) fn new(outage: &Arc<Outage>) -> Self {
        Self { jobs: Arc::default(), outage: Arc::clone(outage) }
    }

    pub(crate) fn condition(&self) -> Condition {
        self.outage.condition()
    }

    /// The objects that were recorded last.
    pub(crate) fn recent_objects(&self) -> &RecentObjects {
        &self.jobs.recent_objects
    }

    pub(crate) fn send(&self, job: Job) {
        let mut state = self.lock();
        if state.is_stopped {
            tracing::error!("a write arrived after the ledger was closed, and is lost");
            return;
        }
        self.outage.metrics.queue_depth.inc();
        let is_urgent = job.has_waiter();
        state.is_urgent |= is_urgent;
        state.queued.push_back(job);
        let wakes = match state.wake_on {
            WakeOn::Nothing => false,
            WakeOn::AnyJob => true,
            WakeOn::UrgentJob => is_urgent,
        };
        if wakes {
            state.wake_on = WakeOn::Nothing;
            drop(state);
            self.jobs.wake.notify_one();
        }
    }

    /// Closes the queue: the writer ends when all jobs are written, and later jobs are lost.
    pub(crate) fn stop(&self) {
        self.lock().is_stopped = true;
        self.jobs.wake.notify_one();
    }

    /// Whether the queue is closed and empty.
    pub(crate) fn is_drained(&self) -> bool {
        let state = self.lock();
        state.is_stopped && state.queued.is_empty()
    }

    /// Sleeps until there is a job that wakes the writer, or for `limit`; whether there is one.
    pub(crate) fn sleep(&self, wake_on: WakeOn, limit: Option<Duration>) -> bool {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut state = self.lock();
        loop {
            let is_there = match wake_on {
                WakeOn::Nothing => true,
                WakeOn::AnyJob => !state.queued.is_empty(),
                WakeOn::UrgentJob => state.is_urgent,
            };
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if is_there || state.is_stopped || left.is_some_and(|left| left.is_zero()) {
                state.wake_on = WakeOn::Nothing;
                return is_there;
            }
            state.wake_on = wake_on;
            state = match left {
                None => self.jobs.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let woken = self.jobs.wake.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Moves queued jobs to a batch, in order, until the next one does not fit; whether there is room for
    /// more.
    pub(crate) fn take(&self, batch: &mut Vec<Job>, room: &mut Room) -> bool {
        let mut state = self.lock();
        let mut has_room = true;
        while !room.is_full()
            && let Some(job) = state.queued.pop_front()
        {
            if !room.admit(&job.write) {
                state.queued.push_front(job);
                has_room = false;
                break;
            }
            self.outage.metrics.queue_depth.dec();
            batch.push(job);
        }
        state.is_urgent &= !state.queued.is_empty();
        has_room && !room.is_full()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.jobs.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
