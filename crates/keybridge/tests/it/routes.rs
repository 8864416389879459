//! Side routes, prefixes and what is recorded of them; the recorded usage of every scenario.

use http::Method;
use keybridge_sim::{
    CACHE_READ_TOKENS, CACHE_WRITE_1H_TOKENS, CACHE_WRITE_5M_TOKENS, INPUT_TOKENS, OUTPUT_TOKENS,
    REASONING_TOKENS,
};
use serde_json::{Value, json};

use crate::support::{ENDPOINTS, World, allow_unknown_objects, body};

async fn usage(path: &str, scenario: &str, stream: bool) -> (Value, Value) {
    let world = World::start().await;
    let answer = world.send(world.centralized(path, &body(path, scenario, stream))).await;
    assert_status!(answer, 200);
    let record = world.settled_record().await;
    assert_eq!(record["token_usages"].as_array().unwrap().len(), 1, "{record:#}");
    (record["token_usages"][0].clone(), record)
}

#[tokio::test]
async fn cached_and_reasoning_tokens_are_recorded_as_each_api_counts_them() {
    for stream in [true, false] {
        for path in ENDPOINTS {
            let (usage, _) = usage(path, "cached+reasoning", stream).await;
            let what = format!("{path} stream={stream}: {usage}");
            assert_eq!(usage["quality"], "exact", "{what}");
            assert_eq!(usage["input_tokens"], INPUT_TOKENS, "{what}");
            assert_eq!(usage["output_tokens"], OUTPUT_TOKENS, "{what}");
            assert_eq!(usage["cache_read_input_tokens"], CACHE_READ_TOKENS, "{what}");
            let (written, extra) = if path.ends_with("/messages") {
                (CACHE_WRITE_5M_TOKENS + CACHE_WRITE_1H_TOKENS, "ephemeral_1h_input_tokens")
            } else if path.ends_with("/responses") {
                (0, "output_reasoning")
            } else {
                (0, "completion_reasoning")
            };
            assert_eq!(usage["cache_write_input_tokens"], written, "{what}");
            let expected = if written > 0 { CACHE_WRITE_1H_TOKENS } else { REASONING_TOKENS };
            assert_eq!(usage["extra"][extra], expected, "{what}");
        }
    }
}

#[tokio::test]
async fn missing_usage_is_not_recorded_as_zero() {
    for path in ENDPOINTS {
        let (usage, record) = usage(path, "no-usage", true).await;
        assert_eq!(record["outcome"], "completed", "{path}");
        assert_eq!(usage["quality"], "partial", "{path}: {usage}");
        assert_eq!(usage["input_tokens"], Value::Null, "{path}: not known is not zero");
        assert!(usage["output_tokens"].as_u64().unwrap() > 0);
        assert!(usage["extra"]["output_estimated_from_text_bytes"].as_u64().unwrap() > 0);
    }
}

#[tokio::test]
async fn tools_and_thoughts_are_rows() {
    let rows = [
        (ENDPOINTS[0], "thinking+parallel-tools", 2, vec!["thinking"]),
        (ENDPOINTS[1], "reasoning+nonzero-index", 1, vec!["reasoning"]),
        (ENDPOINTS[2], "reasoning+commentary+tool", 1, vec!["reasoning_summary", "commentary"]),
        (ENDPOINTS[2], "custom-tool", 1, vec![]),
        (ENDPOINTS[2], "web-search", 1, vec![]),
        (ENDPOINTS[0], "web-search", 1, vec![]),
        (ENDPOINTS[0], "empty-arguments", 1, vec![]),
    ];
    for stream in [true, false] {
        for (path, scenario, tools, thoughts) in &rows {
            let (_, record) = usage(path, scenario, stream).await;
            let what = format!("{path} {scenario} {stream}: {record:#}");
            assert_eq!(record["tool_usages"].as_array().unwrap().len(), *tools, "{what}");
            let sources: Vec<&str> = record["thoughts"]
                .as_array()
                .unwrap()
                .iter()
                .map(|thought| thought["source"].as_str().unwrap())
                .collect();
            assert_eq!(sources, *thoughts, "{what}");
            assert_eq!(record["tool_usages"][0]["injected"], false);
        }
    }
}

#[tokio::test]
async fn content_is_not_recorded_if_the_configuration_says_so() {
    let world = World::with(|config| {
        config.record.prompts = false;
        config.record.tool_arguments = false;
        config.record.thoughts = false;
    })
    .await;
    let path = ENDPOINTS[0];
    let _answer = world.send(world.centralized(path, &body(path, "thinking+tool", true))).await;
    let record = world.settled_record().await;
    assert_eq!((&record["prompts"], &record["thoughts"]), (&json!([]), &json!([])));
    assert_eq!(record["tool_usages"][0]["tool"], "get_weather");
    assert_eq!(record["tool_usages"][0]["arguments"], Value::Null);
}

