//! The format of each scenario's response, as the providers document it.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use axum::body::{Body, to_bytes};
use http::Request;
use keybridge_sim::{
    CACHE_READ_TOKENS, CACHE_WRITE_1H_TOKENS, CACHE_WRITE_5M_TOKENS, INPUT_TOKENS, OUTPUT_TOKENS,
    REASONING_TOKENS, Sim,
};
use serde_json::{Value, json};
use tower::ServiceExt;

const MESSAGES: &str = "/anthropic/v1/messages";
const CHAT: &str = "/openai/v1/chat/completions";
const RESPONSES: &str = "/openai/v1/responses";

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

async fn send(sim: &Sim, method: &str, path: &str, body: String) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", "Bearer sk-test")
        .header("accept-encoding", "gzip")
        .body(Body::from(body))
        .unwrap();
    let response = sim.router().oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
    Answer { status: head.status.as_u16(), headers: head.headers, body }
}

async fn play(path: &str, scenario: &str, stream: bool) -> Answer {
    let mut body = json!({ "model": format!("sim-{scenario}"), "stream": stream });
    if path == RESPONSES {
        body["input"] = "hi".into();
    } else {
        body["messages"] = json!([{ "role": "user", "content": "hi" }]);
        body["max_tokens"] = 100.into();
        body["stream_options"] = json!({ "include_usage": true });
    }
    send(&Sim::new(), "POST", path, body.to_string()).await
}

/// The events of a well-formed stream, with their names.
async fn events(path: &str, scenario: &str) -> Vec<(String, Value)> {
    let answer = play(path, scenario, true).await;
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    assert!(answer.text().ends_with("\n\n"), "{scenario}");
    let mut events = Vec::new();
    for event in answer.text().split_terminator("\n\n") {
        let lines: Vec<&str> = event.lines().collect();
        let (name, data) = match lines[..] {
            [data] => ("", data),
            [name, data] => (name.strip_prefix("event: ").unwrap(), data),
            _ => panic!("{event}"),
        };
        let data = data.strip_prefix("data: ").unwrap();
        let data = if data == "[DONE]" { "\"[DONE]\"" } else { data };
        let data: Value = serde_json::from_str(data).unwrap();
        assert!(name.is_empty() || data["type"] == name, "{event}");
        events.push((name.to_owned(), data));
    }
    events
}

fn names(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().map(|(name, _)| name.as_str()).collect()
}

/// The values of a field in all events, joined.
fn joined(events: &[(String, Value)], pointer: &str) -> String {
    events.iter().filter_map(|(_, data)| data.pointer(pointer)?.as_str()).collect()
}

#[tokio::test]
async fn a_messages_stream_has_its_events_in_order() {
    let events = events(MESSAGES, "thinking+tool").await;
    let (names, block) = (names(&events), |index: usize| {
        events
            .iter()
            .filter(move |(name, data)| name == "content_block_start" && data["index"] == index)
            .map(|(_, data)| data["content_block"]["type"].clone())
            .collect::<Vec<_>>()
    });
    assert_eq!(names[..3], ["message_start", "content_block_start", "ping"]);
    assert_eq!(names[names.len() - 2..], ["message_delta", "message_stop"]);
    assert_eq!((block(0), block(1)), (vec!["thinking".into()], vec!["text".into()]));
    assert_eq!((block(2), block(3)), (vec!["tool_use".into()], vec![]));
    let starts = names.iter().filter(|name| **name == "content_block_start").count();
    let stops = names.iter().filter(|name| **name == "content_block_stop").count();
    assert_eq!((starts, stops), (3, 3));
    assert!(!joined(&events, "/delta/signature").is_empty());
    let arguments: Value = serde_json::from_str(&joined(&events, "/delta/partial_json")).unwrap();
    assert_eq!(arguments["city"], "Paris");
    let (start, end) = (&events[0].1["message"]["usage"], &events[events.len() - 2].1);
    assert_eq!(
        (&start["input_tokens"], &start["output_tokens"]),
        (&INPUT_TOKENS.into(), &1.into())
    );
    assert_eq!(end["usage"]["output_tokens"], OUTPUT_TOKENS);
    assert_eq!(end["delta"]["stop_reason"], "tool_use");
}

