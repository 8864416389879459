//! The inner loop: a model calls injected tools, the bridge answers them and asks again, and the
//! client sees one answer.
//!
//! A [`StreamMerger`] takes the events of one turn after another and gives what the client is to see: all
//! of it live, but for the injected calls and for what ends a turn. A [`Turn`] is what the model said
//! in one of them, with which the next request is made. Nothing here calls a tool.

use std::{collections::HashSet, ops::Range};

use crate::{
    Dialect,
    json::JsonError,
    sse::{Frame, Framer, MAX_EVENT_BYTES},
};

mod body_merger;
mod chat;
mod history;
mod messages;
mod partial_object;
mod responses;
mod turn;
mod usage;

pub use body_merger::BodyMerger;
pub use history::{Continuation, continuation_keys, response_key, restore_hidden_turns};
pub use turn::{InjectedCall, OutputPart, ToolOutput, Turn, set_previous_response};

use history::HiddenTurn;

/// Merges the streams of an inner loop's turns into the one that the client sees.
#[derive(Debug)]
pub struct StreamMerger {
    framer: Framer,
    state: MergeState,
    stream: DialectStream,
    /// What became of the last frame: a line end that comes after it belongs to it.
    last_action: Action,
}

/// What the client knows of the tools, and what its state of the stream needs to be.
#[derive(Debug, Clone, Default)]
pub struct ClientView {
    /// The ids of the tools that were injected.
    pub injected_tools: HashSet<String>,
    /// Whether the client asked for the usage of a Chat Completions stream.
    pub wants_usage: bool,
    /// The request's `previous_response_id` where another one goes upstream.
    pub previous_response_id: Option<String>,
    /// The request's `parallel_tool_calls` where it was changed: JSON, or `None` if absent.
    pub parallel_tool_calls: Option<String>,
}

/// How a turn has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnState {
    /// It has not.
    Open,
    /// With the whole answer, all of which was given out.
    Relayed,
    /// With an ending that is held back: for results of injected calls, or until the bridge has
    /// kept what a later request needs.
    Held,
}

/// The state that the dialects share.
#[derive(Debug)]
struct MergeState {
    client: ClientView,
    /// How many turns came before this one.
    turn: u32,
    /// Whether anything has been kept from the client so far.
    withholding: bool,
    held: Vec<u8>,
    end: TurnState,
    /// Bytes of this turn that may still be kept.
    remaining_bytes: usize,
    overflowed: bool,
    hidden_turns: Vec<HiddenTurn>,
}

/// One dialect's stream.
#[derive(Debug)]
enum DialectStream {
    Messages(messages::MessagesMerge),
    Chat(chat::ChatMerge),
    Responses(responses::ResponsesMerge),
}

/// What becomes of an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Action {
    #[default]
    Relay,
    Hold,
    Drop,
}

/// An event's action and the changes to its data.
#[derive(Debug, Default)]
struct Verdict {
    action: Action,
    edits: Vec<(Range<usize>, String)>,
    /// Changes that make of it an event that the client sees at once, before the event itself.
    ahead: Option<Vec<(Range<usize>, String)>>,
}

/// The byte order mark.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a part of an answer takes in memory beside its text.
const PART_BYTES: usize = 256;
/// The latest parts that are still known once a turn is too large to be kept.
const MAX_OVERFLOW_PARTS: usize = 64;

impl StreamMerger {
    /// A merger before the first turn.
    #[must_use]
    pub fn new(dialect: Dialect, client: ClientView) -> Self {
        let stream = match dialect {
            Dialect::Messages => DialectStream::Messages(messages::MessagesMerge::default()),
            Dialect::ChatCompletions => DialectStream::Chat(chat::ChatMerge::default()),
            Dialect::Responses => DialectStream::Responses(responses::ResponsesMerge::default()),
        };
        let state = MergeState {
            client,
            turn: 0,
            withholding: false,
            held: Vec::new(),
            end: TurnState::Open,
            remaining_bytes: MAX_EVENT_BYTES,
            overflowed: false,
            hidden_turns: Vec::new(),
        };
        Self { framer: Framer::new(), state, stream, last_action: Action::Relay }
    }

