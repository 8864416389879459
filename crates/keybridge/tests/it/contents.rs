//! Contents that are recorded only where the configuration says so: results of tools and texts of answers.

use keybridge::config::Config;
use serde_json::{Value, json};

use crate::support::{ENDPOINTS, World, body};

const CHAT: &str = ENDPOINTS[1];

fn everything(config: &mut Config) {
    config.record.answers = true;
    config.record.tool_results = true;
}

/// The text of an answer of the simulated provider.
fn text(path: &str, answer: &Value) -> String {
    let text = match path {
        "/anthropic/v1/messages" => &answer["content"][0]["text"],
        "/openai/v1/responses" => &answer["output"][0]["content"][0]["text"],
        _ => &answer["choices"][0]["message"]["content"],
    };
    text.as_str().unwrap_or_else(|| panic!("{answer:#}")).to_owned()
}

#[tokio::test]
async fn the_text_of_an_answer_is_recorded_if_that_is_configured() {
    for path in ENDPOINTS {
        let world = World::with(everything).await;
        let whole = world.send(world.centralized(path, &body(path, "text", false))).await;
        let text = text(path, &whole.json());
        assert_status!(world.send(world.centralized(path, &body(path, "text", true))).await, 200);
        let records = world.settled_records(2).await;
        for record in &records {
            let answers = record["answers"].as_array().unwrap();
            assert_eq!(answers.len(), 1, "{path}: {record:#}");
            assert_eq!(answers[0]["content"], text, "{path}");
            let id = &record["token_usages"][0]["provider_response_id"];
            assert_eq!(&answers[0]["provider_response_id"], id, "{path}");
        }
    }
}

#[tokio::test]
async fn nothing_more_is_recorded_by_default() {
    for path in ENDPOINTS {
        let world = World::start().await;
        for stream in [false, true] {
            world.send(world.centralized(path, &body(path, "text", stream))).await;
        }
        for record in world.settled_records(2).await {
            assert_eq!(record["answers"], Value::Null, "{path}: {record:#}");
        }
    }
    let record = with_result(&World::start().await, "private").await;
    assert_eq!(record["tool_usages"][0]["result"], Value::Null);
    assert!(!record.to_string().contains("private"));
}

#[tokio::test]
async fn an_answer_that_was_cut_off_is_recorded_as_far_as_it_came() {
    for path in ENDPOINTS {
        let world = World::with(everything).await;
        let whole = world.send(world.centralized(path, &body(path, "text", false))).await;
        let text = text(path, &whole.json());
        world.send(world.centralized(path, &body(path, "truncated-mid-event", true))).await;
        let record = world.settled_records(2).await.pop().unwrap();
        let answer = record["answers"][0]["content"].as_str().unwrap_or_default();
        assert!(!answer.is_empty() && text.starts_with(answer), "{path}: {answer} of {text}");
    }
}

/// The record of a tool call whose result the next request carries twice.
async fn with_result(world: &World, result: &str) -> Value {
    let answer = world.send(world.centralized(CHAT, &body(CHAT, "tool", false))).await;
    let call = answer.json()["choices"][0]["message"]["tool_calls"][0]["id"].clone();
    let next = json!({ "model": "sim-text", "messages": [
        { "role": "user", "content": "go" },
        { "role": "assistant", "tool_calls": [{ "id": call, "type": "function", "function": { "name": "f", "arguments": "{}" } }] },
        { "role": "tool", "tool_call_id": call, "content": result },
    ] })
    .to_string();
    for _again in 0..2 {
        assert_status!(world.send(world.centralized(CHAT, &next)).await, 200);
    }
    world.settled_records(3).await.remove(0)
}

#[tokio::test]
async fn a_result_is_recorded_masked_and_within_its_limit() {
    let world = World::with(everything).await;
    let record = with_result(&world, "héllo\n").await;
    assert_eq!(record["tool_usages"][0]["result"], "héllo\n", "{record:#}");

    let world = World::with(|config| {
        everything(config);
        config.record.contents.result = 1_000;
        config.record.contents.answer = 128;
    })
    .await;
    let secret = world.token.clone();
    let record = with_result(&world, &format!("{secret} {}", "x".repeat(2_000))).await;
    let result = record["tool_usages"][0]["result"].as_str().unwrap();
    assert!(!result.contains(&secret), "{result}");
    assert!(result.len() <= 1_000 && result.contains("…[cut: "), "{result}");
}

#[tokio::test]
async fn answers_and_results_go_with_their_record() {
    let world = World::with(everything).await;
    with_result(&world, "gone").await;
    let file = world.dir().join("keybridge.db");
    let rows = || {
        let connection = rusqlite::Connection::open(&file).unwrap();
        connection
            .query_row("SELECT count(*) FROM answers", [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    assert!(rows() > 0);
    world.ledger.apply_retention(jiff::Timestamp::now()).unwrap();
    assert_eq!(rows(), 0);
}
