//! Answers of the Responses API: <https://platform.openai.com/docs/api-reference/responses-streaming>.

use super::{
    Observed, ProviderError, ThoughtSource, ToolCall, budget::Budget, delta, given, note, text,
    usage, with_json,
};
use crate::json::{Kind, Value, string};

/// The state of one event stream.
#[derive(Debug, Default)]
pub(super) struct ResponsesStream {
    open: Vec<Item>,
    done: Vec<Done>,
    budget: Budget,
    next_sequence_number: u64,
    is_terminal: bool,
}

/// An output item that is still streaming.
#[derive(Debug)]
struct Item {
    index: Option<u64>,
    part: Part,
}

/// An output item that is recorded; servers leave out the one or the other.
#[derive(Debug)]
struct Done {
    index: Option<u64>,
    id: Option<String>,
}

/// What is recorded of an output item.
#[derive(Debug)]
enum Part {
    Call(ToolCall),
    /// Each text is a thought of its own.
    Thoughts(ThoughtSource, Vec<String>),
}

impl ResponsesStream {
    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(super) fn next_sequence_number(&self) -> u64 {
        self.next_sequence_number
    }

    pub(super) fn event(&mut self, event: Option<&[u8]>, data: &[u8], observed: &mut Observed) {
        match delta::responses(data) {
            // A commentary's text is also a thought, so it is read like one.
            Some(delta) if !self.open.iter().any(Item::is_commentary) => {
                observed.relayed_text_bytes += string::decoded_length(delta.text);
                self.count(delta.sequence_number);
            }
            _ if data.trim_ascii() == b"[DONE]" => {}
            _ => {
                with_json(data, |value| self.parsed(event, &value, observed));
            }
        }
    }

    /// Takes notice of an event over the size limit: the last one repeats the whole answer, and by
    /// its name a long answer is known to be complete though its figures are not.
    pub(super) fn unread(&mut self, event: Option<&[u8]>) {
        self.is_terminal |= event.is_some_and(is_last);
    }

    pub(super) fn flush(&mut self, observed: &mut Observed) {
        for item in self.open.drain(..) {
            item.part.record(observed);
        }
    }

    fn parsed(&mut self, event: Option<&[u8]>, value: &Value<'_>, observed: &mut Observed) {
        self.count(value.get("sequence_number").and_then(|number| number.as_u64()));
        let name = value.get("type").and_then(|name| name.as_str());
        let name = name.as_deref().map(str::as_bytes).or(event).unwrap_or_default();
        let index = value.get("output_index").and_then(|index| index.as_u64());
        match name {
            b"response.output_item.added" => self.added(index, value),
            b"response.output_item.done" => self.item_done(index, value, observed),
            name if is_last(name) => {
                self.is_terminal = true;
                if let Some(response) = given(value, "response") {
                    self.response_done(&response, observed);
                }
                self.flush(observed);
            }
            b"error" => {
                self.is_terminal = true;
                observed.error = Some(error_event(value));
                self.flush(observed);
            }
            name if name.ends_with(b".delta") => self.delta(name, index, value, observed),
            name if is_argument(name, b".done") => self.call_done(index, value),
            name if name.starts_with(b"response.") => {
                if let Some(response) = given(value, "response") {
                    head(&response, observed);
                }
            }
            _ => {}
        }
    }

    fn added(&mut self, index: Option<u64>, value: &Value<'_>) {
        let part = given(value, "item").and_then(|item| Part::read(&item));
        if let Some(part) = part
            && self.budget.admits_part(part.len())
        {
            self.open.push(Item { index, part });
        }
    }

    fn delta(
        &mut self,
        name: &[u8],
        index: Option<u64>,
        value: &Value<'_>,
        observed: &mut Observed,
    ) {
        let Some(added) = value.get("delta").and_then(|delta| delta.as_str()) else {
            return;
        };
        observed.relayed_text_bytes += crate::count(added.len());
        let Some(item) = self.open.iter_mut().rev().find(|item| item.index == index) else {
            return;
        };
        let text = match (name, &mut item.part) {
            (
                b"response.reasoning_summary_text.delta",
                Part::Thoughts(ThoughtSource::ReasoningSummary, texts),
            )
            | (b"response.output_text.delta", Part::Thoughts(ThoughtSource::Commentary, texts)) => {
                if texts.is_empty() {
                    texts.push(String::new());
                }
                texts.last_mut()
            }
            (name, Part::Call(call)) if is_argument(name, b".delta") => Some(&mut call.arguments),
            _ => None,
        };
        if let Some(text) = text {
            self.budget.append(text, &added);
        }
    }

    /// The whole arguments replace what the deltas made of them.
    fn call_done(&mut self, index: Option<u64>, value: &Value<'_>) {
        let whole = ["arguments", "input", "code"].into_iter().find_map(|key| text(value.get(key)));
        let item = self.open.iter_mut().rev().find(|item| item.index == index);
        if let (Some(whole), Some(Part::Call(call))) = (whole, item.map(|item| &mut item.part)) {
            self.budget.release(call.arguments.len());
            call.arguments.clear();
            self.budget.append(&mut call.arguments, &whole);
        }
    }

