//! Responses of the Chat Completions API: <https://platform.openai.com/docs/api-reference/chat>.

use super::{
    CallResult, Observation, ProviderError, Refusal, ThoughtSource, ToolCall, budget::Budget,
    chat_calls::ChatCalls, delta::Template, error::is_reported, non_null, set_text, text,
    tool_call::argument_text, usage, with_json,
};
use crate::json::{Kind, Value, string};

/// The state of one event stream.
#[derive(Debug, Default)]
pub(super) struct ChatStream {
    template: Template,
    /// The choice of the last chunk, and so that of the template.
    last_choice: u64,
    calls: ChatCalls,
    /// The thoughts of each choice.
    thoughts: Vec<(u64, String)>,
    budget: Budget,
    /// The choices that have begun, one bit each, and those that have a finish reason.
    begun: u128,
    finished: u128,
    /// Whether the last event was not readable.
    is_garbled: bool,
    is_terminal: bool,
}

/// The members of a delta or a message.
const PARTS: [&str; 8] = [
    "content",
    "refusal",
    "reasoning_content",
    "reasoning",
    "reasoning_details",
    "tool_calls",
    "function_call",
    "executed_tools",
];

impl ChatStream {
    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Whether every choice has a finish reason.
    pub(super) fn has_finished(&self) -> bool {
        self.begun != 0 && self.finished == self.begun
    }

    /// Notes the end of the stream, which is complete without `[DONE]` if every choice has finished: many
    /// servers do not send it.
    pub(super) fn end(&mut self) {
        self.is_terminal |= self.has_finished() && !self.is_garbled;
    }

    pub(super) fn handle_event(
        &mut self,
        event: Option<&[u8]>,
        data: &[u8],
        observed: &mut Observation,
    ) {
        if let Some(text) = self.template.text(data) {
            observed.relayed_text_bytes += string::decoded_length(text);
            observed.add_escaped_answer(self.last_choice, text);
        } else if data.trim_ascii() == b"[DONE]" {
            self.is_terminal = true;
            observed.usage_is_final = observed.usage.is_some();
            self.flush(observed);
        } else {
            let read = with_json(data, |chunk| {
                self.handle_chunk(event, &chunk, observed);
                if chunk.range() == (0..data.len()) {
                    self.template.learn(data, &chunk);
                }
            });
            self.is_garbled = read.is_none();
        }
    }

    pub(super) fn flush(&mut self, observed: &mut Observation) {
        observed.tool_calls.extend(self.calls.drain());
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
        let head = Head::read(chunk);
        if let Some(error) = head.reported_error(event, chunk) {
            let refusal = Refusal::of_error(&head.error.unwrap_or(*chunk));
            observed.refusal = refusal.or(observed.refusal.take());
            observed.error = Some(error);
            self.is_terminal = true;
            self.flush(observed);
            return;
        }
        head.note(observed);
        let mut has_choice = false;
        let mut usage = head.usage();
        for choice in head.choices() {
            has_choice = true;
            let of_choice = self.handle_choice(&choice, observed);
            usage = usage.or_else(|| usage_object(of_choice));
        }
        if let Some(usage) = usage {
            usage::openai(&usage, &mut observed.usage);
            // Some servers send running totals with each chunk.
            observed.usage_is_final = self.has_finished() || !has_choice;
        }
    }

