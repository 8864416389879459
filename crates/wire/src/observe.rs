//! What a provider responded, gathered from the bytes as they pass.
//!
//! An observer accepts chunks split anywhere and never changes or delays them. The bulk of a stream,
//! its text deltas, is recognised by its surrounding bytes and never parsed.

use std::borrow::Cow;

use crate::{
    Dialect,
    json::{JsonError, Value, string},
    sse::{Beginning, Frame, Framer, MAX_EVENT_BYTES},
};

mod body;
mod budget;
mod chat;
mod chat_calls;
mod delta;
mod error;
mod filter;
mod messages;
mod oversized;
mod refusal;
mod responses;
mod tool_call;
mod units;
mod usage;

pub(crate) use error::is_reported;
pub use filter::UsageChunkFilter;
pub use refusal::Refusal;
pub use tool_call::{Approval, CallResult, ToolCall};
pub use usage::{Iteration, IterationKind, Usage};

use body::Body;
use chat::ChatStream;
use messages::MessagesStream;
use oversized::OversizedEvent;
use responses::ResponsesStream;

/// Observes one response.
#[derive(Debug)]
pub struct Observer {
    source: Source,
    /// Whether its first bytes may still show that it has the other format.
    is_undecided: bool,
    observed: Observation,
}

/// What is known about a response so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observation {
    /// The provider's id of the response.
    pub response_id: Option<String>,
    /// The model that responded.
    pub model: Option<String>,
    /// The model that declined before a fallback at the provider.
    pub declined_model: Option<String>,
    /// The service tier that served the request.
    pub service_tier: Option<String>,
    /// Why the model stopped.
    pub stop_reason: Option<String>,
    /// The token usage, with the latest figures.
    pub usage: Option<Box<Usage>>,
    /// Whether the usage is the final one of a complete response.
    pub usage_is_final: bool,
    /// The UTF-8 bytes of text, thoughts and tool arguments that were streamed; of a complete body, only if
    /// its usage has no output.
    pub relayed_text_bytes: u64,
    /// The tools that the model called.
    pub tool_calls: Vec<ToolCall>,
    /// The model's readable thoughts.
    pub thoughts: Vec<Thought>,
    /// The text of the answer, by choice, if it is collected: see [`Observer::collect_answer`].
    pub answer: Option<Box<AnswerText>>,
    /// The number of encrypted thoughts.
    pub redacted_thoughts: u64,
    /// Why the model or a filter refused, where it did.
    pub refusal: Option<Box<Refusal>>,
    /// The container that the provider keeps for the conversation.
    pub container_id: Option<String>,
    /// The error that the provider reported.
    pub error: Option<ProviderError>,
    /// The provider's id of the request, where the body of an error has it.
    pub request_id: Option<String>,
    /// The number of events, or complete bodies, that were too large to read.
    pub skipped_events: u64,
    /// The Responses API's `status`.
    pub status: Option<String>,
    /// Whether a complete body was valid JSON.
    pub is_json: bool,
    /// The beginning of a complete body that was plain text.
    pub plain_text: Option<String>,
    /// What the answer to a side request says of the object that it concerns.
    pub object: ObjectAnswer,
}

/// An object at the provider, as the answer to a side request describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectAnswer {
    /// Its id.
    pub id: Option<String>,
    /// The files that it consists of or that the provider wrote for it: those of a batch or an upload.
    pub file_ids: Vec<String>,
}

/// A readable thought of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thought {
    /// Where in the response it occurred.
    pub source: ThoughtSource,
    /// The text.
    pub content: String,
}

/// Where in a response a thought occurred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ThoughtSource {
    /// A `thinking` block of the Messages API.
    Thinking,
    /// The summary of a `reasoning` item of the Responses API.
    ReasoningSummary,
    /// An assistant message of the Responses API in the phase `commentary`.
    Commentary,
    /// The model's own words: `reasoning_content`, `reasoning`, `reasoning_details` or thinking parts of a
    /// Chat Completions response, `reasoning_text` of the Responses API.
    Reasoning,
}

/// An error that the provider reported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProviderError {
    /// The provider's type or code.
    pub kind: String,
    /// The provider's message.
    pub message: String,
}

/// The text of an answer, of which at most [`MAX_EVENT_BYTES`] are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnswerText {
    /// The choices that have text, by number; only Chat Completions has several.
    pub choices: Vec<(u64, String)>,
    bytes: usize,
}

