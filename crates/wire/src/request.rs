//! What the bridge needs to know about a request, read in one pass over the body.

use crate::{
    Dialect,
    json::{Edits, JsonError, Object, Value, scan::Scanner, string},
};

mod chat;
mod messages;
mod prompt;
mod responses;

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
    /// The session named in the Messages API's `metadata.user_id`.
    pub metadata_session_id: Option<String>,
    /// The Responses API's `previous_response_id`.
    pub previous_response_id: Option<String>,
    /// Whether the response is to be generated in the background and fetched later.
    pub background: bool,
    /// Whether a Chat Completions stream is to end with its usage: `stream_options.include_usage`.
    pub include_usage: bool,
    /// Whether the provider stores the conversation: the Messages API's `thread`.
    pub has_thread: bool,
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
            ..Self::default()
        };
        match dialect {
            Dialect::Messages => messages::read(&top, &mut view),
            Dialect::ChatCompletions => chat::read(&top, &mut view),
            Dialect::Responses => responses::read(&top, &mut view),
        }
        Ok(view)
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

/// The relevant members of a request, with the conversation split into its entries.
#[derive(Debug, Default)]
struct TopLevel<'a> {
    model: Option<Value<'a>>,
    stream: Option<Value<'a>>,
    metadata: Option<Value<'a>>,
    stream_options: Option<Value<'a>>,
    previous_response_id: Option<Value<'a>>,
    background: Option<Value<'a>>,
    thread: Option<Value<'a>>,
    messages: Conversation<'a>,
    input: Conversation<'a>,
    tools: Option<Value<'a>>,
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
        let mut scanner = Scanner::document(body)?.with_max_values(MAX_VALUES);
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
            "previous_response_id" => (&mut self.previous_response_id, false),
            "background" => (&mut self.background, false),
            "thread" => (&mut self.thread, false),
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

impl ToolResult {
    /// Creates a result whose content is a string or a list of parts.
    fn new(id: Option<Value<'_>>, content: Option<Value<'_>>) -> Option<Self> {
        let bytes = content.map_or(0, |content| content_size(&content));
        Some(Self { tool_call_id: text(id)?, bytes, is_error: None })
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

/// The size of the content of a tool result.
pub(crate) fn content_size(content: &Value<'_>) -> u64 {
    match content.as_object() {
        _ if content.as_str().is_some() => string::literal_length(content.raw()),
        _ if content.is_null() => 0,
        None if content.raw().starts_with('[') => {
            content.elements().map(|part| part_size(&part)).sum()
        }
        _ => crate::count(content.raw().len()),
    }
}

fn part_size(part: &Value<'_>) -> u64 {
    match part.get("text").filter(|text| text.as_str().is_some()) {
        Some(text) => string::literal_length(text.raw()),
        None => crate::count(part.raw().len()),
    }
}

fn includes_usage(stream_options: Value<'_>) -> bool {
    let include = stream_options.get("include_usage").and_then(|value| value.as_bool());
    include.unwrap_or_default()
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
