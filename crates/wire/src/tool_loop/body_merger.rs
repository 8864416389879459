//! Complete (non-streaming) responses: the turns of a tool loop merged into one.

use serde_json::Value as Json;

use super::{
    ClientView, Continuation, HiddenTurn, chat,
    messages::{self, text, to_json},
    responses,
    turn::{Turn, TurnEntry},
    usage::TurnUsages,
};
use crate::{
    Dialect,
    json::{Edits, JsonError, Object, Value},
};

/// Merges the complete responses of a tool loop's turns into the one that the client sees.
#[derive(Debug)]
pub struct BodyMerger {
    dialect: Dialect,
    client: ClientView,
    first_id: Option<String>,
    /// The entries of earlier turns that the client is to see.
    shown: Vec<TurnEntry>,
    usages: TurnUsages,
    hidden_turns: Vec<HiddenTurn>,
}

impl BodyMerger {
    /// Creates a merger for the first turn.
    #[must_use]
    pub fn new(dialect: Dialect, client: ClientView) -> Self {
        Self {
            dialect,
            client,
            first_id: None,
            shown: Vec::new(),
            usages: TurnUsages::default(),
            hidden_turns: Vec::new(),
        }
    }

    /// Reads the response of a turn; returns `None` if it is not a model's response.
    pub fn read_turn(&mut self, body: &[u8]) -> Option<Turn> {
        let response = Value::parse(body).ok()?;
        if response.get("error").is_some_and(|error| !error.is_null()) {
            return None;
        }
        let mut turn = Turn { response_id: Some(text(&response, "id")), ..Turn::default() };
        turn.response_id = turn.response_id.filter(|id| !id.is_empty());
        match self.dialect {
            Dialect::Messages => self.read_message(&response, &mut turn),
            Dialect::ChatCompletions => self.read_completion(&response, &mut turn),
            Dialect::Responses => self.read_response(&response, &mut turn),
        }
        self.usages.current = to_json(response.get("usage"));
        if self.first_id.is_none() {
            self.first_id.clone_from(&turn.response_id);
        }
        Some(turn)
    }

    /// Starts the next turn.
    pub fn next_turn(&mut self, turn: &Turn, results: &[String]) {
        self.hidden_turns.push(HiddenTurn::new(turn, results));
        self.shown.extend(turn.entries.iter().filter(|entry| entry.shown).cloned());
        self.usages.next_turn();
    }

    /// What a later request needs; see [`super::StreamMerger::continuation`].
    #[must_use]
    pub fn continuation(&self, turn: &Turn, results: &[String]) -> Continuation {
        Continuation::new(&self.hidden_turns, turn, results)
    }

    /// Merges the earlier turns into the last turn's response; unchanged if nothing was withheld.
    ///
    /// # Errors
    ///
    /// Returns an error if the response is not a JSON object.
    pub fn merge(&self, body: &[u8], turn: &Turn) -> Result<Vec<u8>, JsonError> {
        let is_whole = self.hidden_turns.is_empty() && turn.calls.is_empty();
        if self.dialect == Dialect::Responses {
            return responses::restore_response(body, &self.client, |edits| {
                if !is_whole {
                    self.merge_turns(body, turn, edits);
                }
            });
        }
        if is_whole {
            return Ok(body.to_vec());
        }
        let mut edits = Edits::new();
        self.merge_turns(body, turn, &mut edits);
        edits.apply(body)
    }

    fn merge_turns(&self, body: &[u8], turn: &Turn, edits: &mut Edits) {
        if let Some(id) = &self.first_id {
            edits.set(&["id"], &Json::from(id.as_str()).to_string());
        }
        if !self.hidden_turns.is_empty() {
            let total = match self.dialect {
                Dialect::Messages => self.usages.total(),
                Dialect::ChatCompletions | Dialect::Responses => self.usages.sum(),
            };
            if !total.is_null() {
                edits.set(&["usage"], &total.to_string());
            }
        }
        let last = turn.entries.iter().filter(|entry| entry.shown);
        match self.dialect {
            Dialect::ChatCompletions => self.merge_message(body, last.cloned(), edits),
            Dialect::Messages | Dialect::Responses => {
                let all = self.shown.iter().chain(last).map(|entry| entry.raw.as_str());
                let all: Vec<&str> = all.collect();
                let key = if self.dialect == Dialect::Messages { "content" } else { "output" };
                edits.set(&[key], &format!("[{}]", all.join(",")));
            }
        }
    }

    /// Joins the texts of all turns, as a client of a stream joins them.
    fn merge_message(&self, body: &[u8], last: impl Iterator<Item = TurnEntry>, edits: &mut Edits) {
        let Some(choice) = first_choice(body) else { return };
        let mut message = super::partial_object::PartialObject::new("{}");
        let mut calls = Vec::new();
        for entry in self.shown.iter().cloned().chain(last) {
            match Value::parse(entry.raw.as_bytes()) {
                Ok(_) if entry.kind == super::turn::CALL_KIND => calls.push(entry.raw),
                Ok(value) => message.append(&[&entry.kind], &value),
                Err(_) => {}
            }
        }
        let mut inner = Edits::new();
        let rendered = message.render().unwrap_or_default();
        let rendered =
            Value::parse(rendered.as_bytes()).ok().and_then(|rendered| rendered.as_object());
        for (key, value) in rendered.iter().flat_map(|rendered| rendered.members()) {
            inner.set(&["message", &key], value.raw());
        }
        if calls.is_empty() {
            inner.remove(&["message", "tool_calls"]);
        } else {
            inner.set(&["message", "tool_calls"], &format!("[{}]", calls.join(",")));
        }
        let merged = inner.apply(choice.as_bytes()).ok();
        if let Some(merged) = merged.and_then(|merged| String::from_utf8(merged).ok()) {
            edits.set(&["choices"], &format!("[{merged}]"));
        }
    }

    fn read_message(&self, response: &Value<'_>, turn: &mut Turn) {
        let reason = text(response, "stop_reason");
        turn.awaits_results = messages::awaits_results(Some(&reason));
        turn.container = messages::container_id(response);
        for block in response.get("content").iter().flat_map(Value::elements) {
            let kind = text(&block, "type");
            messages::add_block(turn, &kind, block.raw(), "", &self.client.injected_tools);
        }
    }

    fn read_completion(&self, response: &Value<'_>, turn: &mut Turn) {
        let choice = response.get("choices").and_then(|choices| choices.elements().next());
        let reason = choice.map(|choice| text(&choice, "finish_reason"));
        turn.awaits_results = chat::awaits_results(reason.as_deref());
        let Some(message) = choice.and_then(|choice| choice.get("message")) else { return };
        chat::add_members(turn, message.raw());
        for call in message.get("tool_calls").iter().flat_map(Value::elements) {
            chat::add_call(turn, call.raw(), &self.client.injected_tools);
        }
    }

    fn read_response(&self, response: &Value<'_>, turn: &mut Turn) {
        // Some servers omit the status.
        turn.awaits_results = matches!(text(response, "status").as_str(), "completed" | "");
        for item in response.get("output").iter().flat_map(Value::elements) {
            responses::add_item(turn, item.raw(), &self.client.injected_tools);
        }
    }
}

fn first_choice(body: &[u8]) -> Option<String> {
    let object = Object::parse(body).ok()?;
    Some(object.member("choices")?.elements().next()?.raw().to_owned())
}