    /// Returns its `usage`.
    fn handle_choice<'a>(
        &mut self,
        choice: &Value<'a>,
        observed: &mut Observation,
    ) -> Option<Value<'a>> {
        let [index, reason, delta, usage] =
            choice.get_all(["index", "finish_reason", "delta", "usage"]);
        let number = index.and_then(|index| index.as_u64()).unwrap_or_default();
        self.last_choice = number;
        let bit = 1 << number.min(u128::BITS.saturating_sub(1).into());
        self.begun |= bit;
        if let Some(reason) = reason.filter(|reason| !reason.is_null() && !reason.is_text("")) {
            self.finished |= bit;
            set_text(&mut observed.stop_reason, Some(reason));
            read_choice_error(choice, &reason, observed);
            read_filter(choice, observed);
        }
        if let Some(delta) = delta.filter(|delta| !delta.is_null()) {
            self.handle_delta(number, &delta, observed);
        }
        usage
    }

    fn handle_delta(&mut self, number: u64, delta: &Value<'_>, observed: &mut Observation) {
        let [content, refusal, plain, reasoning, details, calls, function, executed] =
            delta.get_all(PARTS);
        if let Some(content) = content {
            observed.relayed_text_bytes += text_size(&content);
            add_answer(number, &content, observed);
            self.add_thinking_parts(number, &content, observed);
        }
        if let Some(words) = text(refusal) {
            observed.relayed_text_bytes += crate::count(words.len());
            Refusal::add_words(&mut observed.refusal, &words);
        }
        match reasoning_text([plain, reasoning]) {
            Some(added) => self.add_thought(number, &added, observed),
            None => self.add_details(number, details, observed),
        }
        for call in calls.into_iter().flat_map(|calls| calls.elements()) {
            let index = call.get("index").and_then(|index| index.as_u64());
            self.add_call(number, index, tool_call(&call), observed);
        }
        if let Some(function) = function.filter(|function| !function.is_null()) {
            self.add_call(number, Some(LEGACY_INDEX), function_call(&function), observed);
        }
        for tool in executed.into_iter().flat_map(|tools| tools.elements()) {
            let index = tool.get("index").and_then(|index| index.as_u64()).unwrap_or_default();
            let index = Some(EXECUTED_INDEX.saturating_add(index));
            self.add_call(number, index, executed_tool(&tool), observed);
        }
    }

    /// Adds the thinking parts of a content that is a list.
    fn add_thinking_parts(&mut self, choice: u64, content: &Value<'_>, observed: &mut Observation) {
        for thinking in thinking_parts(content) {
            self.add_thought(choice, &thinking, observed);
        }
    }

    /// Adds what `reasoning_details` say where no plain reasoning is beside them. Some servers send the
    /// text so far in each chunk.
    fn add_details(&mut self, choice: u64, details: Option<Value<'_>>, observed: &mut Observation) {
        let Some(added) = details.and_then(|details| detail_texts(&details)) else { return };
        let known = self.thoughts.iter().find(|(number, _)| *number == choice);
        let known = known.map_or("", |(_, thought)| thought);
        let new = added.strip_prefix(known).unwrap_or(&added).to_owned();
        self.add_thought(choice, &new, observed);
    }

    fn add_thought(&mut self, choice: u64, added: &str, observed: &mut Observation) {
        observed.relayed_text_bytes += crate::count(added.len());
        self.append_thought(choice, added);
    }

    fn add_call(
        &mut self,
        choice: u64,
        index: Option<u64>,
        part: ToolCall,
        observed: &mut Observation,
    ) {
        observed.relayed_text_bytes += crate::count(part.arguments.len());
        self.calls.add(choice, index, part, &mut self.budget);
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
}

/// Distinguishes the legacy function call of a choice from its tool calls.
const LEGACY_INDEX: u64 = u64::MAX;
/// Distinguishes the tools that the provider ran from the calls that the client is to make.
const EXECUTED_INDEX: u64 = 1 << 32;

/// Reads a complete response.
pub(super) fn read_body(completion: &Value<'_>, observed: &mut Observation) {
    let head = Head::read(completion);
    observed.error = match head.choices {
        Some(_) => head.reported_error(None, completion),
        None => ProviderError::of_non_answer(completion),
    };
    if observed.error.is_some() {
        observed.refusal = head.error.and_then(|error| Refusal::of_error(&error));
    }
    head.note(observed);
    let of_choice = || head.choices().find_map(|choice| usage_object(choice.get("usage")));
    let usage = head.usage().or_else(of_choice);
    if let Some(usage) = usage {
        usage::openai(&usage, &mut observed.usage);
        observed.usage_is_final = true;
    }
    for choice in head.choices() {
        if let Some(reason) = non_null(&choice, "finish_reason") {
            set_text(&mut observed.stop_reason, Some(reason));
            read_choice_error(&choice, &reason, observed);
        }
        read_filter(&choice, observed);
        let Some(message) = non_null(&choice, "message") else {
            continue;
        };
        let number = choice.get("index").and_then(|index| index.as_u64()).unwrap_or_default();
        if let Some(content) = message.get("content") {
            add_answer(number, &content, observed);
        }
        read_message(&message, observed);
    }
}

