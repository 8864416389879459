//! A turn of the model, the results of its injected calls, and the request that sends both back.

use serde_json::{Value as Json, json};

use crate::{
    Dialect,
    json::{Edits, JsonError, Kind, Object, Value},
};

/// The model's output in one turn.
#[derive(Debug, Clone, Default)]
pub struct Turn {
    /// The injected calls, in order.
    pub calls: Vec<InjectedCall>,
    /// The ids of the client's own calls.
    pub client_calls: Vec<String>,
    /// Whether the model stopped to wait for tool results, and not for another reason.
    pub awaits_results: bool,
    /// Whether it was too large to be buffered, or is not valid JSON, so that it cannot be sent back.
    pub overflowed: bool,
    /// The provider's id of the response.
    pub response_id: Option<String>,
    /// The id of the container of a Messages response, in which the provider runs code.
    pub container: Option<String>,
    /// All parts of the output, in order and as written.
    pub(super) entries: Vec<TurnEntry>,
}

/// A part of the model's output: a content block, an item, a tool call, or a member of a message.
#[derive(Debug, Clone)]
pub(super) struct TurnEntry {
    pub(super) kind: String,
    /// The JSON as the model wrote it.
    pub(super) raw: String,
    /// Whether the client has seen it.
    pub(super) shown: bool,
}

/// A call of an injected tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InjectedCall {
    /// The id that its result refers to.
    pub id: String,
    /// The tool's id.
    pub name: String,
    /// The arguments as the model wrote them; they should be a JSON object.
    pub arguments: String,
}

/// The result of an injected call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolOutput {
    /// The parts of the result, in order.
    pub parts: Vec<OutputPart>,
    /// The complete result as JSON, for dialects whose results are text if a part is not text.
    pub json: String,
    /// Whether the call failed.
    pub is_error: bool,
}

/// A part of a tool's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputPart {
    /// Text.
    Text(String),
    /// An image.
    Image {
        /// Its media type.
        media_type: String,
        /// Base64.
        data: String,
    },
    /// Anything else, described by its kind.
    Other(String),
}

impl ToolOutput {
    /// The result of a failed call, which tells the model what happened.
    #[must_use]
    pub fn error(what: &str) -> Self {
        let text = format!("Error: {what}");
        let json = json!({ "content": [{ "type": "text", "text": text }], "isError": true });
        Self { parts: vec![OutputPart::Text(text)], json: json.to_string(), is_error: true }
    }

    /// The result as one text.
    fn text(&self) -> String {
        let mut whole = String::new();
        for part in &self.parts {
            let OutputPart::Text(text) = part else { return self.json.clone() };
            whole.push_str(text);
        }
        if self.is_error && !whole.starts_with("Error:") {
            whole.insert_str(0, "Error: ");
        }
        whole
    }

    /// A `tool_result` block of the Messages API.
    fn block(&self, id: &str) -> Json {
        let content: Vec<Json> = self.parts.iter().map(OutputPart::block).collect();
        json!({
            "type": "tool_result", "tool_use_id": id, "content": content,
            "is_error": self.is_error,
        })
    }
}

impl OutputPart {
    fn block(&self) -> Json {
        match self {
            // The provider rejects a blank text.
            Self::Text(text) if text.trim().is_empty() => {
                json!({ "type": "text", "text": "(empty)" })
            }
            Self::Text(text) => json!({ "type": "text", "text": text }),
            Self::Image { media_type, data } if is_image(media_type) => json!({
                "type": "image",
                "source": { "type": "base64", "media_type": media_type, "data": data },
            }),
            Self::Image { media_type, .. } => {
                json!({ "type": "text", "text": format!("[image of type {media_type}]") })
            }
            Self::Other(kind) => json!({ "type": "text", "text": format!("[content: {kind}]") }),
        }
    }
}

/// Whether the Messages API accepts images of this type.
/// <https://platform.claude.com/docs/en/build-with-claude/vision>
fn is_image(media_type: &str) -> bool {
    matches!(media_type, "image/jpeg" | "image/png" | "image/gif" | "image/webp")
}

impl InjectedCall {
    /// The arguments, if they are a JSON object; no arguments count as an empty object.
    #[must_use]
    pub fn object(&self) -> Option<serde_json::Map<String, Json>> {
        if self.arguments.trim().is_empty() {
            return Some(serde_json::Map::new());
        }
        serde_json::from_str(&self.arguments).ok()
    }
}

impl Turn {
    /// Whether the next turn is to be requested at once: only injected calls wait for results.
    #[must_use]
    pub fn should_continue(&self) -> bool {
        self.awaits_results && self.client_calls.is_empty() && !self.calls.is_empty()
    }

    /// Whether the injected calls are to be executed, also if the client has calls to answer.
    #[must_use]
    pub fn should_run_calls(&self) -> bool {
        self.awaits_results && !self.calls.is_empty()
    }

    /// Renders the results of the injected calls in the dialect's own format, in the same order.
    #[must_use]
    pub fn results(&self, dialect: Dialect, outputs: &[ToolOutput]) -> Vec<String> {
        let answered = self.calls.iter().zip(outputs);
        let value = |(call, output): (&InjectedCall, &ToolOutput)| match dialect {
            Dialect::Messages => output.block(&call.id),
            Dialect::ChatCompletions => {
                json!({ "role": "tool", "tool_call_id": call.id, "content": output.text() })
            }
            Dialect::Responses => json!({
                "type": "function_call_output", "call_id": call.id, "output": output.text(),
            }),
        };
        answered.map(value).map(|value| value.to_string()).collect()
    }

