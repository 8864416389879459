//! What the simulated providers respond and what they detect.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use axum::body::{Body, to_bytes};
use http::{Request, Response};
use keybridge_sim::{Exchange, Scenario, Sim};
use serde_json::{Value, json};
use tower::ServiceExt;

const APIS: [(&str, &str); 3] = [
    ("/anthropic/v1/messages", r#""max_tokens":9,"messages":[{"role":"user","content":"hi"}]"#),
    ("/openai/v1/chat/completions", r#""messages":[{"role":"user","content":"hi"}]"#),
    ("/openai/v1/responses", r#""input":"hi""#),
];

type Headers = &'static [(&'static str, &'static str)];

async fn ask(sim: &Sim, path: &str, headers: &[(&str, &str)], body: String) -> Response<Body> {
    let mut request = Request::post(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    sim.router().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap()
}

/// The body as far as it arrives, and whether it was aborted.
async fn text(response: Response<Body>) -> (String, bool) {
    match to_bytes(response.into_body(), usize::MAX).await {
        Ok(bytes) => (String::from_utf8_lossy(&bytes).into_owned(), false),
        Err(_broken) => (String::new(), true),
    }
}

#[tokio::test]
async fn every_scenario_plays_in_every_dialect() {
    for (_, word, _) in Scenario::ALL {
        if ["stalled", "no-head", "slow", "huge-event"].contains(word) {
            continue;
        }
        for (path, fields) in APIS {
            for stream in [true, false] {
                play(word, path, fields, stream).await;
            }
        }
    }
}

async fn play(word: &str, path: &str, fields: &str, stream: bool) {
    let sim = Sim::new();
    let body = format!(r#"{{"model":"sim-{word}","stream":{stream},{fields}}}"#);
    let response = ask(&sim, path, &[("authorization", "Bearer sk-x")], body).await;
    assert_eq!(response.status().as_u16(), 200, "{word} {path}");
    let is_json = response.headers()["content-type"] == "application/json";
    let (text, is_broken) = text(response).await;
    let what = format!("{word} {path} stream={stream}: {text}");
    assert_eq!(is_broken, stream && word.starts_with("broken"), "{what}");
    let is_valid = serde_json::from_str::<Value>(&text).is_ok();
    assert!(is_valid || !is_json || word == "empty-body", "{what}");
    let exchange = sim.last().unwrap();
    assert!(exchange.problems.is_empty() && exchange.finished, "{what}");
    assert!(is_broken || exchange.response_sent == text.as_bytes(), "{what}");
}

#[tokio::test]
async fn events_are_well_formed_and_numbered() {
    let sim = Sim::new();
    let body = r#"{"model":"sim-reasoning+parallel-tools","stream":true,"input":"hi"}"#;
    let headers = [("authorization", "Bearer sk-x")];
    let (text, _) = text(ask(&sim, APIS[2].0, &headers, body.into()).await).await;
    for (number, event) in text.split_terminator("\n\n").enumerate() {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["sequence_number"], number);
        assert_eq!(format!("event: {}", data["type"].as_str().unwrap()), name);
    }
    assert!(text.contains("event: response.completed"));
}

#[tokio::test]
async fn headers_and_bodies_that_no_client_sends_are_detected() {
    let sim = Sim::new();
    let (path, fields) = APIS[0];
    let body = || format!(r#"{{"model":"m",{fields}}}"#);
    let rows: [(Headers, u16, &str); 6] = [
        (&[], 401, "no credential"),
        (&[("x-api-key", "kb_secret")], 401, "bridge token"),
        (&[("x-api-key", "sk"), ("x-leak", "kb_secret")], 401, "x-leak"),
        (&[("x-api-key", "sk"), ("authorization", "Bearer sk")], 200, "two credentials"),
        (&[("x-api-key", "sk"), ("x-ai-governance-token", "x")], 401, "x-ai-governance-token"),
        (&[("x-api-key", "sk"), ("x-forwarded-for", "x"), ("cookie", "x")], 200, "cookie"),
    ];
    for (headers, status, problem) in rows {
        let response = ask(&sim, path, headers, body()).await;
        assert_eq!(response.status().as_u16(), status, "{headers:?}");
        let problems = sim.last().unwrap().problems.join("; ");
        assert!(problems.contains(problem), "{problem} in {problems}");
    }
    let orphan = json!({ "model": "m", "max_tokens": 1, "messages": [
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "t", "content": "" }] },
    ] });
    let typo = format!(r#"{{"model":"sim-thinkin",{fields}}}"#);
    for body in ["{".to_owned(), "{}".to_owned(), orphan.to_string(), typo] {
        let response = ask(&sim, path, &[("x-api-key", "sk")], body.clone()).await;
        assert_eq!(response.status().as_u16(), 400, "{body}");
    }
}

#[tokio::test]
async fn a_tool_result_without_its_call_is_rejected() {
    let sim = Sim::new();
    let call = json!({ "role": "assistant", "tool_calls": [{ "id": "t", "type": "function", "function": { "name": "f", "arguments": "{}" } }] });
    let result = json!({ "role": "tool", "tool_call_id": "t", "content": "" });
    let item = json!({ "type": "function_call", "call_id": "t", "name": "f", "arguments": "{}" });
    let output = json!({ "type": "function_call_output", "call_id": "t", "output": "" });
    let rows = [
        (APIS[1].0, json!({ "model": "m", "messages": [call, result] }), 200),
        (APIS[1].0, json!({ "model": "m", "messages": [result] }), 400),
        (APIS[2].0, json!({ "model": "m", "input": [item, output] }), 200),
        (APIS[2].0, json!({ "model": "m", "input": [output] }), 400),
        (APIS[2].0, json!({ "model": "m", "previous_response_id": "r", "input": [output] }), 200),
    ];
    for (path, body, status) in rows {
        let headers = [("authorization", "Bearer sk")];
        let response = ask(&sim, path, &headers, body.to_string()).await;
        assert_eq!(response.status().as_u16(), status, "{body}");
        assert_eq!(sim.last().unwrap().problems.is_empty(), status == 200);
    }
}

#[tokio::test]
async fn an_agent_calls_one_tool_and_reads_its_result() {
    let sim = Sim::new();
    let tools = json!([{ "name": "Bash", "input_schema": { "type": "object",
        "properties": { "command": { "type": "string" } }, "required": ["command"] } }]);
    let mut messages = vec![json!({ "role": "user", "content": "use a tool" })];
    let headers = [("x-api-key", "sk")];
    let body = json!({ "model": "claude", "max_tokens": 9, "tools": tools, "messages": messages });
    let (first, _) = text(ask(&sim, APIS[0].0, &headers, body.to_string()).await).await;
    let first: Value = serde_json::from_str(&first).unwrap();
    let call = &first["content"][1];
    assert_eq!((&call["name"], &first["stop_reason"]), (&"Bash".into(), &"tool_use".into()));
    messages.push(json!({ "role": "assistant", "content": first["content"] }));
    messages.push(json!({ "role": "user", "content": [
        { "type": "tool_result", "tool_use_id": call["id"], "content": "it works" }] }));
    let body = json!({ "model": "claude", "max_tokens": 9, "tools": tools, "messages": messages });
    let (second, _) = text(ask(&sim, APIS[0].0, &headers, body.to_string()).await).await;
    assert!(second.contains("The tool answered: it works"), "{second}");
}

#[tokio::test]
async fn the_oldest_exchanges_are_dropped_when_their_bodies_are_large() {
    let sim = Sim::new();
    let headers = [("authorization", "Bearer sk-x")];
    for prompt in ["a", "b", "c", "d"] {
        let words = prompt.repeat(20 << 20);
        let body = format!(r#"{{"model":"sim-text","input":"{words}"}}"#);
        let _answer = text(ask(&sim, APIS[2].0, &headers, body).await).await;
    }
    let kept = sim.exchanges();
    let first = |exchange: &Exchange| exchange.body[29];
    assert_eq!(kept.iter().map(first).collect::<Vec<_>>(), b"bcd");
    sim.clear();
    let large = format!(r#"{{"model":"sim-text","input":"{}"}}"#, "e".repeat(70 << 20));
    let _answer = text(ask(&sim, APIS[2].0, &headers, large).await).await;
    assert_eq!(sim.exchanges().len(), 1, "the latest one is kept whatever its size");
}

#[tokio::test]
async fn an_agent_calls_an_injected_tool_and_then_the_shell() {
    let schema = json!({ "type": "object", "properties": { "message": { "type": "string" } } });
    let shell = json!({ "type": "object", "properties": { "command": { "type": "string" } } });
    let names = [("bmcp_s_add", &schema), ("bmcp_s_echo", &schema), ("Bash", &shell)];
    let messages_tools: Value = names
        .iter()
        .map(|(name, schema)| json!({ "name": name, "input_schema": schema }))
        .collect();
    let chat_tools: Value = names
        .iter()
        .map(|(name, schema)| json!({ "type": "function", "function": { "name": name, "parameters": schema } }))
        .collect();
    let prompt = json!({ "role": "user", "content": "Use the injected tool, then the shell." });
    let rows = [
        (APIS[0].0, "messages", messages_tools.clone()),
        (APIS[1].0, "messages", chat_tools),
        // Namespaces in an input item, as Codex sends them.
        (APIS[2].0, "input", json!([{ "type": "namespace", "tools": messages_tools }])),
    ];
    for (path, list, tools) in rows {
        let sim = Sim::new();
        let mut body = json!({ "model": "m", "max_tokens": 9, list: [prompt] });
        if list == "input" {
            body["input"] = json!([{ "type": "additional_tools", "tools": tools }, prompt]);
        } else {
            body["tools"] = tools;
        }
        for (name, word) in
            [("bmcp_s_echo", "keybridge-injected-ok"), ("Bash", "keybridge-tool-ok")]
        {
            let headers = [("authorization", "Bearer sk-x")];
            let (answer, _) = text(ask(&sim, path, &headers, body.to_string()).await).await;
            assert!(answer.contains(&format!("\"name\":\"{name}\"")), "{path} {answer}");
            assert!(answer.contains(word), "{path} {answer}");
            let answer: Value = serde_json::from_str(&answer).unwrap();
            let more = answered(path, &answer);
            body[list].as_array_mut().unwrap().extend(more);
        }
        let headers = [("authorization", "Bearer sk-x")];
        let (answer, _) = text(ask(&sim, path, &headers, body.to_string()).await).await;
        assert!(answer.contains("The tool answered: it works"), "{path} {answer}");
    }
}

/// A response as it appears in the history, with the result of its call.
fn answered(path: &str, answer: &Value) -> Vec<Value> {
    if path == APIS[0].0 {
        let id = &answer["content"][1]["id"];
        let result = json!({ "type": "tool_result", "tool_use_id": id, "content": "it works" });
        let said = json!({ "role": "assistant", "content": answer["content"] });
        return vec![said, json!({ "role": "user", "content": [result] })];
    }
    if path == APIS[1].0 {
        let said = &answer["choices"][0]["message"];
        let id = &said["tool_calls"][0]["id"];
        return vec![
            said.clone(),
            json!({ "role": "tool", "tool_call_id": id, "content": "it works" }),
        ];
    }
    let call = &answer["output"][0];
    let output =
        json!({ "type": "function_call_output", "call_id": call["call_id"], "output": "it works" });
    vec![call.clone(), output]
}
