//! The inner loop: a model calls injected tools, the bridge answers them and asks again, and the
//! client sees one answer.
//!
//! A [`Merger`] takes the events of one turn after another and gives what the client is to see: all
//! of it live, but for the injected calls and for what ends a turn. A [`Turn`] is what the model said
//! in one of them, with which the next request is made. Nothing here calls a tool.

use std::{collections::HashSet, ops::Range};

use crate::{
    Dialect,
    json::JsonError,
    sse::{Frame, Framer, MAX_EVENT_BYTES},
};

mod chat;
mod growing;
mod history;
mod messages;
mod responses;
mod turn;
mod usage;
mod whole;

pub use history::{Continuation, anchors, response_key, restored};
pub use turn::{Call, Output, Part, Turn, with_previous_response};
pub use whole::Whole;

use history::HiddenTurn;

/// Merges the streams of an inner loop's turns into the one that the client sees.
#[derive(Debug)]
pub struct Merger {
    framer: Framer,
    view: View,
    dialect: Source,
    /// What became of the last frame: a line end that comes after it belongs to it.
    last_fate: Fate,
}

/// What the client knows of the tools, and what its view of the stream needs to be.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// The ids of the tools that were injected.
    pub offered: HashSet<String>,
    /// Whether the client asked for the usage of a Chat Completions stream.
    pub wants_usage: bool,
    /// The request's `previous_response_id` where another one goes upstream.
    pub previous_response_id: Option<String>,
    /// The request's `parallel_tool_calls` where it was changed: JSON, or `None` if absent.
    pub parallel_tool_calls: Option<String>,
}

/// How a turn has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnEnd {
    /// It has not.
    Open,
    /// With the whole answer, all of which was given out.
    Passed,
    /// With an ending that is held back: for results of injected calls, or until the bridge has
    /// kept what a later request needs.
    Held,
}

/// The state that the dialects share.
#[derive(Debug)]
struct View {
    client: Client,
    /// How many turns came before this one.
    turn: u32,
    /// Whether anything has been kept from the client so far.
    diverted: bool,
    held: Vec<u8>,
    end: TurnEnd,
    /// Bytes of this turn that may still be kept.
    room: usize,
    overflowed: bool,
    past: Vec<HiddenTurn>,
}

/// One dialect's stream.
#[derive(Debug)]
enum Source {
    Messages(messages::Stream),
    Chat(chat::Stream),
    Responses(responses::Stream),
}

/// What becomes of an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Fate {
    #[default]
    Relay,
    Hold,
    Drop,
}

/// An event's fate and the changes to its data.
#[derive(Debug, Default)]
struct Verdict {
    fate: Fate,
    edits: Vec<(Range<usize>, String)>,
    /// Changes that make of it an event that the client sees at once, before the event itself.
    ahead: Option<Vec<(Range<usize>, String)>>,
}

/// The byte order mark.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// What a part of an answer takes in memory beside its text.
const PART_BYTES: usize = 256;
/// The latest parts that are still known once a turn is too large to be kept.
const LATEST_PARTS: usize = 64;

impl Merger {
    /// A merger before the first turn.
    #[must_use]
    pub fn new(dialect: Dialect, client: Client) -> Self {
        let source = match dialect {
            Dialect::Messages => Source::Messages(messages::Stream::default()),
            Dialect::ChatCompletions => Source::Chat(chat::Stream::default()),
            Dialect::Responses => Source::Responses(responses::Stream::default()),
        };
        let view = View {
            client,
            turn: 0,
            diverted: false,
            held: Vec::new(),
            end: TurnEnd::Open,
            room: MAX_EVENT_BYTES,
            overflowed: false,
            past: Vec::new(),
        };
        Self { framer: Framer::new(), view, dialect: source, last_fate: Fate::Relay }
    }

