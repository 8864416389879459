//! The inner loop within a stream: what a turn's end brings about while the client waits.

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

use crate::{
    relay::respond::is_event_stream,
    settlement::{Observing, Settling},
    tools::turns::{Answered, Loop, Refusal, Work, refusal},
};

/// Longest silence towards a client whose stream is being kept waiting.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// An inner loop in the middle of a stream.
pub(crate) struct Looped {
    inner: Loop,
    merger: StreamMerger,
    doing: Doing,
    last_shown: Instant,
    alarm: Pin<Box<Sleep>>,
}

enum Doing {
    /// The provider answers.
    Reading,
    Answering(Work<Answered>),
    Keeping(Work<()>),
}

/// What has become of the work.
pub(crate) enum Worked {
    /// The provider answers the next turn.
    GoesOn(AnswerBody, Option<Dump>),
    /// The answer is over; these are its last bytes.
    Over(Bytes),
    Failed(Failure),
}

impl Looped {
    pub(crate) fn new(inner: Loop) -> Self {
        let merger = StreamMerger::new(inner.dialect, inner.client.clone());
        let alarm = Box::pin(tokio::time::sleep(KEEP_ALIVE));
        Self { inner, merger, doing: Doing::Reading, last_shown: Instant::now(), alarm }
    }

    /// Takes a chunk of the current turn in and gives what the client is to see.
    pub(crate) fn push(&mut self, chunk: &[u8]) -> Bytes {
        let shown = self.merger.push(chunk);
        self.show(shown)
    }

    /// The provider has ended the turn.
    pub(crate) fn finish(&mut self) -> Bytes {
        let shown = self.merger.finish();
        self.show(shown)
    }

    fn show(&mut self, shown: Vec<u8>) -> Bytes {
        if !shown.is_empty() {
            self.last_shown = Instant::now();
        }
        shown.into()
    }

    /// Whether the client has seen the end of the answer.
    pub(crate) fn is_over(&self) -> bool {
        self.merger.state() == TurnState::Relayed
    }

    pub(crate) fn next_sequence_number(&self) -> u64 {
        self.merger.next_sequence_number()
    }

    /// Whether it works, so that the provider is not waited for.
    pub(crate) fn is_working(&self) -> bool {
        !matches!(self.doing, Doing::Reading)
    }

    /// Begins the work that a turn's end asks for, if there is any.
    pub(crate) fn begin(&mut self, settling: &mut Settling) -> Result<(), Failure> {
        if self.is_working() || self.merger.state() != TurnState::Held {
            return Ok(());
        }
        let turn = self.merger.take_turn();
        self.inner.note_calls(&turn);
        if turn.should_run_calls() {
            self.inner.may_go_on(&turn)?;
        }
        settling.turn_over();
        let (dialect, answering) = (self.inner.dialect, self.inner.answer(turn));
        self.doing = Doing::Answering(Box::pin(async move {
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
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, settling: &mut Settling) -> Poll<Worked> {
        loop {
            match &mut self.doing {
                Doing::Reading => return Poll::Pending,
                Doing::Answering(work) => {
                    let answered = std::task::ready!(work.as_mut().poll(cx));
                    self.doing = Doing::Reading;
                    if let Some(worked) = self.answered(answered, settling) {
                        return Poll::Ready(worked);
                    }
                }
                Doing::Keeping(work) => {
                    std::task::ready!(work.as_mut().poll(cx));
                    self.doing = Doing::Reading;
                    return Poll::Ready(Worked::Over(self.merger.release().into()));
                }
            }
        }
    }

    /// The calls of a turn are answered; none if there is more to do.
    fn answered(&mut self, answered: Answered, settling: &mut Settling) -> Option<Worked> {
        let Answered { turn, results, next, body, dump } = answered;
        let answer = match next {
            Some(Ok(answer)) => answer,
            Some(Err(Refusal { failure, status, observed })) => {
                if let Some(status) = status {
                    settling.refused(status, observed);
                }
                return Some(Worked::Failed(failure));
            }
            None => {
                let first = settling.first_response_id();
                let continuation = self.merger.continuation(&turn, &results);
                let continuation = self.inner.linked(continuation, first.as_deref(), &turn);
                let Some(keeping) = self.inner.keep(&continuation, settling.entry()) else {
                    return Some(Worked::Over(self.merger.release().into()));
                };
                self.doing = Doing::Keeping(keeping);
                return None;
            }
        };
        if !is_event_stream(answer.headers()) || !codings(answer.headers()).is_empty() {
            settling.refused(answer.status(), None);
            return Some(Worked::Failed(Failure::upstream(
                StatusCode::BAD_GATEWAY,
                ErrorKind::Api,
                "the provider's next turn is no plain event stream".into(),
            )));
        }
        self.merger.next_turn(&turn, &results);
        self.inner.turns += 1;
        self.inner.outgoing.body = body;
        let (head, upstream) = answer.into_parts();
        let observer = Observer::stream(self.inner.dialect);
        settling.head(head.status, Observing::new(observer, Vec::new()));
        Some(Worked::GoesOn(upstream, dump))
    }

    /// Something harmless for a client that has seen nothing for long because of the loop.
    pub(crate) fn poll_keep_alive(&mut self, cx: &mut Context<'_>) -> Poll<Bytes> {
        if !self.merger.is_withholding() {
            return Poll::Pending;
        }
        loop {
            let due = self.last_shown + KEEP_ALIVE;
            if due <= Instant::now() {
                self.last_shown = Instant::now();
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
