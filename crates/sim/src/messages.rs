//! Anthropic Messages: <https://platform.claude.com/docs/en/api/messages> and its streaming page.

use serde_json::{Value, json};

use crate::{
    agent::{self, AgentAction},
    errors,
    handler::{Api, ModelRequest},
    player::Step,
    scenario::{
        CACHE_READ_TOKENS, CACHE_WRITE_1H_TOKENS, CACHE_WRITE_5M_TOKENS, Call, INPUT_TOKENS,
        OUTPUT_TOKENS, Scenario,
    },
    signature,
    turns::{self, Entry, Turn, TurnPart},
};

/// A content block with the deltas that stream it.
struct Block {
    /// The block as in `content_block_start`.
    start: Value,
    deltas: Vec<Value>,
    /// The block as in a complete response.
    whole: Value,
}

/// The events of a stream.
pub(crate) fn events(request: &ModelRequest) -> Vec<Step> {
    let (parts, stop_reason) = parts(request);
    let mut message = message(request, &json!([]), &Value::Null);
    merge(&mut message, "usage", usage(request, 1));
    let mut events = vec![event("message_start", json!({ "message": message }))];
    let first = if request.playback.has(Scenario::NonzeroIndex) { 3 } else { 0 };
    let mut index = first;
    for part in parts {
        let block = match part {
            TurnPart::Block(block) => block,
            TurnPart::Cue(cue) if cue.play(&mut events, failure) => continue,
            TurnPart::Cue(_) => return events,
        };
        let start = json!({ "index": index, "content_block": block.start });
        events.push(event("content_block_start", start));
        if index == first {
            events.push(event("ping", json!({})));
        }
        for delta in &block.deltas {
            let delta = json!({ "index": index, "delta": delta });
            events.push(event("content_block_delta", delta));
        }
        events.push(event("content_block_stop", json!({ "index": index })));
        index += 1;
    }
    if request.playback.has(Scenario::UnknownEvents) {
        events.push(event("content_hologram", json!({ "shape": { "usage": "none" } })));
    }
    let mut delta = json!({ "delta": { "stop_reason": stop_reason, "stop_sequence": null } });
    merge(&mut delta, "usage", usage(request, OUTPUT_TOKENS));
    events.push(event("message_delta", delta));
    events.push(event("message_stop", json!({})));
    events
}

/// Renders a complete response.
pub(crate) fn whole(request: &ModelRequest) -> Value {
    let (parts, stop_reason) = parts(request);
    let content =
        parts.into_iter().filter_map(TurnPart::into_block).map(|block| block.whole).collect();
    let mut message = message(request, &Value::Array(content), &stop_reason.into());
    merge(&mut message, "usage", usage(request, OUTPUT_TOKENS));
    message
}

fn failure(number: usize) -> String {
    errors::event(Api::Messages, "server_error", number)
}

fn event(name: &str, fields: Value) -> Step {
    let mut data = json!({ "type": name });
    if let (Some(data), Value::Object(fields)) = (data.as_object_mut(), fields) {
        data.extend(fields);
    }
    Step::event(format!("event: {name}\ndata: {data}\n\n"))
}

fn merge(object: &mut Value, key: &str, value: Option<Value>) {
    if let (Some(object), Some(value)) = (object.as_object_mut(), value) {
        object.insert(key.into(), value);
    }
}

fn message(request: &ModelRequest, content: &Value, stop_reason: &Value) -> Value {
    json!({
        "id": format!("msg_{}", request.serial), "type": "message", "role": "assistant",
        "model": request.model, "content": content, "stop_reason": stop_reason, "stop_sequence": null,
    })
}

fn usage(request: &ModelRequest, output: u64) -> Option<Value> {
    if request.playback.has(Scenario::NoUsage) {
        return None;
    }
    let is_cached = request.playback.has(Scenario::Cached);
    let cached = |tokens: u64| if is_cached { tokens } else { 0 };
    let (short, long) = (cached(CACHE_WRITE_5M_TOKENS), cached(CACHE_WRITE_1H_TOKENS));
    let scripted = request.turn.as_ref().and_then(|turn| turn.cached_tokens);
    let mut usage = json!({
        "input_tokens": INPUT_TOKENS,
        "cache_creation_input_tokens": short + long,
        "cache_read_input_tokens": scripted.unwrap_or(cached(CACHE_READ_TOKENS)),
        "cache_creation": { "ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": long },
        "output_tokens": output,
        "service_tier": "standard",
    });
    if request.playback.has(Scenario::WebSearch) {
        merge(&mut usage, "server_tool_use", Some(json!({ "web_search_requests": 1 })));
    }
    Some(usage)
}