/// Reads which filter ended a choice.
fn read_filter(choice: &Value<'_>, observed: &mut Observation) {
    if observed.stop_reason.as_deref().is_some_and(Refusal::is_filter) {
        observed.refusal = Some(Refusal::by_filter(choice.get("content_filter_results")));
    }
}

/// Reads the message of a choice of a complete response.
fn read_message(message: &Value<'_>, observed: &mut Observation) {
    let [content, refusal, plain, reasoning, details, calls, function, executed] =
        message.get_all(PARTS);
    let executed = executed.into_iter().flat_map(|tools| tools.elements());
    observed.tool_calls.extend(executed.map(|tool| executed_tool(&tool)));
    let calls = calls.into_iter().flat_map(|calls| calls.elements());
    observed.tool_calls.extend(calls.map(|call| tool_call(&call)));
    let function = function.filter(|function| !function.is_null());
    observed.tool_calls.extend(function.map(|function| function_call(&function)));
    if let Some(words) = text(refusal) {
        Refusal::add_words(&mut observed.refusal, &words);
    }
    let thinking: String = content.iter().flat_map(thinking_parts).collect();
    observed.add_thought(ThoughtSource::Reasoning, thinking);
    let details = || details.and_then(|details| detail_texts(&details));
    if let Some(thought) = reasoning_text([plain, reasoning]).or_else(details) {
        observed.add_thought(ThoughtSource::Reasoning, thought);
    }
}

/// The members of a chunk or a complete response.
struct Head<'a> {
    id: Option<Value<'a>>,
    model: Option<Value<'a>>,
    service_tier: Option<Value<'a>>,
    choices: Option<Value<'a>>,
    usage: Option<Value<'a>>,
    x_groq: Option<Value<'a>>,
    /// Not null.
    error: Option<Value<'a>>,
}

impl<'a> Head<'a> {
    fn read(answer: &Value<'a>) -> Self {
        let [id, model, service_tier, choices, usage, x_groq, error] =
            answer.get_all(["id", "model", "service_tier", "choices", "usage", "x_groq", "error"]);
        let error = error.filter(|error| !error.is_null());
        Self { id, model, service_tier, choices, usage, x_groq, error }
    }

    fn choices(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        self.choices.into_iter().flat_map(|choices| choices.elements())
    }

    fn usage(&self) -> Option<Value<'a>> {
        usage_object(self.usage).or_else(|| usage_object(self.x_groq?.get("usage")))
    }

    /// The error that it reports, which is the whole of an event of that name.
    fn reported_error(&self, event: Option<&[u8]>, answer: &Value<'_>) -> Option<ProviderError> {
        let may_be_error =
            self.choices.is_none() || self.error.is_some_and(|error| is_reported(&error));
        let found = may_be_error.then(|| ProviderError::find(answer)).flatten();
        found.or_else(|| (event == Some(b"error")).then(|| ProviderError::read(answer)))
    }

    fn note(&self, observed: &mut Observation) {
        set_text(&mut observed.response_id, self.id);
        set_text(&mut observed.model, self.model);
        set_text(&mut observed.service_tier, self.service_tier);
    }
}

