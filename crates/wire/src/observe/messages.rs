//! Responses of the Messages API: <https://platform.claude.com/docs/en/build-with-claude/streaming>.

use super::{
    CallResult, Observation, ProviderError, Refusal, ThoughtSource, ToolCall, budget::Budget,
    delta, non_null, set_text, text, usage, with_json,
};
use crate::json::{Value, string};

/// The state of one event stream.
#[derive(Debug, Default)]
pub(super) struct MessagesStream {
    open: Vec<OpenBlock>,
    budget: Budget,
    is_terminal: bool,
}

/// A content block that is still streaming.
#[derive(Debug)]
struct OpenBlock {
    index: Option<u64>,
    content: BlockContent,
}

#[derive(Debug)]
enum BlockContent {
    /// A tool call and the input of its start event, which deltas replace.
    Tool {
        call: Box<ToolCall>,
        input: String,
    },
    Thinking(String),
}

impl MessagesStream {
    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    pub(super) fn handle_event(
        &mut self,
        event: Option<&[u8]>,
        data: &[u8],
        observed: &mut Observation,
    ) {
        if let Some(text) = delta::messages_text_delta(data) {
            observed.relayed_text_bytes += string::decoded_length(text);
            observed.add_escaped_answer(0, text);
        } else if event != Some(b"ping") {
            with_json(data, |value| self.handle_parsed(event, &value, observed));
        }
    }

    pub(super) fn flush(&mut self, observed: &mut Observation) {
        for block in self.open.drain(..) {
            block.close(observed);
        }
    }

    fn handle_parsed(
        &mut self,
        event: Option<&[u8]>,
        value: &Value<'_>,
        observed: &mut Observation,
    ) {
        let name = value.get("type").and_then(|name| name.as_str());
        match name.as_deref().map(str::as_bytes).or(event) {
            Some(b"content_block_delta") => self.apply_delta(value, observed),
            Some(b"content_block_start") => self.start_block(value, observed),
            Some(b"content_block_stop") => self.stop_block(value, observed),
            Some(b"message_start") => {
                if let Some(message) = non_null(value, "message") {
                    let [id, model, usage, container] =
                        message.get_all(["id", "model", "usage", "container"]);
                    read_head([id, model, usage], observed);
                    read_container(container, observed);
                }
            }
            Some(b"message_delta") => {
                if let Some(delta) = non_null(value, "delta") {
                    read_ending(
                        delta.get_all(["stop_reason", "stop_details", "container"]),
                        observed,
                    );
                }
                if let Some(usage) = non_null(value, "usage") {
                    read_usage(&usage, observed);
                    observed.usage_is_final = true;
                }
            }
            Some(b"message_stop") => {
                self.is_terminal = true;
                if let Some(metrics) = non_null(value, "amazon-bedrock-invocationMetrics") {
                    let usage = observed.usage.get_or_insert_default();
                    usage::invocation_metrics(&metrics, usage);
                    observed.usage_is_final = true;
                }
                self.flush(observed);
            }
            Some(b"error") => {
                set_text(&mut observed.request_id, value.get("request_id"));
                let error = ProviderError::find(value);
                self.fail(error.unwrap_or_else(|| ProviderError::read(value)), observed);
            }
            None => {
                if let Some(error) = ProviderError::find(value) {
                    self.fail(error, observed);
                }
            }
            Some(_) => {}
        }
    }

    /// Ends the stream with an error.
    fn fail(&mut self, error: ProviderError, observed: &mut Observation) {
        observed.error = Some(error);
        self.is_terminal = true;
        self.flush(observed);
    }

    fn start_block(&mut self, value: &Value<'_>, observed: &mut Observation) {
        let Some(content) = non_null(value, "content_block") else {
            return;
        };
        let kind = text(content.get("type")).unwrap_or_default();
        let part = match kind.as_str() {
            "tool_use" | "server_tool_use" | "mcp_tool_use" => {
                tool(&kind, &content).without_empty_input()
            }
            "thinking" => BlockContent::Thinking(text(content.get("thinking")).unwrap_or_default()),
            "redacted_thinking" => {
                observed.redacted_thoughts += 1;
                return;
            }
            "fallback" => {
                read_fallback(&content, observed);
                return;
            }
            "text" => {
                observed.add_answer_value(0, content.get("text"));
                return;
            }
            kind => return self.read_result(kind, &content, observed),
        };
        if self.budget.reserve_part(part.len()) {
            let index = value.get("index").and_then(|index| index.as_u64());
            self.open.push(OpenBlock { index, content: part });
        }
    }

    /// Reads the result of a tool that the provider ran. Its call is still open if a server sends no
    /// events of the end of a block.
    fn read_result(&mut self, kind: &str, block: &Value<'_>, observed: &mut Observation) {
        let Some((id, result)) = call_result(kind, block) else { return };
        let open = self.open.iter_mut().find_map(|block| match &mut block.content {
            BlockContent::Tool { call, .. } if call.id == id => Some(call),
            BlockContent::Tool { .. } | BlockContent::Thinking(_) => None,
        });
        match open {
            Some(call) => call.result = Some(result),
            None => observed.add_result(&id, result),
        }
    }

