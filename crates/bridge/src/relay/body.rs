//! A provider's HTTP body, pulled through the [`Pump`] by the client's connection.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame};
use keybridge_providers::{
    body::{AnswerBody, BodyError},
    failure::Failure,
};
use tokio::time::timeout;

use super::{
    pump::{Aborted, Next, Pump},
    watch::Watch,
};
use crate::admission::limits::InFlight;

/// How long an answer is read on for its usage after its client has disconnected.
const MAX_READ_ON: Duration = Duration::from_secs(2);

/// A provider's body, of which the first chunk may have been read.
#[derive(Debug)]
pub(super) struct StartedBody {
    pub(super) body: AnswerBody,
    /// Set if it was read: the chunk, or nothing because the body is empty.
    pub(super) first_chunk: Option<Option<Bytes>>,
}

/// A response body that is being relayed.
#[derive(Debug)]
pub(super) struct RelayBody {
    upstream: StartedBody,
    /// Whether the body of the current turn has been read to its end.
    is_turn_read: bool,
    pump: Pump,
    watch: Watch,
    in_flight: InFlight,
}

/// The response body that the client's connection has: when the client disconnects after the model has
/// finished, the answer is read on for its usage.
#[derive(Debug)]
pub(super) struct ClientBody(Option<RelayBody>);

impl StartedBody {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.first_chunk.take() {
            Some(first_chunk) => Poll::Ready(first_chunk.map(|chunk| Ok(Frame::data(chunk)))),
            None => Pin::new(&mut self.body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        !matches!(self.first_chunk, Some(Some(_))) && self.body.is_end_stream()
    }
}

type Output = Option<Result<Frame<Bytes>, io::Error>>;

impl RelayBody {
    pub(super) fn new(
        upstream: StartedBody,
        mut pump: Pump,
        watch: Watch,
        in_flight: InFlight,
    ) -> Self {
        if upstream.is_end_stream() {
            pump.end_empty();
        }
        Self { upstream, is_turn_read: false, pump, watch, in_flight }
    }

    /// Reads on for the usage of the answer for a short time, after its client has left.
    fn read_on(mut self) {
        let Some(permit) = self.in_flight.read_on_permit() else { return };
        permit.spawn(async move {
            let reading = poll_fn(|cx| self.poll_rest(cx));
            let _elapsed = timeout(MAX_READ_ON, reading).await;
            self.pump.end_abandoned();
        });
    }

    /// Ready when the answer has ended, or must not be read on.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.pump.awaits_usage_only() && self.watch.ended().is_none() {
            match self.upstream.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let _unsent = self.pass(frame);
                }
                Poll::Ready(Some(Err(_broken))) => return Poll::Ready(()),
                Poll::Ready(None) => {
                    let _unsent = self.pump.finish();
                    return Poll::Ready(());
                }
                Poll::Pending => return self.watch.poll(cx).map(drop),
            }
        }
        Poll::Ready(())
    }

    /// The provider's next frame; `None` when the pump's state has changed or everything was held back.
    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Output>> {
        if let Some(failure) = self.watch.ended() {
            return Poll::Ready(aborted(self.pump.truncate(&failure)));
        }
        let ended = match self.upstream.poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => return Poll::Ready(self.pass(frame)),
            Poll::Ready(Some(Err(error))) => {
                self.pump.in_span(|| {
                    tracing::warn!(%error, "the provider closed the stream before completion");
                });
                self.pump.truncate(&Failure::truncated())
            }
            Poll::Ready(None) => {
                self.is_turn_read = true;
                self.pump.finish()
            }
            Poll::Pending => match self.watch.poll(cx) {
                Poll::Pending => return self.poll_keep_alive(cx),
                Poll::Ready(failure) => self.pump.truncate(&failure),
            },
        };
        Poll::Ready(aborted(ended))
    }

    /// What is sent to the client for a frame.
    fn pass(&mut self, frame: Frame<Bytes>) -> Option<Output> {
        self.watch.progressed();
        // Trailers are dropped: the client's connection has not announced any.
        let chunk = frame.into_data().ok()?;
        let is_last = self.upstream.is_end_stream();
        let bytes = self.pump.push(chunk, is_last);
        (!bytes.is_empty()).then(|| Some(Ok(Frame::data(bytes))))
    }

    /// Polls the calls of tools, and keeps the client's connection alive.
    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<Option<Output>> {
        let Some((tool_loop, guard)) = self.pump.tool_loop() else { return Poll::Ready(None) };
        if let Poll::Ready(outcome) = tool_loop.poll(cx, guard) {
            // The bridge was not waiting for the provider.
            self.watch.progressed();
            return Poll::Ready(match self.pump.apply(outcome) {
                Ok(Some(upstream)) => {
                    (self.upstream.body, self.is_turn_read) = (upstream, false);
                    None
                }
                other => aborted(other.map(|_ended| ())),
            });
        }
        self.read_rest_of_turn(cx);
        self.watch.progressed();
        if let Poll::Ready(failure) = self.watch.poll(cx) {
            return Poll::Ready(aborted(self.pump.truncate(&failure)));
        }
        self.poll_keep_alive(cx)
    }

    /// Reads the rest of a turn that has ended, so that its connection can be reused.
    fn read_rest_of_turn(&mut self, cx: &mut Context<'_>) {
        while !self.is_turn_read {
            match self.upstream.poll_frame(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => self.is_turn_read = true,
                Poll::Pending => return,
            }
        }
    }

    fn poll_keep_alive(&mut self, cx: &mut Context<'_>) -> Poll<Option<Output>> {
        let Some((tool_loop, guard)) = self.pump.tool_loop() else { return Poll::Pending };
        let bytes = ready!(tool_loop.poll_keep_alive(cx));
        guard.note_merged_events(Some(tool_loop.events()));
        Poll::Ready(Some(Some(Ok(Frame::data(bytes)))))
    }
}

/// The body's error for an aborted answer.
fn aborted(ended: Result<(), Aborted>) -> Option<Output> {
    ended.err().map(|aborted| Some(Err(io::Error::other(aborted))))
}

impl ClientBody {
    pub(super) fn new(body: RelayBody) -> Self {
        Self(Some(body))
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if let Some(body) = self.0.take_if(|body| body.pump.awaits_usage_only()) {
            body.read_on();
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Output> {
        let Some(this) = &mut self.get_mut().0 else { return Poll::Ready(None) };
        loop {
            match this.pump.next() {
                Next::End => return Poll::Ready(None),
                Next::Send(bytes) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Next::Read => {}
            }
            let polled =
                if this.pump.is_working() { this.poll_work(cx) } else { this.poll_upstream(cx) };
            if let Some(output) = ready!(polled) {
                return Poll::Ready(output);
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|body| body.pump.has_ended())
    }
}
