//! Scripted turns: the header `x-sim-turns` defines what the model does, turn by turn.

use std::time::Duration;

use http::HeaderMap;
use serde_json::Value;

use crate::{agent, exchange::ExchangeLog, handler::Api, player::Step, scenario::Call};

/// The header with the script.
pub(crate) const HEADER: &str = "x-sim-turns";
/// What the model says when the script has ended.
const SCRIPT_END: &str = "The script is over.";
/// The placeholder for the text of the latest tool results.
const RESULT_PLACEHOLDER: &str = "{result}";

/// What the model does in one turn.
#[derive(Debug, Clone, Default)]
pub(crate) struct Turn {
    pub(crate) entries: Vec<Entry>,
    /// Why the model stops, as in the Messages API.
    pub(crate) stop: Option<String>,
    /// The error status to respond with instead.
    pub(crate) error: Option<u16>,
    /// How many tokens of the request came from the cache (Messages API).
    pub(crate) cached_tokens: Option<u64>,
}

/// A part of a turn.
#[derive(Debug, Clone)]
pub(crate) enum Entry {
    Text(String),
    Thinking(String),
    Redacted,
    Call(Call),
    Cue(Cue),
}

/// What happens between two blocks.
#[derive(Debug, Clone)]
pub(crate) enum Cue {
    /// A pause, or an aborted connection.
    Step(Step),
    /// An error event, which ends the stream.
    Error,
}

/// What a dialect streams: its own blocks, and the cues between them.
#[derive(Debug)]
pub(crate) enum TurnPart<T> {
    Block(T),
    Cue(Cue),
}

impl<T> TurnPart<T> {
    /// The block, if it is one.
    pub(crate) fn into_block(self) -> Option<T> {
        match self {
            Self::Block(block) => Some(block),
            Self::Cue(_) => None,
        }
    }
}

impl Cue {
    /// Adds itself to a stream; returns whether the stream continues. `error` is the error event.
    pub(crate) fn play(&self, steps: &mut Vec<Step>, error: impl FnOnce(usize) -> String) -> bool {
        match self {
            Self::Step(step) => steps.push(step.clone()),
            Self::Error => {
                let number = steps.iter().filter(|step| matches!(step, Step::Bytes(_))).count();
                steps.push(Step::event(error(number)));
            }
        }
        matches!(self, Self::Step(Step::Wait(_) | Step::Hold(_)))
    }
}

impl Turn {
    /// Reads the turn of the script that a request is at.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the script.
    pub(crate) fn from_script(
        (api, number): (Api, usize),
        headers: &HeaderMap,
        body: &Value,
        log: &mut ExchangeLog,
    ) -> Result<Self, String> {
        let script: Vec<Vec<Value>> = match headers.get(HEADER) {
            None => Vec::new(),
            Some(value) => serde_json::from_slice(value.as_bytes())
                .map_err(|error| format!("{HEADER} is not an array of arrays: {error}"))?,
        };
        let Some(blocks) = script.get(number) else {
            return Ok(Self { entries: vec![Entry::Text(SCRIPT_END.into())], ..Self::default() });
        };
        let mut turn = Self::default();
        for block in blocks {
            turn.add(api, block, body, log)
                .ok_or_else(|| format!("{HEADER} has an unknown block: {block}"))?;
        }
        Ok(turn)
    }

    fn add(&mut self, api: Api, block: &Value, body: &Value, log: &mut ExchangeLog) -> Option<()> {
        let (kind, value) = block.as_object()?.iter().find(|(key, _)| *key != "arguments")?;
        let text = || value.as_str().map(str::to_owned);
        let entry = match kind.as_str() {
            "text" => {
                let text = text()?;
                let has_result = text.contains(RESULT_PLACEHOLDER);
                Entry::Text(if has_result {
                    text.replace(RESULT_PLACEHOLDER, &latest_results(api, body))
                } else {
                    text
                })
            }
            "thinking" => Entry::Thinking(text()?),
            "redacted" => Entry::Redacted,
            "call" => {
                let calls = self.entries.iter().filter(|entry| matches!(entry, Entry::Call(_)));
                let id = format!("{}", calls.count() + 1);
                let arguments = match block.get("arguments") {
                    None => "{}".into(),
                    Some(Value::String(raw)) => raw.clone(),
                    Some(json) => json.to_string(),
                };
                Entry::Call(Call { id, name: text()?, arguments })
            }
            "wait_ms" => Entry::Cue(Cue::Step(Step::Wait(Duration::from_millis(value.as_u64()?)))),
            "hold" => Entry::Cue(Cue::Step(Step::Hold(log.gates.gate(value.as_str()?)))),
            "error_event" => Entry::Cue(Cue::Error),
            "break" => Entry::Cue(Cue::Step(Step::Abort)),
            "stop" => {
                self.stop = Some(text()?);
                return Some(());
            }
            "cached_tokens" => {
                self.cached_tokens = Some(value.as_u64()?);
                return Some(());
            }
            "error" => {
                let status = value.as_u64().and_then(|status| u16::try_from(status).ok())?;
                self.error = (400..600).contains(&status).then_some(status);
                return self.error.map(|_status| ());
            }
            _ => return None,
        };
        self.entries.push(entry);
        Some(())
    }