    fn item_done(&mut self, index: Option<u64>, value: &Value<'_>, observed: &mut Observed) {
        if let Some(item) = given(value, "item") {
            self.replace(index, &item, observed);
        }
    }

    /// The whole answer: what the stream's own events did not say is taken from it.
    fn response_done(&mut self, response: &Value<'_>, observed: &mut Observed) {
        head(response, observed);
        ending(response, observed);
        let items = response.get("output").into_iter().flat_map(|output| output.elements());
        for (index, item) in items.enumerate() {
            let index = Some(crate::count(index));
            if !self.is_recorded(index, &item, observed) {
                self.replace(index, &item, observed);
            }
        }
    }

    fn is_recorded(&self, index: Option<u64>, item: &Value<'_>, observed: &Observed) -> bool {
        let id = item_id(item);
        let is_same = |done: &Done| done.index == index || (id.is_some() && done.id == id);
        let has_call = |call: &ToolCall| observed.tool_calls.iter().any(|one| one.id == call.id);
        self.done.iter().any(is_same)
            || tool_call(item).is_some_and(|call| !call.id.is_empty() && has_call(&call))
    }

    /// Records a whole item in place of what streamed of it.
    fn replace(&mut self, index: Option<u64>, item: &Value<'_>, observed: &mut Observed) {
        let budget = &mut self.budget;
        self.open.retain(|open| {
            let is_other = open.index != index;
            if !is_other {
                budget.release(open.part.len());
            }
            is_other
        });
        let Some(part) = Part::read(item) else {
            return;
        };
        if budget.admits_part(part.len()) {
            self.done.push(Done { index, id: item_id(item) });
            part.whole().record(observed);
        }
    }

    fn count(&mut self, sequence_number: Option<u64>) {
        if let Some(number) = sequence_number {
            self.next_sequence_number = self.next_sequence_number.max(number.saturating_add(1));
        }
    }
}

impl Item {
    fn is_commentary(&self) -> bool {
        matches!(self.part, Part::Thoughts(ThoughtSource::Commentary, _))
    }
}

impl Part {
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

    /// Of an item that is complete: a tool of the provider's own may take no arguments.
    fn whole(mut self) -> Self {
        if let Self::Call(call) = &mut self
            && call.provider_executed
            && call.arguments.is_empty()
        {
            "{}".clone_into(&mut call.arguments);
        }
        self
    }

    fn record(self, observed: &mut Observed) {
        match self {
            Self::Call(call) => observed.tool_calls.push(call),
            Self::Thoughts(source, texts) => {
                for text in texts {
                    observed.think(source, text);
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

fn is_last(name: &[u8]) -> bool {
    matches!(name, b"response.completed" | b"response.incomplete" | b"response.failed")
}

/// Whether an event is about the arguments of a call, whatever the kind of tool calls them.
fn is_argument(name: &[u8], ending: &[u8]) -> bool {
    let stem = name.strip_suffix(ending).unwrap_or_default();
    stem.ends_with(b"_arguments") || stem.ends_with(b"_input") || stem.ends_with(b"_code")
}

/// Reads a whole answer.
pub(super) fn body(response: &Value<'_>, observed: &mut Observed) {
    head(response, observed);
    ending(response, observed);
    for item in response.get("output").into_iter().flat_map(|output| output.elements()) {
        if let Some(part) = Part::read(&item) {
            part.whole().record(observed);
        }
    }
}

/// What each event that carries the response says of it.
fn head(response: &Value<'_>, observed: &mut Observed) {
    note(&mut observed.response_id, response.get("id"));
    note(&mut observed.model, response.get("model"));
    note(&mut observed.status, response.get("status"));
}

/// What only the end of an answer says.
fn ending(response: &Value<'_>, observed: &mut Observed) {
    if let Some(usage) = given(response, "usage").filter(|usage| usage.kind() == Kind::Object) {
        observed.usage = Some(usage::responses(&usage));
        observed.usage_is_final = true;
    }
    if let Some(error) = given(response, "error") {
        observed.error = Some(coded(&error));
    }
    let is_pending = matches!(observed.status.as_deref(), Some("queued" | "in_progress"));
    if !is_pending {
        observed.stop_reason.clone_from(&observed.status);
    }
    let details = given(response, "incomplete_details");
    note(&mut observed.stop_reason, details.and_then(|details| details.get("reason")));
}

/// An item that is a call: of a function, a custom tool, or one of the provider's own tools.
fn tool_call(item: &Value<'_>) -> Option<ToolCall> {
    let kind = text(item.get("type")).filter(|kind| kind.ends_with("_call"))?;
    let own = !matches!(kind.as_str(), "function_call" | "custom_tool_call");
    let named = |key| text(item.get(key)).filter(|text| !text.is_empty());
    let arguments = ["arguments", "input", "code", "action", "operation", "queries"]
        .into_iter()
        .find_map(|key| given(item, key))
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
    coded(&given(value, "error").unwrap_or(*value))
}

/// An error whose code says more than its type.
fn coded(error: &Value<'_>) -> ProviderError {
    let code = text(error.get("code")).filter(|code| !code.is_empty());
    let read = ProviderError::read(error);
    ProviderError { kind: code.unwrap_or(read.kind), ..read }
}