#[tokio::test]
async fn a_complete_message_has_the_same_blocks() {
    let cases = [
        ("text", "end_turn", json!(["text"])),
        ("redacted", "end_turn", json!(["redacted_thinking", "text"])),
        ("parallel-tools", "tool_use", json!(["text", "tool_use", "tool_use"])),
        ("empty-arguments", "tool_use", json!(["text", "tool_use"])),
        ("web-search", "end_turn", json!(["server_tool_use", "web_search_tool_result", "text"])),
        ("refusal", "refusal", json!(["text"])),
        ("max-tokens", "max_tokens", json!(["text"])),
    ];
    for (scenario, stop_reason, kinds) in cases {
        let message = play(MESSAGES, scenario, false).await.json();
        let blocks = message["content"].as_array().unwrap();
        let found: Vec<&Value> = blocks.iter().map(|block| &block["type"]).collect();
        assert_eq!(json!(found), kinds, "{scenario}");
        assert_eq!(message["stop_reason"], stop_reason, "{scenario}");
        let calls = blocks.iter().filter(|block| block["type"] == "tool_use");
        assert!(calls.clone().all(|call| call["input"].is_object()), "{scenario}");
        let streamed = events(MESSAGES, scenario).await;
        let (_, end) = streamed.iter().find(|(name, _)| name == "message_delta").unwrap();
        assert_eq!(end["delta"]["stop_reason"], stop_reason, "{scenario}");
    }
}

#[tokio::test]
async fn a_chat_stream_ends_with_usage_and_done() {
    let events = events(CHAT, "reasoning+parallel-tools").await;
    let [.., finish, usage, done] = &events[..] else { panic!("{events:?}") };
    assert_eq!(done.1, "[DONE]");
    assert_eq!(
        (&usage.1["choices"], &usage.1["usage"]["prompt_tokens"]),
        (&json!([]), &INPUT_TOKENS.into())
    );
    let details = &usage.1["usage"]["completion_tokens_details"];
    assert_eq!(details["reasoning_tokens"], REASONING_TOKENS);
    assert_eq!(finish.1["choices"][0]["finish_reason"], "tool_calls");
    let ids: std::collections::BTreeSet<String> =
        events.iter().filter_map(|(_, data)| Some(data.get("id")?.to_string())).collect();
    assert_eq!(ids.len(), 1, "one id in all chunks");
    assert!(!joined(&events, "/choices/0/delta/reasoning_content").is_empty());
    for index in [0, 1] {
        let arguments: String = events
            .iter()
            .filter_map(|(_, data)| data.pointer("/choices/0/delta/tool_calls/0"))
            .filter(|call| call["index"] == index)
            .filter_map(|call| call["function"]["arguments"].as_str())
            .collect();
        assert!(serde_json::from_str::<Value>(&arguments).unwrap()["city"].is_string());
    }
}

#[tokio::test]
async fn chat_usage_is_sent_only_on_request() {
    let body = r#"{"model":"sim-text","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let answer = send(&Sim::new(), "POST", CHAT, body.into()).await;
    assert!(answer.text().ends_with("data: [DONE]\n\n") && !answer.text().contains("usage"));
    let whole = play(CHAT, "max-tokens", false).await.json();
    assert_eq!(whole["usage"]["total_tokens"], INPUT_TOKENS + OUTPUT_TOKENS);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    let refusal = play(CHAT, "refusal", false).await.json();
    assert!(refusal["choices"][0]["message"]["refusal"].is_string());
}