    /// Takes a chunk of the current turn in and gives what the client is to see of it, always whole
    /// events.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        let Self { framer, view, dialect, last_fate } = self;
        let mut shown = Vec::with_capacity(chunk.len());
        framer.push(chunk, |frame| {
            let mut verdict = match view.end {
                TurnEnd::Passed => Verdict::of(Fate::Relay),
                TurnEnd::Open | TurnEnd::Held if frame.raw() == b"\n" => Verdict::of(*last_fate),
                TurnEnd::Open => dialect.frame(&frame, view),
                TurnEnd::Held => Verdict::of(Fate::Drop),
            };
            *last_fate = verdict.fate;
            let begun = shown.len();
            if let Some(edits) = verdict.ahead.take() {
                frame.write_with(edits, &mut shown);
            }
            match verdict.fate {
                Fate::Relay => verdict.write(&frame, &mut shown),
                Fate::Hold if view.held.len() > MAX_EVENT_BYTES => view.overflowed = true,
                Fate::Hold => verdict.write(&frame, &mut view.held),
                Fate::Drop => {}
            }
            // A byte order mark stands at the beginning of a stream or is none.
            let is_marked = shown.get(begun..).is_some_and(|new| new.starts_with(MARK));
            if view.turn > 0 && is_marked {
                shown.drain(begun..begun + MARK.len());
            }
        });
        shown
    }

    /// Nothing more comes of the current turn: an event that lacks its blank line counts.
    pub fn finish(&mut self) -> Vec<u8> {
        if self.framer.is_mid_event() { self.push(b"\n\n") } else { Vec::new() }
    }

    /// How the current turn has ended.
    #[must_use]
    pub fn end(&self) -> TurnEnd {
        self.view.end
    }

    /// Whether something is being kept from the client, so that it may see nothing for long.
    #[must_use]
    pub fn is_diverted(&self) -> bool {
        self.view.diverted
    }

    /// What the model said in the turn that has ended.
    pub fn take_turn(&mut self) -> Turn {
        let overflowed = self.view.overflowed;
        let turn = match &mut self.dialect {
            Source::Messages(stream) => stream.take_turn(&self.view.client.offered),
            Source::Chat(stream) => stream.take_turn(&self.view.client.offered),
            Source::Responses(stream) => stream.take_turn(&self.view.client.offered),
        };
        Turn { overflowed: overflowed || turn.overflowed, ..turn }
    }

    /// Goes on to the next turn; the ending of the last one is not shown.
    pub fn next_turn(&mut self, turn: &Turn, results: &[String]) {
        self.view.past.push(HiddenTurn::new(turn, results));
        self.view.held.clear();
        self.view.turn = self.view.turn.saturating_add(1);
        self.view.end = TurnEnd::Open;
        self.view.room = MAX_EVENT_BYTES;
        self.framer = Framer::new();
        self.last_fate = Fate::Relay;
        match &mut self.dialect {
            Source::Messages(stream) => stream.next_turn(),
            Source::Chat(stream) => stream.next_turn(),
            Source::Responses(stream) => stream.next_turn(),
        }
    }

    /// What a later request needs, now that the last turn has ended; its injected calls, if any,
    /// have these results.
    #[must_use]
    pub fn continuation(&self, turn: &Turn, results: &[String]) -> Continuation {
        Continuation::new(&self.view.past, turn, results)
    }

    /// Shows the ending that was held back.
    pub fn release(&mut self) -> Vec<u8> {
        if self.view.end == TurnEnd::Held {
            self.view.end = TurnEnd::Passed;
            if let Source::Responses(stream) = &mut self.dialect {
                stream.release();
            }
        }
        std::mem::take(&mut self.view.held)
    }

    /// The number that the next event of a Responses stream takes in the client's view.
    #[must_use]
    pub fn next_sequence_number(&self) -> u64 {
        match &self.dialect {
            Source::Responses(stream) => stream.next_sequence_number(),
            Source::Messages(_) | Source::Chat(_) => 0,
        }
    }
}

impl Source {
    fn frame(&mut self, frame: &Frame<'_>, view: &mut View) -> Verdict {
        if frame.is_piece() {
            // Too large to be read, so it cannot be told what it is; nor can it be kept.
            view.overflowed = true;
            let is_whole = view.turn == 0 && !view.diverted;
            return Verdict::of(if is_whole { Fate::Relay } else { Fate::Drop });
        }
        let (event, data) = frame.parts();
        if data.is_empty() {
            return Verdict::default();
        }
        match self {
            Self::Messages(stream) => stream.event(event, &data, view),
            Self::Chat(stream) => stream.event(event, &data, view),
            Self::Responses(stream) => stream.event(event, &data, view),
        }
    }
}

impl View {
    fn is_injected(&self, name: &str) -> bool {
        self.client.offered.contains(name)
    }

    /// Whether a further part of so many bytes can be kept.
    fn keeps_part(&mut self, bytes: usize) -> bool {
        self.keeps(bytes.saturating_add(PART_BYTES))
    }

    /// Whether so many more bytes of this turn can be kept.
    fn keeps(&mut self, bytes: usize) -> bool {
        match self.room.checked_sub(bytes) {
            Some(left) => self.room = left,
            None => self.overflowed = true,
        }
        !self.overflowed
    }

    /// Ends the turn; gives what becomes of the event that ends it.
    fn conclude(&mut self) -> Fate {
        let (end, fate) = if self.diverted {
            (TurnEnd::Held, Fate::Hold)
        } else {
            (TurnEnd::Passed, Fate::Relay)
        };
        self.end = end;
        fate
    }

    /// Ends the turn with an error of the provider, which the client sees in place of any ending.
    fn fail(&mut self) {
        self.end = TurnEnd::Passed;
        self.held.clear();
    }

    /// What becomes of an event that belongs to the ending.
    const fn ending(&self) -> Fate {
        if self.diverted { Fate::Hold } else { Fate::Relay }
    }
}

impl Verdict {
    const fn of(fate: Fate) -> Self {
        Self { fate, edits: Vec::new(), ahead: None }
    }

    fn edited(fate: Fate, edits: Vec<(Range<usize>, String)>) -> Self {
        Self { fate, edits, ahead: None }
    }

    /// The event with other data.
    fn replaced(fate: Fate, data: &[u8], by: Result<Vec<u8>, JsonError>) -> Self {
        match by.ok().and_then(|by| String::from_utf8(by).ok()) {
            Some(by) => Self::edited(fate, vec![(0..data.len(), by)]),
            // It is JSON, so this does not come up.
            None => Self::of(fate),
        }
    }

    fn write(self, frame: &Frame<'_>, out: &mut Vec<u8>) {
        if self.edits.is_empty() {
            out.extend_from_slice(frame.raw());
        } else {
            frame.write_with(self.edits, out);
        }
    }
}

/// Forgets the earliest parts of a turn that is too large to be kept.
fn forget<T>(parts: &mut Vec<T>, view: &View) {
    if view.overflowed && parts.len() > LATEST_PARTS {
        parts.drain(..parts.len() - LATEST_PARTS);
    }
}

#[cfg(test)]
mod tests;
