//! The Messages API: <https://platform.claude.com/docs/en/build-with-claude/streaming>.

use std::{collections::HashSet, ops::Range};

use serde_json::Value as Json;

use super::{
    Action, MergeState, Verdict, drop_oldest_parts,
    partial_object::PartialObject,
    turn::{InjectedCall, Turn, TurnEntry},
    usage::{self, TurnUsages},
};
use crate::json::{Edits, Kind, Object, Value, string};

/// The state of the merged stream.
#[derive(Debug, Default)]
pub(super) struct MessagesMerge {
    blocks: Vec<ContentBlock>,
    /// The index of the client's next block.
    next_index: u64,
    usages: TurnUsages,
    stop_reason: Option<String>,
    response_id: Option<String>,
    container: Option<String>,
}

/// A content block of this turn.
#[derive(Debug)]
struct ContentBlock {
    index: u64,
    /// Its index in the client's view; `None` if it is withheld from the client.
    client_index: Option<u64>,
    kind: String,
    content: PartialObject,
    /// The arguments of a tool as streamed: string literals without quotes, still escaped.
    input: String,
}

/// The stop reasons with which the model does not wait for tool results.
const FINAL_REASONS: [&str; 5] =
    ["max_tokens", "refusal", "pause_turn", "stop_sequence", "model_context_window_exceeded"];

impl MessagesMerge {
    pub(super) fn handle_event(
        &mut self,
        event: Option<&[u8]>,
        data: &[u8],
        state: &mut MergeState,
    ) -> Verdict {
        if let Some((index, text)) = text_delta(data) {
            let number = parse_number(data.get(index.clone()).unwrap_or_default());
            if state.reserve(text.len())
                && let (Some(block), Ok(text)) = (self.block(number), std::str::from_utf8(text))
            {
                block.content.append_text(&["text"], text);
            }
            return self.renumber(number, index);
        }
        let Ok(value) = Value::parse(data) else { return Verdict::default() };
        let kind = value.get("type").and_then(|kind| kind.as_str());
        match kind.as_deref().map(str::as_bytes).or(event) {
            Some(b"message_start") => self.message_start(&value, state),
            Some(b"content_block_start") => self.start_block(&value, state),
            Some(b"content_block_delta") => {
                if state.reserve(data.len()) {
                    self.apply_delta(&value);
                }
                self.renumber_event(&value)
            }
            Some(b"message_delta") => self.message_delta(&value, data, state),
            Some(b"message_stop") => Verdict::of(state.end_turn()),
            Some(b"error") => {
                state.fail();
                Verdict::default()
            }
            _ => self.renumber_event(&value),
        }
    }

    pub(super) fn take_turn(&mut self, injected_tools: &HashSet<String>) -> Turn {
        let mut turn = Turn {
            awaits_results: self.awaits_results(),
            response_id: self.response_id.clone(),
            container: self.container.clone(),
            ..Turn::default()
        };
        for block in &self.blocks {
            match block.raw() {
                Some(raw) => {
                    add_block(&mut turn, &block.kind, &raw, &block.arguments(), injected_tools);
                }
                None => turn.overflowed = true,
            }
        }
        turn
    }

    pub(super) fn next_turn(&mut self) {
        self.usages.next_turn();
        self.blocks.clear();
        self.stop_reason = None;
    }

    fn awaits_results(&self) -> bool {
        awaits_results(self.stop_reason.as_deref())
    }

    fn message_start(&mut self, value: &Value<'_>, state: &MergeState) -> Verdict {
        let message = value.get("message");
        let member = |key| message.as_ref().and_then(|message| message.get(key));
        self.response_id = member("id").and_then(|id| id.as_str()).map(Into::into);
        self.usages.current = to_json(member("usage"));
        self.note_container(message);
        Verdict::of(if state.turn == 0 { Action::Relay } else { Action::Drop })
    }

    fn start_block(&mut self, value: &Value<'_>, state: &mut MergeState) -> Verdict {
        let (Some(index), Some(content)) = (value.get("index"), value.get("content_block")) else {
            return Verdict::default();
        };
        let number = index.as_u64().unwrap_or_default();
        let kind = text(&content, "type");
        let is_hidden = kind == "tool_use" && state.is_injected(&text(&content, "name"));
        // The provider's numbers are kept as long as the client sees everything.
        let client_index =
            if state.withholding || state.turn > 0 { self.next_index } else { number };
        state.withholding |= is_hidden;
        if !is_hidden {
            self.next_index = client_index.saturating_add(1);
        }
        // Recorded in any case, so that its later events are recognised.
        let content = if state.reserve_part(content.raw().len()) { content.raw() } else { "{}" };
        self.blocks.push(ContentBlock {
            index: number,
            client_index: (!is_hidden).then_some(client_index),
            kind,
            content: PartialObject::new(content),
            input: String::new(),
        });
        drop_oldest_parts(&mut self.blocks, state);
        self.renumber(number, index.range())
    }

    fn apply_delta(&mut self, value: &Value<'_>) {
        let number = value.get("index").and_then(|index| index.as_u64()).unwrap_or_default();
        let Some(block) = self.block(number) else { return };
        let delta = value.get("delta").and_then(|delta| delta.as_object());
        for (key, added) in delta.iter().flat_map(|delta| delta.members()) {
            match key.as_ref() {
                "type" => {}
                _ if added.is_null() => {}
                "partial_json" if added.kind() == Kind::String => {
                    block.input.push_str(string::unquote(added.raw()));
                }
                "citation" => {
                    let citation = std::iter::once(added.raw().to_owned());
                    block.content.append_elements(&["citations"], citation);
                }
                key if added.kind() == Kind::String => {
                    block.content.append_text(&[key], string::unquote(added.raw()));
                }
                key => block.content.set(&[key], added.raw()),
            }
        }
    }

