//! What a provider answered, gathered from the bytes that pass.
//!
//! An observer takes chunks cut anywhere and never changes or delays them. The bulk of a stream, the
//! text deltas, is recognised by its shape and never parsed.

use std::{borrow::Cow, collections::BTreeMap};

use crate::{
    Dialect,
    json::{JsonError, Value},
    sse::{Frame, Framer, MAX_EVENT_BYTES},
};

mod body;
mod budget;
mod chat;
mod delta;
mod filter;
mod messages;
mod responses;
mod usage;

pub use filter::UsageChunkFilter;

use body::Body;
use chat::ChatStream;
use messages::MessagesStream;
use responses::ResponsesStream;

/// Watches one answer.
#[derive(Debug)]
pub struct Observer {
    source: Source,
    observed: Observed,
}

/// What is known of an answer so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// The provider's id of the answer.
    pub response_id: Option<String>,
    /// The model that answered.
    pub model: Option<String>,
    /// Why the model stopped.
    pub stop_reason: Option<String>,
    /// The tokens, the latest figure of each.
    pub usage: Option<Usage>,
    /// Whether the figures are the last ones of a whole answer.
    pub usage_is_final: bool,
    /// UTF-8 bytes of text, thoughts and tool arguments that streamed past.
    pub relayed_text_bytes: u64,
    /// The tools that the model called.
    pub tool_calls: Vec<ToolCall>,
    /// What the model thought aloud.
    pub thoughts: Vec<Thought>,
    /// How many thoughts came encrypted.
    pub redacted_thoughts: u64,
    /// The error that the provider reported.
    pub error: Option<ProviderError>,
    /// How many events, or whole answers, were too large to be read.
    pub skipped_events: u64,
    /// The Responses API's `status`.
    pub status: Option<String>,
    /// Whether a whole answer was JSON.
    pub is_json: bool,
}

/// Tokens of one answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Input that was neither read from a cache nor, for Anthropic, written to one.
    pub input_tokens: u64,
    /// Output, thoughts included.
    pub output_tokens: u64,
    /// Input read from a cache.
    pub cache_read_input_tokens: u64,
    /// Input written to a cache.
    pub cache_write_input_tokens: u64,
    /// Further figures by name, as the provider gave them.
    pub extra: BTreeMap<String, u64>,
}

/// One call of a tool by the model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ToolCall {
    /// The id that its result will name; empty where the dialect has none.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// JSON as the model wrote it, or the raw text if it is none.
    pub arguments: String,
    /// Whether it is one of the provider's own tools and not one that the client declared.
    pub provider_executed: bool,
}

/// Something the model thought aloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thought {
    /// Where in the answer it stood.
    pub source: ThoughtSource,
    /// Its text.
    pub content: String,
}

/// Where a thought stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ThoughtSource {
    /// A `thinking` block of the Messages API.
    Thinking,
    /// The summary of a `reasoning` item of the Responses API.
    ReasoningSummary,
    /// An assistant message of the Responses API in the phase `commentary`.
    Commentary,
    /// `reasoning_content` or `reasoning` of a Chat Completions answer.
    Reasoning,
}

/// An error that the provider reported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProviderError {
    /// The provider's type or code.
    pub kind: String,
    /// The provider's words.
    pub message: String,
}

/// What is being watched.
#[derive(Debug)]
enum Source {
    Stream(Framer, Decoder),
    Body(Body),
}

/// The reader of one dialect's events.
#[derive(Debug)]
enum Decoder {
    Messages(MessagesStream),
    Chat(ChatStream),
    Responses(ResponsesStream),
}

impl Observer {
    /// Watches an event stream.
    #[must_use]
    pub fn stream(dialect: Dialect) -> Self {
        Self::framed(dialect, Framer::new())
    }

    /// Watches a whole JSON answer; one over 16 MiB passes unread.
    #[must_use]
    pub fn body(dialect: Dialect) -> Self {
        Self::new(Source::Body(Body::new(Some(dialect), MAX_EVENT_BYTES)))
    }

    /// Watches a whole answer of whatever dialect, for the sake of its usage.
    ///
    /// Nothing is observed of an answer without `usage`.
    #[must_use]
    pub fn any_body() -> Self {
        Self::new(Source::Body(Body::new(None, MAX_EVENT_BYTES)))
    }

    /// Takes the next chunk in.
    pub fn observe(&mut self, chunk: &[u8]) {
        let observed = &mut self.observed;
        match &mut self.source {
            Source::Stream(framer, decoder) => {
                framer.push(chunk, |frame| decoder.frame(frame, observed));
                observed.skipped_events = framer.skipped_events();
            }
            Source::Body(body) => body.push(chunk),
        }
    }

    /// Ends the answer; what it was in the middle of counts as far as it came.
    pub fn finish(&mut self) {
        let observed = &mut self.observed;
        match &mut self.source {
            Source::Stream(framer, decoder) => {
                // An event whose last blank line is missing was sent and paid for all the same.
                framer.finish(|frame| decoder.frame(frame, observed));
                decoder.flush(observed);
            }
            Source::Body(body) => body.finish(observed),
        }
    }

