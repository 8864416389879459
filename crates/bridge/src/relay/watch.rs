//! Watches a silent stream: ends it at the idle timeout, or when the process shuts down.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use keybridge_providers::failure::Failure;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::drain::Drain;

/// Wakes a silent stream when it must end.
#[derive(Debug)]
pub(super) struct Watch {
    idle_timeout: Duration,
    last_progress: Instant,
    drain: Drain,
    /// Set at the first silence: many answers arrive without one.
    alarms: Option<Box<Alarms>>,
}

#[derive(Debug)]
struct Alarms {
    sleep: Pin<Box<Sleep>>,
    drain_started: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The task that is registered with both; it need not be registered again for each event.
    registered: Option<Waker>,
}

impl Watch {
    pub(super) fn new(idle_timeout: Duration, drain: Drain) -> Self {
        Self { idle_timeout, last_progress: Instant::now(), drain, alarms: None }
    }

    pub(super) fn progressed(&mut self) {
        self.last_progress = Instant::now();
    }

    /// Ready with the reason when the stream must end.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        let Self { idle_timeout, last_progress, drain, alarms } = self;
        if drain.has_started() {
            return Poll::Ready(Failure::shutting_down());
        }
        let alarms = alarms.get_or_insert_with(|| {
            let drain_started = Box::pin(drain.wait_owned());
            let sleep = Box::pin(tokio::time::sleep_until(*last_progress + *idle_timeout));
            Box::new(Alarms { sleep, drain_started, registered: None })
        });
        let is_due = alarms.sleep.deadline() <= Instant::now();
        let is_registered = alarms.registered.as_ref().is_some_and(|w| w.will_wake(cx.waker()));
        if is_registered && !is_due {
            return Poll::Pending;
        }
        alarms.registered = Some(cx.waker().clone());
        if alarms.drain_started.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Failure::shutting_down());
        }
        while alarms.sleep.as_mut().poll(cx).is_ready() {
            let deadline = *last_progress + *idle_timeout;
            if deadline <= Instant::now() {
                return Poll::Ready(Failure::idle(*idle_timeout));
            }
            alarms.sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
