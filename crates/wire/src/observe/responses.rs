//! Responses of the Responses API: <https://platform.openai.com/docs/api-reference/responses-streaming>.

use super::{
    Observation, ProviderError, ThoughtSource, ToolCall, budget::Budget, delta, non_null, set_text,
    text, usage, with_json,
};
use crate::json::{Kind, Value, string};

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
    Call(ToolCall),
    /// Thoughts, one per text.
    Thoughts(ThoughtSource, Vec<String>),
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
            b"error" => {
                self.is_terminal = true;
                observed.error = Some(error_event(value));
                self.flush(observed);
            }
            name if name.ends_with(b".delta") => self.apply_delta(name, index, value, observed),
            name if is_argument(name, b".done") => self.call_done(index, value),
            name if name.starts_with(b"response.") => {
                if let Some(response) = non_null(value, "response") {
                    read_head(&response, observed);
                }
            }
            _ => {}
        }
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
        let Some(item) = self.open.iter_mut().rev().find(|item| item.index == index) else {
            return;
        };
        let text = match (name, &mut item.content) {
            (
                b"response.reasoning_summary_text.delta",
                ItemContent::Thoughts(ThoughtSource::ReasoningSummary, texts),
            )
            | (
                b"response.output_text.delta",
                ItemContent::Thoughts(ThoughtSource::Commentary, texts),
            ) => {
                if texts.is_empty() {
                    texts.push(String::new());
                }
                texts.last_mut()
            }
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
        let items = response.get("output").into_iter().flat_map(|output| output.elements());
        for (index, item) in items.enumerate() {
            let index = Some(crate::count(index));
            if !self.is_recorded(index, &item, observed) {
                self.replace(index, &item, observed);
            }
        }
    }

    fn is_recorded(&self, index: Option<u64>, item: &Value<'_>, observed: &Observation) -> bool {
        let id = item_id(item);
        let is_same = |done: &RecordedItem| done.index == index || (id.is_some() && done.id == id);
        let has_call = |call: &ToolCall| observed.tool_calls.iter().any(|one| one.id == call.id);
        self.recorded.iter().any(is_same)
            || tool_call(item).is_some_and(|call| !call.id.is_empty() && has_call(&call))
    }

    /// Records a complete item in place of its streamed parts.
    fn replace(&mut self, index: Option<u64>, item: &Value<'_>, observed: &mut Observation) {
        let budget = &mut self.budget;
        self.open.retain(|open| {
            let is_other = open.index != index;
            if !is_other {
                budget.release(open.content.len());
            }
            is_other
        });
        let Some(part) = ItemContent::read(item) else {
            return;
        };
        if budget.reserve_part(part.len()) {
            self.recorded.push(RecordedItem { index, id: item_id(item) });
            part.completed().record(observed);
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
        matches!(self.content, ItemContent::Thoughts(ThoughtSource::Commentary, _))
    }
}

impl ItemContent {
    fn read(item: &Value<'_>) -> Option<Self> {
        if let Some(call) = tool_call(item) {
            return Some(Self::Call(call));
        }
        let texts = |key| -> Vec<String> {
            let parts = item.get(key).into_iter().flat_map(|parts| parts.elements());
            parts.filter_map(|part| text(part.get("text"))).collect()
        };
        match text(item.get("type"))?.as_str() {
            "reasoning" => Some(Self::Thoughts(ThoughtSource::ReasoningSummary, texts("summary"))),
            "message" if text(item.get("phase")).as_deref() == Some("commentary") => {
                let content = texts("content");
                let thought = (!content.is_empty()).then(|| content.join("\n"));
                Some(Self::Thoughts(ThoughtSource::Commentary, thought.into_iter().collect()))
            }
            _ => None,
        }
    }

    /// Completes an item: a call of the provider's own tool may have no arguments.
    fn completed(mut self) -> Self {
        if let Self::Call(call) = &mut self
            && call.provider_executed
            && call.arguments.is_empty()
        {
            "{}".clone_into(&mut call.arguments);
        }
        self
    }

    fn record(self, observed: &mut Observation) {
        match self {
            Self::Call(call) => observed.tool_calls.push(call),
            Self::Thoughts(source, texts) => {
                for text in texts {
                    observed.add_thought(source, text);
                }
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Call(call) => call.id.len() + call.name.len() + call.arguments.len(),
            Self::Thoughts(_, texts) => texts.iter().map(String::len).sum(),
        }
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
    for item in response.get("output").into_iter().flat_map(|output| output.elements()) {
        if let Some(part) = ItemContent::read(&item) {
            part.completed().record(observed);
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
    if let Some(error) = non_null(response, "error") {
        observed.error = Some(prefer_code(&error));
    }
    let is_pending = matches!(observed.status.as_deref(), Some("queued" | "in_progress"));
    if !is_pending {
        observed.stop_reason.clone_from(&observed.status);
    }
    let details = non_null(response, "incomplete_details");
    set_text(&mut observed.stop_reason, details.and_then(|details| details.get("reason")));
}

/// Reads an item that is a call of a function, a custom tool, or one of the provider's own tools.
fn tool_call(item: &Value<'_>) -> Option<ToolCall> {
    let kind = text(item.get("type")).filter(|kind| kind.ends_with("_call"))?;
    let own = !matches!(kind.as_str(), "function_call" | "custom_tool_call");
    let named = |key| text(item.get(key)).filter(|text| !text.is_empty());
    let arguments = ["arguments", "input", "code", "action", "operation", "queries"]
        .into_iter()
        .find_map(|key| non_null(item, key))
        .map(|arguments| match arguments.as_str() {
            Some(text) => text.into_owned(),
            None => arguments.raw().to_owned(),
        });
    Some(ToolCall {
        id: named("call_id").or_else(|| named("id")).unwrap_or_default(),
        name: named("name").unwrap_or(kind),
        arguments: arguments.unwrap_or_default(),
        provider_executed: own,
    })
}

fn item_id(item: &Value<'_>) -> Option<String> {
    text(item.get("id")).filter(|id| !id.is_empty())
}

fn error_event(value: &Value<'_>) -> ProviderError {
    prefer_code(&non_null(value, "error").unwrap_or(*value))
}

/// Reads an error, preferring its code, which is more specific than its type.
fn prefer_code(error: &Value<'_>) -> ProviderError {
    let code = text(error.get("code")).filter(|code| !code.is_empty());
    let read = ProviderError::read(error);
    ProviderError { kind: code.unwrap_or(read.kind), ..read }
}
