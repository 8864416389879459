//! Scripted turns, the checks of a conversation, and the prefixes that a prompt cache sees.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::{collections::HashSet, time::Duration};

use axum::body::{Body, to_bytes};
use http::Request;
use http_body_util::BodyExt;
use keybridge_sim::{INPUT_TOKENS, OUTPUT_TOKENS, Sim};
use serde_json::{Value, json};
use tower::ServiceExt;

const MESSAGES: &str = "/anthropic/v1/messages";
const CHAT: &str = "/openai/v1/chat/completions";
const RESPONSES: &str = "/openai/v1/responses";

fn request(path: &str, script: &Value, body: &Value) -> Request<Body> {
    let request = Request::post(path).header("authorization", "Bearer sk-test");
    let request = request.header("x-sim-turns", script.to_string());
    request.body(Body::from(body.to_string())).unwrap()
}

/// The status and the body; the body is `None` if it was aborted.
async fn ask(sim: &Sim, path: &str, script: &Value, body: &Value) -> (u16, Option<String>) {
    let response = sim.router().oneshot(request(path, script, body)).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.ok();
    let text = bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (head.status.as_u16(), text)
}

async fn json(sim: &Sim, path: &str, script: &Value, body: &Value) -> Value {
    let (status, text) = ask(sim, path, script, body).await;
    let text = text.unwrap();
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// The data of the events of a stream.
async fn events(sim: &Sim, path: &str, script: &Value, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = true.into();
    let (status, text) = ask(sim, path, script, &body).await;
    let text = text.unwrap();
    assert_eq!(status, 200, "{text}");
    let lines = text.lines().filter_map(|line| line.strip_prefix("data: "));
    lines.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// The values of a field in all events, joined.
fn joined(events: &[Value], pointer: &str) -> String {
    events.iter().filter_map(|data| data.pointer(pointer)?.as_str()).collect()
}

fn prompt(path: &str) -> Value {
    let hi = json!([{ "role": "user", "content": "hi" }]);
    match path {
        RESPONSES => json!({ "model": "gpt-9", "input": hi }),
        _ => json!({ "model": "gpt-9", "max_tokens": 9, "messages": hi }),
    }
}

/// Adds a response and the results of its calls to a conversation.
fn continue_conversation(path: &str, body: &mut Value, answer: &Value, result: &str) {
    let add = |list: &mut Value, item: Value| list.as_array_mut().unwrap().push(item);
    match path {
        MESSAGES => {
            let content = &answer["content"];
            let calls = content.as_array().unwrap().iter();
            let results = calls.filter(|block| block["type"] == "tool_use").map(|call| {
                let content = json!([{ "type": "text", "text": result }]);
                json!({ "type": "tool_result", "tool_use_id": call["id"], "content": content })
            });
            let results: Value = results.collect();
            add(&mut body["messages"], json!({ "role": "assistant", "content": content }));
            add(&mut body["messages"], json!({ "role": "user", "content": results }));
        }
        CHAT => {
            let message = &answer["choices"][0]["message"];
            add(&mut body["messages"], message.clone());
            for call in message["tool_calls"].as_array().unwrap() {
                let result =
                    json!({ "role": "tool", "tool_call_id": call["id"], "content": result });
                add(&mut body["messages"], result);
            }
        }
        _ => {
            let output = answer["output"].as_array().unwrap();
            output.iter().for_each(|item| add(&mut body["input"], item.clone()));
            for call in output.iter().filter(|item| item["type"] == "function_call") {
                let output = json!({ "type": "function_call_output", "call_id": call["call_id"], "output": result });
                add(&mut body["input"], output);
            }
        }
    }
}

/// The text of a response.
fn text_of(path: &str, answer: &Value) -> String {
    match path {
        MESSAGES => joined(answer["content"].as_array().unwrap(), "/text"),
        CHAT => answer["choices"][0]["message"]["content"].as_str().unwrap_or_default().into(),
        _ => joined(answer["output"].as_array().unwrap(), "/content/0/text"),
    }
}

fn usage(path: &str, answer: &Value) -> (u64, u64) {
    let usage = |key: &str| answer["usage"][key].as_u64().unwrap();
    match path {
        CHAT => (usage("prompt_tokens"), usage("completion_tokens")),
        _ => (usage("input_tokens"), usage("output_tokens")),
    }
}

#[tokio::test]
async fn a_script_is_played_turn_after_turn_in_every_dialect() {
    let script = json!([
        [{ "text": "Look." }, { "call": "a", "arguments": { "x": 1 } }, { "call": "b" }],
        [{ "text": "Got {result}." }, { "call": "a", "arguments": "{\"cut\": tr" }],
        [{ "text": "Fine: {result}" }],
    ]);
    for path in [MESSAGES, CHAT, RESPONSES] {
        let (sim, mut body, mut ids) = (Sim::new(), prompt(path), HashSet::new());
        for (words, calls, result) in [("Look.", 2, "one"), ("Got one one.", 1, "two")] {
            let answer = json(&sim, path, &script, &body).await;
            assert_eq!(text_of(path, &answer), words, "{path}");
            assert_eq!(usage(path, &answer), (INPUT_TOKENS, OUTPUT_TOKENS));
            let made = call_ids(&answer);
            assert_eq!(made.len(), calls, "{path} {answer}");
            assert!(made.into_iter().all(|id| ids.insert(id)), "ids come once");
            continue_conversation(path, &mut body, &answer, result);
        }
        let answer = json(&sim, path, &script, &body).await;
        assert_eq!(text_of(path, &answer), "Fine: two");
        let (over, new) = (later(path, &body, "assistant"), later(path, &body, "user"));
        // After the last turn, and after a new prompt.
        assert_eq!(text_of(path, &json(&sim, path, &script, &over).await), "The script is over.");
        assert_eq!(text_of(path, &json(&sim, path, &script, &new).await), "Look.");
    }
}

/// The ids of the calls in a response.
fn call_ids(answer: &Value) -> Vec<String> {
    let text = answer.to_string();
    let words = text.split('"').filter(|word| *word != "call_id");
    words
        .filter(|word| word.starts_with("toolu_") || word.starts_with("call_"))
        .map(str::to_owned)
        .collect()
}

/// The conversation after another message of a role.
fn later(path: &str, body: &Value, role: &str) -> Value {
    let mut body = body.clone();
    let list = if path == RESPONSES { "input" } else { "messages" };
    let mut more = vec![json!({ "role": role, "content": "well" })];
    if path == RESPONSES && role == "assistant" {
        // Only a tool output separates two turns of the model here.
        more.push(json!({ "type": "function_call", "call_id": "x", "name": "f", "arguments": "" }));
        more.push(json!({ "type": "function_call_output", "call_id": "x", "output": "" }));
    }
    body[list].as_array_mut().unwrap().extend(more);
    body
}

#[tokio::test]
async fn a_stream_carries_the_content_of_the_complete_response() {
    let script = json!([[
        { "thinking": "I ponder this." },
        { "redacted": true },
        { "text": "Some words." },
        { "call": "f", "arguments": { "city": "Pärís" } },
        { "call": "g", "arguments": "no json" },
    ]]);
    let sim = Sim::new();
    let (thinking, arguments) = ("I ponder this.", "{\"city\":\"Pärís\"}no json");

    let streamed = events(&sim, MESSAGES, &script, &prompt(MESSAGES)).await;
    assert_eq!(joined(&streamed, "/delta/thinking"), thinking);
    assert_eq!(joined(&streamed, "/delta/text"), "Some words.");
    assert_eq!(joined(&streamed, "/delta/partial_json"), arguments);
    assert_eq!(joined(&streamed, "/delta/stop_reason"), "tool_use");
    let texts = streamed.iter().filter(|data| data.pointer("/delta/text").is_some());
    assert!((2..=3).contains(&texts.count()));
    let starts: Vec<&Value> =
        streamed.iter().filter(|data| data["type"] == "content_block_start").collect();
    let kinds: Vec<&str> =
        starts.iter().map(|data| data["content_block"]["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["thinking", "redacted_thinking", "text", "tool_use", "tool_use"]);
    assert!(starts.iter().enumerate().all(|(index, data)| data["index"] == index));

    let streamed = events(&sim, CHAT, &script, &prompt(CHAT)).await;
    assert_eq!(joined(&streamed, "/choices/0/delta/reasoning_content"), thinking);
    assert_eq!(joined(&streamed, "/choices/0/delta/content"), "Some words.");
    let pointer = "/choices/0/delta/tool_calls/0/function/arguments";
    assert_eq!(joined(&streamed, pointer), arguments);
    assert_eq!(joined(&streamed, "/choices/0/finish_reason"), "tool_calls");

    let mut body = prompt(RESPONSES);
    body["include"] = json!(["reasoning.encrypted_content"]);
    let streamed = events(&sim, RESPONSES, &script, &body).await;
    let deltas = |kind: &str| {
        let own: Vec<Value> =
            streamed.iter().filter(|data| data["type"] == kind).cloned().collect();
        joined(&own, "/delta")
    };
    assert_eq!(deltas("response.reasoning_summary_text.delta"), thinking);
    assert_eq!(deltas("response.output_text.delta"), "Some words.");
    assert_eq!(deltas("response.function_call_arguments.delta"), arguments);
    let output = &streamed.last().unwrap()["response"]["output"];
    assert!(output[0]["id"].as_str().unwrap().starts_with("rs_"));
    assert!(output[0]["encrypted_content"].is_string());
    assert_eq!(output.as_array().unwrap().len(), 4);
    let plain = json(&sim, RESPONSES, &script, &prompt(RESPONSES)).await;
    assert_eq!(plain["output"][0].get("encrypted_content"), None);
}

#[tokio::test]
async fn a_script_sets_the_stop_reason() {
    let sim = Sim::new();
    let script = json!([[{ "call": "f", "arguments": "{\"a\":" }, { "stop": "max_tokens" }]]);
    let message = json(&sim, MESSAGES, &script, &prompt(MESSAGES)).await;
    assert_eq!(message["stop_reason"], "max_tokens");
    let chat = json(&sim, CHAT, &script, &prompt(CHAT)).await;
    assert_eq!(chat["choices"][0]["finish_reason"], "length");
    let streamed = events(&sim, RESPONSES, &script, &prompt(RESPONSES)).await;
    let last = streamed.last().unwrap();
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(last["response"]["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(last["response"]["output"][0]["status"], "incomplete");
}

#[tokio::test]
async fn a_script_can_fail_in_several_ways() {
    let sim = Sim::new();
    for path in [MESSAGES, CHAT, RESPONSES] {
        let mut body = prompt(path);
        let (status, text) = ask(&sim, path, &json!([[{ "error": 429 }]]), &body).await;
        assert!(status == 429 && text.unwrap().contains("error"));
        let failing = json!([[{ "text": "AAA" }, { "error_event": true }, { "text": "BBB" }]]);
        let streamed = events(&sim, path, &failing, &body).await;
        assert!(streamed.last().unwrap().to_string().contains("The simulated provider failed."));
        let shown = json!(streamed).to_string();
        assert!(
            shown.contains("\"A\"") && !shown.contains("\"B\"") && !shown.contains("message_stop"),
            "{shown}"
        );
        assert_eq!(ask(&sim, path, &failing, &body).await.0, 500);
        let broken = json!([[{ "text": "AAA" }, { "break": true }]]);
        assert_eq!(ask(&sim, path, &broken, &body).await, (200, None));
        body["stream"] = true.into();
        assert_eq!(ask(&sim, path, &broken, &body).await, (200, None));
        let sent = sim.last().unwrap().response_sent;
        assert!(sent.ends_with(b"\n\n") && String::from_utf8_lossy(&sent).contains("\"A\""));
        for wrong in [json!({}), json!([[{ "txet": "x" }]]), json!([[{ "error": 200 }]])] {
            assert_eq!(ask(&sim, path, &wrong, &body).await.0, 400, "{wrong}");
        }
    }
}

#[tokio::test]
async fn a_held_response_continues_once_released() {
    let sim = Sim::new();
    let script = json!([[{ "text": "AAA" }, { "hold": "gate" }, { "text": "BBB" }]]);
    for (path, by_page) in [(MESSAGES, false), (CHAT, true), (RESPONSES, false)] {
        sim.clear();
        let mut body = prompt(path);
        body["stream"] = true.into();
        let response = sim.router().oneshot(request(path, &script, &body)).await.unwrap();
        let mut body = response.into_body();
        let mut seen = String::new();
        loop {
            let frame = tokio::time::timeout(Duration::from_millis(100), body.frame()).await;
            // Long enough for everything already sent: nothing else in this process is pending.
            let Ok(frame) = frame else { break };
            seen.push_str(&String::from_utf8_lossy(frame.unwrap().unwrap().data_ref().unwrap()));
        }
        assert!(seen.matches("\"A\"").count() == 3 && !seen.contains("\"B\""), "{seen}");
        if by_page {
            let page = Request::post("/_sim/release/gate").body(Body::empty()).unwrap();
            assert_eq!(sim.router().oneshot(page).await.unwrap().status().as_u16(), 200);
        } else {
            sim.release("gate");
        }
        let rest = body.collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&rest).contains("\"B\""), "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_is_never_released_aborts_the_response() {
    let sim = Sim::new();
    let script = json!([[{ "wait_ms": 500 }, { "hold": "gate" }, { "text": "second" }]]);
    let begun = tokio::time::Instant::now();
    assert_eq!(ask(&sim, MESSAGES, &script, &prompt(MESSAGES)).await, (200, None));
    assert!(begun.elapsed() >= Duration::from_millis(30_500));
    assert!(sim.last().unwrap().problems[0].contains("not released"));
}

#[tokio::test]
async fn a_response_is_continued_by_its_id() {
    let sim = Sim::new();
    let script = json!([[{ "call": "f" }], [{ "text": "Got {result}" }], [{ "text": "third" }]]);
    let first = json(&sim, RESPONSES, &script, &prompt(RESPONSES)).await;
    let call = &first["output"][0]["call_id"];
    let output =
        |call: &Value| json!({ "type": "function_call_output", "call_id": call, "output": "it" });
    let next = |id: &Value, input: Value| json!({ "model": "m", "previous_response_id": id, "input": input });
    let second = json(&sim, RESPONSES, &script, &next(&first["id"], json!([output(call)]))).await;
    assert_eq!(text_of(RESPONSES, &second), "Got it");
    assert_eq!(second["previous_response_id"], first["id"]);
    // The output of a call made earlier in the chain may be sent again.
    let again = next(&second["id"], json!([output(call)]));
    assert_eq!(text_of(RESPONSES, &json(&sim, RESPONSES, &script, &again).await), "third");
    let words = json!([output(call), { "role": "user", "content": "new" }]);
    let new = json(&sim, RESPONSES, &script, &next(&first["id"], words)).await;
    assert_eq!(new["output"][0]["type"], "function_call");

    let unknown = ask(&sim, RESPONSES, &script, &next(&"resp_x".into(), json!("hi"))).await;
    assert!(unknown.0 == 400 && unknown.1.unwrap().contains("previous_response_not_found"));
    let missing = ask(&sim, RESPONSES, &script, &next(&first["id"], json!("hi"))).await;
    assert!(missing.0 == 400 && missing.1.unwrap().contains("No tool output found"));
    let strange = json!([output(call), output(&"call_x".into())]);
    let strange = ask(&sim, RESPONSES, &script, &next(&first["id"], strange)).await;
    assert!(strange.0 == 400 && strange.1.unwrap().contains("No tool call found"));
    let mut unstored = prompt(RESPONSES);
    unstored["store"] = false.into();
    let unstored = json(&sim, RESPONSES, &json!([]), &unstored).await;
    let gone = ask(&sim, RESPONSES, &script, &next(&unstored["id"], json!("hi"))).await;
    assert_eq!(gone.0, 400);
    let queued =
        json(&sim, RESPONSES, &script, &json!({ "model": "m", "background": true, "input": "hi" }))
            .await;
    assert_eq!(queued["status"], "queued");
    let after = ask(&sim, RESPONSES, &script, &next(&queued["id"], json!("hi"))).await;
    assert_eq!(after.0, 200);
}

#[tokio::test]
async fn a_response_echoes_the_settings_of_its_request() {
    let sim = Sim::new();
    let mut body = prompt(RESPONSES);
    let plain = json(&sim, RESPONSES, &json!([]), &body).await;
    assert_eq!((&plain["tools"], &plain["store"]), (&json!([]), &true.into()));
    assert_eq!(plain["parallel_tool_calls"], true);
    let tools = json!([{ "type": "function", "name": "f", "parameters": {} }]);
    body["tools"] = tools.clone();
    body["parallel_tool_calls"] = false.into();
    body["store"] = false.into();
    let streamed = events(&sim, RESPONSES, &json!([]), &body).await;
    for event in [&streamed[0], streamed.last().unwrap()] {
        let response = &event["response"];
        assert_eq!(response["tools"], tools);
        assert_eq!(
            (&response["parallel_tool_calls"], &response["store"]),
            (&false.into(), &false.into())
        );
    }
}

/// The provider's error message, if a body is rejected.
async fn refusal(path: &str, body: &Value) -> Option<String> {
    let (status, text) = ask(&Sim::new(), path, &json!([]), body).await;
    let text = text.unwrap();
    assert_eq!(status == 400, text.contains("invalid_request_error"), "{text}");
    let words = serde_json::from_str::<Value>(&text).unwrap()["error"]["message"].clone();
    (status != 200).then(|| words.as_str().unwrap().to_owned())
}

fn with(path: &str, list: &str, values: Value) -> Value {
    let mut body = prompt(path);
    body[list] = values;
    body
}

#[tokio::test]
async fn changed_thinking_is_rejected() {
    let sim = Sim::new();
    let script = json!([[{ "thinking": "Deep." }, { "redacted": true }, { "call": "f" }]]);
    for scripted in [true, false] {
        let mut body = prompt(MESSAGES);
        if !scripted {
            body["model"] = "sim-thinking+redacted+tool".into();
        }
        let answer = if scripted {
            json(&sim, MESSAGES, &script, &body).await
        } else {
            let request = Request::post(MESSAGES).header("x-api-key", "sk-test");
            let request = request.body(Body::from(body.to_string())).unwrap();
            let response = sim.router().oneshot(request).await.unwrap();
            let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
            serde_json::from_slice(&bytes).unwrap()
        };
        assert!(answer["content"][0]["signature"].as_str().unwrap().len() >= 60);
        continue_conversation(MESSAGES, &mut body, &answer, "done");
        assert_eq!(refusal(MESSAGES, &body).await, None);
        let changes = [
            (
                "/messages/1/content/0/thinking",
                "messages.1.content.0: Invalid `signature` in `thinking` block",
            ),
            (
                "/messages/1/content/0/signature",
                "messages.1.content.0: Invalid `signature` in `thinking` block",
            ),
            (
                "/messages/1/content/1/data",
                "messages.1.content.1: Invalid `data` in `redacted_thinking` block",
            ),
        ];
        for (pointer, words) in changes {
            let mut changed = body.clone();
            let text = changed.pointer(pointer).unwrap().as_str().unwrap().to_owned();
            *changed.pointer_mut(pointer).unwrap() = format!("{text}.").into();
            assert_eq!(refusal(MESSAGES, &changed).await.as_deref(), Some(words));
        }
    }
}

#[tokio::test]
async fn messages_calls_need_results_in_the_next_message() {
    let user = json!({ "role": "user", "content": "hi" });
    let call = |ids: &[&str]| {
        let blocks: Value = ids
            .iter()
            .map(|id| json!({ "type": "tool_use", "id": id, "name": "f", "input": {} }))
            .collect();
        json!({ "role": "assistant", "content": blocks })
    };
    let result = |id: &str| json!({ "type": "tool_result", "tool_use_id": id, "content": "x" });
    let text = json!({ "type": "text", "text": "and" });
    let results = |blocks: &[Value]| json!({ "role": "user", "content": blocks });
    let said = json!({ "role": "assistant", "content": "well" });
    let unanswered = "ids were found without `tool_result` blocks immediately after";
    let rows = [
        (
            vec![
                user.clone(),
                call(&["a", "b"]),
                results(&[result("b"), result("a"), text.clone()]),
            ],
            "",
        ),
        (vec![user.clone(), call(&["a", "b"]), results(&[result("a")])], unanswered),
        (vec![user.clone(), call(&["a"])], unanswered),
        (vec![user.clone(), call(&["a"]), user.clone(), results(&[result("a")])], unanswered),
        (vec![user.clone(), call(&["a"]), results(&[text, result("a")])], unanswered),
        (
            vec![user.clone(), call(&["a"]), results(&[result("a"), result("c")])],
            "unexpected `tool_use_id`",
        ),
        (vec![user.clone(), call(&["a"]), results(&[result("a"), result("a")])], "a single result"),
        (
            vec![
                user.clone(),
                call(&["a"]),
                results(&[result("a")]),
                said,
                results(&[result("a")]),
            ],
            "unexpected",
        ),
        (
            vec![
                user,
                call(&["a"]),
                results(&[result("a")]),
                call(&["a"]),
                results(&[result("a")]),
            ],
            "must be unique",
        ),
    ];
    for (messages, words) in rows {
        let body = with(MESSAGES, "messages", json!(messages));
        let refused = refusal(MESSAGES, &body).await.unwrap_or_default();
        assert!(
            refused.contains(words) && words.is_empty() == refused.is_empty(),
            "{words}: {refused}"
        );
    }
}

#[tokio::test]
async fn chat_and_responses_calls_need_results() {
    let call = json!({ "role": "assistant", "tool_calls": [
        { "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" } },
        { "id": "b", "type": "function", "function": { "name": "f", "arguments": "{}" } },
    ] });
    let tool = |id: &str| json!({ "role": "tool", "tool_call_id": id, "content": "x" });
    let user = json!({ "role": "user", "content": "hi" });
    let missing = "The following tool_call_ids did not have response messages: b";
    let rows = [
        (json!([user, call, tool("b"), tool("a"), user]), ""),
        (json!([user, call, tool("a"), user, tool("b")]), missing),
        (json!([user, call, tool("a")]), missing),
        (json!([user, tool("a")]), "must be a response to a preceding message"),
    ];
    for (messages, words) in rows {
        let refused = refusal(CHAT, &with(CHAT, "messages", messages)).await.unwrap_or_default();
        assert!(refused.contains(words) && words.is_empty() == refused.is_empty(), "{refused}");
    }
    let item = |kind: &str, id: &str| json!({ "type": kind, "call_id": id, "name": "f", "arguments": "", "output": "" });
    let (call, output) = ("function_call", "function_call_output");
    let custom = "custom_tool_call";
    let rows = [
        (
            json!([
                item(call, "a"),
                item(custom, "b"),
                item("custom_tool_call_output", "b"),
                item(output, "a")
            ]),
            "",
        ),
        (json!([item(call, "a")]), "No tool output found for function call a."),
        (json!([item(custom, "a")]), "No tool output found for custom tool call a."),
        (json!([item(output, "a")]), "No tool call found"),
        (json!([{ "type": "item_reference", "id": "fc_1" }, item(output, "a")]), ""),
    ];
    for (input, words) in rows {
        let refused =
            refusal(RESPONSES, &with(RESPONSES, "input", input)).await.unwrap_or_default();
        assert!(refused.contains(words) && words.is_empty() == refused.is_empty(), "{refused}");
    }
    let mut body = with(
        RESPONSES,
        "input",
        json!([{ "type": "reasoning", "id": "rs_1", "summary": [] }, user]),
    );
    assert_eq!(refusal(RESPONSES, &body).await, None);
    body["store"] = false.into();
    let refused = refusal(RESPONSES, &body).await.unwrap();
    assert!(refused.starts_with("Item with id 'rs_1' not found."), "{refused}");
    body["input"][0]["encrypted_content"] = "x".into();
    assert_eq!(refusal(RESPONSES, &body).await, None);
}

/// A tool with a name.
type Wrap = fn(&str) -> Value;

#[tokio::test]
async fn tools_are_checked_as_by_each_provider() {
    let tools =
        |names: &[String], wrap: Wrap| -> Value { names.iter().map(|name| wrap(name)).collect() };
    let wraps: [(&str, Wrap); 3] = [
        (MESSAGES, |name| json!({ "name": name, "input_schema": { "type": "object" } })),
        (CHAT, |name| json!({ "type": "function", "function": { "name": name } })),
        (RESPONSES, |name| json!({ "type": "function", "name": name })),
    ];
    let numbered = |count: usize| (0..count).map(|n| format!("f{n}")).collect::<Vec<_>>();
    for (path, wrap) in wraps {
        let ask = async |names: &[String]| {
            refusal(path, &with(path, "tools", tools(names, wrap))).await.unwrap_or_default()
        };
        assert_eq!(ask(&numbered(128)).await, "");
        let many = ask(&numbered(129)).await;
        assert_eq!(many.contains("got an array with length 129 instead"), path != MESSAGES);
        assert_eq!(many.is_empty(), path == MESSAGES);
        let twice = ask(&["f".into(), "f".into()]).await;
        assert_eq!(twice == "tools: Tool names must be unique.", path == MESSAGES, "{twice}");
        assert!(ask(&["a.b".into()]).await.contains("pattern"));
        assert!(!ask(&["f".repeat(129)]).await.is_empty());
        assert_eq!(ask(&["f".repeat(65)]).await.is_empty(), path == MESSAGES);
        assert!(!ask(&[String::new()]).await.is_empty());
    }
}

#[tokio::test]
async fn a_longer_conversation_extends_the_prefix_of_a_shorter_one() {
    let script = json!([[{ "text": "a" }, { "call": "f" }], [{ "text": "b" }]]);
    for path in [MESSAGES, CHAT, RESPONSES] {
        let sim = Sim::new();
        let mut body = prompt(path);
        body["tools"] = match path {
            CHAT => json!([{ "type": "function", "function": { "name": "f" } }]),
            _ => json!([{ "name": "f", "type": "custom" }]),
        };
        if path == RESPONSES {
            body["tools"][0]["type"] = "function".into();
            body["input"] = "hi".into();
        }
        let answer = json(&sim, path, &script, &body).await;
        let earlier = sim.last().unwrap();
        if path == RESPONSES {
            body["input"] = json!([{ "role": "user", "content": "hi" }]);
        }
        continue_conversation(path, &mut body, &answer, "x");
        if path == MESSAGES {
            body["messages"][0]["content"] =
                json!([{ "type": "text", "text": "hi", "cache_control": { "type": "ephemeral" } }]);
        }
        body["temperature"] = 1.into();
        let _answer = json(&sim, path, &script, &body).await;
        let later = sim.last().unwrap();
        assert_eq!(earlier.prefix.len(), 2, "{path}");
        assert!(later.extends(&earlier) && !earlier.extends(&later) && !later.extends(&later));
        body["tools"].as_array_mut().unwrap().insert(
            0,
            match path {
                CHAT => json!({ "type": "function", "function": { "name": "g" } }),
                _ => json!({ "name": "g", "type": "function" }),
            },
        );
        let _answer = json(&sim, path, &script, &body).await;
        assert!(!sim.last().unwrap().extends(&earlier), "tools come first");
        let page = Request::get("/_sim/exchanges").body(Body::empty()).unwrap();
        let page = sim.router().oneshot(page).await.unwrap().into_body();
        let page = to_bytes(page, usize::MAX).await.unwrap();
        let page: Value = serde_json::from_slice(&page).unwrap();
        assert_eq!(page[0]["prefix"], json!(earlier.prefix));
    }
}
