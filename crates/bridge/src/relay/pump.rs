//! The answer on its way to the client: bytes pass as they come, events are observed.
//!
//! The client's connection pulls the body, so a slow client slows the provider, and a client that
//! leaves drops the body, which cancels the exchange upstream.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body, Frame};
use keybridge_providers::{body::AnswerBody, dump::Dump, failure::Failure};
use keybridge_wire::{
    Dialect,
    error::{ErrorKind, stream_event},
    observe::UsageChunkFilter,
};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::{
    admission::limits::InFlight,
    settlement::{Ending, Settling},
    tools::stream::{Looped, Worked},
};

/// Tells open streams that the process is about to end.
#[derive(Debug, Default, Clone)]
pub(crate) struct Drain {
    begun: Arc<AtomicBool>,
    token: CancellationToken,
}

impl Drain {
    pub(crate) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        self.token.cancel();
    }

    pub(crate) async fn begun(&self) {
        self.token.cancelled().await;
    }

    fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }
}

/// How an answer that breaks off is ended towards the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BreakOff {
    /// An event stream: an error event of the dialect, then the end.
    Event(Dialect),
    /// Anything else: the connection is closed unfinished.
    Abort,
}

/// A response body being relayed.
pub(crate) struct Relay {
    upstream: AnswerBody,
    state: State,
    is_stream: bool,
    break_off: BreakOff,
    filter: Option<UsageChunkFilter>,
    looped: Option<Box<Looped>>,
    /// Whether the turn's answer has been read to its end.
    is_drained: bool,
    settling: Settling,
    watch: Watch,
    dump: Option<Dump>,
    _in_flight: InFlight,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Relaying,
    /// This is sent, then the stream ends.
    Last(Bytes),
    Ended,
}

/// What a relay is made of.
pub(crate) struct Parts {
    pub(crate) upstream: AnswerBody,
    /// Whether the answer is an event stream, which has a last event.
    pub(crate) is_stream: bool,
    pub(crate) break_off: BreakOff,
    pub(crate) filter: Option<UsageChunkFilter>,
    /// Set when the stream may take several turns.
    pub(crate) looped: Option<Box<Looped>>,
    pub(crate) settling: Settling,
    pub(crate) idle: Duration,
    pub(crate) drain: Drain,
    pub(crate) dump: Option<Dump>,
    pub(crate) in_flight: InFlight,
}

impl Relay {
    pub(crate) fn new(parts: Parts) -> Self {
        let mut relay = Self {
            upstream: parts.upstream,
            state: State::Relaying,
            is_stream: parts.is_stream,
            break_off: parts.break_off,
            filter: parts.filter,
            looped: parts.looped,
            is_drained: false,
            settling: parts.settling,
            watch: Watch::new(parts.idle, parts.drain),
            dump: parts.dump,
            _in_flight: parts.in_flight,
        };
        if !relay.is_stream && relay.upstream.is_end_stream() {
            relay.settling.end(&Ending::Relayed);
            relay.state = State::Ended;
        }
        relay
    }

    /// What the client gets of a frame; `None` when all of it is held back.
    fn frame(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        self.watch.progressed();
        match frame.into_data() {
            Ok(chunk) => Some(self.pass(chunk)).filter(|bytes| !bytes.is_empty()).map(Frame::data),
            Err(trailers) => Some(trailers),
        }
    }

    /// Takes a chunk in and gives the bytes for the client.
    fn pass(&mut self, chunk: Bytes) -> Bytes {
        self.settling.observe(&chunk);
        if let Some(dump) = &mut self.dump {
            dump.response_chunk(&chunk);
        }
        if self.looped.is_some() {
            return self.pass_looped(&chunk);
        }
        // Before the chunk is out: the client may send its next request as soon as it has read the
        // last event, and that one is tied to this record.
        let is_over = self.is_stream && self.settling.is_terminal();
        // A body of known length may be dropped once it is out, before its end is asked for.
        if is_over || !self.adds_events() && self.upstream.is_end_stream() {
            self.settling.end(&Ending::Relayed);
        }
        match &mut self.filter {
            Some(filter) => filter.push(&chunk),
            None => chunk,
        }
    }

