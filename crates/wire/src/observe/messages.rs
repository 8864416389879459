//! Answers of the Messages API: <https://platform.claude.com/docs/en/build-with-claude/streaming>.

use super::{
    Observed, ProviderError, ThoughtSource, ToolCall, budget::Budget, delta, given, note, text,
    usage, with_json,
};
use crate::json::{Value, string};

/// The state of one event stream.
#[derive(Debug, Default)]
pub(super) struct MessagesStream {
    open: Vec<Block>,
    budget: Budget,
    is_terminal: bool,
}

/// A content block that is still streaming.
#[derive(Debug)]
struct Block {
    index: Option<u64>,
    part: Part,
}

#[derive(Debug)]
enum Part {
    /// With the arguments that came with its start, which deltas replace.
    Tool {
        call: ToolCall,
        input: String,
    },
    Thinking(String),
}

impl MessagesStream {
    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(super) fn event(&mut self, event: Option<&[u8]>, data: &[u8], observed: &mut Observed) {
        if let Some(text) = delta::messages(data) {
            observed.relayed_text_bytes += string::decoded_length(text);
        } else if event != Some(b"ping") {
            with_json(data, |value| self.parsed(event, &value, observed));
        }
    }

    pub(super) fn flush(&mut self, observed: &mut Observed) {
        for block in self.open.drain(..) {
            block.close(observed);
        }
    }

    fn parsed(&mut self, event: Option<&[u8]>, value: &Value<'_>, observed: &mut Observed) {
        let name = value.get("type").and_then(|name| name.as_str());
        match name.as_deref().map(str::as_bytes).or(event) {
            Some(b"content_block_delta") => self.delta(value, observed),
            Some(b"content_block_start") => self.start(value, observed),
            Some(b"content_block_stop") => self.stop(value, observed),
            Some(b"message_start") => {
                if let Some(message) = given(value, "message") {
                    head(message.get_all(["id", "model", "usage"]), observed);
                }
            }
            Some(b"message_delta") => {
                note(
                    &mut observed.stop_reason,
                    value.get("delta").and_then(|delta| delta.get("stop_reason")),
                );
                if let Some(usage) = given(value, "usage") {
                    usage::messages(&usage, observed.usage.get_or_insert_default());
                    observed.usage_is_final = true;
                }
            }
            Some(b"message_stop") => {
                self.is_terminal = true;
                self.flush(observed);
            }
            Some(b"error") => {
                let error = given(value, "error").unwrap_or(*value);
                observed.error = Some(ProviderError::read(&error));
                self.is_terminal = true;
                self.flush(observed);
            }
            _ => {}
        }
    }

    fn start(&mut self, value: &Value<'_>, observed: &mut Observed) {
        let Some(content) = given(value, "content_block") else {
            return;
        };
        let kind = text(content.get("type")).unwrap_or_default();
        let part = match kind.as_str() {
            "tool_use" | "server_tool_use" | "mcp_tool_use" => tool(&kind, &content).begun(),
            "thinking" => Part::Thinking(text(content.get("thinking")).unwrap_or_default()),
            "redacted_thinking" => {
                observed.redacted_thoughts += 1;
                return;
            }
            _ => return,
        };
        if self.budget.admits_part(part.len()) {
            let index = value.get("index").and_then(|index| index.as_u64());
            self.open.push(Block { index, part });
        }
    }

    fn delta(&mut self, value: &Value<'_>, observed: &mut Observed) {
        let Some(delta) = given(value, "delta") else {
            return;
        };
        let index = value.get("index").and_then(|index| index.as_u64());
        let block = self.open.iter_mut().rev().find(|block| block.index == index);
        let Some((kind, added)) = ["text", "thinking", "partial_json"]
            .into_iter()
            .find_map(|key| Some((key, delta.get(key)?.as_str()?)))
        else {
            return;
        };
        observed.relayed_text_bytes += crate::count(added.len());
        match (kind, block.map(|block| &mut block.part)) {
            ("partial_json", Some(Part::Tool { call, .. })) => {
                self.budget.append(&mut call.arguments, &added);
            }
            ("thinking", Some(Part::Thinking(thought))) => self.budget.append(thought, &added),
            _ => {}
        }
    }

    fn stop(&mut self, value: &Value<'_>, observed: &mut Observed) {
        let index = value.get("index").and_then(|index| index.as_u64());
        let Some(at) = self.open.iter().position(|block| block.index == index) else {
            return;
        };
        let mut block = self.open.remove(at);
        if let Part::Tool { call, input } = &mut block.part
            && call.arguments.is_empty()
            && input.is_empty()
        {
            // A tool without parameters is called with no delta at all.
            "{}".clone_into(input);
        }
        block.close(observed);
    }
}

impl Block {
    fn close(self, observed: &mut Observed) {
        match self.part {
            Part::Tool { mut call, input } => {
                if call.arguments.is_empty() {
                    call.arguments = input;
                }
                observed.tool_calls.push(call);
            }
            Part::Thinking(thought) => observed.think(ThoughtSource::Thinking, thought),
        }
    }
}

impl Part {
    /// The empty object that a stream begins a tool's input with says nothing yet.
    fn begun(mut self) -> Self {
        if let Self::Tool { input, .. } = &mut self
            && input.bytes().all(|byte| matches!(byte, b'{' | b'}') || byte.is_ascii_whitespace())
        {
            input.clear();
        }
        self
    }

    fn len(&self) -> usize {
        match self {
            Self::Tool { call, input } => call.id.len() + call.name.len() + input.len(),
            Self::Thinking(thought) => thought.len(),
        }
    }
}

/// Reads a whole answer.
pub(super) fn body(message: &Value<'_>, observed: &mut Observed) {
    let [error, stop_reason, content, id, model, usage] =
        message.get_all(["error", "stop_reason", "content", "id", "model", "usage"]);
    if let Some(error) = error.filter(|error| !error.is_null()) {
        observed.error = Some(ProviderError::read(&error));
        return;
    }
    head([id, model, usage], observed);
    observed.usage_is_final = observed.usage.is_some();
    note(&mut observed.stop_reason, stop_reason);
    for content in content.into_iter().flat_map(|content| content.elements()) {
        let kind = text(content.get("type")).unwrap_or_default();
        match kind.as_str() {
            "tool_use" | "server_tool_use" | "mcp_tool_use" => {
                Block { index: None, part: tool(&kind, &content) }.close(observed);
            }
            "thinking" => {
                let thought = text(content.get("thinking")).unwrap_or_default();
                observed.think(ThoughtSource::Thinking, thought);
            }
            "redacted_thinking" => observed.redacted_thoughts += 1,
            _ => {}
        }
    }
}

/// What both `message_start` and a whole answer say of the message.
fn head([id, model, usage]: [Option<Value<'_>>; 3], observed: &mut Observed) {
    note(&mut observed.response_id, id);
    note(&mut observed.model, model);
    if let Some(usage) = usage.filter(|usage| !usage.is_null()) {
        usage::messages(&usage, observed.usage.get_or_insert_default());
    }
}

fn tool(kind: &str, content: &Value<'_>) -> Part {
    let call = ToolCall {
        id: text(content.get("id")).unwrap_or_default(),
        name: text(content.get("name")).unwrap_or_default(),
        arguments: String::new(),
        provider_executed: kind != "tool_use",
    };
    let input = given(content, "input").map(|input| input.raw().to_owned());
    Part::Tool { call, input: input.unwrap_or_default() }
}
