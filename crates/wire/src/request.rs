//! What the bridge needs to know about a request, read in one pass over the body.

use std::ops::Range;

use crate::{
    Dialect,
    json::{Edits, JsonError, Kind, Object, Value, scan::Scanner, string},
};

mod attachments;
mod chat;
mod messages;
mod objects;
mod prompt;
mod responses;
mod servers;

pub use attachments::{Attachment, AttachmentContent, Attachments, MAX_ATTACHMENTS};
pub use servers::HostedServer;

pub use self::objects::{MAX_NAMED_OBJECTS, NamedObject, ObjectKind, named_objects};

/// Maximum number of tool results that are read of one request.
pub const MAX_TOOL_RESULTS: usize = 1_000;
/// Maximum number of values, nested ones included, in the body of one request.
pub const MAX_VALUES: usize = 1_000_000;

/// What a request asks for and contains; fields of an unexpected type are left empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts of a request")]
pub struct RequestView {
    /// The requested model.
    pub model: Option<String>,
    /// Whether the response is to be an event stream.
    pub streaming: bool,
    /// The user's prompt, if the last message is one.
    pub prompt: Option<String>,
    /// The id of the call whose result is in the last message or item.
    pub correlating_tool_call_id: Option<String>,
    /// The tool results after the last assistant turn; earlier ones were part of earlier requests.
    pub tool_results: Vec<ToolResult>,
    /// How many further ones there are beyond [`MAX_TOOL_RESULTS`].
    pub omitted_tool_results: u64,
    /// The files after the last assistant turn; earlier ones were part of earlier requests.
    pub attachments: Attachments,
    /// The MCP servers that the provider is to call.
    pub hosted_servers: Vec<HostedServer>,
    /// The session named in the Messages API's `metadata.user_id`.
    pub metadata_session_id: Option<String>,
    /// The Responses API's `previous_response_id`.
    pub previous_response_id: Option<String>,
    /// Whether the provider is to store the response, if the request says so.
    pub store: Option<bool>,
    /// Whether the response is to be generated in the background and fetched later.
    pub background: bool,
    /// Whether the client of a Chat Completions stream asks for its usage, in whatever way:
    /// `stream_options.include_usage`, or `usage.include` of `OpenRouter`.
    pub include_usage: bool,
    /// Whether the provider stores the conversation: the Messages API's `thread`.
    pub has_thread: bool,
    /// Whether the provider stores the answer, so that a later request may name it.
    pub is_stored: bool,
    /// The objects at the provider that the request names.
    pub objects: Vec<NamedObject>,
}

/// The result of a tool call in a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolResult {
    /// The id of the call.
    pub tool_call_id: String,
    /// Its size: decoded text, plus everything else as written.
    pub bytes: u64,
    /// Whether it is marked as an error, where the dialect has such a mark.
    pub is_error: Option<bool>,
    /// Whether the user approved the call, where this is the answer to the question.
    pub approved: Option<bool>,
    /// Where its content is: the bytes of the body, which [`read_content`] reads.
    pub content: Option<Range<usize>>,
}

/// Why a request cannot be read; the messages are written for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The input is empty or only white space.
    #[error("the request body is empty; expected a JSON object")]
    Empty,
    /// The body is not valid JSON.
    #[error("the request body is not valid JSON: {0}")]
    NotJson(String),
    /// The body is valid JSON but not an object.
    #[error("the request body is not a JSON object")]
    NotAnObject,
    /// A key that the bridge relies on occurs twice; parsers differ on which one counts.
    #[error("duplicate key `{0}` in the request body")]
    DuplicateKey(String),
    /// The body exceeds the maximum nesting depth.
    #[error("the request body is nested too deeply")]
    TooDeep,
    /// The body has more than [`MAX_VALUES`] values.
    #[error("the request body has more than {MAX_VALUES} JSON values")]
    TooManyValues,
}

