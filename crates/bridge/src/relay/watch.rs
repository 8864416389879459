//! Watches an open stream: ends it at the idle timeout, or when its access ends.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame};
use keybridge_identity::{Access, AccessEnd};
use keybridge_providers::{
    body::{AnswerBody, BodyError},
    failure::Failure,
};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::access::failure;

/// Wakes a stream when it must end.
#[derive(Debug)]
pub(super) struct Watch {
    idle_timeout: Duration,
    last_progress: Instant,
    access: Arc<Access>,
    /// Set at the first silence: many answers arrive without one.
    alarms: Option<Box<Alarms>>,
}

#[derive(Debug)]
struct Alarms {
    sleep: Pin<Box<Sleep>>,
    access_ended: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The task that is registered with both; it need not be registered again for each event.
    registered: Option<Waker>,
}

impl Watch {
    pub(super) fn new(idle_timeout: Duration, access: Arc<Access>) -> Self {
        Self { idle_timeout, last_progress: Instant::now(), access, alarms: None }
    }

    pub(super) fn progressed(&mut self) {
        self.last_progress = Instant::now();
    }

    /// Why the stream must end although it is not silent, if so.
    pub(super) fn ended(&self) -> Option<Failure> {
        self.access.ended().map(failure)
    }

    /// The next frame of an answer; `None` at its end, an error when the wait for it must end.
    pub(super) async fn next_frame(
        &mut self,
        answer: &mut AnswerBody,
    ) -> Result<Option<Result<Frame<Bytes>, BodyError>>, Failure> {
        poll_fn(|cx| match Pin::new(&mut *answer).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => self.poll(cx).map(Err),
        })
        .await
    }

    /// Ready with the reason when the silent stream must end.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        let Self { idle_timeout, last_progress, access, alarms } = self;
        if let Some(end) = access.ended() {
            return Poll::Ready(failure(end));
        }
        let alarms = alarms.get_or_insert_with(|| {
            let access_ended = Box::pin(access.wait_owned());
            let sleep = Box::pin(tokio::time::sleep_until(*last_progress + *idle_timeout));
            Box::new(Alarms { sleep, access_ended, registered: None })
        });
        // The runtime's timer has fired; reading the clock for each event costs more.
        let is_due = alarms.sleep.is_elapsed();
        let is_registered = alarms.registered.as_ref().is_some_and(|w| w.will_wake(cx.waker()));
        if is_registered && !is_due {
            return Poll::Pending;
        }
        alarms.registered = Some(cx.waker().clone());
        if alarms.access_ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(failure(access.ended().unwrap_or(AccessEnd::ShuttingDown)));
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
