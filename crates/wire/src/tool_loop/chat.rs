//! The Chat Completions API: <https://platform.openai.com/docs/api-reference/chat-streaming>.

use std::{collections::HashSet, ops::Range};

use serde_json::Value as Json;

use super::{
    Action, MergeState, Verdict, drop_oldest_parts,
    messages::{text, to_json},
    partial_object::PartialObject,
    turn::{CALL_KIND, InjectedCall, Turn, TurnEntry},
    usage,
};
use crate::{
    json::{Edits, Kind, Value},
    observe::{is_reported, is_usage_only},
};

/// The state of the merged stream.
#[derive(Debug, Default)]
pub(super) struct ChatMerge {
    /// The members of this turn's message, except for its calls.
    message: PartialMessage,
    calls: Vec<PartialCall>,
    /// The index of the client's next call.
    next_index: u64,
    /// The first turn's id, which becomes the id of the merged response.
    first_id: Option<String>,
    response_id: Option<String>,
    earlier: Json,
    usage: Json,
    finish_reason: Option<String>,
}

#[derive(Debug)]
struct PartialMessage(PartialObject);

impl Default for PartialMessage {
    fn default() -> Self {
        Self(PartialObject::new("{}"))
    }
}

/// A tool call of this turn.
#[derive(Debug)]
struct PartialCall {
    index: Option<u64>,
    id: String,
    /// Its index in the client's view; `None` if it is withheld from the client.
    client_index: Option<u64>,
    call: PartialObject,
}

/// The part of a choice that the client sees.
#[derive(Debug, Default)]
struct VisibleDelta {
    /// The members of its delta.
    delta: String,
    is_edited: bool,
    has_content: bool,
}

/// The finish reasons with which the model does not wait for tool results.
const FINAL_REASONS: [&str; 2] = ["length", "content_filter"];

impl ChatMerge {
    pub(super) fn handle_event(
        &mut self,
        event: Option<&[u8]>,
        data: &[u8],
        state: &mut MergeState,
    ) -> Verdict {
        if data.trim_ascii() == b"[DONE]" {
            return Verdict::of(state.end_turn());
        }
        let Ok(chunk) = Value::parse(data) else { return Verdict::default() };
        let has_error = chunk.get("error").is_some_and(|error| is_reported(&error));
        if has_error || event == Some(b"error") {
            state.fail();
            return Verdict::default();
        }
        let mut edits = Edits::new();
        self.merge_id(&chunk, state, &mut edits);
        let usage = chunk.get("usage").filter(|usage| usage.kind() == Kind::Object);
        if let Some(usage) = usage {
            self.usage = to_json(Some(usage));
            if state.turn > 0 {
                let total = usage::sum(&self.earlier, &self.usage);
                edits.set(&["usage"], &total.to_string());
            }
        }
        if is_usage_only(&chunk) {
            let action =
                if state.client.wants_usage { state.ending_action() } else { Action::Drop };
            return apply_or_drop(action, data, &edits);
        }
        let choice = chunk.get("choices").and_then(|choices| choices.elements().next());
        let Some(choice) = choice else { return apply_or_drop(Action::Relay, data, &edits) };
        let visible = self.handle_choice(&choice, data.len(), state);
        let reason = choice.get("finish_reason");
        let reason = reason.filter(|reason| !reason.is_null() && !reason.is_text(""));
        if let Some(reason) = reason {
            self.finish_reason = reason.as_str().map(Into::into);
            return finish_chunk(&visible, &choice, &chunk, data, state, edits);
        }
        if visible.is_edited {
            edits.set(&["choices"], &render_choices(&choice, &visible.delta, FinishReason::Kept));
        }
        // An empty delta of an unedited chunk is the provider's own.
        let is_relayed = visible.has_content || !visible.is_edited || usage.is_some();
        apply_or_drop(if is_relayed { Action::Relay } else { Action::Drop }, data, &edits)
    }

    /// Whether the choice of this turn has a finish reason.
    pub(super) fn has_finished(&self) -> bool {
        self.finish_reason.is_some()
    }

    pub(super) fn take_turn(&mut self, injected_tools: &HashSet<String>) -> Turn {
        let mut turn = Turn {
            awaits_results: awaits_results(self.finish_reason.as_deref()),
            response_id: self.response_id.clone(),
            ..Turn::default()
        };
        match self.message.0.render() {
            Ok(message) => add_members(&mut turn, &message),
            Err(_) => turn.overflowed = true,
        }
        for call in &self.calls {
            match call.raw() {
                Some(raw) => add_call(&mut turn, &raw, injected_tools),
                None => turn.overflowed = true,
            }
        }
        turn
    }

    pub(super) fn next_turn(&mut self) {
        self.earlier = usage::sum(&self.earlier, &self.usage);
        self.usage = Json::Null;
        self.message = PartialMessage::default();
        self.calls.clear();
        self.finish_reason = None;
    }

