//! OpenAI Chat Completions: <https://platform.openai.com/docs/api-reference/chat>.

use serde_json::{Value, json};

use crate::{
    agent::{self, Move},
    answer::{Api, Asked},
    scenario::{CACHE_READ_TOKENS, Call, INPUT_TOKENS, OUTPUT_TOKENS, REASONING_TOKENS, Scenario},
};

/// Reasoning as some compatible servers stream it.
const REASONING: [&str; 2] = ["The user greets me. ", "I greet back."];

/// What the model says and calls.
struct Reply {
    pieces: Vec<String>,
    calls: Vec<Call>,
    finish_reason: &'static str,
}

/// The events of a stream.
pub(crate) fn events(asked: &Asked) -> Vec<String> {
    let wants_usage = asked.body.pointer("/stream_options/include_usage") == Some(&true.into());
    let wants_usage = wants_usage && !asked.play.has(Scenario::NoUsage);
    let reply = reply(asked);
    let chunk = |choices: Value| {
        let mut chunk = head(asked, "chat.completion.chunk");
        set(&mut chunk, "choices", choices);
        if wants_usage {
            set(&mut chunk, "usage", Value::Null);
        }
        format!("data: {chunk}\n\n")
    };
    let delta = |delta: Value| {
        chunk(json!([{ "index": 0, "delta": delta, "logprobs": null, "finish_reason": null }]))
    };
    let mut events = vec![delta(json!({ "role": "assistant", "content": "", "refusal": null }))];
    if is_reasoning(asked) {
        events.extend(REASONING.iter().map(|text| delta(json!({ "reasoning_content": text }))));
    }
    if asked.play.has(Scenario::Refusal) {
        events.push(delta(json!({ "refusal": "I cannot help with that." })));
    } else {
        events.extend(reply.pieces.iter().map(|text| delta(json!({ "content": text }))));
    }
    let first = if asked.play.has(Scenario::NonzeroIndex) { 1 } else { 0 };
    for (index, call) in (first..).zip(&reply.calls) {
        let function = json!({ "name": call.name, "arguments": "" });
        let start = json!({ "index": index, "id": call_id(asked, call), "type": "function", "function": function });
        events.push(delta(json!({ "tool_calls": [start] })));
        let (one, two) = call.halves();
        for part in [one, two] {
            let part = json!({ "index": index, "function": { "arguments": part } });
            events.push(delta(json!({ "tool_calls": [part] })));
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
        events.push(format!("data: {chunk}\n\n"));
    }
    events.push("data: [DONE]\n\n".into());
    events
}

/// A whole answer.
pub(crate) fn whole(asked: &Asked) -> Value {
    let reply = reply(asked);
    let mut message = json!({ "role": "assistant", "content": reply.pieces.concat(), "refusal": null, "annotations": [] });
    if is_reasoning(asked) {
        set(&mut message, "reasoning_content", REASONING.concat().into());
    }
    if asked.play.has(Scenario::Refusal) {
        set(&mut message, "content", Value::Null);
        set(&mut message, "refusal", "I cannot help with that.".into());
    }
    if !reply.calls.is_empty() {
        let calls = reply.calls.iter().map(|call| {
            let function = json!({ "name": call.name, "arguments": call.arguments });
            json!({ "id": call_id(asked, call), "type": "function", "function": function })
        });
        set(&mut message, "tool_calls", calls.collect());
    }
    let mut answer = head(asked, "chat.completion");
    let choice = json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": reply.finish_reason });
    set(&mut answer, "choices", json!([choice]));
    if !asked.play.has(Scenario::NoUsage) {
        set(&mut answer, "usage", usage(asked));
    }
    answer
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
    if asked.play.has(Scenario::Agent) {
        return match agent::next(Api::Chat, asked) {
            Move::Say(text) => {
                Reply { pieces: vec![text], calls: Vec::new(), finish_reason: "stop" }
            }
            Move::Call { name, arguments } | Move::Custom { name, input: arguments } => {
                let calls = vec![Call { id: "1".into(), name, arguments }];
                Reply { pieces: Vec::new(), calls, finish_reason: "tool_calls" }
            }
        };
    }
    let calls = asked.play.tools();
    let finish_reason = if !calls.is_empty() {
        "tool_calls"
    } else if asked.play.has(Scenario::MaxTokens) {
        "length"
    } else {
        "stop"
    };
    Reply { pieces: asked.play.pieces(), calls, finish_reason }
}
