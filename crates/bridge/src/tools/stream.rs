//! The tool loop of a stream: the work after each turn while the client waits.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use keybridge_net::encoding::codings;
use keybridge_providers::{body::AnswerBody, dump::Dump, failure::Failure};
use keybridge_wire::{
    Dialect,
    error::ErrorKind,
    observe::Observer,
    sse::EventCounter,
    tool_loop::{StreamMerger, TurnState},
};
use tokio::time::{Instant, Sleep};

use super::tool_loop::{RefusedTurn, ToolLoop, TurnOutcome, Work, read_refusal};
use crate::settlement::{AnswerObserver, SettlementGuard};

/// Maximum silence on a client's stream while tools are called.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The tool loop of a stream.
pub(crate) struct ToolLoopStream {
    inner: ToolLoop,
    merger: StreamMerger,
    /// Counts what the client is sent.
    counter: EventCounter,
    phase: Phase,
    last_sent: Instant,
    alarm: Pin<Box<Sleep>>,
}

enum Phase {
    /// Reading the provider's answer.
    Reading,
    /// Running the calls of a turn and sending the next one.
    RunningTurn(Work<TurnOutcome>),
    /// Storing what later requests of the conversation need.
    StoringContinuation(Work<()>),
}

/// The outcome of the work after a turn.
pub(crate) enum LoopOutcome {
    /// The provider has started to answer the next turn.
    NextTurn(AnswerBody, Option<Dump>),
    /// The answer is complete; these are its last bytes.
    Finished(Bytes),
    Failed(Failure),
}

impl ToolLoopStream {
    pub(crate) fn new(inner: ToolLoop) -> Self {
        let merger = StreamMerger::new(inner.dialect, inner.client.clone());
        let alarm = Box::pin(tokio::time::sleep(KEEP_ALIVE));
        Self {
            inner,
            merger,
            counter: EventCounter::default(),
            phase: Phase::Reading,
            last_sent: Instant::now(),
            alarm,
        }
    }

