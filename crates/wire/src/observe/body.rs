//! A JSON response body, buffered until it is complete and then read.

use memchr::memmem;

use super::{Observation, chat, messages, oversized::Abridger, responses, with_json};
use crate::{
    Dialect,
    json::{Kind, Value},
};

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

    pub(super) fn finish(&mut self, observed: &mut Observation) {
        let body = match &mut self.state {
            State::Buffering(buffer) => Some(std::mem::take(buffer)),
            State::Abridging(abridger) => std::mem::take(&mut **abridger).finish(),
            State::Read { .. } | State::Skipped => return,
        };
        self.state = match body {
            Some(body) => {
                let is_json = with_json(&body, |value| read(self.dialect, &value, observed));
                observed.is_json = is_json.is_some();
                State::Read { is_json: observed.is_json }
            }
            None => {
                observed.skipped_events = 1;
                State::Skipped
            }
        };
    }

    /// Whether the body was valid JSON; one that was too large is taken to be.
    pub(super) fn is_complete(&self) -> bool {
        matches!(self.state, State::Read { is_json: true } | State::Skipped)
    }
}

fn read(dialect: Option<Dialect>, value: &Value<'_>, observed: &mut Observation) {
    match dialect.or_else(|| detect_dialect(value)) {
        Some(Dialect::Messages) => messages::read_body(value, observed),
        Some(Dialect::ChatCompletions) => chat::read_body(value, observed),
        Some(Dialect::Responses) => responses::read_body(value, observed),
        None => {}
    }
}

/// Reads an event of a stream in no particular dialect. Only those with usage are parsed.
pub(super) fn read_any_event(data: &[u8], observed: &mut Observation) {
    if memmem::find(data, br#""usage""#).is_some() {
        with_json(data, |value| read(None, &value, observed));
    }
}

/// Detects the dialect of a response that carries usage.
fn detect_dialect(value: &Value<'_>) -> Option<Dialect> {
    let usage = value.get("usage").filter(|usage| usage.kind() == Kind::Object)?;
    let is = |key, wanted| value.get(key).is_some_and(|text| text.as_str() == Some(wanted));
    if value.get("choices").is_some() || usage.get("prompt_tokens").is_some() {
        return Some(Dialect::ChatCompletions);
    }
    let is_message = is("type", "message".into())
        || usage.get("cache_read_input_tokens").is_some()
        || usage.get("cache_creation_input_tokens").is_some();
    Some(if is_message { Dialect::Messages } else { Dialect::Responses })
}