impl RequestView {
    /// Reads the body of a request.
    ///
    /// # Errors
    ///
    /// Returns an error if the body is not one JSON object, or repeats a key that the bridge relies on.
    pub fn read(dialect: Dialect, body: &[u8]) -> Result<Self, RequestError> {
        let top = TopLevel::read(body)?;
        let mut view = Self {
            model: text(top.model),
            streaming: top.stream.and_then(|value| value.as_bool()).unwrap_or_default(),
            has_thread: top.thread.is_some_and(|value| !value.is_null()),
            store: top.store.and_then(|value| value.as_bool()),
            objects: objects::read(&top),
            ..Self::default()
        };
        view.is_stored = match dialect {
            Dialect::Messages => view.has_thread,
            Dialect::ChatCompletions => view.store == Some(true),
            Dialect::Responses => view.store != Some(false),
        };
        match dialect {
            Dialect::Messages => messages::read(&top, &mut view),
            Dialect::ChatCompletions => chat::read(&top, &mut view),
            Dialect::Responses => responses::read(&top, &mut view),
        }
        Ok(view)
    }

    /// Reads the content of a message of the user: the prompt, if it is the last one, and its files.
    fn add_user_content(&mut self, content: Value<'_>, is_last: bool) {
        if is_last {
            self.prompt = prompt::extract(content, &mut self.attachments);
        } else {
            self.attachments.add_parts(&content);
        }
    }

    /// Adds a tool result whose content is a string, a list of parts or anything else; files in it are
    /// attachments.
    fn add_tool_result(
        &mut self,
        id: Option<Value<'_>>,
        content: Option<Value<'_>>,
        is_error: Option<bool>,
    ) {
        let size = content.map(|content| ContentSize::of(&content)).unwrap_or_default();
        if let Some(content) = content.filter(|_| size.has_other_parts) {
            self.attachments.add(&content);
            self.attachments.add_parts(&content);
        }
        if let Some(tool_call_id) = text(id) {
            let content =
                content.filter(|content| !content.is_null()).map(|content| content.range());
            let bytes = size.bytes;
            let result = ToolResult { tool_call_id, bytes, is_error, approved: None, content };
            self.push_tool_result(result);
        }
    }

    fn push_tool_result(&mut self, result: ToolResult) {
        if self.tool_results.len() < MAX_TOOL_RESULTS {
            self.tool_results.push(result);
        } else {
            self.omitted_tool_results += 1;
        }
    }
}

/// Edits the body of a Chat Completions stream request so that the stream includes its usage.
///
/// Returns `None` if nothing is to be changed: it is not a stream, the usage is already requested, or
/// `stream_options` has a type that only the provider can judge.
///
/// # Errors
///
/// Returns an error if the body is not one JSON object.
pub fn add_include_usage(body: &[u8]) -> Result<Option<Vec<u8>>, JsonError> {
    let object = Object::parse(body)?;
    let streams = object.member("stream").and_then(|value| value.as_bool()).unwrap_or_default();
    let options = object.member("stream_options").filter(|value| !value.is_null());
    let asks = options.is_some_and(includes_usage);
    let is_invalid = options.is_some_and(|value| value.as_object().is_none());
    if !streams || asks || is_invalid {
        return Ok(None);
    }
    let mut edits = Edits::new();
    edits.set(&["stream_options", "include_usage"], "true");
    edits.apply(body).map(Some)
}

/// Edits the body of a request so that it names this model.
///
/// Returns `None` if it does already.
///
/// # Errors
///
/// Returns an error if the body is not one JSON object.
pub fn set_model(body: &[u8], model: &str) -> Result<Option<Vec<u8>>, JsonError> {
    let named = text(Object::parse(body)?.member("model"));
    if named.as_deref() == Some(model) {
        return Ok(None);
    }
    let mut edits = Edits::new();
    edits.set(&["model"], &serde_json::Value::from(model).to_string());
    edits.apply(body).map(Some)
}

/// The relevant members of a request, with the conversation split into its entries.
#[derive(Debug, Default)]
struct TopLevel<'a> {
    model: Option<Value<'a>>,
    stream: Option<Value<'a>>,
    metadata: Option<Value<'a>>,
    stream_options: Option<Value<'a>>,
    usage: Option<Value<'a>>,
    previous_response_id: Option<Value<'a>>,
    background: Option<Value<'a>>,
    thread: Option<Value<'a>>,
    store: Option<Value<'a>>,
    mcp_servers: Option<Value<'a>>,
    conversation: Option<Value<'a>>,
    container: Option<Value<'a>>,
    prompt: Option<Value<'a>>,
    messages: Conversation<'a>,
    input: Conversation<'a>,
    tools: Option<Value<'a>>,
    /// Whether a key within the body may name an object at the provider.
    may_name_objects: bool,
}