    /// Appends this turn and the results of its calls to a request.
    ///
    /// # Errors
    ///
    /// Returns an error if the body is not a JSON object with a conversation that can be extended.
    pub fn append_to(
        &self,
        dialect: Dialect,
        body: &[u8],
        results: &[String],
    ) -> Result<Vec<u8>, JsonError> {
        let mut edits = Edits::new();
        match dialect {
            Dialect::Messages => {
                edits.append(&["messages"], &self.message());
                edits.append(&["messages"], &user_message(results));
                self.set_container(body, &mut edits)?;
            }
            Dialect::ChatCompletions => {
                edits.append(&["messages"], &self.chat_message());
                for result in results {
                    edits.append(&["messages"], result);
                }
            }
            Dialect::Responses => self.append_items(body, results, &mut edits)?,
        }
        edits.apply(body)
    }

    /// The assistant message of the Messages API, with all its blocks as received.
    fn message(&self) -> String {
        // The provider generates empty texts, but rejects them in a request.
        let blocks = self.entries.iter().filter(|entry| !entry.is_empty_text());
        let blocks: Vec<&str> = blocks.map(|entry| entry.raw.as_str()).collect();
        assistant_message(&blocks.join(","))
    }

    /// The next turn goes on in the container of this one, where its files are.
    /// <https://platform.claude.com/docs/en/agents-and-tools/tool-use/code-execution-tool#container-reuse>
    fn set_container(&self, body: &[u8], edits: &mut Edits) -> Result<(), JsonError> {
        let Some(id) = &self.container else { return Ok(()) };
        let id = Json::from(id.as_str()).to_string();
        let requested = Object::parse(body)?.member("container").map(|container| container.kind());
        match requested {
            // With the skills to load.
            Some(Kind::Object) => edits.set(&["container", "id"], &id),
            _ => edits.set(&["container"], &id),
        }
        Ok(())
    }

    fn chat_message(&self) -> String {
        let calls = self.entries.iter().filter(|entry| entry.kind == CALL_KIND);
        let calls: Vec<&str> = calls.map(|entry| entry.raw.as_str()).collect();
        let members = self.entries.iter().filter(|entry| entry.kind != CALL_KIND);
        chat_message(members.map(|entry| (entry.kind.as_str(), entry.raw.as_str())), &calls)
    }

    fn append_items(
        &self,
        body: &[u8],
        results: &[String],
        edits: &mut Edits,
    ) -> Result<(), JsonError> {
        let object = Object::parse(body)?;
        let conversation = object.member("conversation").filter(|value| !value.is_null());
        if conversation.is_some() {
            // The provider stores the earlier conversation.
            edits.set(&["input"], &format!("[{}]", results.join(",")));
            return Ok(());
        }
        let input = object.member("input");
        if let Some(text) = input.filter(|input| input.kind() == Kind::String) {
            let message = format!(r#"[{{"role":"user","content":{}}}]"#, text.raw());
            edits.set(&["input"], &message);
        }
        let is_stored = object.member("store").is_none_or(|store| store.raw() != "false");
        for entry in &self.entries {
            if is_stored || entry.is_self_contained() {
                edits.append(&["input"], &entry.raw);
            }
        }
        for result in results {
            edits.append(&["input"], result);
        }
        Ok(())
    }
}

/// The kind of an entry that is a tool call in a chat message.
pub(super) const CALL_KIND: &str = "tool_call";

impl TurnEntry {
    pub(super) fn new(kind: &str, raw: &str, shown: bool) -> Self {
        Self { kind: kind.to_owned(), raw: raw.to_owned(), shown }
    }

    pub(super) fn is_empty_text(&self) -> bool {
        let text = || {
            let value = Value::parse(self.raw.as_bytes()).ok()?;
            Some(value.get("text")?.as_str()?.trim().is_empty())
        };
        self.kind == "text" && text().unwrap_or_default()
    }

    /// Whether the provider accepts it without having stored the response: reasoning then needs its
    /// encrypted content.
    fn is_self_contained(&self) -> bool {
        let encrypted = || {
            let value = Value::parse(self.raw.as_bytes()).ok()?;
            Some(value.get("encrypted_content")?.as_str()?.is_empty())
        };
        self.kind != "reasoning" || encrypted() == Some(false)
    }
}

/// Renders an assistant message with these content blocks.
pub(super) fn assistant_message(blocks: &str) -> String {
    format!(r#"{{"role":"assistant","content":[{blocks}]}}"#)
}

/// Renders a user message with these content blocks.
pub(super) fn user_message(blocks: &[String]) -> String {
    format!(r#"{{"role":"user","content":[{}]}}"#, blocks.join(","))
}

/// Renders an assistant message of the Chat Completions API.
pub(super) fn chat_message<'a>(
    members: impl Iterator<Item = (&'a str, &'a str)>,
    calls: &[&str],
) -> String {
    let mut message = r#"{"role":"assistant""#.to_owned();
    let mut has_content = false;
    for (key, json) in members {
        has_content |= key == "content";
        message.push_str(&format!(",{}:{json}", Json::from(key)));
    }
    if !has_content {
        message.push_str(r#","content":null"#);
    }
    if !calls.is_empty() {
        message.push_str(&format!(r#","tool_calls":[{}]"#, calls.join(",")));
    }
    message.push('}');
    message
}

/// Sets the response that a Responses request continues from.
///
/// # Errors
///
/// Returns an error if the body is not a JSON object.
pub fn set_previous_response(body: &[u8], id: &str) -> Result<Vec<u8>, JsonError> {
    let mut edits = Edits::new();
    edits.set(&["previous_response_id"], &Json::from(id).to_string());
    edits.apply(body)
}