    /// Reads the usage of the turn and why it ended; the client sees the usage of all turns.
    fn message_delta(&mut self, value: &Value<'_>, data: &[u8], state: &MergeState) -> Verdict {
        let delta = value.get("delta");
        let reason = delta.and_then(|delta| delta.get("stop_reason"));
        if let Some(reason) = reason.and_then(|reason| reason.as_str()) {
            self.stop_reason = Some(reason.into());
        }
        self.note_container(delta);
        let usage = usage::overlaid(&self.usages.current, &to_json(value.get("usage")));
        self.usages.current = usage;
        if state.turn == 0 {
            return Verdict::of(state.ending_action());
        }
        let total = self.usages.total();
        if total.is_null() {
            return Verdict::of(state.ending_action());
        }
        let mut edits = Edits::new();
        edits.set(&["usage"], &total.to_string());
        Verdict::replaced(state.ending_action(), data, edits.apply(data))
    }

    /// Notes the container of a message, which its first event or its last one may name.
    fn note_container(&mut self, message: Option<Value<'_>>) {
        if let Some(id) = message.and_then(|message| container_id(&message)) {
            self.container = Some(id);
        }
    }

    /// An event about a block: dropped if the block is hidden, otherwise with the client's index.
    fn renumber_event(&self, value: &Value<'_>) -> Verdict {
        match value.get("index") {
            Some(index) => self.renumber(index.as_u64().unwrap_or_default(), index.range()),
            None => Verdict::default(),
        }
    }

    fn renumber(&self, number: u64, range: Range<usize>) -> Verdict {
        match self.blocks.iter().rev().find(|block| block.index == number) {
            None => Verdict::default(),
            Some(ContentBlock { client_index: None, .. }) => Verdict::of(Action::Drop),
            Some(ContentBlock { client_index: Some(client_index), .. })
                if *client_index == number =>
            {
                Verdict::default()
            }
            Some(ContentBlock { client_index: Some(client_index), .. }) => {
                Verdict::edited(Action::Relay, vec![(range, client_index.to_string())])
            }
        }
    }

    fn block(&mut self, index: u64) -> Option<&mut ContentBlock> {
        self.blocks.iter_mut().rev().find(|block| block.index == index)
    }
}

impl ContentBlock {
    /// The block as it appears in a complete response.
    fn raw(&self) -> Option<String> {
        let mut content = self.content.clone();
        let input = self.arguments();
        if self.kind.ends_with("tool_use") && !input.trim().is_empty() {
            // Anything but an object is invalid there; the call's result tells the model.
            let is_object = Object::parse(input.as_bytes()).is_ok();
            content.set(&["input"], if is_object { input.trim() } else { "{}" });
        }
        content.render().ok()
    }

    fn arguments(&self) -> String {
        string::decode(&format!("\"{}\"", self.input)).into_owned()
    }
}

/// Adds a content block to a turn; returns whether the client sees it.
pub(super) fn add_block(
    turn: &mut Turn,
    kind: &str,
    raw: &str,
    arguments: &str,
    injected_tools: &HashSet<String>,
) -> bool {
    let mut shown = true;
    if kind == "tool_use"
        && let Ok(block) = Value::parse(raw.as_bytes())
    {
        let (id, name) = (text(&block, "id"), text(&block, "name"));
        if injected_tools.contains(&name) {
            let input = block.get("input").map(|input| input.raw().to_owned());
            let arguments = Some(arguments).filter(|text| !text.trim().is_empty());
            let arguments = arguments.map(ToOwned::to_owned).or(input).unwrap_or_default();
            turn.calls.push(InjectedCall { id, name, arguments });
            shown = false;
        } else {
            turn.client_calls.push(id);
        }
    }
    turn.entries.push(TurnEntry::new(kind, raw, shown));
    shown
}

/// Whether a model that stopped for this reason waits for tool results.
pub(super) fn awaits_results(stop_reason: Option<&str>) -> bool {
    stop_reason.is_none_or(|reason| !FINAL_REASONS.contains(&reason))
}

/// The id of the container in which the provider runs code for a response.
pub(super) fn container_id(message: &Value<'_>) -> Option<String> {
    Some(message.get("container")?.get("id")?.as_str()?.into_owned())
}

/// The range of the index and the escaped text of a text delta in its usual form.
fn text_delta(data: &[u8]) -> Option<(Range<usize>, &[u8])> {
    const HEAD: &[u8] = br#"{"type":"content_block_delta","index":"#;
    let text = crate::observe::messages_text_delta(data)?;
    let digits = data.get(HEAD.len()..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
    Some((HEAD.len()..HEAD.len() + digits, text))
}

fn parse_number(digits: &[u8]) -> u64 {
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

pub(super) fn text(value: &Value<'_>, key: &str) -> String {
    let text = value.get(key).and_then(|text| text.as_str());
    text.map(Into::into).unwrap_or_default()
}

pub(super) fn to_json(value: Option<Value<'_>>) -> Json {
    value.and_then(|value| serde_json::from_str(value.raw()).ok()).unwrap_or_default()
}
