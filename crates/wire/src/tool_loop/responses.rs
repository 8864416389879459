//! The Responses API: <https://platform.openai.com/docs/api-reference/responses-streaming>.

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
};

use serde_json::Value as Json;

use super::{
    Action, ClientView, MergeState, Verdict, drop_oldest_parts,
    messages::{text, to_json},
    turn::{InjectedCall, Turn, TurnEntry},
    usage,
};
use crate::{
    json::{Edits, JsonError, Kind, Object, Value},
    tools,
};

/// The state of the merged stream.
#[derive(Debug, Default)]
pub(super) struct ResponsesMerge {
    items: Vec<OutputItem>,
    /// The items of all turns that the client has seen, by their indexes in its view.
    client_items: BTreeMap<u64, String>,
    /// The output index of the client's next item, and the sequence number of its next event.
    next_index: u64,
    next_sequence_number: u64,
    /// Whether the event that ends the turn takes that number once it is released.
    holds_sequence_number: bool,
    first_id: Option<String>,
    response_id: Option<String>,
    earlier: Json,
    usage: Json,
    awaits_results: bool,
}

/// An output item of this turn.
#[derive(Debug)]
struct OutputItem {
    index: u64,
    /// Its index in the client's view; `None` if it is withheld from the client.
    client_index: Option<u64>,
    /// The complete item, once it is done.
    raw: Option<String>,
}

impl ResponsesMerge {
    pub(super) const fn next_sequence_number(&self) -> u64 {
        self.next_sequence_number
    }

    pub(super) fn handle_event(
        &mut self,
        event: Option<&[u8]>,
        data: &[u8],
        state: &mut MergeState,
    ) -> Verdict {
        if data.trim_ascii() == b"[DONE]" {
            return Verdict::default();
        }
        let Ok(value) = Value::parse(data) else { return Verdict::default() };
        let kind = value.get("type").and_then(|kind| kind.as_str());
        match kind.as_deref().map(str::as_bytes).or(event) {
            Some(b"response.output_item.added") => {
                self.item_added(&value, state);
                self.renumber(&value, state, Action::Relay)
            }
            Some(b"response.output_item.done") => {
                self.item_done(&value, state);
                self.renumber(&value, state, Action::Relay)
            }
            Some(b"response.completed" | b"response.incomplete" | b"response.failed") => {
                self.terminal_event(&value, data, state)
            }
            Some(b"error") => {
                state.fail();
                self.renumber(&value, state, Action::Relay)
            }
            _ if value.get("response").is_some() => self.response_event(&value, data, state),
            _ => self.renumber(&value, state, Action::Relay),
        }
    }

    pub(super) fn take_turn(&mut self, injected_tools: &HashSet<String>) -> Turn {
        let mut turn = Turn {
            awaits_results: self.awaits_results,
            response_id: self.response_id.clone(),
            ..Turn::default()
        };
        for raw in self.items.iter().filter_map(|item| item.raw.as_deref()) {
            add_item(&mut turn, raw, injected_tools);
        }
        turn
    }

    pub(super) fn next_turn(&mut self) {
        self.earlier = usage::sum(&self.earlier, &self.usage);
        self.usage = Json::Null;
        self.items.clear();
        self.holds_sequence_number = false;
        self.awaits_results = false;
    }

    /// Counts the ending that was held back and is now released.
    pub(super) fn release(&mut self) {
        let released = u64::from(std::mem::take(&mut self.holds_sequence_number));
        self.next_sequence_number = self.next_sequence_number.saturating_add(released);
    }

    fn item_added(&mut self, value: &Value<'_>, state: &mut MergeState) {
        let index = output_index(value);
        let item = value.get("item");
        let is_hidden = item.is_some_and(|item| is_injected(&item, &state.client.injected_tools));
        let client_index =
            if state.withholding || state.turn > 0 { self.next_index } else { index };
        state.withholding |= is_hidden;
        if !is_hidden {
            self.next_index = client_index.saturating_add(1);
        }
        let client_index = (!is_hidden).then_some(client_index);
        self.items.push(OutputItem { index, client_index, raw: None });
        state.reserve_part(0);
        drop_oldest_parts(&mut self.items, state);
    }

    fn item_done(&mut self, value: &Value<'_>, state: &mut MergeState) {
        let index = output_index(value);
        if !self.items.iter().any(|item| item.index == index) {
            // Some servers omit the event that starts an item.
            self.item_added(value, state);
        }
        let item = self.items.iter_mut().rev().find(|item| item.index == index);
        let (Some(item), Some(whole)) = (item, value.get("item")) else { return };
        if state.reserve(whole.raw().len()) {
            item.raw = Some(whole.raw().to_owned());
            if let Some(client_index) = item.client_index {
                self.client_items.insert(client_index, whole.raw().to_owned());
            }
        }
    }