fn usage_object(usage: Option<Value<'_>>) -> Option<Value<'_>> {
    usage.filter(|usage| usage.kind() == Kind::Object)
}

/// Whether a chunk carries usage and has no choice.
pub(super) fn is_usage_only(chunk: &Value<'_>) -> bool {
    let [choices, usage, error] = chunk.get_all(["choices", "usage", "error"]);
    let choices = choices.filter(|choices| choices.kind() == Kind::Array);
    choices.is_some_and(|choices| choices.elements().next().is_none())
        && usage.is_some_and(|usage| usage.kind() == Kind::Object)
        && !error.is_some_and(|error| is_reported(&error))
}

/// Reads the error of a choice that an error has ended.
fn read_choice_error(choice: &Value<'_>, reason: &Value<'_>, observed: &mut Observation) {
    if observed.error.is_none()
        && reason.is_text("error")
        && let Some(error) = non_null(choice, "error")
    {
        observed.error = Some(ProviderError::read(&error));
    }
}

/// The thought in a delta or message; if both spellings are present, they have the same content.
fn reasoning_text(spellings: [Option<Value<'_>>; 2]) -> Option<String> {
    spellings.into_iter().filter_map(text).find(|text| !text.is_empty())
}

/// The readable texts of `reasoning_details`, in order.
fn detail_texts(details: &Value<'_>) -> Option<String> {
    let texts = details.objects(["text", "summary"]).filter_map(reasoning_text);
    let joined: String = texts.collect();
    (!joined.is_empty()).then_some(joined)
}

/// The thoughts among the parts of a content: each is a text or a list of texts.
fn thinking_parts<'a>(content: &Value<'a>) -> impl Iterator<Item = String> + use<'a> {
    content.objects(["type", "thinking"]).filter_map(|[kind, thinking]| {
        kind.filter(|kind| kind.is_text("thinking"))?;
        let thinking = thinking?;
        let parts = || thinking.elements().filter_map(|part| text(part.get("text"))).collect();
        Some(text(Some(thinking)).unwrap_or_else(parts))
    })
}

/// Adds a content's text to the answer, if that is collected: a string, or the texts of its parts.
fn add_answer(choice: u64, content: &Value<'_>, observed: &mut Observation) {
    if observed.answer.is_none() {
        return;
    }
    observed.add_answer_value(choice, Some(*content));
    for [text] in content.objects(["text"]) {
        observed.add_answer_value(choice, text);
    }
}

/// The size of a content's text: a string, or the texts of its parts.
fn text_size(content: &Value<'_>) -> u64 {
    if content.kind() == Kind::String {
        return string::literal_length(content.raw());
    }
    let texts = content.objects(["text"]).filter_map(|[text]| text);
    let texts = texts.filter(|text| text.kind() == Kind::String);
    texts.map(|text| string::literal_length(text.raw())).sum()
}

/// A call of a function, or of a custom tool.
fn tool_call(call: &Value<'_>) -> ToolCall {
    let [id, function, custom] = call.get_all(["id", "function", "custom"]);
    let id = text(id).unwrap_or_default();
    if let Some(custom) = custom.filter(|custom| !custom.is_null()) {
        let arguments = text(custom.get("input")).unwrap_or_default();
        let name = text(custom.get("name")).unwrap_or_default();
        return ToolCall { id, name, arguments, ..ToolCall::default() };
    }
    let function = function.filter(|function| !function.is_null());
    let function = function.map(|function| function_call(&function));
    ToolCall { id, ..function.unwrap_or_default() }
}

fn function_call(function: &Value<'_>) -> ToolCall {
    let [name, arguments] = function.get_all(["name", "arguments"]);
    ToolCall {
        name: text(name).unwrap_or_default(),
        arguments: argument_text(arguments),
        ..ToolCall::default()
    }
}

/// A tool that the provider ran: <https://console.groq.com/docs/compound>.
fn executed_tool(tool: &Value<'_>) -> ToolCall {
    let [name, kind, arguments, output] = tool.get_all(["name", "type", "arguments", "output"]);
    ToolCall {
        name: text(name).or_else(|| text(kind)).unwrap_or_default(),
        arguments: argument_text(arguments),
        provider_executed: true,
        result: CallResult::of_item(output, None, None),
        ..ToolCall::default()
    }
}
