//! Responses of the Responses API: <https://platform.openai.com/docs/api-reference/responses-streaming>.

use super::{
    CallResult, Observation, ProviderError, Refusal, Thought, ThoughtSource, ToolCall,
    budget::Budget, delta, error::is_reported, non_null, set_text, text, usage, with_json,
};
use crate::json::{Kind, Value, string};

mod call;

use call::tool_call;

/// The state of one event stream.
#[derive(Debug, Default)]
pub(super) struct ResponsesStream {
    open: Vec<OpenItem>,
    recorded: Vec<RecordedItem>,
    budget: Budget,
    next_sequence_number: u64,
    is_terminal: bool,
}

/// An output item that is still streaming.
#[derive(Debug)]
struct OpenItem {
    index: Option<u64>,
    content: ItemContent,
}

/// An output item that is already recorded, by index or id; some servers omit one of them.
#[derive(Debug)]
struct RecordedItem {
    index: Option<u64>,
    id: Option<String>,
}

/// The part of an output item that is recorded.
#[derive(Debug)]
enum ItemContent {
    Call(Box<ToolCall>),
    /// The result of a call; the id is empty where the server names none.
    Result(String, CallResult),
    /// The texts of a reasoning item.
    Reasoning(Vec<Thought>),
    Commentary(String),
}

impl ResponsesStream {
    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(super) fn next_sequence_number(&self) -> u64 {
        self.next_sequence_number
    }

    pub(super) fn handle_event(
        &mut self,
        event: Option<&[u8]>,
        data: &[u8],
        observed: &mut Observation,
    ) {
        match delta::responses_text_delta(data) {
            // The text of a commentary is also a thought, so it is parsed.
            Some(delta) if !self.open.iter().any(OpenItem::is_commentary) => {
                observed.relayed_text_bytes += string::decoded_length(delta.text);
                observed.add_escaped_answer(0, delta.text);
                self.track_sequence_number(delta.sequence_number);
            }
            _ if data.trim_ascii() == b"[DONE]" => {}
            _ => {
                with_json(data, |value| self.handle_parsed(event, &value, observed));
            }
        }
    }

    /// Handles an event that was too large to be read. The terminal event repeats the whole response, so a
    /// long response is known to be complete by the event's name even though its usage is unknown.
    pub(super) fn skipped_event(&mut self, event: Option<&[u8]>) {
        self.is_terminal |= event.is_some_and(is_terminal_event);
    }

    pub(super) fn flush(&mut self, observed: &mut Observation) {
        for item in self.open.drain(..) {
            item.content.record(observed);
        }
    }

    fn handle_parsed(
        &mut self,
        event: Option<&[u8]>,
        value: &Value<'_>,
        observed: &mut Observation,
    ) {
        self.track_sequence_number(value.get("sequence_number").and_then(|number| number.as_u64()));
        let name = value.get("type").and_then(|name| name.as_str());
        let name = name.as_deref().map(str::as_bytes).or(event).unwrap_or_default();
        let index = value.get("output_index").and_then(|index| index.as_u64());
        match name {
            b"response.output_item.added" => self.item_added(index, value),
            b"response.output_item.done" => self.item_done(index, value, observed),
            name if is_terminal_event(name) => {
                self.is_terminal = true;
                if let Some(response) = non_null(value, "response") {
                    self.response_done(&response, observed);
                }
                // Some servers put the figures beside the response.
                read_usage(value, observed);
                self.flush(observed);
            }
            b"error" => self.fail(error_event(value), observed),
            b"response.refusal.done" => {
                if let Some(words) = text(value.get("refusal")) {
                    Refusal::add_words(&mut observed.refusal, &words);
                }
            }
            name if name.ends_with(b".delta") => self.apply_delta(name, index, value, observed),
            name if is_argument(name, b".done") => self.call_done(index, value),
            name if name.starts_with(b"response.") => {
                if let Some(response) = non_null(value, "response") {
                    read_head(&response, observed);
                }
            }
            b"" if ProviderError::find(value).is_some() => self.fail(error_event(value), observed),
            _ => {}
        }
    }

