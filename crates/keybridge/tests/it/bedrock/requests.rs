//! What agents of the day send, for each model on Bedrock: as the simulated Bedrock accepts it, and counted.

use base64::{Engine, engine::general_purpose::STANDARD};

use super::*;

const CLAUDE_CODE: &str = include_str!("claude_code.json");
const CLAUDE_CODE_FLAGS: &str = "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27,\
    per-turn-control-2026-07-01,mid-conversation-tool-changes-2026-07-01,thinking-token-count-2026-05-13,\
    advanced-tool-use-2025-11-20,effort-2025-11-24,prompt-caching-scope-2026-01-05";
const OPENCODE: &str = include_str!("opencode.json");
const OPENCODE_FLAGS: &str = "structured-outputs-2025-11-13";
const COUNT: &str = "/v1/messages/count_tokens";

/// Providers with models of each age; the first one counts tokens itself.
const MODELS: [(&str, &str); 9] = [
    ("haiku-4-5", "eu.anthropic.claude-haiku-4-5-20251001-v1:0"),
    ("sonnet-4", "anthropic.claude-sonnet-4-20250514-v1:0"),
    ("sonnet-4-5", "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    ("opus-4-5", "global.anthropic.claude-opus-4-5-20251101-v1:0"),
    ("opus-4-6", "us.anthropic.claude-opus-4-6-v1"),
    ("opus-4-7", "us.anthropic.claude-opus-4-7"),
    ("opus-4-8", "us.anthropic.claude-opus-4-8"),
    ("sonnet-5", "us.anthropic.claude-sonnet-5"),
    ("opus-5", "us.anthropic.claude-opus-5-5"),
];

async fn world_of_models() -> World {
    World::with(|config| {
        for (name, model) in MODELS {
            push(config, &LONG_TERM, |provider| {
                provider.name = name.into();
                provider.bedrock.as_mut().unwrap().model = model.into();
            });
        }
    })
    .await
}

async fn post(world: &World, path: &str, flags: &str, body: String) -> Answer {
    let bearer = format!("Bearer {}", world.token);
    let headers = [("authorization", bearer.as_str()), ("anthropic-beta", flags)];
    world.send(world.post(path, &headers, body)).await
}

#[tokio::test]
async fn requests_of_agents_are_accepted_by_every_model() {
    let world = world_of_models().await;
    for (name, model) in MODELS {
        for (body, flags) in [(CLAUDE_CODE, CLAUDE_CODE_FLAGS), (OPENCODE, OPENCODE_FLAGS)] {
            let answer = post(&world, &format!("/{name}/v1/messages"), flags, body.into()).await;
            assert_status!(answer, 200, "{model}");
            let exchange = world.last_exchange();
            assert_eq!(exchange.problems, Vec::<String>::new(), "{model}");
            let sent: Value = serde_json::from_slice(&exchange.body).unwrap();
            let client: Value = serde_json::from_str(body).unwrap();
            let tools = |body: &Value| -> Vec<Value> {
                let tools = body["tools"].as_array().unwrap().iter();
                tools.map(|tool| json!([tool["name"], tool["input_schema"]])).collect()
            };
            assert_eq!(tools(&sent), tools(&client), "{model}: no tool is lost");
            let texts =
                |body: &Value| body["messages"].to_string().matches("Today: Friday").count();
            assert_eq!(texts(&sent), texts(&client), "{model}: no entry is lost");
            assert_eq!(sent["system"][0], client["system"][0], "{model}: the prefix is the same");
            assert_eq!(
                sent["system"].as_array().unwrap().len(),
                client["system"].as_array().unwrap().len()
            );
        }
    }
}

#[tokio::test]
async fn tokens_are_counted_by_bedrock_or_estimated_and_marked() {
    let world = world_of_models().await;
    let mut body: Value = serde_json::from_str(CLAUDE_CODE).unwrap();
    for field in ["max_tokens", "stream"] {
        body.as_object_mut().unwrap().remove(field);
    }
    for (name, model) in MODELS {
        let before = world.sim.exchanges().len();
        let answer =
            post(&world, &format!("/{name}{COUNT}"), CLAUDE_CODE_FLAGS, body.to_string()).await;
        assert_status!(answer, 200, "{model}");
        let is_estimated = answer.headers.contains_key("x-keybridge-estimated");
        let asked = world.sim.exchanges().split_off(before);
        let counted = answer.json()["input_tokens"].as_u64().unwrap();
        assert_eq!(answer.json(), json!({ "input_tokens": counted }), "{model}");
        assert_eq!(is_estimated, !model.contains("-4-5-"), "{model}");
        if is_estimated {
            // An estimate is of the size of the request, rather too high.
            let bytes = u64::try_from(body.to_string().len()).unwrap();
            assert!(
                (bytes / 5..bytes / 2).contains(&counted),
                "{model}: {counted} of {bytes} bytes"
            );
            continue;
        }
        let [exchange] = asked.as_slice() else { panic!("{model}: {asked:?}") };
        assert_eq!(exchange.problems, Vec::<String>::new(), "{model}");
        let (_prefix, id) = model.split_once("anthropic.").unwrap();
        let path = format!("/bedrock/model/anthropic.{}/count-tokens", id.replace(':', "%3A"));
        assert_eq!(exchange.path_and_query, path);
        let call: Value = serde_json::from_slice(&exchange.body).unwrap();
        let sent = STANDARD.decode(call["input"]["invokeModel"]["body"].as_str().unwrap()).unwrap();
        assert_eq!(u64::try_from(sent.len() / 4).unwrap() / 10, counted / 10, "{model}");
    }
    assert!(world.records().await.is_empty(), "counting is free");
}

#[tokio::test]
async fn the_newer_protocol_counts_by_its_own_endpoint() {
    let world = world(&LONG_TERM, |provider| {
        let base = provider.base_url.to_string().replace("/bedrock", "/mantle");
        provider.base_url = base.parse().unwrap();
        provider.bedrock.as_mut().unwrap().api = BedrockApi::Mantle;
    })
    .await;
    let answer =
        post(&world, &format!("/bedrock{COUNT}"), CLAUDE_CODE_FLAGS, CLAUDE_CODE.into()).await;
    assert_status!(answer, 200);
    let exchange = world.last_exchange();
    assert_eq!(exchange.path_and_query, "/mantle/v1/messages/count_tokens");
    assert_eq!(exchange.body, CLAUDE_CODE, "byte for byte");
    assert!(!answer.headers.contains_key("x-keybridge-estimated"));
}

#[tokio::test]
async fn a_body_that_is_no_request_is_not_counted() {
    let world = world(&LONG_TERM, |_| {}).await;
    for body in ["", "[]", "no json"] {
        let answer = post(&world, &format!("/bedrock{COUNT}"), "", body.into()).await;
        assert_status!(answer, 400, "{body}");
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
    assert!(world.sim.last().is_none(), "AWS was not asked");
}
