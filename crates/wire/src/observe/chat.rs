//! Responses of the Chat Completions API: <https://platform.openai.com/docs/api-reference/chat>.

use super::{
    Observation, ProviderError, ThoughtSource, ToolCall, budget::Budget, delta::Template, non_null,
    set_text, text, usage, with_json,
};
use crate::json::{Kind, Value, string};

/// The state of one event stream.
#[derive(Debug, Default)]
pub(super) struct ChatStream {
    template: Template,
    calls: Vec<OpenCall>,
    /// The thoughts of each choice.
    thoughts: Vec<(u64, String)>,
    budget: Budget,
    has_finished: bool,
    is_terminal: bool,
}

/// A tool call that is still being streamed.
#[derive(Debug)]
struct OpenCall {
    choice: u64,
    index: Option<u64>,
    call: ToolCall,
}

impl ChatStream {
    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(super) fn handle_event(
        &mut self,
        event: Option<&[u8]>,
        data: &[u8],
        observed: &mut Observation,
    ) {
        if let Some(text) = self.template.text(data) {
            observed.relayed_text_bytes += string::decoded_length(text);
        } else if data.trim_ascii() == b"[DONE]" {
            self.is_terminal = true;
            observed.usage_is_final = observed.usage.is_some();
            self.flush(observed);
        } else {
            with_json(data, |chunk| {
                self.handle_chunk(event, &chunk, observed);
                if chunk.range() == (0..data.len()) {
                    self.template.learn(data, &chunk);
                }
            });
        }
    }

    pub(super) fn flush(&mut self, observed: &mut Observation) {
        observed.tool_calls.extend(self.calls.drain(..).map(|call| call.call));
        for (_, thought) in self.thoughts.drain(..) {
            observed.add_thought(ThoughtSource::Reasoning, thought);
        }
    }

    fn handle_chunk(
        &mut self,
        event: Option<&[u8]>,
        chunk: &Value<'_>,
        observed: &mut Observation,
    ) {
        let is_error = event == Some(b"error");
        if let Some(error) = non_null(chunk, "error").or_else(|| is_error.then_some(*chunk)) {
            observed.error = Some(ProviderError::read(&error));
            self.is_terminal = true;
            self.flush(observed);
            return;
        }
        let head = Head::read(chunk, observed);
        let mut has_choice = false;
        let mut usage = head.usage;
        for choice in head.choices.into_iter().flat_map(|choices| choices.elements()) {
            has_choice = true;
            self.handle_choice(&choice, observed);
            usage = usage.or_else(|| usage_object(choice.get("usage")));
        }
        if let Some(usage) = usage {
            usage::openai(&usage, &mut observed.usage);
            // Some servers send running totals with each chunk.
            observed.usage_is_final = self.has_finished || !has_choice;
        }
    }

    fn handle_choice(&mut self, choice: &Value<'_>, observed: &mut Observation) {
        let number = choice.get("index").and_then(|index| index.as_u64()).unwrap_or_default();
        if non_null(choice, "finish_reason").is_some() {
            self.has_finished = true;
            set_text(&mut observed.stop_reason, choice.get("finish_reason"));
        }
        let Some(delta) = non_null(choice, "delta") else {
            return;
        };
        for key in ["content", "refusal"] {
            if let Some(added) = delta.get(key).and_then(|text| text.as_str()) {
                observed.relayed_text_bytes += crate::count(added.len());
            }
        }
        if let Some(added) = reasoning(&delta) {
            observed.relayed_text_bytes += crate::count(added.len());
            self.append_thought(number, &added);
        }
        for call in delta.get("tool_calls").into_iter().flat_map(|calls| calls.elements()) {
            let index = call.get("index").and_then(|index| index.as_u64());
            self.handle_call(number, index, &tool_call(&call), observed);
        }
        if let Some(function) = non_null(&delta, "function_call") {
            self.handle_call(number, Some(LEGACY_INDEX), &function_call(&function), observed);
        }
    }

    fn append_thought(&mut self, choice: u64, added: &str) {
        if !self.thoughts.iter().any(|(number, _)| *number == choice) {
            if !self.budget.reserve_part(0) {
                return;
            }
            self.thoughts.push((choice, String::new()));
        }
        if let Some((_, thought)) = self.thoughts.iter_mut().find(|(number, _)| *number == choice) {
            self.budget.append(thought, added);
        }
    }

