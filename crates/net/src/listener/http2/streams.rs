//! The streams of an HTTP/2 connection, and which of them their client has stopped reading.
//!
//! A client grants a window for each stream. Without one, hyper holds a frame of the response and does
//! not poll the body again, for as long as the client keeps the connection alive. A body therefore
//! counts its polls, and the connection's task compares the counts from time to time: a stream whose
//! body gave data and has not been polled again for too long is reset, which drops the body. This takes
//! two stores to memory for a frame, and neither a clock nor a task of its own.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::rt::Executor;
use tokio::{sync::Notify, task::AbortHandle, time::Instant};
use tokio_util::task::TaskTracker;

/// Data is given to hyper in pieces of the usual frame size: a piece leaves the body as soon as the
/// client grants one byte, and larger ones would hide how slowly it reads.
const MAX_FRAME_DATA: usize = 16 * 1024;

/// The streams of one connection that are being answered.
#[derive(Debug)]
pub(super) struct LiveStreams {
    state: Mutex<State>,
    /// Notified when the first stream begins and when the last one ends.
    changed: Notify,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct State {
    /// Of the request that hyper took last; hyper spawns its stream right after.
    pending: Option<Arc<Progress>>,
    live: Vec<LiveStream>,
}

#[derive(Debug)]
struct LiveStream {
    /// None until it is spawned.
    task: Option<AbortHandle>,
    progress: Arc<Progress>,
    last_seen: u32,
    /// When `last_seen` was new, or the body last had nothing to give.
    since: Instant,
}

/// How far hyper has read a response's body: twice the number of polls, plus one after a poll that gave
/// data and was not followed by another.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicU32);

/// Spawns the streams of a connection and keeps account of them.
#[derive(Debug, Clone)]
pub(super) struct StreamExecutor(Arc<LiveStreams>);

/// The body of a response that notes its progress.
#[derive(Debug)]
pub(super) struct WatchedBody {
    inner: Body,
    /// Of a piece of data larger than a frame.
    rest: Bytes,
    progress: Arc<Progress>,
}

impl LiveStreams {
    pub(super) fn new(tasks: TaskTracker) -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), tasks }
    }

    /// Begins a stream for a request; to be called by the service, before hyper spawns the stream.
    pub(super) fn begin(&self) -> Arc<Progress> {
        let progress = Arc::<Progress>::default();
        self.state().pending = Some(Arc::clone(&progress));
        progress
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state().live.is_empty()
    }

    /// Waits until the first stream begins or the last one ends.
    pub(super) async fn wait_for_change(&self) {
        self.changed.notified().await;
    }

    /// Resets the streams whose client has read nothing for `limit`, although there was data.
    pub(super) fn reset_stalled(&self, limit: Duration) {
        let now = Instant::now();
        for stream in &mut self.state().live {
            if stream.update_stall(now) >= limit
                && let Some(task) = &stream.task
            {
                tracing::debug!("a response was not read by its client, and its stream is reset");
                task.abort();
            }
        }
    }

    fn spawn(self: &Arc<Self>, stream: impl Future<Output = ()> + Send + 'static) {
        let progress = self.list();
        let unlist = Unlist { streams: Arc::clone(self), progress: Arc::clone(&progress) };
        // Not under the lock: a runtime that is shutting down drops the stream at once.
        let task = self.tasks.spawn(async move {
            let _unlist = unlist;
            stream.await;
        });
        let mut state = self.state();
        if let Some(at) = state.position(&progress)
            && let Some(listed) = state.live.get_mut(at)
        {
            listed.task = Some(task.abort_handle());
        }
    }

    /// Lists the pending stream.
    fn list(&self) -> Arc<Progress> {
        let mut state = self.state();
        let progress = state.pending.take().unwrap_or_default();
        let (listed, since) = (Arc::clone(&progress), Instant::now());
        state.live.push(LiveStream { task: None, progress: listed, last_seen: 0, since });
        if state.live.len() == 1 {
            self.changed.notify_one();
        }
        progress
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Where a stream is listed; searched from the end, where the newest is.
    fn position(&self, progress: &Arc<Progress>) -> Option<usize> {
        self.live.iter().rposition(|stream| Arc::ptr_eq(&stream.progress, progress))
    }
}

impl LiveStream {
    /// Notes what has been read since the last call; returns how long the stream has been stalled.
    fn update_stall(&mut self, now: Instant) -> Duration {
        let seen = self.progress.0.load(Relaxed);
        if seen != self.last_seen || seen.is_multiple_of(2) {
            self.last_seen = seen;
            self.since = now;
        }
        now.duration_since(self.since)
    }
}

/// Takes a stream off the list when it ends.
struct Unlist {
    streams: Arc<LiveStreams>,
    progress: Arc<Progress>,
}

impl Drop for Unlist {
    fn drop(&mut self) {
        let mut state = self.streams.state();
        if let Some(at) = state.position(&self.progress) {
            state.live.swap_remove(at);
        }
        if state.live.is_empty() {
            self.streams.changed.notify_one();
        }
    }
}

impl StreamExecutor {
    pub(super) fn new(streams: &Arc<LiveStreams>) -> Self {
        Self(Arc::clone(streams))
    }
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}

impl Progress {
    /// Notes a poll of the body; returns the new count.
    fn note_poll(&self) -> u32 {
        let count = (self.0.load(Relaxed) & !1).wrapping_add(2);
        self.0.store(count, Relaxed);
        count
    }

    fn note_data(&self, count: u32) {
        self.0.store(count | 1, Relaxed);
    }
}

impl WatchedBody {
    pub(super) const fn new(inner: Body, progress: Arc<Progress>) -> Self {
        Self { inner, rest: Bytes::new(), progress }
    }

    /// The next piece of data, of at most a frame's size.
    fn split_frame(&mut self, mut data: Bytes) -> Frame<Bytes> {
        if data.len() > MAX_FRAME_DATA {
            self.rest = data.split_off(MAX_FRAME_DATA);
        }
        Frame::data(data)
    }
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        let count = this.progress.note_poll();
        let polled = if this.rest.is_empty() {
            Pin::new(&mut this.inner).poll_frame(cx)
        } else {
            Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.rest)))))
        };
        let Poll::Ready(Some(Ok(frame))) = polled else { return polled };
        this.progress.note_data(count);
        Poll::Ready(Some(Ok(match frame.into_data() {
            Ok(data) => this.split_frame(data),
            Err(other) => other,
        })))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.inner.size_hint();
        let rest = u64::try_from(self.rest.len()).unwrap_or(u64::MAX);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint.set_lower(hint.lower().saturating_add(rest));
        hint
    }
}

#[cfg(test)]
mod tests;
