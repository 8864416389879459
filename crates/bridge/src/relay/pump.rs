//! Decides what is relayed of a provider's answer and how it ends: a state machine without I/O.
//!
//! A transport feeds it with chunks, the end, errors and timeouts. It returns the bytes for the client,
//! observes them for the record, and settles the record before the last bytes are sent.

use bytes::Bytes;
use http::StatusCode;
use keybridge_providers::{body::AnswerBody, dump::Dump, failure::Failure};
use keybridge_wire::{
    Dialect,
    error::{ErrorKind, stream_event},
    observe::UsageChunkFilter,
};

use super::key_mask::{KeyMask, MASK_KEY};
use crate::{
    settlement::{Ending, SettlementGuard},
    tools::stream::{LoopOutcome, ToolLoopStream},
};

/// How a truncated answer is ended for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Truncation {
    /// An event stream: an error event of the dialect, then the end.
    ErrorEvent(Dialect),
    /// Anything else: the connection is closed before the end of the message.
    Abort,
}

/// The parts of a new pump.
pub(super) struct PumpParts {
    pub(super) truncation: Truncation,
    pub(super) filter: Option<UsageChunkFilter>,
    /// Set when the stream may take several turns.
    pub(super) tool_loop: Option<Box<ToolLoopStream>>,
    /// Set when the provider may quote one of the company's keys.
    pub(super) key_mask: Option<KeyMask>,
    pub(super) guard: Box<SettlementGuard>,
    pub(super) dump: Option<Dump>,
}

/// An answer that is being relayed.
pub(super) struct Pump {
    state: State,
    truncation: Truncation,
    filter: Option<UsageChunkFilter>,
    tool_loop: Option<Box<ToolLoopStream>>,
    key_mask: Option<KeyMask>,
    guard: Box<SettlementGuard>,
    dump: Option<Dump>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Relaying,
    /// These bytes are sent, then the answer ends.
    Last(Bytes),
    Ended,
}

/// The next step of the transport.
pub(super) enum Next {
    /// Feed the pump with more of the answer.
    Read,
    /// Send these bytes.
    Send(Bytes),
    /// End the answer.
    End,
}

/// The answer cannot be ended in its own format: the connection must be closed early.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Aborted(String);

impl Pump {
    pub(super) fn new(parts: PumpParts) -> Self {
        Self {
            state: State::Relaying,
            truncation: parts.truncation,
            filter: parts.filter,
            tool_loop: parts.tool_loop,
            key_mask: parts.key_mask,
            guard: parts.guard,
            dump: parts.dump,
        }
    }

