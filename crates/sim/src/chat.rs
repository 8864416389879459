//! OpenAI Chat Completions: <https://platform.openai.com/docs/api-reference/chat>.

use serde_json::{Value, json};

use crate::{
    agent::{self, AgentAction},
    errors,
    handler::{Api, ModelRequest},
    player::Step,
    scenario::{CACHE_READ_TOKENS, Call, INPUT_TOKENS, OUTPUT_TOKENS, REASONING_TOKENS, Scenario},
    turns::{self, Entry, Turn, TurnPart},
};

/// Reasoning as some compatible servers stream it.
const REASONING: [&str; 2] = ["The user greets me. ", "I greet back."];
const REFUSAL: &str = "I cannot help with that.";

/// The model's reply.
struct Reply {
    parts: Vec<TurnPart<ReplyPart>>,
    finish_reason: String,
}

enum ReplyPart {
    Reasoning(Vec<String>),
    Text(Vec<String>),
    RejectedRequest,
    Call(Call),
}

/// The events of a stream.
pub(crate) fn events(request: &ModelRequest) -> Vec<Step> {
    let wants_usage = request.body.pointer("/stream_options/include_usage") == Some(&true.into());
    let wants_usage = wants_usage && !request.playback.has(Scenario::NoUsage);
    let reply = reply(request);
    let chunk = |choices: Value| {
        let mut chunk = head(request, "chat.completion.chunk");
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
    let mut index = if request.playback.has(Scenario::NonzeroIndex) { 1 } else { 0 };
    for part in reply.parts {
        match part {
            TurnPart::Block(said) => {
                events.extend(said.deltas(request, index).into_iter().map(delta));
                index += usize::from(matches!(said, ReplyPart::Call(_)));
            }
            TurnPart::Cue(cue) => {
                if !cue.play(&mut events, |number| errors::event(Api::Chat, "server_error", number))
                {
                    return events;
                }
            }
        }
    }
    if request.playback.has(Scenario::UnknownEvents) {
        events.push(delta(json!({ "hologram": { "usage": 1 } })));
    }
    let last = json!([{ "index": 0, "delta": {}, "logprobs": null, "finish_reason": reply.finish_reason }]);
    events.push(chunk(last));
    if wants_usage {
        let mut chunk = head(request, "chat.completion.chunk");
        set(&mut chunk, "choices", json!([]));
        set(&mut chunk, "usage", usage(request));
        events.push(Step::event(format!("data: {chunk}\n\n")));
    }
    events.push(Step::event("data: [DONE]\n\n".into()));
    events
}

/// Renders a complete response.
pub(crate) fn whole(request: &ModelRequest) -> Value {
    let reply = reply(request);
    let message = message(request, reply.parts);
    let mut answer = head(request, "chat.completion");
    let choice = json!({ "index": 0, "message": message, "logprobs": null, "finish_reason": reply.finish_reason });
    set(&mut answer, "choices", json!([choice]));
    if !request.playback.has(Scenario::NoUsage) {
        set(&mut answer, "usage", usage(request));
    }
    answer
}

fn message(request: &ModelRequest, parts: Vec<TurnPart<ReplyPart>>) -> Value {
    let (mut content, mut reasoning, mut calls) = (None, None, Vec::new());
    let mut message =
        json!({ "role": "assistant", "content": null, "refusal": null, "annotations": [] });
    for said in parts.into_iter().filter_map(TurnPart::into_block) {
        match said {
            ReplyPart::Reasoning(pieces) => {
                reasoning.get_or_insert_with(String::new).push_str(&pieces.concat());
            }
            ReplyPart::Text(pieces) => {
                content.get_or_insert_with(String::new).push_str(&pieces.concat());
            }
            ReplyPart::RejectedRequest => set(&mut message, "refusal", REFUSAL.into()),
            ReplyPart::Call(call) => {
                let function = json!({ "name": call.name, "arguments": call.arguments });
                let id = call_id(request, &call);
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

impl ReplyPart {
    /// The deltas that stream it; `index` is the index of the next call.
    fn deltas(&self, request: &ModelRequest, index: usize) -> Vec<Value> {
        let each = |field: &str, pieces: &[String]| {
            pieces.iter().map(|text| json!({ field: text })).collect()
        };
        let call = match self {
            Self::Reasoning(pieces) => return each("reasoning_content", pieces),
            Self::Text(pieces) => return each("content", pieces),
            Self::RejectedRequest => return vec![json!({ "refusal": REFUSAL })],
            Self::Call(call) => call,
        };
        let function = json!({ "name": call.name, "arguments": "" });
        let start = json!({ "index": index, "id": call_id(request, call), "type": "function", "function": function });
        let (one, two) = call.halves();
        let part = |part: &str| json!({ "index": index, "function": { "arguments": part } });
        [start, part(one), part(two)].map(|call| json!({ "tool_calls": [call] })).into()
    }
}

fn head(request: &ModelRequest, object: &str) -> Value {
    json!({
        "id": format!("chatcmpl-{}", request.serial), "object": object, "created": 1_767_225_600,
        "model": request.model, "service_tier": "default", "system_fingerprint": "fp_simulated",
    })
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(key.into(), value);
    }
}

fn call_id(request: &ModelRequest, call: &Call) -> String {
    format!("call_{}{}", request.serial, call.id)
}

fn is_reasoning(request: &ModelRequest) -> bool {
    [Scenario::Reasoning, Scenario::Thinking, Scenario::Commentary]
        .iter()
        .any(|scenario| request.playback.has(*scenario))
}

fn usage(request: &ModelRequest) -> Value {
    let cached = if request.playback.has(Scenario::Cached) { CACHE_READ_TOKENS } else { 0 };
    let reasoning = if is_reasoning(request) { REASONING_TOKENS } else { 0 };
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

fn reply(request: &ModelRequest) -> Reply {
    if let Some(turn) = &request.turn {
        return scripted(turn);
    }
    let play = &request.playback;
    let mut parts = Vec::new();
    if is_reasoning(request) {
        parts.push(ReplyPart::Reasoning(REASONING.map(str::to_owned).into()));
    }
    let mut calls = play.tools();
    if play.has(Scenario::Agent) {
        match agent::next_action(Api::Chat, request) {
            AgentAction::Say(text) => parts.push(ReplyPart::Text(vec![text])),
            AgentAction::Call { name, arguments }
            | AgentAction::Custom { name, input: arguments } => {
                calls = vec![Call { id: "1".into(), name, arguments }];
            }
        }
    } else if play.has(Scenario::RejectedRequest) {
        parts.push(ReplyPart::RejectedRequest);
    } else {
        parts.push(ReplyPart::Text(play.pieces()));
    }
    let finish_reason = if !calls.is_empty() {
        "tool_calls"
    } else if play.has(Scenario::MaxTokens) {
        "length"
    } else {
        "stop"
    };
    parts.extend(calls.into_iter().map(ReplyPart::Call));
    let parts = parts.into_iter().map(TurnPart::Block).collect();
    Reply { parts, finish_reason: finish_reason.into() }
}

fn scripted(turn: &Turn) -> Reply {
    let parts = turn.entries.iter().filter_map(|entry| {
        Some(TurnPart::Block(match entry {
            Entry::Text(text) => ReplyPart::Text(turns::split_text(text)),
            Entry::Thinking(text) => ReplyPart::Reasoning(turns::split_text(text)),
            Entry::Call(call) => ReplyPart::Call(call.clone()),
            // This API has no redacted thinking.
            Entry::Redacted => return None,
            Entry::Cue(cue) => return Some(TurnPart::Cue(cue.clone())),
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
