//! The tool loop within a stream: what follows a turn's end while the client waits.

use std::{
    pin::Pin,
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
    tool_loop::{StreamMerger, TurnState},
};
use tokio::time::{Instant, Sleep};

use super::tool_loop::{Answered, Refusal, ToolLoop, Work, refusal};
use crate::{
    headers::is_event_stream,
    settlement::{Observing, SettlementGuard},
};

/// Longest silence towards a client while tools are called.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// An inner loop in the middle of a stream.
pub(crate) struct ToolLoopStream {
    inner: ToolLoop,
    merger: StreamMerger,
    phase: Phase,
    last_sent: Instant,
    alarm: Pin<Box<Sleep>>,
}

enum Phase {
    /// The provider answers.
    Reading,
    Answering(Work<Answered>),
    Keeping(Work<()>),
}

/// What the work of a turn's end led to.
pub(crate) enum LoopOutcome {
    /// The provider answers the next turn.
    NextTurn(AnswerBody, Option<Dump>),
    /// The answer is over; these are its last bytes.
    Finished(Bytes),
    Failed(Failure),
}

impl ToolLoopStream {
    pub(crate) fn new(inner: ToolLoop) -> Self {
        let merger = StreamMerger::new(inner.dialect, inner.client.clone());
        let alarm = Box::pin(tokio::time::sleep(KEEP_ALIVE));
        Self { inner, merger, phase: Phase::Reading, last_sent: Instant::now(), alarm }
    }

    /// Takes a chunk of the current turn in and gives what the client is to see.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Bytes {
        let output = self.merger.push(chunk);
        self.sent(output)
    }

    /// The provider has ended the turn.
    pub(crate) fn finish(&mut self) -> Bytes {
        let output = self.merger.finish();
        self.sent(output)
    }

    fn sent(&mut self, output: Vec<u8>) -> Bytes {
        if !output.is_empty() {
            self.last_sent = Instant::now();
        }
        output.into()
    }

    /// Whether the client has seen the end of the answer.
    pub(crate) fn is_finished(&self) -> bool {
        self.merger.state() == TurnState::Relayed
    }

    pub(crate) fn next_sequence_number(&self) -> u64 {
        self.merger.next_sequence_number()
    }

    /// Whether tools or the ledger are waited for, and not the provider.
    pub(crate) fn is_working(&self) -> bool {
        !matches!(self.phase, Phase::Reading)
    }

    /// Starts the work that a turn's end asks for, if there is any.
    pub(crate) fn start_work(&mut self, guard: &mut SettlementGuard) -> Result<(), Failure> {
        if self.is_working() || self.merger.state() != TurnState::Held {
            return Ok(());
        }
        let turn = self.merger.take_turn();
        self.inner.note_calls(&turn);
        if turn.should_run_calls() {
            self.inner.may_go_on(&turn)?;
        }
        guard.end_turn();
        let (dialect, answering) = (self.inner.dialect, self.inner.answer(turn));
        self.phase = Phase::Answering(Box::pin(async move {
            let mut answered = answering.await;
            answered.next = match answered.next {
                Some(Ok(answer)) if !answer.status().is_success() => {
                    Some(Err(refusal(dialect, answer).await))
                }
                other => other,
            };
            answered
        }));
        Ok(())
    }

    /// Carries the work on.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        guard: &mut SettlementGuard,
    ) -> Poll<LoopOutcome> {
        loop {
            match &mut self.phase {
                Phase::Reading => return Poll::Pending,
                Phase::Answering(work) => {
                    let answered = std::task::ready!(work.as_mut().poll(cx));
                    self.phase = Phase::Reading;
                    if let Some(outcome) = self.answered(answered, guard) {
                        return Poll::Ready(outcome);
                    }
                }
                Phase::Keeping(work) => {
                    std::task::ready!(work.as_mut().poll(cx));
                    self.phase = Phase::Reading;
                    return Poll::Ready(LoopOutcome::Finished(self.merger.release().into()));
                }
            }
        }
    }

    /// The calls of a turn are answered; none if there is more to do.
    fn answered(&mut self, answered: Answered, guard: &mut SettlementGuard) -> Option<LoopOutcome> {
        let Answered { turn, results, next, body, dump } = answered;
        let answer = match next {
            Some(Ok(answer)) => answer,
            Some(Err(Refusal { failure, status, observed })) => {
                if let Some(status) = status {
                    guard.refuse_turn(status, observed);
                }
                return Some(LoopOutcome::Failed(failure));
            }
            None => {
                let first = guard.first_response_id();
                let continuation = self.merger.continuation(&turn, &results);
                let continuation = self.inner.linked(continuation, first.as_deref(), &turn);
                let Some(keeping) = self.inner.keep(&continuation, guard.entry()) else {
                    return Some(LoopOutcome::Finished(self.merger.release().into()));
                };
                self.phase = Phase::Keeping(keeping);
                return None;
            }
        };
        if !is_event_stream(answer.headers()) || !codings(answer.headers()).is_empty() {
            guard.refuse_turn(answer.status(), None);
            return Some(LoopOutcome::Failed(Failure::upstream(
                StatusCode::BAD_GATEWAY,
                ErrorKind::Api,
                "the provider's answer to the next turn is not an unencoded event stream".into(),
            )));
        }
        self.merger.next_turn(&turn, &results);
        self.inner.turns += 1;
        self.inner.outgoing.body = body;
        let (head, upstream) = answer.into_parts();
        let observer = Observer::stream(self.inner.dialect);
        guard.begin_answer(head.status, Observing::new(observer, Vec::new()));
        Some(LoopOutcome::NextTurn(upstream, dump))
    }

    /// An event that means nothing, for a client that has got nothing for [`KEEP_ALIVE`] because of the
    /// loop.
    pub(crate) fn poll_keep_alive(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        if !self.merger.is_withholding() {
            return Poll::Pending;
        }
        loop {
            let due = self.last_sent + KEEP_ALIVE;
            if due <= Instant::now() {
                self.last_sent = Instant::now();
                return Poll::Ready(keep_alive(self.inner.dialect));
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