    /// The cues between the blocks.
    pub(crate) fn cues(&self) -> impl Iterator<Item = &Cue> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Cue(cue) => Some(cue),
            Entry::Text(_) | Entry::Thinking(_) | Entry::Redacted | Entry::Call(_) => None,
        })
    }

    /// Why the model stops, as in the Messages API.
    pub(crate) fn stop_reason(&self) -> &str {
        let calls = self.entries.iter().any(|entry| matches!(entry, Entry::Call(_)));
        self.stop.as_deref().unwrap_or(if calls { "tool_use" } else { "end_turn" })
    }
}

/// Whether a request has a script.
pub(crate) fn has_script(headers: &HeaderMap) -> bool {
    headers.contains_key(HEADER)
}

/// Splits a text into up to three pieces.
pub(crate) fn split_text(text: &str) -> Vec<String> {
    let third = text.len().div_ceil(3);
    let (one, rest) = text.split_at(text.floor_char_boundary(third));
    let (two, three) = rest.split_at(rest.floor_char_boundary(third));
    let pieces = [one, two, three].into_iter().filter(|piece| !piece.is_empty());
    pieces.map(str::to_owned).collect()
}

/// The number of turns the model has taken since the user's latest prompt; `earlier` are those before
/// the input of the request (Responses API).
pub(crate) fn number(api: Api, body: &Value, earlier: usize) -> usize {
    match api {
        Api::Messages => count_assistant_turns(body, |message| {
            result_texts(message).is_empty() && has_text(message)
        }),
        Api::Chat => count_assistant_turns(body, |_message| true),
        Api::Responses => count_item_groups(body, earlier),
    }
}

/// Counts the assistant messages after the user's last prompt.
fn count_assistant_turns(body: &Value, is_prompt: impl Fn(&Value) -> bool) -> usize {
    let messages = list(body, "messages");
    let after = messages
        .iter()
        .rev()
        .take_while(|message| word(message, "role") != "user" || !is_prompt(message));
    after.filter(|message| word(message, "role") == "assistant").count()
}

fn count_item_groups(body: &Value, earlier: usize) -> usize {
    let (mut count, mut is_open) = (earlier, false);
    if body.get("input").is_some_and(Value::is_string) {
        return 0;
    }
    for item in list(body, "input") {
        let (role, kind) = (word(item, "role"), word(item, "type"));
        if role == "user" {
            (count, is_open) = (0, false);
        } else if kind.ends_with("_output") {
            is_open = false;
        } else if role == "assistant" || kind == "reasoning" || kind.ends_with("_call") {
            count += usize::from(!is_open);
            is_open = true;
        }
    }
    count
}

fn has_text(message: &Value) -> bool {
    !agent::text(message.get("content")).trim().is_empty()
}

/// The text of the latest tool results.
fn latest_results(api: Api, body: &Value) -> String {
    let texts = match api {
        Api::Messages => {
            let messages = list(body, "messages").iter().rev();
            messages.map(result_texts).find(|texts| !texts.is_empty()).unwrap_or_default()
        }
        Api::Chat => {
            latest_run(list(body, "messages"), "content", |message| word(message, "role") == "tool")
        }
        Api::Responses => latest_run(list(body, "input"), "output", |item| {
            word(item, "type").ends_with("_output")
        }),
    };
    texts.join(" ")
}

/// The texts of the last consecutive items that are results.
fn latest_run(items: &[Value], field: &str, is_result: impl Fn(&Value) -> bool) -> Vec<String> {
    let latest = items.iter().rev().skip_while(|item| !is_result(item));
    let run = latest.take_while(|item| is_result(item));
    let mut texts: Vec<String> = run.map(|item| whole_text(item.get(field))).collect();
    texts.reverse();
    texts
}

/// The texts of the tool results in a message.
fn result_texts(message: &Value) -> Vec<String> {
    let blocks = list(message, "content").iter();
    let results = blocks.filter(|block| word(block, "type") == "tool_result");
    results.map(|block| whole_text(block.get("content"))).collect()
}

fn whole_text(content: Option<&Value>) -> String {
    match content {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str));
            texts.collect::<Vec<_>>().join(" ")
        }
        _ => String::new(),
    }
}

/// A member that is an array; otherwise an empty one.
pub(crate) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A member that is a string; otherwise an empty one.
pub(crate) fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}
