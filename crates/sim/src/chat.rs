//! OpenAI Chat Completions: <https://platform.openai.com/docs/api-reference/chat>.

use serde_json::{Value, json};

use crate::{
    agent::{self, Move},
    answer::{Api, Asked},
    errors,
    player::Step,
    scenario::{CACHE_READ_TOKENS, Call, INPUT_TOKENS, OUTPUT_TOKENS, REASONING_TOKENS, Scenario},
    turns::{self, Entry, Part, Turn},
};

/// Reasoning as some compatible servers stream it.
const REASONING: [&str; 2] = ["The user greets me. ", "I greet back."];
const REFUSAL: &str = "I cannot help with that.";

/// What the model says and calls.
struct Reply {
    parts: Vec<Part<Said>>,
    finish_reason: String,
}

enum Said {
    Reasoning(Vec<String>),
    Text(Vec<String>),
    Refusal,
    Call(Call),
}

/// The events of a stream.
pub(crate) fn events(asked: &Asked) -> Vec<Step> {
    let wants_usage = asked.body.pointer("/stream_options/include_usage") == Some(&true.into());
    let wants_usage = wants_usage && !asked.play.has(Scenario::NoUsage);
    let reply = reply(asked);
    let chunk = |choices: Value| {
        let mut chunk = head(asked, "chat.completion.chunk");
        set(&mut chunk, "choices", choices);
        if wants_usage {
            set(&mut chunk, "usage", Value::Null);
        }
        Step::event(format!("data: {chunk}\n\n"))
    };
    let delta = |delta: Value| {
        chunk(json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": null }]))
    };
    let mut events = vec![delta(json!({ "role": "assistant", "content": "", "refusal": null }))];
    let mut index = if asked.play.has(Scenario::NonzeroIndex) { 1 } else { 0 };
    for part in reply.parts {
        match part {
            Part::Shown(said) => {
                events.extend(said.deltas(asked, index).into_iter().map(delta));
                index += usize::from(matches!(said, Said::Call(_)));
            }
            Part::Cue(cue) => {
                if !cue.play(&mut events, |number| errors::event(Api::Chat, "server_error", number))
                {
                    return events;
                }
            }
        }
    }
    if asked.play.has(Scenario::UnknownEvents) {
        events.push(delta(json!({ "hologram": { "usage": 1 } })));
    }
    let last = json!([{ "index": 0, "delta": {}, "logprobs": null, "finish_reason": reply.finish_reason }]);
    events.push(chunk(last));
    if wants_usage {
        let mut chunk = head(asked, "chat.completion.chunk");
        set(&mut chunk, "choices", json!([]));
        set(&mut chunk, "usage", usage(asked));
        events.push(Step::event(format!("data: {chunk}\n\n")));
    }
    events.push(Step::event("data: [DONE]\n\n".into()));
    events
}

/// A whole answer.
pub(crate) fn whole(asked: &Asked) -> Value {
    let reply = reply(asked);
    let message = message(asked, reply.parts);
    let mut answer = head(asked, "chat.completion");
    let choice = json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": reply.finish_reason });
    set(&mut answer, "choices", json!([choice]));
    if !asked.play.has(Scenario::NoUsage) {
        set(&mut answer, "usage", usage(asked));
    }
    answer
}

fn message(asked: &Asked, parts: Vec<Part<Said>>) -> Value {
    let (mut content, mut reasoning, mut calls) = (None, None, Vec::new());
    let mut message =
        json!({ "role": "assistant", "content": null, "refusal": null, "annotations": [] });
    for said in parts.into_iter().filter_map(Part::shown) {
        match said {
            Said::Reasoning(pieces) => {
                reasoning.get_or_insert_with(String::new).push_str(&pieces.concat());
            }
            Said::Text(pieces) => {
                content.get_or_insert_with(String::new).push_str(&pieces.concat());
            }
            Said::Refusal => set(&mut message, "refusal", REFUSAL.into()),
            Said::Call(call) => {
                let function = json!({ "name": call.name, "arguments": call.arguments });
                let id = call_id(asked, &call);
                calls.push(json!({ "id": id, "type": "function", "function": function }));
            }
        }
    }
    set(&mut message, "content", content.into());
    if let Some(reasoning) = reasoning {
        set(&mut message, "reasoning_content", reasoning.into());
    }
    if !calls.is_empty() {
        set(&mut message, "tool_calls", calls.into());
    }
    message
}

impl Said {
    /// The deltas that stream it; `index` is that of the next call.
    fn deltas(&self, asked: &Asked, index: usize) -> Vec<Value> {
        let each = |field: &str, pieces: &[String]| {
            pieces.iter().map(|text| json!({ field: text })).collect()
        };
        let call = match self {
            Self::Reasoning(pieces) => return each("reasoning_content", pieces),
            Self::Text(pieces) => return each("content", pieces),
            Self::Refusal => return vec![json!({ "refusal": REFUSAL })],
            Self::Call(call) => call,
        };
        let function = json!({ "name": call.name, "arguments": "" });
        let start = json!({ "index": index, "id": call_id(asked, call), "type": "function", "function": function });
        let (one, two) = call.halves();
        let part = |part: &str| json!({ "index": index, "function": { "arguments": part } });
        [start, part(one), part(two)].map(|call| json!({ "tool_calls": [call] })).into()
    }
}

fn head(asked: &Asked, object: &str) -> Value {
    json!({
        "id": format!("chatcmpl-{}", asked.serial), "object": object, "created": 1_767_225_600,
        "model": asked.model, "service_tier": "default", "system_fingerprint": "fp_simulated",
    })
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(key.into(), value);
    }
}

