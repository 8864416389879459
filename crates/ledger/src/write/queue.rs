//! The way to the writer's thread: what is handed over waits here until the thread takes it.
//!
//! A commit costs the same for one write as for a hundred, and waking the thread costs as much as some
//! requests. So it is woken at once only by what somebody waits for; all else may wait a moment.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    write::outage::{Condition, Outage},
    write::writer::{Job, Room},
};

/// The way to the writer's thread; clones share it. It holds no more jobs than the recorder's capacity
/// allows, a note for each of them, and one for each caller that waits.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    jobs: Arc<Jobs>,
    outage: Arc<Outage>,
}

#[derive(Debug, Default)]
struct Jobs {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Job>,
    /// Whether somebody waits for one of them.
    is_urgent: bool,
    is_stopped: bool,
    /// What the writer is asleep for.
    sleeps_for: SleepsFor,
}

/// What ends the writer's sleep; the end of the process always does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum SleepsFor {
    /// It is at work.
    #[default]
    Nothing,
    Anything,
    /// What somebody waits for.
    Urgent,
}

impl Queue {
    pub(crate) fn new(outage: &Arc<Outage>) -> Self {
        Self { jobs: Arc::default(), outage: Arc::clone(outage) }
    }

    pub(crate) fn condition(&self) -> Condition {
        self.outage.condition()
    }

    pub(crate) fn send(&self, job: Job) {
        let mut state = self.lock();
        if state.is_stopped {
            tracing::error!("a record came after the ledger was closed and is lost");
            return;
        }
        self.outage.metrics.queue_depth.inc();
        let is_urgent = job.is_waited_for();
        state.is_urgent |= is_urgent;
        state.waiting.push_back(job);
        let wakes = match state.sleeps_for {
            SleepsFor::Nothing => false,
            SleepsFor::Anything => true,
            SleepsFor::Urgent => is_urgent,
        };
        if wakes {
            state.sleeps_for = SleepsFor::Nothing;
            drop(state);
            self.jobs.wake.notify_one();
        }
    }

    /// Tells the writer to end when all before this is written; what comes later is lost.
    pub(crate) fn stop(&self) {
        self.lock().is_stopped = true;
        self.jobs.wake.notify_one();
    }

    /// Whether nothing waits and nothing will come.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.lock();
        state.is_stopped && state.waiting.is_empty()
    }

    /// Sleeps until there is what it sleeps for, or until `limit`; true if there is.
    pub(crate) fn sleep(&self, sleeps_for: SleepsFor, limit: Option<Duration>) -> bool {
        let deadline = limit.map(|limit| Instant::now() + limit);
        let mut state = self.lock();
        loop {
            let is_there = match sleeps_for {
                SleepsFor::Nothing => true,
                SleepsFor::Anything => !state.waiting.is_empty(),
                SleepsFor::Urgent => state.is_urgent,
            };
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if is_there || state.is_stopped || left.is_some_and(|left| left.is_zero()) {
                state.sleeps_for = SleepsFor::Nothing;
                return is_there;
            }
            state.sleeps_for = sleeps_for;
            state = match left {
                None => self.jobs.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let woken = self.jobs.wake.wait_timeout(state, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Adds to a batch what waits and has room in it, in order.
    pub(crate) fn take(&self, batch: &mut Vec<Job>, room: &mut Room) {
        let mut state = self.lock();
        while !room.is_full()
            && let Some(job) = state.waiting.pop_front()
        {
            room.fill(&job);
            self.outage.metrics.queue_depth.dec();
            batch.push(job);
        }
        state.is_urgent &= !state.waiting.is_empty();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.jobs.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