    /// Ends the stream with an error.
    fn fail(&mut self, error: ProviderError, observed: &mut Observation) {
        self.is_terminal = true;
        observed.error = Some(error);
        self.flush(observed);
    }

    fn item_added(&mut self, index: Option<u64>, value: &Value<'_>) {
        let part = non_null(value, "item").and_then(|item| ItemContent::read(&item));
        if let Some(part) = part
            && self.budget.reserve_part(part.len())
        {
            self.open.push(OpenItem { index, content: part });
        }
    }

    fn apply_delta(
        &mut self,
        name: &[u8],
        index: Option<u64>,
        value: &Value<'_>,
        observed: &mut Observation,
    ) {
        let Some(added) = value.get("delta").and_then(|delta| delta.as_str()) else {
            return;
        };
        observed.relayed_text_bytes += crate::count(added.len());
        let item = self.open.iter_mut().rev().find(|item| item.index == index);
        let is_commentary = item.as_ref().is_some_and(|item| item.is_commentary());
        if name == b"response.output_text.delta" && !is_commentary {
            observed.add_answer(0, &added);
        }
        let Some(item) = item else { return };
        let text = match (name, &mut item.content) {
            (b"response.reasoning_summary_text.delta", ItemContent::Reasoning(thoughts)) => {
                open_text(thoughts, ThoughtSource::ReasoningSummary)
            }
            (
                b"response.reasoning_text.delta" | b"response.reasoning.delta",
                ItemContent::Reasoning(thoughts),
            ) => open_text(thoughts, ThoughtSource::Reasoning),
            (b"response.output_text.delta", ItemContent::Commentary(text)) => Some(text),
            (name, ItemContent::Call(call)) if is_argument(name, b".delta") => {
                Some(&mut call.arguments)
            }
            _ => None,
        };
        if let Some(text) = text {
            self.budget.append(text, &added);
        }
    }

    /// Replaces the arguments assembled from deltas with the complete ones.
    fn call_done(&mut self, index: Option<u64>, value: &Value<'_>) {
        let whole = ["arguments", "input", "code"].into_iter().find_map(|key| text(value.get(key)));
        let item = self.open.iter_mut().rev().find(|item| item.index == index);
        if let (Some(whole), Some(ItemContent::Call(call))) =
            (whole, item.map(|item| &mut item.content))
        {
            self.budget.release(call.arguments.len());
            call.arguments.clear();
            self.budget.append(&mut call.arguments, &whole);
        }
    }

    fn item_done(&mut self, index: Option<u64>, value: &Value<'_>, observed: &mut Observation) {
        if let Some(item) = non_null(value, "item") {
            self.replace(index, &item, observed);
        }
    }

    /// Reads the complete response, adding what the earlier events did not contain.
    fn response_done(&mut self, response: &Value<'_>, observed: &mut Observation) {
        read_head(response, observed);
        read_ending(response, observed);
        let items = || response.get("output").into_iter().flat_map(|output| output.elements());
        if observed.lacks_answer() {
            items().for_each(|item| read_answer(&item, observed));
        }
        for (index, item) in items().enumerate() {
            let index = Some(crate::count(index));
            if !self.is_recorded(index, &item, observed) {
                self.replace(index, &item, observed);
            }
        }
    }

    fn is_recorded(&self, index: Option<u64>, item: &Value<'_>, observed: &Observation) -> bool {
        let id = item_id(item);
        let is_same = |done: &RecordedItem| done.index == index || (id.is_some() && done.id == id);
        self.recorded.iter().any(is_same)
            || tool_call(item).is_some_and(|call| {
                let is_same = |one: &ToolCall| one.id == call.id && one.approval == call.approval;
                !call.id.is_empty() && observed.tool_calls.iter().any(is_same)
            })
    }

    /// Records a complete item in place of its streamed parts.
    fn replace(&mut self, index: Option<u64>, item: &Value<'_>, observed: &mut Observation) {
        let budget = &mut self.budget;
        let streamed = self.open.extract_if(.., |open| open.index == index).last();
        if let Some(streamed) = &streamed {
            budget.release(streamed.content.len());
        }
        let Some(mut part) = ItemContent::read(item) else {
            return;
        };
        if let Some(streamed) = streamed {
            part.complete_from(streamed.content);
        }
        if budget.reserve_part(part.len()) {
            self.recorded.push(RecordedItem { index, id: item_id(item) });
            part.record(observed);
        }
    }