#[tokio::test]
async fn a_responses_stream_adds_up_to_its_terminal_event() {
    let scenario = "reasoning+commentary+web-search+parallel-tools";
    let events = events(RESPONSES, scenario).await;
    assert_eq!(names(&events)[..2], ["response.created", "response.in_progress"]);
    let (last, completed) = events.last().unwrap();
    assert_eq!(last, "response.completed");
    let output = completed["response"]["output"].as_array().unwrap();
    let kinds: Vec<&str> = output.iter().map(|item| item["type"].as_str().unwrap()).collect();
    let expected =
        ["reasoning", "message", "web_search_call", "message", "function_call", "function_call"];
    assert_eq!(kinds, expected);
    assert_eq!(output[1]["phase"], "commentary");
    for (index, item) in output.iter().enumerate() {
        let own = |name: &str| {
            let found = events.iter().find(|(n, data)| n == name && data["output_index"] == index);
            found.unwrap_or_else(|| panic!("{name} {index}")).1["item"].clone()
        };
        assert_eq!(&own("response.output_item.done"), item);
        assert_eq!(own("response.output_item.added")["id"], item["id"]);
        let inner = events.iter().filter(|(_, data)| data["output_index"] == index);
        assert!(inner.filter_map(|(_, data)| data.get("item_id")).all(|id| *id == item["id"]));
    }
    for (number, (_, data)) in events.iter().enumerate() {
        assert_eq!(data["sequence_number"], number);
    }
    let usage = &completed["response"]["usage"];
    assert_eq!(usage["output_tokens_details"]["reasoning_tokens"], REASONING_TOKENS);
}

#[tokio::test]
async fn responses_have_custom_tools_and_may_be_incomplete() {
    let custom = play(RESPONSES, "custom-tool", false).await.json();
    assert_eq!(custom["output"][0]["type"], "custom_tool_call");
    assert!(custom["output"][0]["input"].is_string());
    let cut = events(RESPONSES, "max-tokens").await;
    let (name, data) = cut.last().unwrap();
    assert_eq!(name, "response.incomplete");
    assert_eq!(data["response"]["incomplete_details"]["reason"], "max_output_tokens");
    let refusal = events(RESPONSES, "refusal").await;
    assert!(names(&refusal).contains(&"response.refusal.delta"));
}

#[tokio::test]
async fn cached_usage_equals_the_documented_constants() {
    let messages = &play(MESSAGES, "cached", false).await.json()["usage"];
    assert_eq!(messages["cache_read_input_tokens"], CACHE_READ_TOKENS);
    let writes = CACHE_WRITE_5M_TOKENS + CACHE_WRITE_1H_TOKENS;
    assert_eq!(messages["cache_creation_input_tokens"], writes);
    assert_eq!(messages["cache_creation"]["ephemeral_1h_input_tokens"], CACHE_WRITE_1H_TOKENS);
    let chat = &play(CHAT, "cached", false).await.json()["usage"];
    assert_eq!(chat["prompt_tokens"], INPUT_TOKENS + CACHE_READ_TOKENS);
    let responses = &play(RESPONSES, "cached", false).await.json()["usage"];
    assert_eq!(responses["input_tokens_details"]["cached_tokens"], CACHE_READ_TOKENS);
    for path in [MESSAGES, CHAT, RESPONSES] {
        let usage = play(path, "no-usage", false).await.json()["usage"].clone();
        assert_eq!(usage, Value::Null, "{path}");
    }
}

#[tokio::test]
async fn errors_have_the_format_and_headers_of_their_provider() {
    let statuses = [400, 401, 402, 403, 404, 408, 409, 413, 422, 429, 500, 502, 503, 504, 529];
    for status in statuses {
        for (path, id) in
            [(MESSAGES, "request-id"), (CHAT, "x-request-id"), (RESPONSES, "x-request-id")]
        {
            let answer = play(path, &format!("error-{status}"), true).await;
            let body = answer.json();
            assert_eq!(answer.status, status);
            assert!(answer.headers.contains_key(id), "{path} {status}");
            assert!(body["error"]["message"].is_string() && body["error"]["type"].is_string());
            assert_eq!(body["type"] == "error", path == MESSAGES);
            let waits = matches!(status, 429 | 503 | 529);
            assert_eq!(answer.headers.contains_key("retry-after"), waits, "{path} {status}");
        }
    }
}