impl AnswerText {
    fn add(&mut self, choice: u64, text: &[u8]) {
        let kept = text.get(..MAX_EVENT_BYTES.saturating_sub(self.bytes)).unwrap_or(text);
        let kept = String::from_utf8_lossy(kept);
        self.bytes = self.bytes.saturating_add(kept.len());
        let is_full = self.choices.len() >= MAX_CHOICES;
        match self.choices.iter_mut().find(|(number, _)| *number == choice) {
            Some((_, whole)) => whole.push_str(&kept),
            None if is_full => {}
            None => self.choices.push((choice, kept.into_owned())),
        }
    }
}

/// Maximum number of choices whose text is kept.
const MAX_CHOICES: usize = 128;

/// What is being observed.
#[derive(Debug)]
enum Source {
    Stream(Stream),
    Body(Body),
}

/// An event stream.
#[derive(Debug)]
struct Stream {
    framer: Framer,
    decoder: Decoder,
    /// The event over the size limit that is being received.
    oversized: Option<Box<OversizedEvent>>,
    /// The events with data that ended with a blank line.
    events: u64,
}

/// The event decoder of a dialect.
#[derive(Debug)]
enum Decoder {
    Messages(MessagesStream),
    Chat(ChatStream),
    Responses(ResponsesStream),
    Any,
}

impl Observer {
    /// Creates an observer of an event stream; a body that begins as JSON is read as a complete one.
    #[must_use]
    pub fn stream(dialect: Dialect) -> Self {
        Self::framed(dialect, Framer::new())
    }

    /// Creates an observer of a complete JSON body; of one over 16 MiB, long strings are not read. One that
    /// begins with an event is read as a stream.
    #[must_use]
    pub fn body(dialect: Dialect) -> Self {
        Self::new(Source::Body(Body::new(Some(dialect), MAX_EVENT_BYTES)))
    }

    /// Creates an observer of a complete body in any dialect, for its usage.
    ///
    /// A response without `usage` yields nothing.
    #[must_use]
    pub fn any_body() -> Self {
        Self::new(Source::Body(Body::new(None, MAX_EVENT_BYTES)))
    }

    /// Creates an observer of a body that is no JSON, such as audio: it holds nothing of it.
    #[must_use]
    pub fn unread_body() -> Self {
        Self::new(Source::Body(Body::unread()))
    }

    /// Creates an observer of an event stream in no particular dialect, for its usage; it has no terminal
    /// event.
    #[must_use]
    pub fn any_stream() -> Self {
        Self::new(Source::Stream(Stream::new(Framer::new(), Decoder::Any)))
    }

    /// Collects the text of the answer, which is otherwise not read.
    pub fn collect_answer(&mut self) {
        self.observed.answer = Some(Box::default());
    }

    /// Reads the next chunk.
    pub fn observe(&mut self, chunk: &[u8]) {
        if self.is_undecided {
            self.decide(chunk);
        }
        let observed = &mut self.observed;
        match &mut self.source {
            Source::Stream(stream) => stream.push(chunk, observed),
            Source::Body(body) => body.push(chunk),
        }
    }

    /// Stops reading a complete body that is too large: it is taken to be complete.
    pub fn give_up(&mut self) {
        if let Source::Body(body) = &mut self.source {
            body.give_up(&mut self.observed);
        }
    }

    /// Changes the format if the first bytes show that it is the other one.
    fn decide(&mut self, chunk: &[u8]) {
        match &self.source {
            // White space may come before anything.
            Source::Stream(_) if chunk.trim_ascii().is_empty() => {}
            Source::Stream(stream) => {
                self.is_undecided = false;
                if Beginning::of(chunk) == Beginning::Json {
                    let dialect = stream.decoder.dialect();
                    self.source = Source::Body(Body::new(dialect, MAX_EVENT_BYTES));
                }
            }
            Source::Body(body) => {
                let first_bytes = match body.buffered() {
                    [] => Cow::Borrowed(chunk),
                    buffered => Cow::Owned([buffered, chunk].concat()),
                };
                let beginning = Beginning::of(&first_bytes);
                self.is_undecided = beginning == Beginning::Undecided;
                if beginning == Beginning::Events {
                    let decoder = body.dialect().map_or(Decoder::Any, Decoder::new);
                    let mut stream = Stream::new(Framer::new(), decoder);
                    // These bytes end before the first event does.
                    stream.push(body.buffered(), &mut self.observed);
                    self.source = Source::Stream(stream);
                }
            }
        }
    }