/// The value of `messages` or `input`.
#[derive(Debug, Default)]
enum Conversation<'a> {
    #[default]
    Absent,
    Entries(Vec<Value<'a>>),
    Single(Value<'a>),
}

impl<'a> TopLevel<'a> {
    fn read(body: &'a [u8]) -> Result<Self, RequestError> {
        let scanner = Scanner::document(body)?.with_max_values(MAX_VALUES);
        let mut scanner = scanner.watching(objects::may_name_object);
        if !scanner.starts_with_byte(b'{') {
            scanner.value()?;
            scanner.expect_end()?;
            return Err(RequestError::NotAnObject);
        }
        let mut top = Self::default();
        let mut duplicate = None;
        scanner.open();
        while let Some(key) = scanner.next_key()? {
            let key = string::decode(key.raw());
            if top.read_member(&key, &mut scanner)? == Occurrence::Repeated {
                duplicate.get_or_insert_with(|| key.into_owned());
            }
        }
        scanner.expect_end()?;
        top.may_name_objects = scanner.has_watched_key();
        // Reported last, so that a body that is not JSON is reported as such.
        duplicate.map_or(Ok(top), |key| Err(RequestError::DuplicateKey(key)))
    }

    /// Reads one member.
    fn read_member(
        &mut self,
        key: &str,
        scanner: &mut Scanner<'a>,
    ) -> Result<Occurrence, JsonError> {
        let (slot, judged) = match key {
            "messages" => return self.messages.read(scanner),
            "input" => return self.input.read(scanner),
            "model" => (&mut self.model, true),
            "stream" => (&mut self.stream, true),
            "tools" => (&mut self.tools, true),
            "metadata" => (&mut self.metadata, false),
            "stream_options" => (&mut self.stream_options, false),
            "usage" => (&mut self.usage, false),
            "previous_response_id" => (&mut self.previous_response_id, true),
            "conversation" => (&mut self.conversation, true),
            "container" => (&mut self.container, true),
            "thread" => (&mut self.thread, true),
            "store" => (&mut self.store, true),
            "background" => (&mut self.background, false),
            "mcp_servers" => (&mut self.mcp_servers, false),
            "prompt" => (&mut self.prompt, false),
            _ => return scanner.value().map(|_| Occurrence::First),
        };
        let before = slot.replace(scanner.value()?);
        Ok(if judged && before.is_some() { Occurrence::Repeated } else { Occurrence::First })
    }
}

/// Whether a member that the bridge relies on occurred before.
#[derive(Debug, PartialEq, Eq)]
enum Occurrence {
    First,
    Repeated,
}

impl<'a> Conversation<'a> {
    fn read(&mut self, scanner: &mut Scanner<'a>) -> Result<Occurrence, JsonError> {
        let read = if scanner.starts_with_byte(b'[') {
            scanner.open();
            let mut entries = Vec::new();
            while let Some(entry) = scanner.next_element()? {
                entries.push(entry);
            }
            Self::Entries(entries)
        } else {
            Self::Single(scanner.value()?)
        };
        let before = std::mem::replace(self, read);
        Ok(if matches!(before, Self::Absent) { Occurrence::First } else { Occurrence::Repeated })
    }

    fn entries(&self) -> &[Value<'a>] {
        match self {
            Self::Entries(entries) => entries,
            Self::Absent | Self::Single(_) => &[],
        }
    }

    fn single(&self) -> Option<Value<'a>> {
        match self {
            Self::Single(value) => Some(*value),
            Self::Absent | Self::Entries(_) => None,
        }
    }
}

impl From<JsonError> for RequestError {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::Empty => Self::Empty,
            JsonError::TooDeep => Self::TooDeep,
            JsonError::TooManyValues => Self::TooManyValues,
            JsonError::NotAnObject => Self::NotAnObject,
            JsonError::InvalidUtf8 { .. }
            | JsonError::Syntax { .. }
            | JsonError::WrongKind { .. } => Self::NotJson(error.to_string()),
        }
    }
}

/// The size of the content of a tool result: decoded text, plus everything else as written.
pub(crate) fn content_size(content: &Value<'_>) -> u64 {
    ContentSize::of(content).bytes
}