    /// Whether the answer is whole: a stream saw its terminal event, a body was JSON to its end.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        match &self.source {
            Source::Stream(_, decoder) => decoder.is_terminal(),
            Source::Body(body) => body.is_whole(),
        }
    }

    /// Whether a stream's bytes so far end within an event.
    #[must_use]
    pub fn is_mid_event(&self) -> bool {
        match &self.source {
            Source::Stream(framer, _) => framer.is_mid_event(),
            Source::Body(_) => false,
        }
    }

    /// The number that the next event of a Responses stream takes.
    #[must_use]
    pub fn next_sequence_number(&self) -> u64 {
        match &self.source {
            Source::Stream(_, Decoder::Responses(stream)) => stream.next_sequence_number(),
            Source::Stream(..) | Source::Body(_) => 0,
        }
    }

    /// What is known so far; tool calls and thoughts that are still streaming come with the end.
    #[must_use]
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// What is known, tool calls and thoughts that were still streaming included.
    pub fn take(&mut self) -> Observed {
        if let Source::Stream(_, decoder) = &mut self.source {
            decoder.flush(&mut self.observed);
        }
        std::mem::take(&mut self.observed)
    }

    fn framed(dialect: Dialect, framer: Framer) -> Self {
        Self::new(Source::Stream(framer, Decoder::new(dialect)))
    }

    fn new(source: Source) -> Self {
        Self { source, observed: Observed::default() }
    }
}

impl Decoder {
    fn new(dialect: Dialect) -> Self {
        match dialect {
            Dialect::Messages => Self::Messages(MessagesStream::default()),
            Dialect::ChatCompletions => Self::Chat(ChatStream::default()),
            Dialect::Responses => Self::Responses(ResponsesStream::default()),
        }
    }

    fn frame(&mut self, frame: Frame<'_>, observed: &mut Observed) {
        let (event, data) = frame.parts();
        if let (true, Self::Responses(stream)) = (frame.is_piece(), &mut *self) {
            stream.unread(event);
        }
        if data.is_empty() {
            return;
        }
        match self {
            Self::Messages(stream) => stream.event(event, &data, observed),
            Self::Chat(stream) => stream.event(event, &data, observed),
            Self::Responses(stream) => stream.event(event, &data, observed),
        }
    }

    /// Hands over what is still being put together.
    fn flush(&mut self, observed: &mut Observed) {
        match self {
            Self::Messages(stream) => stream.flush(observed),
            Self::Chat(stream) => stream.flush(observed),
            Self::Responses(stream) => stream.flush(observed),
        }
    }

    fn is_terminal(&self) -> bool {
        match self {
            Self::Messages(stream) => stream.is_terminal(),
            Self::Chat(stream) => stream.is_terminal(),
            Self::Responses(stream) => stream.is_terminal(),
        }
    }
}

impl ThoughtSource {
    /// The name used in records.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Thinking => "thinking",
            Self::ReasoningSummary => "reasoning_summary",
            Self::Commentary => "commentary",
            Self::Reasoning => "reasoning",
        }
    }
}

impl Observed {
    fn think(&mut self, source: ThoughtSource, content: String) {
        if !content.trim().is_empty() {
            self.thoughts.push(Thought { source, content });
        }
    }
}

impl ProviderError {
    /// Reads an `error` value: an object with type or code and message, or just a text.
    fn read(error: &Value<'_>) -> Self {
        if let Some(message) = error.as_str() {
            return Self { kind: UNNAMED_ERROR.to_owned(), message: message.into_owned() };
        }
        let named = |key| text(error.get(key)).filter(|text| !text.is_empty());
        let code = || error.get("code")?.as_u64().map(|code| code.to_string());
        Self {
            kind: named("type")
                .or_else(|| named("code"))
                .or_else(code)
                .unwrap_or_else(|| UNNAMED_ERROR.to_owned()),
            message: named("message").unwrap_or_default(),
        }
    }
}

const UNNAMED_ERROR: &str = "error";

/// The text, still escaped, of a Messages event that is a text delta in the shape it always has.
pub(crate) fn messages_text(data: &[u8]) -> Option<&[u8]> {
    delta::messages(data)
}

/// Whether a Chat Completions chunk has no choice and carries the usage.
pub(crate) fn is_usage_only(chunk: &Value<'_>) -> bool {
    chat::is_usage_only(chunk)
}

/// Reads JSON; bytes that are no UTF-8 are replaced, so that one bad text does not hide the figures.
fn with_json<R>(data: &[u8], read: impl FnOnce(Value<'_>) -> R) -> Option<R> {
    match Value::parse(data) {
        Ok(value) => Some(read(value)),
        Err(JsonError::InvalidUtf8 { .. }) => {
            let lossy = String::from_utf8_lossy(data).into_owned();
            Value::parse(lossy.as_bytes()).ok().map(read)
        }
        Err(_) => None,
    }
}

/// A member that is neither absent nor `null`.
fn given<'a>(value: &Value<'a>, key: &str) -> Option<Value<'a>> {
    value.get(key).filter(|member| !member.is_null())
}

fn text(value: Option<Value<'_>>) -> Option<String> {
    value?.as_str().map(Cow::into_owned)
}

fn note(slot: &mut Option<String>, value: Option<Value<'_>>) {
    if let Some(text) = text(value).filter(|text| !text.is_empty()) {
        *slot = Some(text);
    }
}

#[cfg(test)]
mod tests;