    /// Gives the chunk the id of the first turn.
    fn merge_id(&mut self, chunk: &Value<'_>, state: &MergeState, edits: &mut Edits) {
        let id = text(chunk, "id");
        if id.is_empty() {
            return;
        }
        if state.turn == 0 {
            self.first_id.get_or_insert_with(|| id.clone());
        } else if let Some(first) = self.first_id.as_ref().filter(|first| **first != id) {
            edits.set(&["id"], &Json::from(first.as_str()).to_string());
        }
        self.response_id = Some(id);
    }

    /// Reads the delta of a choice; returns what the client sees of it.
    fn handle_choice(
        &mut self,
        choice: &Value<'_>,
        size: usize,
        state: &mut MergeState,
    ) -> VisibleDelta {
        let Some(delta) = choice.get("delta").and_then(|delta| delta.as_object()) else {
            return VisibleDelta::default();
        };
        let keeps = state.reserve(size);
        let mut visible = VisibleDelta::default();
        let mut members = Vec::new();
        for (key, value) in delta.members() {
            let mut raw = value.raw().to_owned();
            match key.as_ref() {
                "tool_calls" => {
                    let calls: Vec<String> = value
                        .elements()
                        .filter_map(|call| self.handle_call(&call, state))
                        .collect();
                    visible.is_edited |= state.withholding;
                    if calls.is_empty() && state.withholding {
                        continue;
                    }
                    raw = format!("[{}]", calls.join(","));
                    visible.has_content = true;
                }
                // VisibleDelta once; readers that join texts would double it.
                "role" if state.turn > 0 => {
                    visible.is_edited = true;
                    continue;
                }
                "role" => visible.has_content = true,
                key => {
                    if keeps {
                        self.message.0.append(&[key], &value);
                    }
                    visible.has_content |= !is_empty_value(&value);
                }
            }
            members.push(format!("{}:{raw}", Json::from(key.as_ref())));
        }
        visible.delta = members.join(",");
        visible
    }

    /// Reads a delta of a call; returns what the client sees of it.
    fn handle_call(&mut self, delta: &Value<'_>, state: &mut MergeState) -> Option<String> {
        let index = delta.get("index").and_then(|index| index.as_u64());
        let id = text(delta, "id");
        let known = self.calls.iter_mut().rev().find(|known| {
            (index.is_none() || known.index.is_none() || known.index == index)
                && (id.is_empty() || known.id.is_empty() || known.id == id)
        });
        let client_index = match known {
            Some(call) => {
                if !state.overflowed {
                    call.add(delta);
                }
                call.client_index?
            }
            None => self.begin_call(delta, index, state)?,
        };
        if !state.withholding || index == Some(client_index) {
            return Some(delta.raw().to_owned());
        }
        let mut edits = Edits::new();
        edits.set(&["index"], &client_index.to_string());
        String::from_utf8(edits.apply(delta.raw().as_bytes()).ok()?).ok()
    }

    /// Starts a call; returns its index in the client's view, if the client sees it.
    fn begin_call(
        &mut self,
        delta: &Value<'_>,
        index: Option<u64>,
        state: &mut MergeState,
    ) -> Option<u64> {
        let function = delta.get("function");
        let name = function.map(|function| text(&function, "name")).unwrap_or_default();
        let is_hidden = state.is_injected(&name);
        state.withholding |= is_hidden;
        let client_index = (!is_hidden).then(|| {
            // The provider's numbers are kept as long as the client sees everything.
            let client_index =
                if state.withholding { self.next_index } else { index.unwrap_or_default() };
            self.next_index = self.next_index.max(client_index).saturating_add(1);
            client_index
        });
        let call = if state.reserve_part(0) { delta.raw() } else { "{}" };
        self.calls.push(PartialCall::from_first_delta(
            call,
            index,
            text(delta, "id"),
            client_index,
        ));
        drop_oldest_parts(&mut self.calls, state);
        client_index
    }
}

impl PartialCall {
    /// Creates a call from its first delta, keeping the order of the members.
    fn from_first_delta(
        delta: &str,
        index: Option<u64>,
        id: String,
        client_index: Option<u64>,
    ) -> Self {
        let mut edits = Edits::new();
        edits.remove(&["index"]);
        let start = edits.apply(delta.as_bytes()).unwrap_or_default();
        Self { index, id, client_index, call: PartialObject::new(&String::from_utf8_lossy(&start)) }
    }

    /// Reads another delta: arguments are joined, everything else replaces.
    fn add(&mut self, delta: &Value<'_>) {
        let members = delta.as_object();
        for (key, value) in members.iter().flat_map(|delta| delta.members()) {
            match key.as_ref() {
                "index" => {}
                key @ ("function" | "custom") => self.add_called(key, &value),
                "id" if self.id.is_empty() => {
                    self.id = value.as_str().map(Into::into).unwrap_or_default();
                    self.call.set(&["id"], value.raw());
                }
                "id" => {}
                key if !is_empty_value(&value) => self.call.set(&[key], value.raw()),
                _ => {}
            }
        }
    }

