//! What the bridge needs to know of a request, read in one pass over the body.

use crate::{
    Dialect,
    json::{Edits, JsonError, Object, Value, scan::Scanner, string},
};

mod chat;
mod messages;
mod prompt;
mod responses;

/// What a request asks for and what it carries; odd shapes leave fields empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts of a request")]
pub struct RequestView {
    /// The model that is asked for.
    pub model: Option<String>,
    /// Whether the answer is to be an event stream.
    pub streaming: bool,
    /// What the user wrote, if the last message is the user's own words.
    pub prompt: Option<String>,
    /// The call whose result the last message or item carries.
    pub correlating_tool_call_id: Option<String>,
    /// The results that follow the last assistant turn; the history before it was sent earlier.
    pub tool_results: Vec<ToolResult>,
    /// The session named in the Messages API's `metadata.user_id`.
    pub metadata_session_id: Option<String>,
    /// The Responses API's `previous_response_id`.
    pub previous_response_id: Option<String>,
    /// Whether the answer is to be made in the background and fetched later.
    pub background: bool,
    /// Whether a Chat Completions stream is to end with its usage.
    pub include_usage: bool,
    /// Whether the provider holds the conversation: the Messages API's `thread`.
    pub has_thread: bool,
}

/// The result of one tool call as a request carries it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolResult {
    /// The id of the call.
    pub tool_call_id: String,
    /// Its size: decoded text, plus all else as it is written.
    pub bytes: u64,
    /// Whether it is marked as an error, where the dialect can say so.
    pub is_error: Option<bool>,
}

/// Why a request cannot be read; the messages are for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Nothing, or nothing but white space.
    #[error("the request body is empty; a JSON object is expected")]
    Empty,
    /// The body is no JSON.
    #[error("the request body is not valid JSON: {0}")]
    NotJson(String),
    /// The body is JSON of another kind.
    #[error("the request body is not a JSON object")]
    NotAnObject,
    /// A key that decides on the request is given twice; readers differ on which one counts.
    #[error("the request body has the key `{0}` more than once")]
    DuplicateKey(String),
    /// The body nests deeper than is read.
    #[error("the request body is nested too deep")]
    TooDeep,
}

impl RequestView {
    /// Reads a request's body.
    ///
    /// # Errors
    ///
    /// When the body is not one JSON object, or gives a key twice that the bridge judges by.
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
}

/// The body with the splice that asks for usage in a Chat Completions stream.
///
/// `None` where nothing is to be changed: no stream, usage asked for already, or `stream_options` of
/// a kind that only the provider can judge.
///
/// # Errors
///
/// When the body is not one JSON object.
pub fn add_include_usage(body: &[u8]) -> Result<Option<Vec<u8>>, JsonError> {
    let object = Object::parse(body)?;
    let streams = object.member("stream").and_then(|value| value.as_bool()).unwrap_or_default();
    let options = object.member("stream_options").filter(|value| !value.is_null());
    let asks = options.is_some_and(includes_usage);
    let is_odd = options.is_some_and(|value| value.as_object().is_none());
    if !streams || asks || is_odd {
        return Ok(None);
    }
    let mut edits = Edits::new();
    edits.set(&["stream_options", "include_usage"], "true");
    edits.apply(body).map(Some)
}

/// The members of a request that matter, the conversation split into its entries.
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

/// `messages` or `input`.
#[derive(Debug, Default)]
enum Conversation<'a> {
    #[default]
    Absent,
    Entries(Vec<Value<'a>>),
    Single(Value<'a>),
}

impl<'a> TopLevel<'a> {
    fn read(body: &'a [u8]) -> Result<Self, RequestError> {
        let mut scanner = Scanner::document(body)?;
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
        // Last, so that a body which is no JSON at all is called that.
        duplicate.map_or(Ok(top), |key| Err(RequestError::DuplicateKey(key)))
    }

    /// Takes one member in.
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

/// Whether a member that decides on the request was there already.
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
    /// Reads a result whose content is a string or a list of parts.
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
            JsonError::NotAnObject => Self::NotAnObject,
            JsonError::InvalidUtf8 { .. }
            | JsonError::Syntax { .. }
            | JsonError::WrongKind { .. } => Self::NotJson(error.to_string()),
        }
    }
}

/// The size of a tool result's content.
fn content_size(content: &Value<'_>) -> u64 {
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

/// A string that says something.
fn text(value: Option<Value<'_>>) -> Option<String> {
    value?.as_str().map(std::borrow::Cow::into_owned).filter(|text| !text.trim().is_empty())
}

fn member_text(value: &Value<'_>, key: &str) -> Option<String> {
    text(value.get(key))
}

fn has_text(value: &Value<'_>, key: &str, wanted: &str) -> bool {
    value.get(key).is_some_and(|value| value.is_text(wanted))
}

/// Whether a message holds instructions to the model rather than a turn of the talk.
fn is_instruction(message: &Value<'_>) -> bool {
    has_text(message, "role", "system") || has_text(message, "role", "developer")
}

#[cfg(test)]
mod tests;