    /// Ends the response; an event that was cut off counts as far as it arrived.
    pub fn finish(&mut self) {
        let observed = &mut self.observed;
        match &mut self.source {
            Source::Stream(stream) => stream.finish(observed),
            Source::Body(body) => body.finish(observed),
        }
    }

    /// Whether it is an event stream.
    #[must_use]
    pub fn is_event_stream(&self) -> bool {
        matches!(self.source, Source::Stream(_))
    }

    /// Whether the model has finished and nothing but its usage and the terminal event is to come.
    #[must_use]
    pub fn has_finished(&self) -> bool {
        match &self.source {
            Source::Stream(Stream { decoder: Decoder::Messages(_), .. }) => {
                self.observed.stop_reason.is_some()
            }
            Source::Stream(Stream { decoder: Decoder::Chat(stream), .. }) => stream.has_finished(),
            Source::Stream(_) | Source::Body(_) => false,
        }
    }

    /// Whether the response is complete: the stream had its terminal event, or ended where its dialect
    /// allows it; the body was valid JSON.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        match &self.source {
            Source::Stream(stream) => stream.decoder.is_terminal(),
            Source::Body(body) => body.is_complete(),
        }
    }

    /// The number of events of a stream so far, without one that was cut off and those without data, which
    /// clients ignore; `None` if it is no stream.
    #[must_use]
    pub fn events(&self) -> Option<u64> {
        match &self.source {
            Source::Stream(stream) => Some(stream.events),
            Source::Body(_) => None,
        }
    }

    /// Whether the bytes so far end inside an event of a stream.
    #[must_use]
    pub fn is_mid_event(&self) -> bool {
        match &self.source {
            Source::Stream(stream) => stream.framer.is_mid_event(),
            Source::Body(_) => false,
        }
    }

    /// The sequence number of the next event of a Responses stream.
    #[must_use]
    pub fn next_sequence_number(&self) -> u64 {
        match &self.source {
            Source::Stream(Stream { decoder: Decoder::Responses(stream), .. }) => {
                stream.next_sequence_number()
            }
            Source::Stream(_) | Source::Body(_) => 0,
        }
    }

    /// What is known so far; tool calls and thoughts still being streamed are added at the end.
    #[must_use]
    pub fn observation(&self) -> &Observation {
        &self.observed
    }

    /// Takes what is known, including tool calls and thoughts that were still being streamed.
    pub fn take(&mut self) -> Observation {
        if let Source::Stream(stream) = &mut self.source {
            stream.decoder.flush(&mut self.observed);
        }
        std::mem::take(&mut self.observed)
    }

    fn framed(dialect: Dialect, framer: Framer) -> Self {
        Self::new(Source::Stream(Stream::new(framer, Decoder::new(dialect))))
    }

    fn new(source: Source) -> Self {
        Self { source, is_undecided: true, observed: Observation::default() }
    }
}

impl Stream {
    fn new(framer: Framer, decoder: Decoder) -> Self {
        Self { framer, decoder, oversized: None, events: 0 }
    }

    fn push(&mut self, chunk: &[u8], observed: &mut Observation) {
        let Self { framer, decoder, oversized, events } = self;
        framer.push(chunk, |frame| {
            let is_event = if frame.is_fragment() {
                push_fragment(oversized, &frame, decoder, observed);
                frame.ends_event()
            } else {
                decoder.handle_frame(frame, observed)
            };
            *events += u64::from(is_event);
        });
        observed.skipped_events = framer.skipped_events();
    }

    fn finish(&mut self, observed: &mut Observation) {
        let Self { framer, decoder, oversized, .. } = self;
        // An event that lacks only its blank line was still sent and billed.
        framer.finish(|frame| {
            decoder.handle_frame(frame, observed);
        });
        if let Some(event) = oversized.take() {
            event.read(decoder, observed);
        }
        decoder.flush(observed);
        decoder.end();
    }
}

