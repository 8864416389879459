//! OpenAI Responses: <https://platform.openai.com/docs/api-reference/responses> and its streaming
//! page.

use serde_json::{Value, json};

use crate::{
    agent::{self, AgentAction},
    errors,
    handler::{Api, ModelRequest},
    player::Step,
    scenario::{CACHE_READ_TOKENS, Call, INPUT_TOKENS, OUTPUT_TOKENS, REASONING_TOKENS, Scenario},
    turns::{self, Entry, Turn, TurnPart, list, word},
};

/// The summary of the model's reasoning.
const SUMMARY: &str = "**Greeting**\n\nThe user greets me, so I greet back.";
const COMMENTARY: &str = "I look at the request first.";

/// An output item with the events that stream it.
struct Item {
    /// The item when it is added.
    added: Value,
    /// The names and fields of its events, without ids and numbers.
    events: Vec<(&'static str, Value)>,
    done: Value,
}

/// A stream of numbered events.
#[derive(Default)]
struct Stream {
    steps: Vec<Step>,
    number: usize,
}

impl Stream {
    fn push(&mut self, name: &str, fields: Value) {
        let mut data = json!({ "type": name, "sequence_number": self.number });
        if let (Some(data), Value::Object(fields)) = (data.as_object_mut(), fields) {
            data.extend(fields);
        }
        self.steps.push(Step::event(format!("event: {name}\ndata: {data}\n\n")));
        self.number += 1;
    }

    fn item(&mut self, index: usize, item: &Item) {
        let added = json!({ "output_index": index, "item": item.added });
        self.push("response.output_item.added", added);
        for (name, fields) in &item.events {
            let mut fields = fields.clone();
            if let (Some(fields), Some(id)) = (fields.as_object_mut(), item.added.get("id")) {
                fields.insert("item_id".into(), id.clone());
                fields.insert("output_index".into(), index.into());
            }
            self.push(name, fields);
        }
        let done = json!({ "output_index": index, "item": item.done });
        self.push("response.output_item.done", done);
    }
}

/// The events of a stream.
pub(crate) fn events(request: &ModelRequest) -> Vec<Step> {
    let parts = parts(request);
    let begun = response(request, "in_progress", &[], false);
    let mut stream = Stream::default();
    stream.push("response.created", json!({ "response": begun }));
    stream.push("response.in_progress", json!({ "response": begun }));
    let first = if request.playback.has(Scenario::NonzeroIndex) { 3 } else { 0 };
    let mut done: Vec<Value> = Vec::new();
    for part in parts {
        match part {
            TurnPart::Block(item) => {
                stream.item(first + done.len(), &item);
                done.push(item.done);
            }
            TurnPart::Cue(cue) => {
                if !cue.play(&mut stream.steps, |number| {
                    errors::event(Api::Responses, "server_error", number)
                }) {
                    return stream.steps;
                }
            }
        }
    }
    if request.playback.has(Scenario::UnknownEvents) {
        stream.push("response.hologram.delta", json!({ "delta": { "usage": 1 } }));
    }
    let status = if stopped_by(request).is_some() { "incomplete" } else { "completed" };
    let ended = response(request, status, &done, true);
    stream.push(&format!("response.{status}"), json!({ "response": ended }));
    stream.steps
}

/// Renders a complete response.
pub(crate) fn whole(request: &ModelRequest) -> Value {
    if request.is_background() {
        return response(request, "queued", &[], false);
    }
    let status = if stopped_by(request).is_some() { "incomplete" } else { "completed" };
    response(request, status, &output(request), true)
}

/// The ids of the calls for which the client must send results.
pub(crate) fn calls(request: &ModelRequest) -> Vec<String> {
    let play = &request.playback;
    let may_call = play.has(Scenario::Agent)
        || play.has(Scenario::CustomTool)
        || request.turn.is_some()
        || !play.tools().is_empty();
    if !may_call {
        // The longest responses are not generated twice.
        return Vec::new();
    }
    let is_call = |item: &Value| matches!(word(item, "type"), "function_call" | "custom_tool_call");
    let output = output(request);
    output.iter().filter(|item| is_call(item)).map(|item| word(item, "call_id").into()).collect()
}

fn output(request: &ModelRequest) -> Vec<Value> {
    parts(request).into_iter().filter_map(TurnPart::into_block).map(|item| item.done).collect()
}

/// Why a response is incomplete.
fn stopped_by(request: &ModelRequest) -> Option<&'static str> {
    let scripted = request.turn.as_ref().map(Turn::stop_reason);
    match scripted {
        _ if request.playback.has(Scenario::MaxTokens) => Some("max_output_tokens"),
        Some("max_tokens") => Some("max_output_tokens"),
        Some("refusal" | "content_filter") => Some("content_filter"),
        _ => None,
    }
}

