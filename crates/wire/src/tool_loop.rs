//! The tool loop: a model calls injected tools, the bridge executes the calls and sends the results
//! back to the model, and the client sees a single response.
//!
//! A [`StreamMerger`] reads the events of one turn after another and returns what the client is to see:
//! everything as it arrives, except for the injected calls and for what ends a turn. A [`Turn`] is the
//! model's output in one of them, from which the next request is built. Nothing here calls a tool.

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

/// Merges the streams of a tool loop's turns into the one that the client sees.
#[derive(Debug)]
pub struct StreamMerger {
    framer: Framer,
    state: MergeState,
    stream: DialectStream,
    /// The action taken for the last frame, which a line end that follows it shares.
    last_action: Action,
}

/// What distinguishes the client's view of a request and its response from the provider's.
#[derive(Debug, Clone, Default)]
pub struct ClientView {
    /// The ids of the tools that were injected.
    pub injected_tools: HashSet<String>,
    /// Whether the client asked for the usage of a Chat Completions stream.
    pub wants_usage: bool,
    /// The client's `previous_response_id`, if a different one is sent upstream.
    pub previous_response_id: Option<String>,
    /// The client's `parallel_tool_calls` as JSON, if it was changed.
    pub parallel_tool_calls: Option<String>,
}

/// How far a turn has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnState {
    /// It has not ended.
    Open,
    /// It ended, and everything was relayed.
    Relayed,
    /// It ended, and its ending is held back: until injected calls have results, or until the bridge
    /// has stored what a later request needs.
    Held,
}

/// The state that the dialects share.
#[derive(Debug)]
struct MergeState {
    client: ClientView,
    /// The number of earlier turns.
    turn: u32,
    /// Whether anything has been withheld from the client so far.
    withholding: bool,
    held: Vec<u8>,
    end: TurnState,
    /// How many more bytes of this turn may be buffered.
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

/// What to do with an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Action {
    #[default]
    Relay,
    Hold,
    Drop,
}

/// The action for an event and the edits to its data.
#[derive(Debug, Default)]
struct Verdict {
    action: Action,
    edits: Vec<(Range<usize>, String)>,
    /// Edits that turn it into an event that is relayed at once, ahead of the event itself.
    ahead: Option<Vec<(Range<usize>, String)>>,
}

/// The byte order mark.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The memory that a part of a response takes in addition to its text.
const PART_BYTES: usize = 256;
/// How many parts stay known once a turn is too large to be buffered.
const MAX_OVERFLOW_PARTS: usize = 64;

impl StreamMerger {
    /// Creates a merger for the first turn.
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

    /// Reads a chunk of the current turn and returns what the client is to see of it, always complete
    /// events.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<u8> {
        let Self { framer, state, stream, last_action } = self;
        let mut relayed = Vec::with_capacity(chunk.len());
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
            let start = relayed.len();
            if let Some(edits) = verdict.ahead.take() {
                frame.write_edited(edits, &mut relayed);
            }
            match verdict.action {
                Action::Relay => verdict.write(&frame, &mut relayed),
                Action::Hold if state.held.len() > MAX_EVENT_BYTES => state.overflowed = true,
                Action::Hold => verdict.write(&frame, &mut state.held),
                Action::Drop => {}
            }
            // A byte order mark is only valid at the beginning of a stream.
            let has_mark = relayed.get(start..).is_some_and(|new| new.starts_with(BYTE_ORDER_MARK));
            if state.turn > 0 && has_mark {
                relayed.drain(start..start + BYTE_ORDER_MARK.len());
            }
        });
        relayed
    }

    /// Ends the stream of the current turn; an event that lacks its blank line counts. A Chat Completions
    /// stream may end without `[DONE]`.
    pub fn finish(&mut self) -> Vec<u8> {
        let last = if self.framer.is_mid_event() { self.push(b"\n\n") } else { Vec::new() };
        if let DialectStream::Chat(stream) = &self.stream
            && self.state.end == TurnState::Open
            && stream.has_finished()
        {
            self.state.end_turn();
        }
        last
    }

    /// How far the current turn has come.
    #[must_use]
    pub fn state(&self) -> TurnState {
        self.state.end
    }

    /// Whether something is being withheld, so that the client may receive nothing for a while.
    #[must_use]
    pub fn is_withholding(&self) -> bool {
        self.state.withholding
    }

    /// Takes the model's output of the turn that has ended.
    pub fn take_turn(&mut self) -> Turn {
        let overflowed = self.state.overflowed;
        let turn = match &mut self.stream {
            DialectStream::Messages(stream) => stream.take_turn(&self.state.client.injected_tools),
            DialectStream::Chat(stream) => stream.take_turn(&self.state.client.injected_tools),
            DialectStream::Responses(stream) => stream.take_turn(&self.state.client.injected_tools),
        };
        Turn { overflowed: overflowed || turn.overflowed, ..turn }
    }

    /// Starts the next turn; the ending of the last one is dropped.
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

    /// What a later request needs, now that the last turn has ended; `results` are those of its
    /// injected calls, if it has any.
    #[must_use]
    pub fn continuation(&self, turn: &Turn, results: &[String]) -> Continuation {
        Continuation::new(&self.state.hidden_turns, turn, results)
    }

    /// Releases the ending that was held back.
    pub fn release(&mut self) -> Vec<u8> {
        if self.state.end == TurnState::Held {
            self.state.end = TurnState::Relayed;
            if let DialectStream::Responses(stream) = &mut self.stream {
                stream.release();
            }
        }
        std::mem::take(&mut self.state.held)
    }

    /// The sequence number of the next event of a Responses stream in the client's view.
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
            // It is too large to be read, so its type is unknown and it cannot be buffered.
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

    /// Reserves room for another part of this size; returns false if there is none.
    fn reserve_part(&mut self, bytes: usize) -> bool {
        self.reserve(bytes.saturating_add(PART_BYTES))
    }

    /// Reserves room for more bytes of this turn; returns false if there is none.
    fn reserve(&mut self, bytes: usize) -> bool {
        match self.remaining_bytes.checked_sub(bytes) {
            Some(left) => self.remaining_bytes = left,
            None => self.overflowed = true,
        }
        !self.overflowed
    }

    /// Ends the turn; returns the action for the event that ends it.
    fn end_turn(&mut self) -> Action {
        let (end, action) = if self.withholding {
            (TurnState::Held, Action::Hold)
        } else {
            (TurnState::Relayed, Action::Relay)
        };
        self.end = end;
        action
    }

    /// Ends the turn with a provider's error, which replaces any ending that was held back.
    fn fail(&mut self) {
        self.end = TurnState::Relayed;
        self.held.clear();
    }

    /// The action for an event that belongs to the ending.
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

    /// Replaces the data of the event.
    fn replaced(action: Action, data: &[u8], by: Result<Vec<u8>, JsonError>) -> Self {
        match by.ok().and_then(|by| String::from_utf8(by).ok()) {
            Some(by) => Self::edited(action, vec![(0..data.len(), by)]),
            // The data is valid JSON, so this does not happen.
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

/// Drops the earliest parts of a turn that is too large to be buffered.
fn drop_oldest_parts<T>(parts: &mut Vec<T>, state: &MergeState) {
    if state.overflowed && parts.len() > MAX_OVERFLOW_PARTS {
        parts.drain(..parts.len() - MAX_OVERFLOW_PARTS);
    }
}

#[cfg(test)]
mod tests;