    /// Takes a chunk of the current turn and returns the bytes for the client.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Bytes {
        let output = self.merger.push(chunk);
        self.mark_sent(output)
    }

    /// Handles the end of the provider's answer to a turn.
    pub(crate) fn finish(&mut self) -> Bytes {
        let output = self.merger.finish();
        self.mark_sent(output)
    }

    fn mark_sent(&mut self, output: Vec<u8>) -> Bytes {
        if !output.is_empty() {
            self.last_sent = Instant::now();
        }
        self.count(output.into())
    }

    /// Counts the events of what the client is sent.
    fn count(&mut self, bytes: Bytes) -> Bytes {
        self.counter.push(&bytes);
        bytes
    }

    /// The number of events that the client was sent.
    pub(crate) const fn events(&self) -> u64 {
        self.counter.events()
    }

    /// Whether an earlier turn was relayed to the client.
    pub(crate) fn is_later_turn(&self) -> bool {
        self.inner.turns > 0
    }

    /// Whether the end of the answer was relayed to the client.
    pub(crate) fn is_finished(&self) -> bool {
        self.merger.state() == TurnState::Relayed
    }

    pub(crate) fn next_sequence_number(&self) -> u64 {
        self.merger.next_sequence_number()
    }

    /// Whether the stream waits for tools or the ledger, and not for the provider.
    pub(crate) fn is_working(&self) -> bool {
        !matches!(self.phase, Phase::Reading)
    }

    /// Starts the work after a turn, if there is any.
    pub(crate) fn start_work(&mut self, guard: &mut SettlementGuard) -> Result<(), Failure> {
        if self.is_working() || self.merger.state() != TurnState::Held {
            return Ok(());
        }
        let turn = self.merger.take_turn();
        self.inner.note_calls(&turn);
        if turn.should_run_calls() {
            self.inner.check_limits(&turn)?;
        }
        guard.end_turn();
        let (dialect, running) = (self.inner.dialect, self.inner.run_turn(turn));
        let (provider, attempts) = (Arc::clone(&self.inner.provider), self.inner.attempts.clone());
        self.phase = Phase::RunningTurn(Box::pin(async move {
            let mut outcome = running.await;
            outcome.next = match outcome.next {
                Some(Ok(answer)) if !answer.status().is_success() => {
                    let refused = read_refusal(dialect, answer).await;
                    Some(Err(refused.masked(&provider, &attempts.credential())))
                }
                other => other,
            };
            outcome
        }));
        Ok(())
    }

    /// Polls the work after a turn.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        guard: &mut SettlementGuard,
    ) -> Poll<LoopOutcome> {
        loop {
            match &mut self.phase {
                Phase::Reading => return Poll::Pending,
                Phase::RunningTurn(work) => {
                    let outcome = std::task::ready!(work.as_mut().poll(cx));
                    self.phase = Phase::Reading;
                    if let Some(outcome) = self.apply_turn(outcome, guard) {
                        return Poll::Ready(outcome);
                    }
                }
                Phase::StoringContinuation(work) => {
                    std::task::ready!(work.as_mut().poll(cx));
                    self.phase = Phase::Reading;
                    return Poll::Ready(self.finished());
                }
            }
        }
    }

    /// Releases the end of the answer.
    fn finished(&mut self) -> LoopOutcome {
        let last = self.merger.release().into();
        LoopOutcome::Finished(self.count(last))
    }

    /// Applies the outcome of a turn; returns `None` if the continuation must be stored first.
    fn apply_turn(
        &mut self,
        outcome: TurnOutcome,
        guard: &mut SettlementGuard,
    ) -> Option<LoopOutcome> {
        let TurnOutcome { turn, results, next, body, dump } = outcome;
        let answer = match next {
            Some(Ok(answer)) => answer,
            Some(Err(RefusedTurn { failure, status, observed })) => {
                if let Some(status) = status {
                    guard.refuse_turn(status, observed);
                }
                return Some(LoopOutcome::Failed(failure));
            }
            None => {
                let first = guard.first_response_id();
                let continuation = self.merger.continuation(&turn, &results);
                let continuation = self.inner.link_responses(continuation, first.as_deref(), &turn);
                let Some(storing) = self.inner.store_continuation(&continuation, guard.entry())
                else {
                    return Some(self.finished());
                };
                self.phase = Phase::StoringContinuation(storing);
                return None;
            }
        };
        if !codings(answer.headers()).is_empty() {
            guard.refuse_turn(answer.status(), None);
            return Some(LoopOutcome::Failed(Failure::upstream(
                StatusCode::BAD_GATEWAY,
                ErrorKind::Api,
                "the provider's answer to the next turn is encoded although no encoding was requested"
                    .into(),
            )));
        }
        self.merger.next_turn(&turn, &results);
        self.inner.turns += 1;
        self.inner.outgoing.body = body;
        let (head, upstream) = answer.into_parts();
        let observer = Observer::stream(self.inner.dialect);
        guard.start_answer(head.status, AnswerObserver::new(observer, Vec::new()));
        Some(LoopOutcome::NextTurn(upstream, dump))
    }

    /// A keep-alive event, when the tool loop has sent nothing to the client for [`KEEP_ALIVE`].
    pub(crate) fn poll_keep_alive(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        if !self.merger.is_withholding() {
            return Poll::Pending;
        }
        loop {
            let due = self.last_sent + KEEP_ALIVE;
            if due <= Instant::now() {
                self.last_sent = Instant::now();
                let event = keep_alive(self.inner.dialect);
                return Poll::Ready(self.count(event));
            }
            if self.alarm.deadline() != due {
                self.alarm.as_mut().reset(due);
            }
            std::task::ready!(self.alarm.as_mut().poll(cx));
        }
    }
}

fn keep_alive(dialect: Dialect) -> Bytes {
    Bytes::from_static(match dialect {
        Dialect::Messages => b"event: ping\ndata: {\"type\": \"ping\"}\n\n",
        Dialect::ChatCompletions | Dialect::Responses => b": keep-alive\n\n",
    })
}