/// A background response, fetched by its id.
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

fn response(request: &ModelRequest, status: &str, output: &[Value], is_done: bool) -> Value {
    let is_cached = request.playback.has(Scenario::Cached);
    let cached = if is_cached { CACHE_READ_TOKENS } else { 0 };
    let reasoning = if request.playback.has(Scenario::Reasoning) { REASONING_TOKENS } else { 0 };
    let has_usage = is_done && !request.playback.has(Scenario::NoUsage);
    let usage = has_usage.then(|| usage(INPUT_TOKENS, cached, OUTPUT_TOKENS, reasoning));
    let details = stopped_by(request).filter(|_| status == "incomplete");
    let details = details.map(|reason| json!({ "reason": reason }));
    let echoed = |key: &str, absent: Value| match request.body.get(key) {
        None | Some(Value::Null) => absent,
        Some(value) => value.clone(),
    };
    json!({
        "id": format!("resp_{}", request.serial), "object": "response", "created_at": 1_767_225_600,
        "status": status, "background": request.is_background(), "error": null,
        "incomplete_details": details, "model": request.model, "output": output,
        "parallel_tool_calls": echoed("parallel_tool_calls", true.into()),
        "previous_response_id": echoed("previous_response_id", Value::Null),
        "store": echoed("store", true.into()), "tool_choice": echoed("tool_choice", "auto".into()),
        "tools": echoed("tools", json!([])), "usage": usage, "metadata": echoed("metadata", json!({})),
    })
}

fn parts(request: &ModelRequest) -> Vec<TurnPart<Item>> {
    let Some(turn) = &request.turn else {
        return items(request).into_iter().map(TurnPart::Block).collect();
    };
    let parts = turn.entries.iter().enumerate().filter_map(|(number, entry)| {
        Some(TurnPart::Block(match entry {
            Entry::Text(text) => {
                message(request, &format!("{number}"), &turns::split_text(text), None)
            }
            Entry::Thinking(text) => {
                let is_encrypted = list(&request.body, "include")
                    .iter()
                    .any(|included| included == "reasoning.encrypted_content");
                let pieces = turns::split_text(text);
                reasoning(&format!("rs_{}{number}", request.serial), &pieces, is_encrypted)
            }
            Entry::Call(call) if is_custom(request, &call.name) => custom_call(request, call),
            Entry::Call(call) => function_call(request, call),
            // This API has no redacted thinking.
            Entry::Redacted => return None,
            Entry::Cue(cue) => return Some(TurnPart::Cue(cue.clone())),
        }))
    });
    let mut parts: Vec<_> = parts.collect();
    let last = parts.iter_mut().rev().find_map(|part| match part {
        TurnPart::Block(item) => item.done.get_mut("status"),
        TurnPart::Cue(_) => None,
    });
    if let (Some(status), Some(_cut)) = (last, stopped_by(request)) {
        *status = "incomplete".into();
    }
    parts
}

/// Whether a tool of the request takes free-form input.
fn is_custom(request: &ModelRequest, name: &str) -> bool {
    let mut tools = list(&request.body, "tools").iter();
    tools.any(|tool| word(tool, "type") == "custom" && word(tool, "name") == name)
}

fn items(request: &ModelRequest) -> Vec<Item> {
    let play = &request.playback;
    let mut items = Vec::new();
    if play.has(Scenario::Reasoning) || play.has(Scenario::Thinking) {
        items.push(reasoning(&format!("rs_{}", request.serial), &[SUMMARY.into()], true));
    }
    if play.has(Scenario::Commentary) {
        items.push(message(request, "c", &[COMMENTARY.into()], Some("commentary")));
    }
    if play.has(Scenario::WebSearch) {
        items.push(web_search(request));
    }
    if play.has(Scenario::Agent) {
        if wants_compaction(request) {
            return vec![compaction(request)];
        }
        items.push(match agent::next_action(Api::Responses, request) {
            AgentAction::Say(text) => message(request, "m", &[text], None),
            AgentAction::Call { name, arguments } => {
                function_call(request, &Call { id: "1".into(), name, arguments })
            }
            AgentAction::Custom { name, input } => {
                custom_call(request, &Call { id: String::new(), name, arguments: input })
            }
        });
        return items;
    }
    if play.has(Scenario::CustomTool) {
        let input = "*** Begin Patch\n*** End Patch";
        let call = Call { id: String::new(), name: "apply_patch".into(), arguments: input.into() };
        items.push(custom_call(request, &call));
        return items;
    }
    let calls = play.tools();
    items.push(message(request, "m", &play.pieces(), None));
    items.extend(calls.iter().map(|call| function_call(request, call)));
    items
}