    /// An event with the response as it starts: the client sees those of the first turn.
    fn response_event(
        &mut self,
        value: &Value<'_>,
        data: &[u8],
        state: &mut MergeState,
    ) -> Verdict {
        let response = value.get("response");
        let id = response.map(|response| text(&response, "id")).filter(|id| !id.is_empty());
        if id.is_some() {
            self.response_id.clone_from(&id);
        }
        if state.turn > 0 {
            return self.renumber(value, state, Action::Drop);
        }
        self.first_id = id.or_else(|| self.first_id.take());
        let mut edits = Edits::new();
        if let Some(response) = response {
            restore_request_settings(&response, &["response"], &state.client, &mut edits);
        }
        self.apply_edits(value, data, state, edits, Action::Relay)
    }

    /// The event that ends the turn.
    fn terminal_event(
        &mut self,
        value: &Value<'_>,
        data: &[u8],
        state: &mut MergeState,
    ) -> Verdict {
        let Some(response) = value.get("response") else {
            return self.renumber(value, state, Action::Relay);
        };
        let id = Some(text(&response, "id")).filter(|id| !id.is_empty());
        self.response_id = id.or_else(|| self.response_id.take());
        self.awaits_results = text(&response, "status") == "completed"
            || value.get("type").is_some_and(|kind| kind.raw() == r#""response.completed""#);
        self.usage = to_json(response.get("usage").filter(|usage| usage.kind() == Kind::Object));
        self.add_missing_items(&response, state);
        let action = state.end_turn();
        let mut edits = Edits::new();
        restore_request_settings(&response, &["response"], &state.client, &mut edits);
        if state.withholding {
            let visible: Vec<&str> = self.client_items.values().map(String::as_str).collect();
            edits.set(&["response", "output"], &format!("[{}]", visible.join(",")));
        }
        if state.turn > 0 {
            if let Some(first) = &self.first_id {
                edits.set(&["response", "id"], &Json::from(first.as_str()).to_string());
            }
            let total = usage::sum(&self.earlier, &self.usage);
            if !total.is_null() {
                edits.set(&["response", "usage"], &total.to_string());
            }
        }
        let verdict = self.apply_edits(value, data, state, edits, action);
        if action == Action::Hold && value.get("sequence_number").is_some() {
            // Another event may take its place.
            self.next_sequence_number = self.next_sequence_number.saturating_sub(1);
            self.holds_sequence_number = true;
        }
        verdict
    }

    /// Adds the items of the complete response that the earlier events did not contain.
    fn add_missing_items(&mut self, response: &Value<'_>, state: &mut MergeState) {
        let output = response.get("output");
        let items = output.iter().flat_map(Value::elements).enumerate();
        for (index, item) in items {
            let index = crate::count(index);
            let known = self.items.iter().any(|known| known.index == index && known.raw.is_some());
            let is_known = known || self.items.iter().any(|known| is_same(known, &item));
            if is_known || !state.reserve(item.raw().len()) {
                continue;
            }
            if let Some(started) = self.items.iter_mut().find(|started| started.index == index) {
                started.raw = Some(item.raw().to_owned());
                let visible =
                    started.client_index.map(|client_index| (client_index, item.raw().to_owned()));
                self.client_items.extend(visible);
                continue;
            }
            let is_hidden = is_injected(&item, &state.client.injected_tools);
            state.withholding |= is_hidden;
            let client_index = (!is_hidden).then_some(self.next_index);
            if let Some(client_index) = client_index {
                self.client_items.insert(client_index, item.raw().to_owned());
                self.next_index = client_index.saturating_add(1);
            }
            self.items.push(OutputItem { index, client_index, raw: Some(item.raw().to_owned()) });
        }
    }

    /// Gives an event the index and the sequence number of the client's view.
    fn renumber(&mut self, value: &Value<'_>, state: &MergeState, action: Action) -> Verdict {
        let mut edits = Vec::new();
        let mut action = action;
        if let Some(index) = value.get("output_index") {
            let number = index.as_u64().unwrap_or_default();
            match self.items.iter().rev().find(|item| item.index == number) {
                Some(OutputItem { client_index: None, .. }) => action = Action::Drop,
                Some(OutputItem { client_index: Some(client_index), .. })
                    if *client_index != number =>
                {
                    edits.push((index.range(), client_index.to_string()));
                }
                Some(_) | None => {}
            }
        }
        if action != Action::Drop {
            edits.extend(self.renumber_sequence(value, state));
        }
        edits.sort_by_key(|(range, _)| range.start);
        Verdict::edited(action, edits)
    }

    /// Applies edits to an event and gives it the sequence number of the client's view.
    fn apply_edits(
        &mut self,
        value: &Value<'_>,
        data: &[u8],
        state: &MergeState,
        mut edits: Edits,
        action: Action,
    ) -> Verdict {
        if let Some((_, number)) = self.renumber_sequence(value, state) {
            edits.set(&["sequence_number"], &number);
        }
        if edits.is_empty() {
            return Verdict::of(action);
        }
        Verdict::replaced(action, data, edits.apply(data))
    }

    /// Counts an event that the client sees; returns the range and the new number if it differs.
    fn renumber_sequence(
        &mut self,
        value: &Value<'_>,
        state: &MergeState,
    ) -> Option<(Range<usize>, String)> {
        let place = value.get("sequence_number")?;
        let number = place.as_u64().unwrap_or_default();
        let client_number =
            if state.withholding || state.turn > 0 { self.next_sequence_number } else { number };
        self.next_sequence_number = client_number.saturating_add(1);
        (client_number != number).then(|| (place.range(), client_number.to_string()))
    }
}

fn is_same(known: &OutputItem, item: &Value<'_>) -> bool {
    let raw = known.raw.as_deref().and_then(|raw| Value::parse(raw.as_bytes()).ok());
    let is_shared = |key| {
        let id = text(item, key);
        !id.is_empty() && raw.is_some_and(|raw| text(&raw, key) == id)
    };
    is_shared("id") || is_shared("call_id")
}

fn output_index(value: &Value<'_>) -> u64 {
    value.get("output_index").and_then(|index| index.as_u64()).unwrap_or_default()
}

fn is_injected(item: &Value<'_>, injected_tools: &HashSet<String>) -> bool {
    text(item, "type") == "function_call" && injected_tools.contains(&text(item, "name"))
}

/// Adds an output item to a turn; returns whether the client sees it.
pub(super) fn add_item(turn: &mut Turn, raw: &str, injected_tools: &HashSet<String>) -> bool {
    let Ok(item) = Value::parse(raw.as_bytes()) else { return true };
    let kind = text(&item, "type");
    let shown = !is_injected(&item, injected_tools);
    if !shown {
        let (id, name) = (text(&item, "call_id"), text(&item, "name"));
        turn.calls.push(InjectedCall { id, name, arguments: text(&item, "arguments") });
    } else if is_client_call(&kind) {
        turn.client_calls.push(text(&item, "call_id"));
    }
    turn.entries.push(TurnEntry::new(&kind, raw, shown));
    shown
}

/// Whether an item is a call that the client must answer.
fn is_client_call(kind: &str) -> bool {
    matches!(
        kind,
        "function_call"
            | "custom_tool_call"
            | "computer_call"
            | "local_shell_call"
            | "shell_call"
            | "apply_patch_call"
            | "mcp_approval_request"
            | "tool_search_call"
    )
}

/// Restores the settings that the response echoes from the request to what the client sent.
pub(super) fn restore_request_settings(
    response: &Value<'_>,
    path: &[&'static str],
    client: &ClientView,
    edits: &mut Edits,
) {
    let at = |key: &'static str| -> Vec<&'static str> {
        path.iter().copied().chain(std::iter::once(key)).collect()
    };
    if let Some(tools) = response.get("tools").filter(|tools| tools.kind() == Kind::Array) {
        let is_own = |tool: &Value<'_>| {
            tools::tool_name(tool).is_none_or(|name| !client.injected_tools.contains(&name))
        };
        let own: Vec<&str> = tools.elements().filter(is_own).map(|tool| tool.raw()).collect();
        if own.len() != tools.elements().count() {
            edits.set(&at("tools"), &format!("[{}]", own.join(",")));
        }
    }
    if let Some(sequential) = &client.parallel_tool_calls
        && response.get("parallel_tool_calls").is_some()
    {
        edits.set(&at("parallel_tool_calls"), sequential);
    }
    if let Some(previous) = &client.previous_response_id
        && response.get("previous_response_id").is_some()
    {
        edits.set(&at("previous_response_id"), &Json::from(previous.as_str()).to_string());
    }
}

/// Restores a complete response, also one fetched later, to the client's view.
pub(super) fn restore_response(
    body: &[u8],
    client: &ClientView,
    further: impl FnOnce(&mut Edits),
) -> Result<Vec<u8>, JsonError> {
    let object = Object::parse(body)?;
    let mut edits = Edits::new();
    restore_request_settings(&object.value(), &[], client, &mut edits);
    further(&mut edits);
    if edits.is_empty() { Ok(body.to_vec()) } else { edits.apply(body) }
}