    /// Adds a delta to the call it belongs to.
    fn handle_call(
        &mut self,
        choice: u64,
        index: Option<u64>,
        delta: &ToolCall,
        observed: &mut Observation,
    ) {
        observed.relayed_text_bytes += crate::count(delta.arguments.len());
        let known = self.calls.iter_mut().rev().find(|known| {
            known.choice == choice
                && (index.is_none() || known.index.is_none() || known.index == index)
                // Some servers number all calls 0 and distinguish them by id.
                && (delta.id.is_empty() || known.call.id.is_empty() || known.call.id == delta.id)
        });
        match known {
            Some(OpenCall { call, .. }) => {
                if call.id.is_empty() {
                    self.budget.append(&mut call.id, &delta.id);
                }
                if call.name.is_empty() {
                    self.budget.append(&mut call.name, &delta.name);
                }
                self.budget.append(&mut call.arguments, &delta.arguments);
            }
            None => {
                let size = delta.id.len() + delta.name.len() + delta.arguments.len();
                if self.budget.reserve_part(size) {
                    self.calls.push(OpenCall { choice, index, call: delta.clone() });
                }
            }
        }
    }
}

/// Distinguishes the legacy function call of a choice from its tool calls.
const LEGACY_INDEX: u64 = u64::MAX;

/// Reads a complete response.
pub(super) fn read_body(completion: &Value<'_>, observed: &mut Observation) {
    if let Some(error) = non_null(completion, "error") {
        observed.error = Some(ProviderError::read(&error));
    }
    let head = Head::read(completion, observed);
    let choices = || head.choices.into_iter().flat_map(|choices| choices.elements());
    let usage = head.usage.or_else(|| choices().find_map(|one| usage_object(one.get("usage"))));
    if let Some(usage) = usage {
        usage::openai(&usage, &mut observed.usage);
        observed.usage_is_final = true;
    }
    for choice in choices() {
        set_text(&mut observed.stop_reason, choice.get("finish_reason"));
        let Some(message) = non_null(&choice, "message") else {
            continue;
        };
        for call in message.get("tool_calls").into_iter().flat_map(|calls| calls.elements()) {
            observed.tool_calls.push(tool_call(&call));
        }
        observed.tool_calls.extend(non_null(&message, "function_call").map(|f| function_call(&f)));
        if let Some(thought) = reasoning(&message) {
            observed.add_thought(ThoughtSource::Reasoning, thought);
        }
    }
}

/// What a chunk or a complete response has beside its choices.
struct Head<'a> {
    choices: Option<Value<'a>>,
    usage: Option<Value<'a>>,
}

impl<'a> Head<'a> {
    fn read(answer: &Value<'a>, observed: &mut Observation) -> Self {
        let [id, model, service_tier, choices, usage, x_groq] =
            answer.get_all(["id", "model", "service_tier", "choices", "usage", "x_groq"]);
        set_text(&mut observed.response_id, id);
        set_text(&mut observed.model, model);
        set_text(&mut observed.service_tier, service_tier);
        let usage = usage_object(usage).or_else(|| usage_object(x_groq?.get("usage")));
        Self { choices, usage }
    }
}

fn usage_object(usage: Option<Value<'_>>) -> Option<Value<'_>> {
    usage.filter(|usage| usage.kind() == Kind::Object)
}

/// Whether a chunk carries usage and has no choice.
pub(super) fn is_usage_only(chunk: &Value<'_>) -> bool {
    let choices = chunk.get("choices").filter(|choices| choices.kind() == Kind::Array);
    choices.is_some_and(|choices| choices.elements().next().is_none())
        && chunk.get("usage").is_some_and(|usage| usage.kind() == Kind::Object)
}

/// The thought in a delta or message; if both spellings are present, they have the same content.
fn reasoning(delta: &Value<'_>) -> Option<String> {
    ["reasoning_content", "reasoning"]
        .into_iter()
        .filter_map(|key| text(delta.get(key)))
        .find(|text| !text.is_empty())
}

/// A call of a function, or of a custom tool.
fn tool_call(call: &Value<'_>) -> ToolCall {
    let id = text(call.get("id")).unwrap_or_default();
    if let Some(custom) = non_null(call, "custom") {
        let arguments = text(custom.get("input")).unwrap_or_default();
        let name = text(custom.get("name")).unwrap_or_default();
        return ToolCall { id, name, arguments, provider_executed: false };
    }
    let function = non_null(call, "function").map(|function| function_call(&function));
    ToolCall { id, ..function.unwrap_or_default() }
}

fn function_call(function: &Value<'_>) -> ToolCall {
    let arguments = non_null(function, "arguments").map(|arguments| match arguments.as_str() {
        Some(text) => text.into_owned(),
        // Some servers send an object instead of a string.
        None => arguments.raw().to_owned(),
    });
    ToolCall {
        id: String::new(),
        name: text(function.get("name")).unwrap_or_default(),
        arguments: arguments.unwrap_or_default(),
        provider_executed: false,
    }
}