#[tokio::test]
async fn side_routes_pass_and_are_recorded_only_with_usage() {
    let world = World::with(allow_unknown_objects).await;
    let bearer = format!("Bearer {}", world.token);
    let headers = [("authorization", bearer.as_str())];
    let free = [
        (Method::GET, "/anthropic/v1/models?limit=2"),
        (Method::GET, "/anthropic/v1/models/claude-x"),
        (Method::POST, "/anthropic/v1/messages/count_tokens?beta=true"),
        (Method::POST, "/anthropic/api/event_logging/v2/batch"),
        (Method::GET, "/openai/v1/models"),
        (Method::POST, "/openai/v1/responses/input_tokens"),
        (Method::GET, "/api/v2/aibridge/openai/v1/responses/resp_1/input_items"),
    ];
    for (method, path) in free {
        let answer = world.send(world.request(method.clone(), path, &headers)).await;
        assert_status!(answer, 200, "{method} {path}");
        let exchange = world.last_exchange();
        let expected = path.strip_prefix("/api/v2/aibridge").unwrap_or(path);
        assert_eq!(
            (exchange.method, exchange.path_and_query),
            (method.to_string(), expected.into())
        );
        assert_eq!(answer.body, exchange.response_sent);
    }
    assert!(world.records().await.is_empty(), "nothing was billed");

    // A background response may be fetched several times, and counts once.
    for _again in 0..3 {
        let path = "/openai/v1/responses/resp_background";
        let answer = world.send(world.request(Method::GET, path, &headers)).await;
        assert_eq!(answer.json()["usage"]["output_tokens"], OUTPUT_TOKENS);
        world.side_request_recorded().await;
    }
    let records = world.records().await;
    let rows: usize = records.iter().map(|r| r["token_usages"].as_array().unwrap().len()).sum();
    assert_eq!(rows, 1, "{records:#?}");
}

#[tokio::test]
async fn compaction_is_recorded_before_it_is_sent_to_the_provider() {
    let world = World::start().await;
    let path = "/openai/v1/responses/compact";
    let answer = world.send(world.centralized(path, r#"{"model":"gpt-5","input":[]}"#)).await;
    assert_eq!(answer.json()["object"], "response.compaction");
    let record = world.settled_record().await;
    assert_eq!(
        (&record["endpoint"], &record["outcome"]),
        (&"/v1/responses/compact".into(), &"completed".into())
    );
    assert_eq!(record["token_usages"][0]["output_tokens"], OUTPUT_TOKENS);
}

/// Of the text `héllo` and a line feed.
const SHA256_OF_RESULT: &str = "b95becd154aa095f76c4ca47a5aeb8350d6dfcb838404edfc9dae06628de938d";

#[tokio::test]
async fn a_thread_follows_tool_results_of_the_same_user_only() {
    let world = World::start().await;
    let path = ENDPOINTS[1];
    let answer = world.send(world.centralized(path, &body(path, "tool", false))).await;
    let call = answer.json()["choices"][0]["message"]["tool_calls"][0]["id"].clone();
    let next = json!({ "model": "sim-text", "messages": [
        { "role": "user", "content": "go" },
        { "role": "assistant", "tool_calls": [{ "id": call, "type": "function", "function": { "name": "f", "arguments": "{}" } }] },
        { "role": "tool", "tool_call_id": call, "content": "héllo\n" },
    ] })
    .to_string();
    let _answer = world.send(world.centralized(path, &next)).await;
    let bob = format!("Bearer {}", crate::support::user_with_token(&world.ledger, "bob"));
    let _answer = world.send(world.post(path, &[("authorization", &bob)], next)).await;
    let records = world.settled_records(3).await;
    assert_eq!(records[1]["thread_id"], records[0]["id"]);
    assert_eq!(records[1]["parent_id"], records[0]["id"]);
    let usage = &records[0]["tool_usages"][0];
    assert_eq!(usage["result_bytes"], "héllo\n".len());
    assert_eq!(usage["result_interception_id"], records[1]["id"]);
    assert_eq!(usage["result_sha256"], SHA256_OF_RESULT);
    assert_eq!(records[1]["prompts"], json!([]));
    assert_eq!(
        records[2]["thread_id"], records[2]["id"],
        "another user's call starts a new thread"
    );
}