/// Reads a fragment of an event over the size limit.
#[cold]
fn push_fragment(
    oversized: &mut Option<Box<OversizedEvent>>,
    frame: &Frame<'_>,
    decoder: &mut Decoder,
    observed: &mut Observation,
) {
    let event = oversized.get_or_insert_default();
    event.push(frame);
    if frame.ends_event()
        && let Some(event) = oversized.take()
    {
        let name = event.read(decoder, observed);
        decoder.skip_event(name.as_deref());
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

    /// Returns whether the frame is an event with data.
    fn handle_frame(&mut self, frame: Frame<'_>, observed: &mut Observation) -> bool {
        let (event, data) = frame.parts();
        if data.is_empty() {
            return false;
        }
        self.handle_event(event, &data, observed);
        true
    }

    fn handle_event(&mut self, event: Option<&[u8]>, data: &[u8], observed: &mut Observation) {
        match self {
            Self::Messages(stream) => stream.handle_event(event, data, observed),
            Self::Chat(stream) => stream.handle_event(event, data, observed),
            Self::Responses(stream) => stream.handle_event(event, data, observed),
            Self::Any => body::read_any_event(data, observed),
        }
    }

    /// Handles an event that was too large to be read.
    fn skip_event(&mut self, event: Option<&[u8]>) {
        if let Self::Responses(stream) = self {
            stream.skipped_event(event);
        }
    }

    /// `None` if it reads any dialect.
    fn dialect(&self) -> Option<Dialect> {
        match self {
            Self::Messages(_) => Some(Dialect::Messages),
            Self::Chat(_) => Some(Dialect::ChatCompletions),
            Self::Responses(_) => Some(Dialect::Responses),
            Self::Any => None,
        }
    }

    /// Notes the end of the stream.
    fn end(&mut self) {
        if let Self::Chat(stream) = self {
            stream.end();
        }
    }

    /// Adds the parts that are still being assembled.
    fn flush(&mut self, observed: &mut Observation) {
        match self {
            Self::Messages(stream) => stream.flush(observed),
            Self::Chat(stream) => stream.flush(observed),
            Self::Responses(stream) => stream.flush(observed),
            Self::Any => {}
        }
    }

    fn is_terminal(&self) -> bool {
        match self {
            Self::Messages(stream) => stream.is_terminal(),
            Self::Chat(stream) => stream.is_terminal(),
            Self::Responses(stream) => stream.is_terminal(),
            Self::Any => false,
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

impl Observation {
    fn add_thought(&mut self, source: ThoughtSource, content: String) {
        if !content.trim().is_empty() {
            self.thoughts.push(Thought { source, content });
        }
    }

    /// Adds text to the answer if that is collected.
    fn add_answer(&mut self, choice: u64, text: &str) {
        if let Some(answer) = &mut self.answer {
            answer.add(choice, text.as_bytes());
        }
    }

    /// Adds text, still escaped and without quotes, to the answer if that is collected.
    fn add_escaped_answer(&mut self, choice: u64, text: &[u8]) {
        if let Some(answer) = &mut self.answer {
            string::decode_inner(text, &mut |piece| answer.add(choice, piece));
        }
    }

    /// Adds a value that is a string to the answer if that is collected.
    fn add_answer_value(&mut self, choice: u64, value: Option<Value<'_>>) {
        if self.answer.is_some()
            && let Some(text) = value.and_then(|value| value.as_str())
        {
            self.add_answer(choice, &text);
        }
    }

    /// Whether the answer is collected and has no text yet.
    fn lacks_answer(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| answer.choices.is_empty())
    }

    /// Puts the result of a tool that the provider ran on its call; without an id, on the latest call that
    /// has none yet.
    fn add_result(&mut self, call_id: &str, result: CallResult) {
        let is_answered = |call: &ToolCall| match call_id {
            "" => call.provider_executed && call.result.is_none(),
            id => call.id == id,
        };
        let mut calls = self.tool_calls.iter_mut().rev();
        if let Some(call) = calls.find(|call| is_answered(call)) {
            call.result = Some(result);
        }
    }
}

/// The text, still escaped, of a Messages event that is a text delta in its usual form.
pub(crate) fn messages_text_delta(data: &[u8]) -> Option<&[u8]> {
    delta::messages_text_delta(data)
}

/// Whether a Chat Completions chunk carries usage and has no choice.
pub(crate) fn is_usage_only(chunk: &Value<'_>) -> bool {
    chat::is_usage_only(chunk)
}

/// Parses JSON; invalid UTF-8 is replaced, so that one bad string does not hide the usage.
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
fn non_null<'a>(value: &Value<'a>, key: &str) -> Option<Value<'a>> {
    value.get(key).filter(|member| !member.is_null())
}

fn text(value: Option<Value<'_>>) -> Option<String> {
    value?.as_str().map(Cow::into_owned)
}

/// Sets a text unless it is empty; most events repeat the same one.
fn set_text(slot: &mut Option<String>, value: Option<Value<'_>>) {
    if let (Some(known), Some(value)) = (&slot, &value)
        && value.is_text(known)
    {
        return;
    }
    if let Some(text) = text(value).filter(|text| !text.is_empty()) {
        *slot = Some(text);
    }
}

#[cfg(test)]
mod tests;