/// Codex requests a compaction with a last item of its own type.
fn wants_compaction(request: &ModelRequest) -> bool {
    let last = request.body.get("input").and_then(Value::as_array).and_then(|items| items.last());
    last.and_then(|item| item.get("type")).and_then(Value::as_str) == Some("compaction_trigger")
}

fn compaction(request: &ModelRequest) -> Item {
    let id = format!("cmp_{}", request.serial);
    let item = json!({ "id": id, "type": "compaction", "encrypted_content": "c2ltdWxhdGVk" });
    Item { added: item.clone(), events: Vec::new(), done: item }
}

fn message(request: &ModelRequest, mark: &str, pieces: &[String], phase: Option<&str>) -> Item {
    let id = format!("msg_{mark}{}", request.serial);
    let text = pieces.concat();
    let part = |text: &str| {
        if request.playback.has(Scenario::RejectedRequest) {
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
    let (delta, done, field) = if request.playback.has(Scenario::RejectedRequest) {
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

fn reasoning(id: &str, pieces: &[String], is_encrypted: bool) -> Item {
    let text = pieces.concat();
    let part = |text: &str| json!({ "type": "summary_text", "text": text });
    let item = |summary: Value| {
        let mut item = json!({ "id": id, "type": "reasoning", "summary": summary });
        if let Some(item) = item.as_object_mut().filter(|_| is_encrypted) {
            item.insert("encrypted_content".into(), "c2ltdWxhdGVk".into());
        }
        item
    };
    let mut events = vec![(
        "response.reasoning_summary_part.added",
        json!({ "summary_index": 0, "part": part("") }),
    )];
    events.extend(pieces.iter().map(|piece| {
        let delta = json!({ "summary_index": 0, "delta": piece });
        ("response.reasoning_summary_text.delta", delta)
    }));
    let done = json!({ "summary_index": 0, "text": text });
    events.push(("response.reasoning_summary_text.done", done));
    let done = json!({ "summary_index": 0, "part": part(&text) });
    events.push(("response.reasoning_summary_part.done", done));
    Item { added: item(json!([])), events, done: item(json!([part(&text)])) }
}

fn function_call(request: &ModelRequest, call: &Call) -> Item {
    let (id, call_id) = (
        format!("fc_{}{}", request.serial, call.id),
        format!("call_{}{}", request.serial, call.id),
    );
    let item = |status: &str, arguments: &str| json!({ "id": id, "type": "function_call", "status": status, "arguments": arguments, "call_id": call_id, "name": call.name });
    let (one, two) = call.halves();
    let events = vec![
        ("response.function_call_arguments.delta", json!({ "delta": one })),
        ("response.function_call_arguments.delta", json!({ "delta": two })),
        ("response.function_call_arguments.done", json!({ "arguments": call.arguments })),
    ];
    Item { added: item("in_progress", ""), events, done: item("completed", &call.arguments) }
}

fn custom_call(request: &ModelRequest, call: &Call) -> Item {
    let Call { id, name, arguments: input } = call;
    let (id, call_id) =
        (format!("ctc_{}{id}", request.serial), format!("call_{}{id}", request.serial));
    let item = |status: &str, input: &str| json!({ "id": id, "type": "custom_tool_call", "status": status, "call_id": call_id, "name": name, "input": input });
    let events = vec![
        ("response.custom_tool_call_input.delta", json!({ "delta": input })),
        ("response.custom_tool_call_input.done", json!({ "input": input })),
    ];
    Item { added: item("in_progress", ""), events, done: item("completed", input) }
}

fn web_search(request: &ModelRequest) -> Item {
    let item = |status: &str| json!({ "id": format!("ws_{}", request.serial), "type": "web_search_call", "status": status, "action": { "type": "search", "query": "weather in Paris" } });
    let events = vec![
        ("response.web_search_call.in_progress", json!({})),
        ("response.web_search_call.searching", json!({})),
        ("response.web_search_call.completed", json!({})),
    ];
    Item { added: item("in_progress"), events, done: item("completed") }
}