    /// The next step.
    pub(super) fn next(&mut self) -> Next {
        if self.state == State::Relaying {
            return Next::Read;
        }
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Last(bytes) => Next::Send(bytes),
            State::Ended | State::Relaying => Next::End,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Ends an answer that has no body.
    pub(super) fn end_empty(&mut self) {
        if !self.guard.is_event_stream() {
            self.guard.end(&Ending::Relayed);
            self.state = State::Ended;
        }
    }

    /// Whether the client has all but the usage of the answer, so that reading on gives exact figures.
    pub(super) fn awaits_usage_only(&self) -> bool {
        let is_open = self.state == State::Relaying && !self.guard.is_settled();
        is_open && self.tool_loop.is_none() && self.guard.has_finished()
    }

    /// Ends an answer whose client has disconnected after the model had finished.
    pub(super) fn end_abandoned(&mut self) {
        let has_figures = self.guard.has_final_usage();
        self.guard.finish_observing();
        if has_figures && self.guard.is_terminal() {
            self.guard.end(&Ending::Relayed);
        }
        self.state = State::Ended;
    }

    /// Takes a chunk and returns the bytes for the client, possibly none. `is_last`: the transport knows
    /// that nothing follows.
    pub(super) fn push(&mut self, chunk: Bytes, is_last: bool) -> Bytes {
        self.guard.observe(&chunk);
        if let Some(dump) = &mut self.dump {
            dump.response_chunk(&chunk);
        }
        if (self.tool_loop.is_some() || self.filter.is_some()) && !self.guard.is_event_stream() {
            return self.push_other_format(chunk, is_last);
        }
        if let Some(tool_loop) = &mut self.tool_loop {
            let output = tool_loop.push(&chunk);
            self.guard.note_merged_events(Some(tool_loop.events()));
            let output = self.mask_keys(output, true);
            return self.follow_turn(output);
        }
        let mut chunk = self.mask_keys(chunk, is_last);
        if let Some(filter) = &mut self.filter {
            chunk = filter.push(&chunk);
            self.guard.note_withheld_events(filter.withheld_events());
        }
        // Before the chunk is sent: the client may send its next request as soon as it has read the last
        // event, and that request is correlated with this record.
        let is_complete = self.guard.is_terminal();
        // A body of known length may be dropped once it is sent, before its end is read.
        if is_complete || is_last && !self.adds_events() {
            self.guard.end(&Ending::Relayed);
        }
        chunk
    }

    /// Takes a chunk of an answer that was announced as an event stream and is not one.
    fn push_other_format(&mut self, chunk: Bytes, is_last: bool) -> Bytes {
        if self.tool_loop.as_ref().is_some_and(|tool_loop| tool_loop.is_later_turn()) {
            let failure = Failure::upstream(
                StatusCode::BAD_GATEWAY,
                ErrorKind::Api,
                "the provider's answer to the next turn is not an event stream".into(),
            );
            // The client has an event stream, so the error is an event and nothing is aborted.
            let _never_aborted = self.end_truncated(Bytes::new(), &failure);
            return Bytes::new();
        }
        // At most white space was held back.
        self.tool_loop = None;
        self.guard.note_merged_events(None);
        let held = self.take_held();
        self.filter = None;
        let chunk = self.mask_keys(chunk, is_last);
        if is_last {
            self.guard.end(&Ending::Relayed);
        }
        if held.is_empty() { chunk } else { [held, chunk].concat().into() }
    }

    /// Masks the company's keys where the provider quotes them: in errors, and in events that are not yet
    /// known to be none.
    fn mask_keys(&mut self, chunk: Bytes, is_whole: bool) -> Bytes {
        let Some(mask) = &mut self.key_mask else { return chunk };
        let continues = !self.guard.is_event_stream() || self.guard.is_mid_event();
        if !continues && !self.guard.has_error() && mask.is_idle() {
            return chunk;
        }
        let masked = mask.push(&self.guard.provider().secrets, chunk, continues && !is_whole);
        if mask.has_masked() {
            self.guard.note_edit(MASK_KEY);
        }
        masked
    }

    /// Handles the end of the provider's answer.
    pub(super) fn finish(&mut self) -> Result<(), Aborted> {
        if let Some(tool_loop) = &mut self.tool_loop {
            let output = tool_loop.finish();
            self.guard.note_merged_events(Some(tool_loop.events()));
            let output = self.follow_turn(output);
            if self.is_working() || self.state != State::Relaying {
                // At most the end of a line is dropped here.
                return Ok(());
            }
            return self.end(output);
        }
        let held = self.take_held();
        self.end(held)
    }

    /// Ends the answer before it is complete.
    pub(super) fn truncate(&mut self, failure: &Failure) -> Result<(), Aborted> {
        let held = self.take_held();
        self.end_truncated(held, failure)
    }

    /// The tool loop of the stream, and the guard of its record.
    pub(super) fn tool_loop(&mut self) -> Option<(&mut ToolLoopStream, &mut SettlementGuard)> {
        self.tool_loop.as_deref_mut().map(|tool_loop| (tool_loop, &mut *self.guard))
    }

    /// Whether the stream waits for tools or the ledger, and not for the provider.
    pub(super) fn is_working(&self) -> bool {
        self.tool_loop.as_ref().is_some_and(|tool_loop| tool_loop.is_working())
    }

    /// Applies the outcome of a turn; returns the body of the next turn, if there is one.
    pub(super) fn apply(&mut self, outcome: LoopOutcome) -> Result<Option<AnswerBody>, Aborted> {
        match outcome {
            LoopOutcome::NextTurn(upstream, dump) => {
                self.dump = dump;
                Ok(Some(upstream))
            }
            LoopOutcome::Finished(last) => {
                self.guard.note_merged_events(self.tool_loop.as_ref().map(|tool| tool.events()));
                self.guard.end(&Ending::Relayed);
                self.send_last(last);
                Ok(None)
            }
            LoopOutcome::Failed(failure) => {
                self.end_truncated(Bytes::new(), &failure).map(|()| None)
            }
        }
    }

    /// Calls `log` in the request's span.
    pub(super) fn in_span(&self, log: impl FnOnce()) {
        self.guard.span().in_scope(log);
    }

    /// Whether the answer is a stream that the bridge can end with an error event.
    fn adds_events(&self) -> bool {
        self.is_event_stream() && matches!(self.truncation, Truncation::ErrorEvent(_))
    }

    /// Whether the client gets an event stream.
    fn is_event_stream(&self) -> bool {
        self.tool_loop.is_some() || self.guard.is_event_stream()
    }

    fn take_held(&mut self) -> Bytes {
        let held = self.key_mask.as_mut().map(KeyMask::take_held).unwrap_or_default();
        let Some(filter) = &mut self.filter else { return held };
        let passed = filter.push(&held);
        let last = filter.finish();
        if passed.is_empty() { last } else { [passed, last].concat().into() }
    }

    fn send_last(&mut self, bytes: Bytes) {
        self.state = if bytes.is_empty() { State::Ended } else { State::Last(bytes) };
    }

    /// Starts the work after the end of a turn; returns the bytes for the client.
    fn follow_turn(&mut self, output: Bytes) -> Bytes {
        let Some(tool_loop) = &mut self.tool_loop else { return output };
        if tool_loop.is_finished() {
            self.guard.end(&Ending::Relayed);
        } else if let Err(failure) = tool_loop.start_work(&mut self.guard) {
            // A tool loop has an event stream, so the error is an event and nothing is aborted.
            let _never_aborted = self.end_truncated(output, &failure);
            return Bytes::new();
        }
        output
    }

    /// Ends the answer; held bytes are sent first.
    fn end(&mut self, held: Bytes) -> Result<(), Aborted> {
        self.guard.finish_observing();
        // Whether an answer that cannot be extended is complete is left to the client.
        if self.adds_events() && !self.guard.is_settled() && !self.guard.is_terminal() {
            return self.end_truncated(held, &Failure::truncated());
        }
        self.guard.end(&Ending::Relayed);
        self.send_last(held);
        Ok(())
    }

    /// Ends the client's stream with an error; held bytes are sent first.
    fn end_truncated(&mut self, held: Bytes, failure: &Failure) -> Result<(), Aborted> {
        if self.guard.is_settled() {
            self.send_last(held);
            return Ok(());
        }
        let (is_mid_event, number) = match &self.tool_loop {
            // The client is sent whole events only.
            Some(tool_loop) => (false, tool_loop.next_sequence_number()),
            None => (self.guard.is_mid_event(), self.guard.next_sequence_number()),
        };
        self.guard.end(&Ending::Truncated(failure));
        let dialect = match self.truncation {
            Truncation::ErrorEvent(dialect) if self.is_event_stream() => dialect,
            Truncation::ErrorEvent(_) | Truncation::Abort => {
                self.state = State::Ended;
                return Err(Aborted(failure.detail.clone()));
            }
        };
        let mut last = held.to_vec();
        if is_mid_event {
            // Ends the truncated event, so that the error is a separate event.
            last.extend_from_slice(b"\n\n");
        }
        last.extend_from_slice(&stream_event(dialect, failure.kind, &failure.detail, number));
        self.state = State::Last(last.into());
        Ok(())
    }
}

impl std::fmt::Debug for Pump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pump").field("state", &self.state).finish_non_exhaustive()
    }
}