    fn track_sequence_number(&mut self, sequence_number: Option<u64>) {
        if let Some(number) = sequence_number {
            self.next_sequence_number = self.next_sequence_number.max(number.saturating_add(1));
        }
    }
}

impl OpenItem {
    fn is_commentary(&self) -> bool {
        matches!(self.content, ItemContent::Commentary(_))
    }
}

impl ItemContent {
    fn read(item: &Value<'_>) -> Option<Self> {
        if let Some(call) = tool_call(item) {
            return Some(Self::Call(Box::new(call)));
        }
        let texts = |key, source| {
            let parts = item.get(key).into_iter().flat_map(|parts| parts.elements());
            let texts = parts.filter_map(|part| text(part.get("text")));
            texts.map(move |content| Thought { source, content })
        };
        match text(item.get("type"))?.as_str() {
            "reasoning" => {
                let summary = texts("summary", ThoughtSource::ReasoningSummary);
                Some(Self::Reasoning(
                    summary.chain(texts("content", ThoughtSource::Reasoning)).collect(),
                ))
            }
            "message" if text(item.get("phase")).as_deref() == Some("commentary") => {
                let content = texts("content", ThoughtSource::Commentary);
                let content: Vec<_> = content.map(|thought| thought.content).collect();
                Some(Self::Commentary(content.join("\n")))
            }
            // What the client runs has its output in the next request.
            "shell_call_output" | "tool_search_output" => {
                let [id, output, tools] = item.get_all(["call_id", "output", "tools"]);
                let result = CallResult::of_output(&output.or(tools)?);
                Some(Self::Result(text(id).unwrap_or_default(), result))
            }
            _ => None,
        }
    }

    /// Keeps what was streamed where the complete item lacks it.
    fn complete_from(&mut self, streamed: Self) {
        match (self, streamed) {
            (Self::Call(call), Self::Call(streamed)) if call.arguments.is_empty() => {
                call.arguments = streamed.arguments;
            }
            (Self::Reasoning(thoughts), Self::Reasoning(streamed)) if thoughts.is_empty() => {
                *thoughts = streamed;
            }
            (Self::Commentary(text), Self::Commentary(streamed)) if text.is_empty() => {
                *text = streamed;
            }
            _ => {}
        }
    }

    fn record(self, observed: &mut Observation) {
        match self {
            Self::Call(mut call) => {
                if call.arguments.is_empty() && call.provider_executed {
                    // A call of the provider's own tool may have no arguments.
                    "{}".clone_into(&mut call.arguments);
                }
                set_once(&mut observed.container_id, &call.container_id);
                observed.tool_calls.push(*call);
            }
            Self::Result(id, result) => observed.add_result(&id, result),
            Self::Reasoning(thoughts) => {
                for Thought { source, content } in thoughts {
                    observed.add_thought(source, content);
                }
            }
            Self::Commentary(text) => observed.add_thought(ThoughtSource::Commentary, text),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Call(call) => call.len(),
            Self::Result(id, _) => id.len(),
            Self::Reasoning(thoughts) => thoughts.iter().map(|thought| thought.content.len()).sum(),
            Self::Commentary(text) => text.len(),
        }
    }
}

/// The text that deltas of a source are added to.
fn open_text(thoughts: &mut Vec<Thought>, source: ThoughtSource) -> Option<&mut String> {
    if thoughts.last().is_none_or(|last| last.source != source) {
        thoughts.push(Thought { source, content: String::new() });
    }
    thoughts.last_mut().map(|last| &mut last.content)
}

fn set_once(slot: &mut Option<String>, value: &Option<String>) {
    if slot.is_none() {
        slot.clone_from(value);
    }
}

fn is_terminal_event(name: &[u8]) -> bool {
    matches!(name, b"response.completed" | b"response.incomplete" | b"response.failed")
}