    /// Reads the called function with its arguments, or the custom tool with its input.
    fn add_called(&mut self, kind: &str, called: &Value<'_>) {
        let members = called.as_object();
        for (key, value) in members.iter().flat_map(|called| called.members()) {
            match key.as_ref() {
                key @ ("arguments" | "input") => self.call.append(&[kind, key], &value),
                key if !is_empty_value(&value) => self.call.set(&[kind, key], value.raw()),
                _ => {}
            }
        }
    }

    fn raw(&self) -> Option<String> {
        let call = self.call.render().ok()?;
        let value = Value::parse(call.as_bytes()).ok()?;
        let function = value.get("function");
        let arguments = function.and_then(|function| function.get("arguments"));
        if function.is_none() || arguments.is_some_and(|arguments| !is_empty_value(&arguments)) {
            return Some(call);
        }
        let mut edits = Edits::new();
        edits.set(&["function", "arguments"], r#""{}""#);
        String::from_utf8(edits.apply(call.as_bytes()).ok()?).ok()
    }
}

/// Adds a call to a turn.
pub(super) fn add_call(turn: &mut Turn, raw: &str, injected_tools: &HashSet<String>) {
    let Ok(call) = Value::parse(raw.as_bytes()) else { return };
    let id = text(&call, "id");
    let function = call.get("function");
    let name = function.map(|function| text(&function, "name")).unwrap_or_default();
    let shown = !injected_tools.contains(&name);
    if shown {
        turn.client_calls.push(id);
    } else {
        let arguments = function.and_then(|function| function.get("arguments"));
        let arguments = arguments.filter(|arguments| !arguments.is_null());
        // Some servers send an object instead of a string.
        let text =
            |value: Value<'_>| value.as_str().map_or_else(|| value.raw().to_owned(), Into::into);
        turn.calls.push(InjectedCall {
            id,
            name,
            arguments: arguments.map(text).unwrap_or_default(),
        });
    }
    turn.entries.push(TurnEntry::new(CALL_KIND, raw, shown));
}

/// Adds the non-empty members of a message to a turn, except for its calls and role.
pub(super) fn add_members(turn: &mut Turn, message: &str) {
    let message = Value::parse(message.as_bytes()).ok().and_then(|message| message.as_object());
    for (key, value) in message.iter().flat_map(|message| message.members()) {
        if !matches!(key.as_ref(), "role" | "tool_calls" | "refusal") && !is_empty_value(&value) {
            turn.entries.push(TurnEntry::new(&key, value.raw(), true));
        }
    }
}

/// Whether a model that stopped for this reason waits for tool results.
pub(super) fn awaits_results(finish_reason: Option<&str>) -> bool {
    finish_reason.is_none_or(|reason| !FINAL_REASONS.contains(&reason))
}

/// Whether a value is `null` or empty.
pub(super) fn is_empty_value(value: &Value<'_>) -> bool {
    matches!(value.raw(), "null" | "\"\"" | "[]" | "{}")
}

/// What to do with the finish reason of a choice whose delta is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FinishReason {
    Kept,
    Removed,
}

/// Handles the chunk that ends a turn: its other content is relayed, not held back.
fn finish_chunk(
    visible: &VisibleDelta,
    choice: &Value<'_>,
    chunk: &Value<'_>,
    data: &[u8],
    state: &MergeState,
    mut edits: Edits,
) -> Verdict {
    let action = state.ending_action();
    let mut ahead = None;
    if action == Action::Hold && visible.has_content {
        let mut relayed = edits.clone();
        relayed.set(&["choices"], &render_choices(choice, &visible.delta, FinishReason::Removed));
        if chunk.get("usage").is_some() {
            relayed.set(&["usage"], "null");
        }
        ahead = replace_data(data, &relayed);
        edits.set(&["choices"], &render_choices(choice, "", FinishReason::Kept));
    } else if visible.is_edited {
        edits.set(&["choices"], &render_choices(choice, &visible.delta, FinishReason::Kept));
    }
    Verdict { ahead, ..apply_or_drop(action, data, &edits) }
}

/// Renders the single choice of a chunk with new members in its delta.
fn render_choices(choice: &Value<'_>, members: &str, reason: FinishReason) -> String {
    let mut edits = Edits::new();
    edits.set(&["delta"], &format!("{{{members}}}"));
    if reason == FinishReason::Removed {
        edits.set(&["finish_reason"], "null");
    }
    let edited = edits.apply(choice.raw().as_bytes());
    let edited = edited.ok().and_then(|edited| String::from_utf8(edited).ok());
    format!("[{}]", edited.unwrap_or_else(|| choice.raw().to_owned()))
}

fn replace_data(data: &[u8], edits: &Edits) -> Option<Vec<(Range<usize>, String)>> {
    let edited = String::from_utf8(edits.apply(data).ok()?).ok()?;
    Some(vec![(0..data.len(), edited)])
}

fn apply_or_drop(action: Action, data: &[u8], edits: &Edits) -> Verdict {
    if edits.is_empty() || action == Action::Drop {
        return Verdict::of(action);
    }
    Verdict::replaced(action, data, edits.apply(data))
}