fn parts(request: &ModelRequest) -> (Vec<TurnPart<Block>>, String) {
    if let Some(turn) = &request.turn {
        return (turn_parts(request, turn), turn.stop_reason().into());
    }
    let (blocks, stop_reason) = blocks(request);
    (blocks.into_iter().map(TurnPart::Block).collect(), stop_reason.into())
}

fn turn_parts(request: &ModelRequest, turn: &Turn) -> Vec<TurnPart<Block>> {
    let blocks = turn.entries.iter().enumerate().map(|(number, entry)| {
        TurnPart::Block(match entry {
            Entry::Text(text) => text_block(&turns::split_text(text)),
            Entry::Thinking(text) => thinking(&turns::split_text(text)),
            Entry::Redacted => redacted(&format!("{}{number}", request.serial)),
            Entry::Call(call) => tool(request, call),
            Entry::Cue(cue) => return TurnPart::Cue(cue.clone()),
        })
    });
    blocks.collect()
}

fn blocks(request: &ModelRequest) -> (Vec<Block>, &'static str) {
    let play = &request.playback;
    let mut blocks = Vec::new();
    if play.has(Scenario::Thinking) {
        blocks.push(thinking(&["The user greets me. ".into(), "I greet back.".into()]));
    }
    if play.has(Scenario::Redacted) {
        blocks.push(redacted(&request.serial));
    }
    if play.has(Scenario::WebSearch) {
        blocks.extend(web_search(request));
    }
    if play.has(Scenario::Agent) {
        match agent::next_action(Api::Messages, request) {
            AgentAction::Say(text) => blocks.push(text_block(&[text])),
            AgentAction::Call { name, arguments }
            | AgentAction::Custom { name, input: arguments } => {
                let call = Call { id: "1".into(), name, arguments };
                blocks.push(text_block(&["I call the tool.".into()]));
                blocks.push(tool(request, &call));
                return (blocks, "tool_use");
            }
        }
        return (blocks, "end_turn");
    }
    let calls = play.tools();
    blocks.push(text_block(&play.pieces()));
    blocks.extend(calls.iter().map(|call| tool(request, call)));
    let stop_reason = if !calls.is_empty() {
        "tool_use"
    } else if play.has(Scenario::RejectedRequest) {
        "refusal"
    } else if play.has(Scenario::MaxTokens) {
        "max_tokens"
    } else {
        "end_turn"
    };
    (blocks, stop_reason)
}

fn text_block(pieces: &[String]) -> Block {
    Block {
        start: json!({ "type": "text", "text": "" }),
        deltas: pieces.iter().map(|text| json!({ "type": "text_delta", "text": text })).collect(),
        whole: json!({ "type": "text", "text": pieces.concat() }),
    }
}

fn redacted(nonce: &str) -> Block {
    let whole = json!({ "type": "redacted_thinking", "data": signature::redacted_data(nonce) });
    Block { start: whole.clone(), deltas: Vec::new(), whole }
}

fn thinking(parts: &[String]) -> Block {
    let signature = signature::sign_thinking(&parts.concat());
    let mut deltas: Vec<Value> =
        parts.iter().map(|text| json!({ "type": "thinking_delta", "thinking": text })).collect();
    deltas.push(json!({ "type": "signature_delta", "signature": signature }));
    Block {
        start: json!({ "type": "thinking", "thinking": "", "signature": "" }),
        deltas,
        whole: json!({ "type": "thinking", "thinking": parts.concat(), "signature": signature }),
    }
}

fn tool(request: &ModelRequest, call: &Call) -> Block {
    let id = format!("toolu_{}{}", request.serial, call.id);
    let (first, second) = call.halves();
    let delta = |part: &str| json!({ "type": "input_json_delta", "partial_json": part });
    let input = serde_json::from_str(&call.arguments).unwrap_or_else(|_empty| json!({}));
    Block {
        start: json!({ "type": "tool_use", "id": id, "name": call.name, "input": {} }),
        deltas: vec![delta(""), delta(first), delta(second)],
        whole: json!({ "type": "tool_use", "id": id, "name": call.name, "input": input }),
    }
}

fn web_search(request: &ModelRequest) -> [Block; 2] {
    let id = format!("srvtoolu_{}", request.serial);
    let query = json!({ "query": "weather in Paris" });
    let delta = json!({ "type": "input_json_delta", "partial_json": query.to_string() });
    let found = json!({ "type": "web_search_tool_result", "tool_use_id": id, "content": [
        { "type": "web_search_result", "url": "https://example.org/", "title": "Weather", "encrypted_content": "c2lt", "page_age": null },
    ] });
    let call = |input: Value| json!({ "type": "server_tool_use", "id": id, "name": "web_search", "input": input });
    [
        Block { start: call(json!({})), deltas: vec![delta], whole: call(query.clone()) },
        Block { start: found.clone(), deltas: Vec::new(), whole: found },
    ]
}
