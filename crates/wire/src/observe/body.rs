//! A JSON response body, buffered until it is complete and then read.

use std::borrow::Cow;

use memchr::memmem;

use super::{
    ObjectAnswer, Observation, chat, messages, oversized::Abridger, responses, text, units,
    with_json,
};
use crate::{
    Dialect,
    json::{Kind, Value, string},
    sse::Beginning,
};

/// Maximum size of the text that is kept of a body that is not JSON.
const MAX_PLAIN_TEXT: usize = 1024;

/// A response body as it arrives.
#[derive(Debug)]
pub(super) struct Body {
    /// `None` if it is to be detected from the body.
    dialect: Option<Dialect>,
    limit: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Buffering(Vec<u8>),
    /// It exceeds the limit.
    Abridging(Box<Abridger>),
    Read {
        is_json: bool,
    },
    Skipped,
}

impl Body {
    pub(super) fn new(dialect: Option<Dialect>, limit: usize) -> Self {
        Self { dialect, limit, state: State::Buffering(Vec::new()) }
    }

    /// `None` if it is detected from the body.
    pub(super) fn dialect(&self) -> Option<Dialect> {
        self.dialect
    }

    /// A body that is not read.
    pub(super) const fn unread() -> Self {
        Self { dialect: None, limit: 0, state: State::Skipped }
    }

    pub(super) fn push(&mut self, chunk: &[u8]) {
        match &mut self.state {
            State::Buffering(buffer) if buffer.len() + chunk.len() <= self.limit => {
                buffer.extend_from_slice(chunk);
            }
            State::Buffering(buffer) => {
                let mut abridger = Box::new(Abridger::of_body());
                abridger.push(&std::mem::take(buffer));
                abridger.push(chunk);
                self.state = State::Abridging(abridger);
            }
            State::Abridging(abridger) => abridger.push(chunk),
            State::Read { .. } | State::Skipped => {}
        }
    }

    /// The bytes so far, unless the body is too large.
    pub(super) fn buffered(&self) -> &[u8] {
        match &self.state {
            State::Buffering(buffer) => buffer,
            State::Abridging(_) | State::Read { .. } | State::Skipped => &[],
        }
    }

    pub(super) fn finish(&mut self, observed: &mut Observation) {
        let body = match &mut self.state {
            State::Buffering(buffer) => Some(std::mem::take(buffer)),
            State::Abridging(abridger) => std::mem::take(&mut **abridger).finish(),
            State::Read { .. } | State::Skipped => return,
        };
        self.state = match body {
            Some(body) => {
                let is_json = with_json(&body, |value| {
                    read(self.dialect, &value, observed);
                    if !has_output(observed) {
                        observed.relayed_text_bytes = answer_text_bytes(&value);
                    }
                });
                observed.is_json = is_json.is_some();
                if !observed.is_json {
                    observed.plain_text = plain_text(&body);
                }
                State::Read { is_json: observed.is_json }
            }
            None => return self.give_up(observed),
        };
    }

    pub(super) fn give_up(&mut self, observed: &mut Observation) {
        observed.skipped_events = 1;
        self.state = State::Skipped;
    }

    /// Whether the body was valid JSON; one that was too large is taken to be.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self.state, State::Read { is_json: true } | State::Skipped)
    }
}

/// The beginning of a body that is neither JSON nor markup, such as the error of a proxy.
fn plain_text(body: &[u8]) -> Option<String> {
    let text = body.get(..body.len().min(MAX_PLAIN_TEXT))?.trim_ascii();
    let text = String::from_utf8_lossy(text);
    let is_text = Beginning::of(text.as_bytes()) == Beginning::Other && !text.starts_with('<');
    is_text.then(|| text.into_owned())
}

fn read(dialect: Option<Dialect>, value: &Value<'_>, observed: &mut Observation) {
    if dialect.is_none() {
        observed.object = read_object(value);
    }
    match dialect.or_else(|| detect_dialect(value)) {
        Some(Dialect::Messages) => messages::read_body(value, observed),
        Some(Dialect::ChatCompletions) => chat::read_body(value, observed),
        Some(Dialect::Responses) => responses::read_body(value, observed),
        None => units::read(value, observed),
    }
}

fn has_output(observed: &Observation) -> bool {
    observed.usage.as_ref().is_some_and(|usage| usage.output_tokens > Some(0))
}

/// The UTF-8 bytes of the texts in an answer, for the estimate of its output.
fn answer_text_bytes(answer: &Value<'_>) -> u64 {
    let parts = answer.get_all(["content", "choices", "output"]);
    parts.iter().flatten().map(|part| text_bytes(part, MAX_TEXT_DEPTH)).sum()
}

fn text_bytes(value: &Value<'_>, depth: usize) -> u64 {
    const TEXTS: [&str; 7] =
        ["text", "content", "thinking", "reasoning", "reasoning_content", "refusal", "arguments"];
    let Some(depth) = depth.checked_sub(1) else { return 0 };
    let member_bytes = |(key, member): (Cow<'_, str>, Value<'_>)| match member.kind() {
        Kind::String if TEXTS.contains(&&*key) => string::literal_length(member.raw()),
        Kind::Object | Kind::Array => text_bytes(&member, depth),
        _ => 0,
    };
    match value.as_object() {
        Some(object) => object.members().map(member_bytes).sum(),
        None => value.elements().map(|element| text_bytes(&element, depth)).sum(),
    }
}

/// How deep texts of an answer are searched for: `choices[].message.tool_calls[].function.arguments`.
const MAX_TEXT_DEPTH: usize = 6;

/// Reads an event of a stream in no particular dialect. Only those with usage are parsed.
pub(super) fn read_any_event(data: &[u8], observed: &mut Observation) {
    if memmem::find(data, br#""usage""#).is_some() {
        with_json(data, |value| read(None, &value, observed));
    }
}

/// Reads the object that a provider stores.
fn read_object(value: &Value<'_>) -> ObjectAnswer {
    let keys = ["id", "output_file_id", "error_file_id", "file"];
    let [id, output, error, file] = value.get_all(keys);
    let file = file.and_then(|file| file.get("id"));
    let file_ids = [output, error, file].into_iter().filter_map(text);
    ObjectAnswer { id: text(id), file_ids: file_ids.collect() }
}

/// Detects the dialect of a response that carries usage.
fn detect_dialect(value: &Value<'_>) -> Option<Dialect> {
    let usage = value.get("usage").filter(|usage| usage.kind() == Kind::Object)?;
    if usage.get("billed_units").is_some() {
        return None;
    }
    let is = |key, wanted| value.get(key).is_some_and(|text| text.as_str() == Some(wanted));
    if value.get("choices").is_some() || usage.get("prompt_tokens").is_some() {
        return Some(Dialect::ChatCompletions);
    }
    let is_message = is("type", "message".into())
        || usage.get("cache_read_input_tokens").is_some()
        || usage.get("cache_creation_input_tokens").is_some();
    Some(if is_message { Dialect::Messages } else { Dialect::Responses })
}