    /// Whether it is a stream that can be ended with an event of the bridge.
    fn adds_events(&self) -> bool {
        self.is_stream && matches!(self.break_off, BreakOff::Event(_))
    }

    /// Takes a chunk of an inner loop's turn in.
    fn pass_looped(&mut self, chunk: &Bytes) -> Bytes {
        let Some(looped) = &mut self.looped else { return Bytes::new() };
        let shown = looped.push(chunk);
        self.turn_passed(shown)
    }

    /// Sees to what the end of a turn asks for; gives the bytes for the client.
    fn turn_passed(&mut self, shown: Bytes) -> Bytes {
        let Some(looped) = &mut self.looped else { return shown };
        if looped.is_over() {
            self.settling.end(&Ending::Relayed);
        } else if let Err(failure) = looped.begin(&mut self.settling) {
            // It is an event stream, so the error is an event.
            let _unused = self.break_off(shown, &failure);
            return Bytes::new();
        }
        shown
    }

    /// Carries an inner loop's work on; none while there is nothing to tell.
    fn work(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Error>> {
        let Some(looped) = &mut self.looped else { return Poll::Pending };
        let worked = std::task::ready!(looped.poll(cx, &mut self.settling));
        // The provider was not waited for meanwhile.
        self.watch.progressed();
        match worked {
            Worked::GoesOn(upstream, dump) => {
                (self.upstream, self.dump, self.is_drained) = (upstream, dump, false);
                Poll::Ready(None)
            }
            Worked::Over(last) => {
                self.settling.end(&Ending::Relayed);
                self.state = if last.is_empty() { State::Ended } else { State::Last(last) };
                Poll::Ready(None)
            }
            Worked::Failed(failure) => Poll::Ready(self.break_off(Bytes::new(), &failure)),
        }
    }

    /// Reads what is left of a turn that is over, so that its connection can be used again.
    fn drain_turn(&mut self, cx: &mut Context<'_>) {
        while !self.is_drained {
            match Pin::new(&mut self.upstream).poll_frame(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => self.is_drained = true,
                Poll::Pending => return,
            }
        }
    }

    /// The provider has ended its answer.
    fn finish(&mut self) -> Option<io::Error> {
        if let Some(looped) = &mut self.looped {
            let shown = looped.finish();
            let shown = self.turn_passed(shown);
            let is_working = self.looped.as_ref().is_some_and(|looped| looped.is_working());
            if is_working {
                // At most the end of a line, which nobody misses.
                self.is_drained = true;
                return None;
            }
            if self.state != State::Relaying {
                return None;
            }
            return self.end(shown);
        }
        let held = self.filter.as_mut().map(UsageChunkFilter::finish).unwrap_or_default();
        self.end(held)
    }

    /// Nothing more comes; what was held back goes first.
    fn end(&mut self, held: Bytes) -> Option<io::Error> {
        self.settling.read_out();
        // One that cannot be read or added to is the client's to judge, as its provider ended it.
        if self.adds_events() && !self.settling.is_settled() && !self.settling.is_terminal() {
            let failure = Failure::upstream(
                StatusCode::BAD_GATEWAY,
                ErrorKind::Api,
                "the provider ended its answer early".into(),
            );
            return self.break_off(held, &failure);
        }
        self.settling.end(&Ending::Relayed);
        self.state = if held.is_empty() { State::Ended } else { State::Last(held) };
        None
    }

    /// Ends the client's stream with an error; what was held back goes first.
    fn break_off(&mut self, held: Bytes, failure: &Failure) -> Option<io::Error> {
        if self.settling.is_settled() {
            self.state = if held.is_empty() { State::Ended } else { State::Last(held) };
            return None;
        }
        let (is_mid_event, number) = match &self.looped {
            // The client gets whole events only.
            Some(looped) => (false, looped.next_sequence_number()),
            None => (self.settling.is_mid_event(), self.settling.next_sequence_number()),
        };
        self.settling.end(&Ending::Broken(failure));
        let BreakOff::Event(dialect) = self.break_off else {
            self.state = State::Ended;
            return Some(io::Error::other(failure.detail.clone()));
        };
        let mut last = held.to_vec();
        if is_mid_event {
            // Closes the event that was cut, so that the error is one of its own.
            last.extend_from_slice(b"\n\n");
        }
        last.extend_from_slice(&stream_event(dialect, failure.kind, &failure.detail, number));
        self.state = State::Last(last.into());
        None
    }

    /// An inner loop at work: nothing to tell yet, something for the client, or (`Ready(None)`)
    /// another state.
    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.work(cx) {
            Poll::Ready(Some(error)) => return Poll::Ready(Some(Err(error))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        self.drain_turn(cx);
        self.watch.progressed();
        if let Poll::Ready(reason) = self.watch.poll(cx) {
            return match self.interrupt(&reason) {
                Some(error) => Poll::Ready(Some(Err(error))),
                None => Poll::Ready(None),
            };
        }
        self.poll_keep_alive(cx)
    }

    fn poll_keep_alive(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let Some(looped) = &mut self.looped else { return Poll::Pending };
        looped.poll_keep_alive(cx).map(|bytes| Some(Ok(Frame::data(bytes))))
    }

    fn interrupt(&mut self, failure: &Failure) -> Option<io::Error> {
        let held = self.filter.as_mut().map(UsageChunkFilter::finish).unwrap_or_default();
        self.break_off(held, failure)
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        loop {
            match std::mem::replace(&mut this.state, State::Ended) {
                State::Ended => return Poll::Ready(None),
                State::Last(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                State::Relaying => this.state = State::Relaying,
            }
            if this.looped.as_ref().is_some_and(|looped| looped.is_working()) {
                match this.poll_work(cx) {
                    Poll::Ready(Some(result)) => return Poll::Ready(Some(result)),
                    Poll::Ready(None) => continue,
                    Poll::Pending => return Poll::Pending,
                }
            }
            let error = match Pin::new(&mut this.upstream).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match this.frame(frame) {
                    Some(frame) => return Poll::Ready(Some(Ok(frame))),
                    None => continue,
                },
                Poll::Ready(Some(Err(error))) => {
                    tracing::warn!(%error, "the provider broke off its answer");
                    this.interrupt(&broke_off())
                }
                Poll::Ready(None) => this.finish(),
                Poll::Pending => match this.watch.poll(cx) {
                    Poll::Pending => return this.poll_keep_alive(cx),
                    Poll::Ready(reason) => this.interrupt(&reason),
                },
            };
            if let Some(error) = error {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.state == State::Ended
    }
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").field("state", &self.state).finish_non_exhaustive()
    }
}

fn broke_off() -> Failure {
    Failure::upstream(
        StatusCode::BAD_GATEWAY,
        ErrorKind::Api,
        "the provider broke off its answer".into(),
    )
}

/// Wakes a silent stream: when the provider has been idle for too long, or at shutdown.
struct Watch {
    idle: Duration,
    last_progress: Instant,
    drain: Drain,
    /// Set from the first silence on: many answers come at once.
    alarms: Option<Box<Alarms>>,
}

struct Alarms {
    sleep: Pin<Box<Sleep>>,
    ending: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Whoever is already registered with both need not be registered again for each event.
    registered: Option<Waker>,
}

impl Watch {
    fn new(idle: Duration, drain: Drain) -> Self {
        Self { idle, last_progress: Instant::now(), drain, alarms: None }
    }

    fn progressed(&mut self) {
        self.last_progress = Instant::now();
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        let Self { idle, last_progress, drain, alarms } = self;
        if drain.has_begun() {
            return Poll::Ready(Failure::shutting_down());
        }
        let alarms = alarms.get_or_insert_with(|| {
            let ending = Box::pin(drain.token.clone().cancelled_owned());
            let sleep = Box::pin(tokio::time::sleep_until(*last_progress + *idle));
            Box::new(Alarms { sleep, ending, registered: None })
        });
        let is_due = alarms.sleep.deadline() <= Instant::now();
        let is_registered = alarms.registered.as_ref().is_some_and(|w| w.will_wake(cx.waker()));
        if is_registered && !is_due {
            return Poll::Pending;
        }
        alarms.registered = Some(cx.waker().clone());
        if alarms.ending.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Failure::shutting_down());
        }
        while alarms.sleep.as_mut().poll(cx).is_ready() {
            let deadline = *last_progress + *idle;
            if deadline <= Instant::now() {
                return Poll::Ready(Failure::idle(*idle));
            }
            alarms.sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}