#[tokio::test]
async fn error_events_end_a_stream_early() {
    let cases = [
        (MESSAGES, "error-mid-stream", "/error/type", "api_error"),
        (MESSAGES, "overloaded-mid-stream", "/error/type", "overloaded_error"),
        (CHAT, "error-mid-stream", "/error/code", "server_error"),
        (RESPONSES, "error-mid-stream", "/code", "server_error"),
    ];
    for (path, scenario, pointer, kind) in cases {
        let events = events(path, scenario).await;
        let (_, last) = events.last().unwrap();
        assert_eq!(last.pointer(pointer).unwrap(), kind, "{path}");
        if path == RESPONSES {
            assert_eq!(last["sequence_number"], events.len() - 1);
        }
    }
}

#[tokio::test]
async fn unusual_framings_carry_the_same_events() {
    for path in [MESSAGES, CHAT, RESPONSES] {
        let crlf = play(path, "crlf", true).await;
        assert!(
            crlf.text().starts_with('\u{feff}') && crlf.text().contains("\r\n: keep-alive\r\n")
        );
        assert!(!crlf.text().replace("\r\n", "").contains('\n'));
        let lines = |text: &str| text.lines().filter(|line| line.starts_with("data: ")).count();
        let plain = play(path, "text", true).await;
        assert_eq!(lines(crlf.text()), lines(plain.text()), "{path}");
        let split = play(path, "split", true).await;
        let split = split.text().replace("sim-split", "sim-text");
        assert_eq!(split.len(), plain.body.len(), "{path}");
        let unknown = play(path, "unknown-events", true).await;
        assert!(unknown.text().contains("hologram"), "{path}");
        let truncated = play(path, "truncated", true).await;
        assert!(plain.body.len() > truncated.body.len() && truncated.text().ends_with("\n\n"));
        let cut = play(path, "truncated-mid-event", true).await;
        assert!(!cut.text().ends_with("\n\n"), "{path}");
    }
}

#[tokio::test]
async fn large_responses_have_the_documented_size() {
    for path in [MESSAGES, CHAT, RESPONSES] {
        let sizes =
            |answer: &Answer| answer.text().lines().map(str::len).max().unwrap_or_default() >> 20;
        assert_eq!(sizes(&play(path, "big-event", true).await), 1, "{path}");
        assert_eq!(sizes(&play(path, "huge-event", true).await), 17, "{path}");
        let long = events(path, "long").await;
        assert!(long.len() > 2_000, "{path}");
    }
}

#[tokio::test]
async fn unusual_complete_responses_match_their_description() {
    for path in [MESSAGES, CHAT, RESPONSES] {
        let page = play(path, "non-json", false).await;
        assert_eq!(
            (page.status, &page.headers["content-type"]),
            (200, &"text/html".parse().unwrap())
        );
        assert!(play(path, "empty-body", false).await.body.is_empty());
        let gzip = play(path, "gzip-answer", false).await;
        assert_eq!(gzip.headers["content-encoding"], "gzip");
        assert!(gzip.body.starts_with(&[0x1f, 0x8b]));
    }
}

#[tokio::test]
async fn a_background_response_is_fetched_by_its_id() {
    let sim = Sim::new();
    let body = r#"{"model":"gpt-9","background":true,"input":"hi"}"#;
    let queued = send(&sim, "POST", RESPONSES, body.into()).await.json();
    assert_eq!((&queued["status"], &queued["usage"]), (&"queued".into(), &Value::Null));
    let path = format!("{RESPONSES}/{}", queued["id"].as_str().unwrap());
    let fetched = send(&sim, "GET", &path, String::new()).await.json();
    assert_eq!((&fetched["id"], &fetched["model"]), (&queued["id"], &"gpt-9".into()));
    assert_eq!(fetched["status"], "completed");
    assert_eq!(fetched["usage"]["output_tokens"], OUTPUT_TOKENS);
}