/// Whether an event concerns the arguments of a call, whatever name the kind of tool gives them.
fn is_argument(name: &[u8], ending: &[u8]) -> bool {
    let stem = name.strip_suffix(ending).unwrap_or_default();
    stem.ends_with(b"_arguments") || stem.ends_with(b"_input") || stem.ends_with(b"_code")
}

/// Reads a complete response.
pub(super) fn read_body(response: &Value<'_>, observed: &mut Observation) {
    read_head(response, observed);
    read_ending(response, observed);
    if observed.error.is_none() && response.get("output").is_none() {
        observed.error = ProviderError::of_non_answer(response);
    }
    for item in response.get("output").into_iter().flat_map(|output| output.elements()) {
        match ItemContent::read(&item) {
            Some(part) => part.record(observed),
            None => {
                read_refusal(&item, observed);
                read_answer(&item, observed);
            }
        }
    }
}

/// Adds the texts of a message that is no commentary to the answer, if that is collected.
fn read_answer(item: &Value<'_>, observed: &mut Observation) {
    let [kind, phase, content] = item.get_all(["type", "phase", "content"]);
    let is_answer = kind.is_some_and(|kind| kind.is_text("message"))
        && !phase.is_some_and(|phase| phase.is_text("commentary"));
    if observed.answer.is_none() || !is_answer {
        return;
    }
    for [text] in content.into_iter().flat_map(|content| content.objects(["text"])) {
        observed.add_answer_value(0, text);
    }
}

/// Reads the refusal in a message.
fn read_refusal(item: &Value<'_>, observed: &mut Observation) {
    let content = item.get("content").into_iter();
    for [words] in content.flat_map(|content| content.objects(["refusal"])) {
        if let Some(words) = text(words) {
            Refusal::add_words(&mut observed.refusal, &words);
        }
    }
}

/// Reads the members that every event with a response has.
fn read_head(response: &Value<'_>, observed: &mut Observation) {
    let [id, model, status, service_tier] =
        response.get_all(["id", "model", "status", "service_tier"]);
    set_text(&mut observed.response_id, id);
    set_text(&mut observed.model, model);
    set_text(&mut observed.status, status);
    set_text(&mut observed.service_tier, service_tier);
}

fn read_usage(object: &Value<'_>, observed: &mut Observation) {
    if let Some(usage) = non_null(object, "usage").filter(|usage| usage.kind() == Kind::Object) {
        usage::openai(&usage, &mut observed.usage);
        observed.usage_is_final = true;
    }
}

/// Reads the members that only a finished response has.
fn read_ending(response: &Value<'_>, observed: &mut Observation) {
    read_usage(response, observed);
    if let Some(error) = non_null(response, "error").filter(is_reported) {
        observed.error = Some(error_event(response));
        observed.refusal = Refusal::of_error(&error).or(observed.refusal.take());
    }
    let is_pending = matches!(observed.status.as_deref(), Some("queued" | "in_progress"));
    if !is_pending {
        observed.stop_reason.clone_from(&observed.status);
    }
    let details = non_null(response, "incomplete_details");
    set_text(&mut observed.stop_reason, details.and_then(|details| details.get("reason")));
    if observed.stop_reason.as_deref().is_some_and(Refusal::is_filter) {
        let filters = response.get("content_filters").into_iter();
        let mut results = filters.flat_map(|filters| filters.objects(["content_filter_results"]));
        let results = results.find_map(|[results]| results);
        observed.refusal = Some(Refusal::by_filter(results));
    }
}

fn item_id(item: &Value<'_>) -> Option<String> {
    text(item.get("id")).filter(|id| !id.is_empty())
}

/// Reads an error, preferring its code, which is more specific than its type.
fn error_event(value: &Value<'_>) -> ProviderError {
    let error = non_null(value, "error").unwrap_or(*value);
    let code = text(error.get("code")).filter(|code| !code.is_empty());
    let read = ProviderError::find(value).unwrap_or_else(|| ProviderError::read(&error));
    ProviderError { kind: code.unwrap_or(read.kind), ..read }
}