    /// Takes a chunk of the current turn in and gives what the client is to see of it, always whole
    /// events.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        let Self { framer, state, stream, last_action } = self;
        let mut shown = Vec::with_capacity(chunk.len());
        framer.push(chunk, |frame| {
            let mut verdict = match state.end {
                TurnState::Relayed => Verdict::of(Action::Relay),
                TurnState::Open | TurnState::Held if frame.raw() == b"\n" => {
                    Verdict::of(*last_action)
                }
                TurnState::Open => stream.handle_frame(&frame, state),
                TurnState::Held => Verdict::of(Action::Drop),
            };
            *last_action = verdict.action;
            let begun = shown.len();
            if let Some(edits) = verdict.ahead.take() {
                frame.write_edited(edits, &mut shown);
            }
            match verdict.action {
                Action::Relay => verdict.write(&frame, &mut shown),
                Action::Hold if state.held.len() > MAX_EVENT_BYTES => state.overflowed = true,
                Action::Hold => verdict.write(&frame, &mut state.held),
                Action::Drop => {}
            }
            // A byte order mark stands at the beginning of a stream or is none.
            let is_marked = shown.get(begun..).is_some_and(|new| new.starts_with(BYTE_ORDER_MARK));
            if state.turn > 0 && is_marked {
                shown.drain(begun..begun + BYTE_ORDER_MARK.len());
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
    pub fn state(&self) -> TurnState {
        self.state.end
    }

    /// Whether something is being kept from the client, so that it may see nothing for long.
    #[must_use]
    pub fn is_withholding(&self) -> bool {
        self.state.withholding
    }

    /// What the model said in the turn that has ended.
    pub fn take_turn(&mut self) -> Turn {
        let overflowed = self.state.overflowed;
        let turn = match &mut self.stream {
            DialectStream::Messages(stream) => stream.take_turn(&self.state.client.injected_tools),
            DialectStream::Chat(stream) => stream.take_turn(&self.state.client.injected_tools),
            DialectStream::Responses(stream) => stream.take_turn(&self.state.client.injected_tools),
        };
        Turn { overflowed: overflowed || turn.overflowed, ..turn }
    }

    /// Goes on to the next turn; the ending of the last one is not shown.
    pub fn next_turn(&mut self, turn: &Turn, results: &[String]) {
        self.state.hidden_turns.push(HiddenTurn::new(turn, results));
        self.state.held.clear();
        self.state.turn = self.state.turn.saturating_add(1);
        self.state.end = TurnState::Open;
        self.state.remaining_bytes = MAX_EVENT_BYTES;
        self.framer = Framer::new();
        self.last_action = Action::Relay;
        match &mut self.stream {
            DialectStream::Messages(stream) => stream.next_turn(),
            DialectStream::Chat(stream) => stream.next_turn(),
            DialectStream::Responses(stream) => stream.next_turn(),
        }
    }

    /// What a later request needs, now that the last turn has ended; its injected calls, if any,
    /// have these results.
    #[must_use]
    pub fn continuation(&self, turn: &Turn, results: &[String]) -> Continuation {
        Continuation::new(&self.state.hidden_turns, turn, results)
    }

    /// Shows the ending that was held back.
    pub fn release(&mut self) -> Vec<u8> {
        if self.state.end == TurnState::Held {
            self.state.end = TurnState::Relayed;
            if let DialectStream::Responses(stream) = &mut self.stream {
                stream.release();
            }
        }
        std::mem::take(&mut self.state.held)
    }

    /// The number that the next event of a Responses stream takes in the client's state.
    #[must_use]
    pub fn next_sequence_number(&self) -> u64 {
        match &self.stream {
            DialectStream::Responses(stream) => stream.next_sequence_number(),
            DialectStream::Messages(_) | DialectStream::Chat(_) => 0,
        }
    }
}

impl DialectStream {
    fn handle_frame(&mut self, frame: &Frame<'_>, state: &mut MergeState) -> Verdict {
        if frame.is_fragment() {
            // Too large to be read, so it cannot be told what it is; nor can it be kept.
            state.overflowed = true;
            let is_whole = state.turn == 0 && !state.withholding;
            return Verdict::of(if is_whole { Action::Relay } else { Action::Drop });
        }
        let (event, data) = frame.parts();
        if data.is_empty() {
            return Verdict::default();
        }
        match self {
            Self::Messages(stream) => stream.handle_event(event, &data, state),
            Self::Chat(stream) => stream.handle_event(event, &data, state),
            Self::Responses(stream) => stream.handle_event(event, &data, state),
        }
    }
}

impl MergeState {
    fn is_injected(&self, name: &str) -> bool {
        self.client.injected_tools.contains(name)
    }

    /// Whether a further part of so many bytes can be kept.
    fn reserve_part(&mut self, bytes: usize) -> bool {
        self.reserve(bytes.saturating_add(PART_BYTES))
    }

    /// Whether so many more bytes of this turn can be kept.
    fn reserve(&mut self, bytes: usize) -> bool {
        match self.remaining_bytes.checked_sub(bytes) {
            Some(left) => self.remaining_bytes = left,
            None => self.overflowed = true,
        }
        !self.overflowed
    }

    /// Ends the turn; gives what becomes of the event that ends it.
    fn end_turn(&mut self) -> Action {
        let (end, action) = if self.withholding {
            (TurnState::Held, Action::Hold)
        } else {
            (TurnState::Relayed, Action::Relay)
        };
        self.end = end;
        action
    }

    /// Ends the turn with an error of the provider, which the client sees in place of any ending.
    fn fail(&mut self) {
        self.end = TurnState::Relayed;
        self.held.clear();
    }

    /// What becomes of an event that belongs to the ending.
    const fn ending_action(&self) -> Action {
        if self.withholding { Action::Hold } else { Action::Relay }
    }
}

impl Verdict {
    const fn of(action: Action) -> Self {
        Self { action, edits: Vec::new(), ahead: None }
    }

    fn edited(action: Action, edits: Vec<(Range<usize>, String)>) -> Self {
        Self { action, edits, ahead: None }
    }

    /// The event with other data.
    fn replaced(action: Action, data: &[u8], by: Result<Vec<u8>, JsonError>) -> Self {
        match by.ok().and_then(|by| String::from_utf8(by).ok()) {
            Some(by) => Self::edited(action, vec![(0..data.len(), by)]),
            // It is JSON, so this does not come up.
            None => Self::of(action),
        }
    }

    fn write(self, frame: &Frame<'_>, out: &mut Vec<u8>) {
        if self.edits.is_empty() {
            out.extend_from_slice(frame.raw());
        } else {
            frame.write_edited(self.edits, out);
        }
    }
}

/// Forgets the earliest parts of a turn that is too large to be kept.
fn drop_oldest_parts<T>(parts: &mut Vec<T>, state: &MergeState) {
    if state.overflowed && parts.len() > MAX_OVERFLOW_PARTS {
        parts.drain(..parts.len() - MAX_OVERFLOW_PARTS);
    }
}

#[cfg(test)]
mod tests;
