//! OpenAI Responses: <https://platform.openai.com/docs/api-reference/responses> and its streaming
//! page.

use serde_json::{Value, json};

use crate::{
    agent::{self, Move},
    answer::{Api, Asked},
    scenario::{CACHE_READ_TOKENS, Call, INPUT_TOKENS, OUTPUT_TOKENS, REASONING_TOKENS, Scenario},
};

/// The summary of the model's reasoning.
const SUMMARY: &str = "**Greeting**\n\nThe user greets me, so I greet back.";
const COMMENTARY: &str = "I look at the request first.";

/// An output item with the events that stream it.
struct Item {
    /// As it is when it is added.
    added: Value,
    /// Names and fields of its events, without ids and numbers.
    events: Vec<(&'static str, Value)>,
    done: Value,
}

/// Numbers events as they are written.
#[derive(Default)]
struct Stream {
    events: Vec<String>,
}

impl Stream {
    fn push(&mut self, name: &str, fields: Value) {
        let mut data = json!({ "type": name, "sequence_number": self.events.len() });
        if let (Some(data), Value::Object(fields)) = (data.as_object_mut(), fields) {
            data.extend(fields);
        }
        self.events.push(format!("event: {name}\ndata: {data}\n\n"));
    }
}

/// The events of a stream.
pub(crate) fn events(asked: &Asked) -> Vec<String> {
    let items = items(asked);
    let begun = response(asked, "in_progress", &[], false);
    let mut stream = Stream::default();
    stream.push("response.created", json!({ "response": begun }));
    stream.push("response.in_progress", json!({ "response": begun }));
    let first = if asked.play.has(Scenario::NonzeroIndex) { 3 } else { 0 };
    for (index, item) in (first..).zip(&items) {
        stream.push(
            "response.output_item.added",
            json!({ "output_index": index, "item": item.added }),
        );
        for (name, fields) in &item.events {
            let mut fields = fields.clone();
            if let (Some(fields), Some(id)) = (fields.as_object_mut(), item.added.get("id")) {
                fields.insert("item_id".into(), id.clone());
                fields.insert("output_index".into(), index.into());
            }
            stream.push(name, fields);
        }
        stream
            .push("response.output_item.done", json!({ "output_index": index, "item": item.done }));
    }
    if asked.play.has(Scenario::UnknownEvents) {
        stream.push("response.hologram.delta", json!({ "delta": { "usage": 1 } }));
    }
    let done: Vec<Value> = items.into_iter().map(|item| item.done).collect();
    let status = if asked.play.has(Scenario::MaxTokens) { "incomplete" } else { "completed" };
    let ended = response(asked, status, &done, true);
    stream.push(&format!("response.{status}"), json!({ "response": ended }));
    stream.events
}

/// A whole answer.
pub(crate) fn whole(asked: &Asked) -> Value {
    if asked.is_background() {
        return response(asked, "queued", &[], false);
    }
    let done: Vec<Value> = items(asked).into_iter().map(|item| item.done).collect();
    let status = if asked.play.has(Scenario::MaxTokens) { "incomplete" } else { "completed" };
    response(asked, status, &done, true)
}

/// An answer fetched by its id.
pub(crate) fn stored(id: &str, model: &str) -> Value {
    let text = json!({ "type": "output_text", "text": "Done in the background.", "annotations": [], "logprobs": [] });
    json!({
        "id": id, "object": "response", "created_at": 1_767_225_600, "status": "completed",
        "background": true, "error": null, "incomplete_details": null, "model": model,
        "output": [{ "id": "msg_stored", "type": "message", "status": "completed", "role": "assistant", "content": [text] }],
        "usage": usage(INPUT_TOKENS, 0, OUTPUT_TOKENS, 0),
    })
}

/// Usage as a response carries it.
pub(crate) fn usage(input: u64, cached: u64, output: u64, reasoning: u64) -> Value {
    json!({
        "input_tokens": input + cached,
        "input_tokens_details": { "cached_tokens": cached },
        "output_tokens": output,
        "output_tokens_details": { "reasoning_tokens": reasoning },
        "total_tokens": input + cached + output,
    })
}

fn response(asked: &Asked, status: &str, output: &[Value], is_done: bool) -> Value {
    let is_cached = asked.play.has(Scenario::Cached);
    let cached = if is_cached { CACHE_READ_TOKENS } else { 0 };
    let reasoning = if asked.play.has(Scenario::Reasoning) { REASONING_TOKENS } else { 0 };
    let has_usage = is_done && !asked.play.has(Scenario::NoUsage);
    let usage = has_usage.then(|| usage(INPUT_TOKENS, cached, OUTPUT_TOKENS, reasoning));
    let details = (status == "incomplete").then(|| json!({ "reason": "max_output_tokens" }));
    json!({
        "id": format!("resp_{}", asked.serial), "object": "response", "created_at": 1_767_225_600,
        "status": status, "background": asked.is_background(), "error": null,
        "incomplete_details": details, "model": asked.model, "output": output,
        "parallel_tool_calls": true, "store": false, "usage": usage, "metadata": {},
    })
}

fn items(asked: &Asked) -> Vec<Item> {
    let play = &asked.play;
    let mut items = Vec::new();
    if play.has(Scenario::Reasoning) || play.has(Scenario::Thinking) {
        items.push(reasoning(asked));
    }
    if play.has(Scenario::Commentary) {
        items.push(message(asked, "c", &[COMMENTARY.into()], Some("commentary")));
    }
    if play.has(Scenario::WebSearch) {
        items.push(web_search(asked));
    }
    if play.has(Scenario::Agent) {
        if wants_compaction(asked) {
            return vec![compaction(asked)];
        }
        items.push(match agent::next(Api::Responses, asked) {
            Move::Say(text) => message(asked, "m", &[text], None),
            Move::Call { name, arguments } => {
                function_call(asked, &Call { id: "1".into(), name, arguments })
            }
            Move::Custom { name, input } => custom_call(asked, &name, &input),
        });
        return items;
    }
    if play.has(Scenario::CustomTool) {
        items.push(custom_call(asked, "apply_patch", "*** Begin Patch\n*** End Patch"));
        return items;
    }
    let calls = play.tools();
    items.push(message(asked, "m", &play.pieces(), None));
    items.extend(calls.iter().map(|call| function_call(asked, call)));
    items
}

/// Codex asks for a shorter history with a last item of its own type.
fn wants_compaction(asked: &Asked) -> bool {
    let last = asked.body.get("input").and_then(Value::as_array).and_then(|items| items.last());
    last.and_then(|item| item.get("type")).and_then(Value::as_str) == Some("compaction_trigger")
}

fn compaction(asked: &Asked) -> Item {
    let id = format!("cmp_{}", asked.serial);
    let item = json!({ "id": id, "type": "compaction", "encrypted_content": "c2ltdWxhdGVk" });
    Item { added: item.clone(), events: Vec::new(), done: item }
}

fn message(asked: &Asked, mark: &str, pieces: &[String], phase: Option<&str>) -> Item {
    let id = format!("msg_{mark}{}", asked.serial);
    let text = pieces.concat();
    let part = |text: &str| {
        if asked.play.has(Scenario::Refusal) {
            json!({ "type": "refusal", "refusal": text })
        } else {
            json!({ "type": "output_text", "text": text, "annotations": [], "logprobs": [] })
        }
    };
    let item = |status: &str, content: Value| {
        let mut item = json!({ "id": id, "type": "message", "status": status, "role": "assistant", "content": content });
        if let (Some(item), Some(phase)) = (item.as_object_mut(), phase) {
            item.insert("phase".into(), phase.into());
        }
        item
    };
    let (delta, done, field) = if asked.play.has(Scenario::Refusal) {
        ("response.refusal.delta", "response.refusal.done", "refusal")
    } else {
        ("response.output_text.delta", "response.output_text.done", "text")
    };
    let mut events =
        vec![("response.content_part.added", json!({ "content_index": 0, "part": part("") }))];
    events
        .extend(pieces.iter().map(|piece| (delta, json!({ "content_index": 0, "delta": piece }))));
    events.push((done, json!({ "content_index": 0, field: text })));
    events.push(("response.content_part.done", json!({ "content_index": 0, "part": part(&text) })));
    Item {
        added: item("in_progress", json!([])),
        events,
        done: item("completed", json!([part(&text)])),
    }
}

fn reasoning(asked: &Asked) -> Item {
    let id = format!("rs_{}", asked.serial);
    let part = |text: &str| json!({ "type": "summary_text", "text": text });
    let item = |summary: Value| json!({ "id": id, "type": "reasoning", "summary": summary, "encrypted_content": "c2ltdWxhdGVk" });
    let events = vec![
        ("response.reasoning_summary_part.added", json!({ "summary_index": 0, "part": part("") })),
        ("response.reasoning_summary_text.delta", json!({ "summary_index": 0, "delta": SUMMARY })),
        ("response.reasoning_summary_text.done", json!({ "summary_index": 0, "text": SUMMARY })),
        (
            "response.reasoning_summary_part.done",
            json!({ "summary_index": 0, "part": part(SUMMARY) }),
        ),
    ];
    Item { added: item(json!([])), events, done: item(json!([part(SUMMARY)])) }
}

fn function_call(asked: &Asked, call: &Call) -> Item {
    let (id, call_id) =
        (format!("fc_{}{}", asked.serial, call.id), format!("call_{}{}", asked.serial, call.id));
    let item = |status: &str, arguments: &str| json!({ "id": id, "type": "function_call", "status": status, "arguments": arguments, "call_id": call_id, "name": call.name });
    let (one, two) = call.halves();
    let events = vec![
        ("response.function_call_arguments.delta", json!({ "delta": one })),
        ("response.function_call_arguments.delta", json!({ "delta": two })),
        ("response.function_call_arguments.done", json!({ "arguments": call.arguments })),
    ];
    Item { added: item("in_progress", ""), events, done: item("completed", &call.arguments) }
}

fn custom_call(asked: &Asked, name: &str, input: &str) -> Item {
    let (id, call_id) = (format!("ctc_{}", asked.serial), format!("call_{}", asked.serial));
    let item = |status: &str, input: &str| json!({ "id": id, "type": "custom_tool_call", "status": status, "call_id": call_id, "name": name, "input": input });
    let events = vec![
        ("response.custom_tool_call_input.delta", json!({ "delta": input })),
        ("response.custom_tool_call_input.done", json!({ "input": input })),
    ];
    Item { added: item("in_progress", ""), events, done: item("completed", input) }
}

fn web_search(asked: &Asked) -> Item {
    let item = |status: &str| json!({ "id": format!("ws_{}", asked.serial), "type": "web_search_call", "status": status, "action": { "type": "search", "query": "weather in Paris" } });
    let events = vec![
        ("response.web_search_call.in_progress", json!({})),
        ("response.web_search_call.searching", json!({})),
        ("response.web_search_call.completed", json!({})),
    ];
    Item { added: item("in_progress"), events, done: item("completed") }
}