    fn apply_delta(&mut self, value: &Value<'_>, observed: &mut Observation) {
        let Some(delta) = non_null(value, "delta") else {
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
        if kind == "text" {
            observed.add_answer(0, &added);
        }
        match (kind, block.map(|block| &mut block.content)) {
            ("partial_json", Some(BlockContent::Tool { call, .. })) => {
                self.budget.append(&mut call.arguments, &added);
            }
            ("thinking", Some(BlockContent::Thinking(thought))) => {
                self.budget.append(thought, &added);
            }
            _ => {}
        }
    }

    fn stop_block(&mut self, value: &Value<'_>, observed: &mut Observation) {
        let index = value.get("index").and_then(|index| index.as_u64());
        let Some(at) = self.open.iter().position(|block| block.index == index) else {
            return;
        };
        let mut block = self.open.remove(at);
        if let BlockContent::Tool { call, input } = &mut block.content
            && call.arguments.is_empty()
            && input.is_empty()
        {
            // A call of a tool without parameters has no deltas.
            "{}".clone_into(input);
        }
        block.close(observed);
    }
}

impl OpenBlock {
    fn close(self, observed: &mut Observation) {
        match self.content {
            BlockContent::Tool { mut call, input } => {
                if call.arguments.is_empty() {
                    call.arguments = input;
                }
                observed.tool_calls.push(*call);
            }
            BlockContent::Thinking(thought) => {
                observed.add_thought(ThoughtSource::Thinking, thought);
            }
        }
    }
}

impl BlockContent {
    /// Drops the empty object that a stream starts a tool's input with.
    fn without_empty_input(mut self) -> Self {
        if let Self::Tool { input, .. } = &mut self
            && input.bytes().all(|byte| matches!(byte, b'{' | b'}') || byte.is_ascii_whitespace())
        {
            input.clear();
        }
        self
    }

    fn len(&self) -> usize {
        match self {
            Self::Tool { call, input } => call.len() + input.len(),
            Self::Thinking(thought) => thought.len(),
        }
    }
}

/// Reads a complete response.
pub(super) fn read_body(message: &Value<'_>, observed: &mut Observation) {
    // In one pass: the content may be long.
    let [content, id, model, usage, kind, error, stop_reason, stop_details, container] = message
        .get_all([
            "content",
            "id",
            "model",
            "usage",
            "type",
            "error",
            "stop_reason",
            "stop_details",
            "container",
        ]);
    let error = match content {
        Some(_) if error.is_none() && !kind.is_some_and(|kind| kind.is_text("error")) => None,
        Some(_) => ProviderError::find(message),
        None => ProviderError::of_non_answer(message),
    };
    if error.is_some() {
        observed.error = error;
        set_text(&mut observed.request_id, message.get("request_id"));
        return;
    }
    read_head([id, model, usage], observed);
    observed.usage_is_final = observed.usage.is_some();
    read_ending([stop_reason, stop_details, container], observed);
    for content in content.into_iter().flat_map(|content| content.elements()) {
        let kind = text(content.get("type")).unwrap_or_default();
        match kind.as_str() {
            "tool_use" | "server_tool_use" | "mcp_tool_use" => {
                OpenBlock { index: None, content: tool(&kind, &content) }.close(observed);
            }
            "thinking" => {
                let thought = text(content.get("thinking")).unwrap_or_default();
                observed.add_thought(ThoughtSource::Thinking, thought);
            }
            "text" => observed.add_answer_value(0, content.get("text")),
            "redacted_thinking" => observed.redacted_thoughts += 1,
            "fallback" => read_fallback(&content, observed),
            kind => {
                if let Some((id, result)) = call_result(kind, &content) {
                    observed.add_result(&id, result);
                }
            }
        }
    }
}

/// Reads why the model stopped, and the container that it leaves.
fn read_ending(
    [stop_reason, stop_details, container]: [Option<Value<'_>>; 3],
    observed: &mut Observation,
) {
    set_text(&mut observed.stop_reason, stop_reason);
    if let Some(details) = stop_details {
        observed.refusal = Refusal::of_stop_details(&details).or(observed.refusal.take());
    }
    read_container(container, observed);
}

fn read_container(container: Option<Value<'_>>, observed: &mut Observation) {
    set_text(&mut observed.container_id, container.and_then(|container| container.get("id")));
}

/// The result in a block of a kind such as `web_search_tool_result`, and the id of its call.
fn call_result(kind: &str, block: &Value<'_>) -> Option<(String, CallResult)> {
    kind.ends_with("_tool_result").then(|| CallResult::of_block(block)).flatten()
}

/// Reads the members that both `message_start` and a complete response have.
fn read_head([id, model, usage]: [Option<Value<'_>>; 3], observed: &mut Observation) {
    set_text(&mut observed.response_id, id);
    set_text(&mut observed.model, model);
    if let Some(usage) = usage.filter(|usage| !usage.is_null()) {
        read_usage(&usage, observed);
    }
}

fn read_usage(usage: &Value<'_>, observed: &mut Observation) {
    usage::messages(usage, observed);
    let served = observed.usage.as_mut().and_then(|usage| usage.fallback_model.take());
    if let Some(model) = served {
        fall_back(model, observed);
    }
}

/// Reads the block that marks where another model of the provider went on.
fn read_fallback(block: &Value<'_>, observed: &mut Observation) {
    if let Some(model) = text(non_null(block, "to").and_then(|to| to.get("model"))) {
        fall_back(model, observed);
    }
}

fn fall_back(model: String, observed: &mut Observation) {
    if observed.model.as_ref() != Some(&model) {
        let declined = observed.model.replace(model);
        observed.declined_model = observed.declined_model.take().or(declined);
    }
}

fn tool(kind: &str, content: &Value<'_>) -> BlockContent {
    let [id, name, input, server_name, caller] =
        content.get_all(["id", "name", "input", "server_name", "caller"]);
    let mut call = ToolCall {
        id: text(id).unwrap_or_default(),
        name: text(name).unwrap_or_default(),
        provider_executed: kind != "tool_use",
        server_name: text(server_name),
        ..ToolCall::default()
    };
    call.read_caller(caller);
    let input = input.filter(|input| !input.is_null()).map(|input| input.raw().to_owned());
    BlockContent::Tool { call: Box::new(call), input: input.unwrap_or_default() }
}