fn call_id(asked: &Asked, call: &Call) -> String {
    format!("call_{}{}", asked.serial, call.id)
}

fn is_reasoning(asked: &Asked) -> bool {
    [Scenario::Reasoning, Scenario::Thinking, Scenario::Commentary]
        .iter()
        .any(|scenario| asked.play.has(*scenario))
}

fn usage(asked: &Asked) -> Value {
    let cached = if asked.play.has(Scenario::Cached) { CACHE_READ_TOKENS } else { 0 };
    let reasoning = if is_reasoning(asked) { REASONING_TOKENS } else { 0 };
    json!({
        "prompt_tokens": INPUT_TOKENS + cached,
        "completion_tokens": OUTPUT_TOKENS,
        "total_tokens": INPUT_TOKENS + cached + OUTPUT_TOKENS,
        "prompt_tokens_details": { "cached_tokens": cached, "audio_tokens": 0 },
        "completion_tokens_details": {
            "reasoning_tokens": reasoning, "audio_tokens": 0,
            "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
        },
    })
}

fn reply(asked: &Asked) -> Reply {
    if let Some(turn) = &asked.turn {
        return scripted(turn);
    }
    let play = &asked.play;
    let mut said = Vec::new();
    if is_reasoning(asked) {
        said.push(Said::Reasoning(REASONING.map(str::to_owned).into()));
    }
    let mut calls = play.tools();
    if play.has(Scenario::Agent) {
        match agent::next(Api::Chat, asked) {
            Move::Say(text) => said.push(Said::Text(vec![text])),
            Move::Call { name, arguments } | Move::Custom { name, input: arguments } => {
                calls = vec![Call { id: "1".into(), name, arguments }];
            }
        }
    } else if play.has(Scenario::Refusal) {
        said.push(Said::Refusal);
    } else {
        said.push(Said::Text(play.pieces()));
    }
    let finish_reason = if !calls.is_empty() {
        "tool_calls"
    } else if play.has(Scenario::MaxTokens) {
        "length"
    } else {
        "stop"
    };
    said.extend(calls.into_iter().map(Said::Call));
    let parts = said.into_iter().map(Part::Shown).collect();
    Reply { parts, finish_reason: finish_reason.into() }
}

fn scripted(turn: &Turn) -> Reply {
    let parts = turn.entries.iter().filter_map(|entry| {
        Some(Part::Shown(match entry {
            Entry::Text(text) => Said::Text(turns::pieces(text)),
            Entry::Thinking(text) => Said::Reasoning(turns::pieces(text)),
            Entry::Call(call) => Said::Call(call.clone()),
            // This API has no such thing.
            Entry::Redacted => return None,
            Entry::Cue(cue) => return Some(Part::Cue(cue.clone())),
        }))
    });
    let finish_reason = match turn.stop_reason() {
        "tool_use" => "tool_calls",
        "max_tokens" => "length",
        "refusal" => "content_filter",
        "end_turn" | "stop_sequence" => "stop",
        other => other,
    };
    Reply { parts: parts.collect(), finish_reason: finish_reason.into() }
}