#[tokio::test]
async fn other_routes_respond_plausibly_and_unknown_ones_are_not_found() {
    let sim = Sim::new();
    let rows = [
        ("POST", "/anthropic/v1/messages/count_tokens", "/input_tokens"),
        ("GET", "/anthropic/v1/models", "/data/0/id"),
        ("POST", "/anthropic/api/event_logging/v2/batch", "/accepted_count"),
        ("GET", "/openai/v1/models/gpt-9", "/id"),
        ("GET", "/compat/some/path/v1/models", "/data/0/id"),
        ("POST", "/openai/v1/conversations", "/id"),
        ("POST", "/openai/v1/responses/compact", "/usage/output_tokens"),
        ("GET", "/openai/v1/responses/r/input_items", "/data/0/id"),
        ("GET", "/copilot/models", "/data/0/id"),
        ("POST", "/copilot/mcp/x", "/path"),
        ("GET", "/copilot/.well-known/x", "/path"),
    ];
    for (method, path, pointer) in rows {
        let answer = send(&sim, method, path, "{}".into()).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.json().pointer(pointer).is_some(), "{path} {}", answer.text());
    }
    for path in ["/anthropic/v1/nothing", "/openai/v1/files", "/copilot/nothing", "/nothing"] {
        assert_eq!(send(&sim, "GET", path, String::new()).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn the_simulator_reports_what_it_received() {
    let sim = Sim::new();
    let scenarios = send(&sim, "GET", "/_sim/scenarios", String::new()).await.json();
    let listed = scenarios.as_array().unwrap().iter();
    assert!(listed.clone().any(|row| row["scenario"] == "error-529" && row["plays"].is_string()));
    let _page = send(&sim, "GET", "/anthropic/v1/models", String::new()).await;
    let exchanges = send(&sim, "GET", "/_sim/exchanges", String::new()).await.json();
    assert_eq!(exchanges.as_array().unwrap().len(), 1, "its own pages are not noted");
    assert_eq!(
        (&exchanges[0]["path"], &exchanges[0]["status"]),
        (&"/anthropic/v1/models".into(), &200.into())
    );
    let _cleared = send(&sim, "DELETE", "/_sim/exchanges", String::new()).await;
    assert!(sim.exchanges().is_empty());
}

#[tokio::test]
async fn what_the_simulator_shows_has_masked_credentials_that_can_be_compared() {
    let sim = Sim::new();
    let key = "sk-centralized-0123456789";
    let request = Request::get("/openai/v1/models?limit=2&key=sk-in-the-query-0123456789")
        .header("authorization", format!("Bearer {key}"))
        .header("x-other", "kb_0123456789abcdefghijklmnop")
        .body(Body::empty())
        .unwrap();
    let _refused = sim.router().oneshot(request).await.unwrap();
    let page = send(&sim, "GET", "/_sim/exchanges", String::new()).await;
    for secret in ["centralized", "in-the-query", "0123456789"] {
        assert!(!page.text().contains(secret), "{}", page.text());
    }
    let shown = &page.json()[0];
    assert_eq!(shown["path"], "/openai/v1/models?limit=2&key=sk-i...6789");
    assert_eq!(shown["headers"][0], json!(["authorization", "Bearer sk-c...6789"]));
    // `printf 'Bearer sk-centralized-0123456789' | sha256sum`
    let hash = "ae66daec403ce4f73fe7edc22effec84df691ca2729abf9af5670dbb0b674373";
    assert_eq!(shown["credentials"][0], json!(["authorization", hash]));
    let own = sim.last().unwrap().headers;
    assert_eq!(own[0].1, format!("Bearer {key}").into_bytes(), "in process it is as received");
    let page = send(&sim, "POST", &format!("/_sim/keys/{key}/429/30"), String::new()).await;
    assert_eq!(page.json()["key"], "sk-c...6789");
}