/// Reads the content of a tool result piece by piece: decoded text, plus everything else as written. It must be
/// part of a body that was read before.
pub fn read_content(content: &[u8], mut piece: impl FnMut(&[u8])) {
    // Most are one string, which need not be parsed again.
    if content.first() == Some(&b'"') {
        return string::decode_in_pieces(content, &mut piece);
    }
    let Ok(content) = Value::parse(content) else { return };
    match content.kind() {
        Kind::Null => {}
        Kind::Array => {
            for part in content.elements() {
                match part.get("text").filter(|text| text.kind() == Kind::String) {
                    Some(text) => string::decode_in_pieces(text.raw().as_bytes(), &mut piece),
                    None => piece(part.raw().as_bytes()),
                }
            }
        }
        Kind::String | Kind::Object | Kind::Number | Kind::Bool => piece(content.raw().as_bytes()),
    }
}

/// What is known of a content after one pass over it.
#[derive(Debug, Clone, Copy, Default)]
struct ContentSize {
    bytes: u64,
    /// Whether it is, or has, something other than text.
    has_other_parts: bool,
}

impl ContentSize {
    fn of(content: &Value<'_>) -> Self {
        let other = |value: &Value<'_>| crate::count(value.raw().len());
        match content.kind() {
            Kind::String => {
                Self { bytes: string::literal_length(content.raw()), has_other_parts: false }
            }
            Kind::Null => Self::default(),
            Kind::Array => content.elements().fold(Self::default(), |size, part| {
                let text = part.get("text").filter(|text| text.kind() == Kind::String);
                let bytes = match text {
                    Some(text) => string::literal_length(text.raw()),
                    None => other(&part),
                };
                Self {
                    bytes: size.bytes + bytes,
                    has_other_parts: size.has_other_parts || text.is_none(),
                }
            }),
            Kind::Object | Kind::Number | Kind::Bool => {
                Self { bytes: other(content), has_other_parts: true }
            }
        }
    }
}

/// The relevant members of a message.
#[derive(Debug, Clone, Copy)]
struct Message<'a> {
    role: Option<Value<'a>>,
    content: Option<Value<'a>>,
    tool_call_id: Option<Value<'a>>,
}

impl<'a> Message<'a> {
    fn read(message: &Value<'a>) -> Self {
        let [role, content, tool_call_id] = message.get_all(["role", "content", "tool_call_id"]);
        Self { role, content, tool_call_id }
    }

    /// The messages after the last one of the model, the latest first, and that one. From the end, so that
    /// a long history is not searched again.
    fn new_ones(messages: &[Value<'a>]) -> (Vec<Self>, Option<Self>) {
        let mut new = Vec::new();
        for message in messages.iter().rev().map(Self::read) {
            if message.is_of("assistant") {
                return (new, Some(message));
            }
            new.push(message);
        }
        (new, None)
    }

    fn is_of(&self, role: &str) -> bool {
        self.role.is_some_and(|value| value.is_text(role))
    }

    /// Whether it holds instructions to the model rather than a turn of the conversation.
    fn is_instruction(&self) -> bool {
        self.is_of("system") || self.is_of("developer")
    }
}

/// Whether `stream_options` asks for usage; vLLM's `continuous_usage_stats` does so in every chunk.
fn includes_usage(stream_options: Value<'_>) -> bool {
    let asks = stream_options.get_all(["include_usage", "continuous_usage_stats"]);
    asks.into_iter().flatten().any(|value| value.as_bool() == Some(true))
}

/// A string that is not blank.
fn text(value: Option<Value<'_>>) -> Option<String> {
    value?.as_str().map(std::borrow::Cow::into_owned).filter(|text| !text.trim().is_empty())
}

fn member_text(value: &Value<'_>, key: &str) -> Option<String> {
    text(value.get(key))
}

fn has_text(value: &Value<'_>, key: &str, wanted: &str) -> bool {
    value.get(key).is_some_and(|value| value.is_text(wanted))
}

/// Whether a message holds instructions to the model rather than a turn of the conversation.
fn is_instruction(message: &Value<'_>) -> bool {
    has_text(message, "role", "system") || has_text(message, "role", "developer")
}

#[cfg(test)]
mod tests;
