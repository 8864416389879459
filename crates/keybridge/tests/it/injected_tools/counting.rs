//! Requests that count tokens count what a model request would be sent with.

use base64::{Engine, engine::general_purpose::STANDARD};
use keybridge_providers::{
    bedrock::{AwsSource, BedrockApi, BedrockConfig, Rules},
    config::ProviderType,
};
use keybridge_sim::aws::{LONG_TERM, REGION};

use super::*;

const COUNT_MESSAGES: &str = "/anthropic/v1/messages/count_tokens";
const COUNT_RESPONSES: &str = "/openai/v1/responses/input_tokens";

/// The names of the tools in a request.
fn tools(body: &Value) -> Vec<String> {
    let tools = body["tools"].as_array().cloned().unwrap_or_default();
    tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
}

fn without(mut body: Value, fields: &[&str]) -> Value {
    for field in fields {
        body.as_object_mut().unwrap().remove(*field);
    }
    body
}

#[tokio::test]
async fn a_count_has_the_tools_that_a_model_request_has() {
    let tools_of = Tools::start().await;
    for (path, counting, fields) in [
        (MESSAGES, COUNT_MESSAGES, &["max_tokens", "stream"][..]),
        (RESPONSES, COUNT_RESPONSES, &["stream"]),
    ] {
        let body = request(path, false);
        tools_of.ask((path, false), &json!([[{ "text": "hi" }]])).await;
        let asked: Value = serde_json::from_slice(&tools_of.world.last_exchange().body).unwrap();
        assert!(!tools(&asked).is_empty());
        let answer = tools_of.answer(counting, &without(body, fields), &json!([])).await;
        assert_status!(answer, 200, "{counting}");
        let counted = tools_of.world.last_exchange();
        let counted: Value = serde_json::from_slice(&counted.body).unwrap();
        assert_eq!(without(asked, fields), counted, "{counting}");
    }
}

#[tokio::test]
async fn a_count_without_injected_tools_passes_as_it_came() {
    let tools_of = Tools::with(|config| config.tools.skip_models = vec!["small".into()]).await;
    for body in [r#"{ "model":"small-1","messages":[ ] }"#, "no json", "[1, 2]"] {
        let answer = tools_of.world.send(tools_of.world.centralized(COUNT_MESSAGES, body)).await;
        assert_status!(answer, 200, "{body}");
        assert_eq!(tools_of.world.last_exchange().body, body, "byte for byte");
    }
}

#[tokio::test]
async fn a_count_on_bedrock_has_the_injected_tools() {
    let tools_of = Tools::with(|config| {
        let anthropic = config.providers[0].base_url.to_string();
        let base = anthropic.trim_end_matches('/').trim_end_matches("/anthropic").to_owned();
        let mut provider = crate::support::provider(ProviderType::Bedrock, &base);
        provider.bedrock = Some(BedrockConfig {
            region: REGION.into(),
            api: BedrockApi::Runtime,
            model: "eu.anthropic.claude-sonnet-4-5-20250929-v1:0".into(),
            small_fast_model: None,
            source: AwsSource::Static {
                access_key_id: LONG_TERM.access_key_id.into(),
                secret_access_key: LONG_TERM.secret_access_key.into(),
                session_token: None,
            },
            assume_role: None,
            rules: Rules::built_in().unwrap(),
        });
        config.providers.push(provider);
    })
    .await;
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }] });
    let answer = tools_of.answer("/bedrock/v1/messages/count_tokens", &body, &json!([])).await;
    assert_status!(answer, 200);
    assert!(!answer.headers.contains_key("x-keybridge-estimated"));
    let exchanges = tools_of.exchanges();
    let call: Value = serde_json::from_slice(&exchanges.last().unwrap().body).unwrap();
    let sent = STANDARD.decode(call["input"]["invokeModel"]["body"].as_str().unwrap()).unwrap();
    let names = tools(&serde_json::from_slice(&sent).unwrap());
    assert!(names.iter().any(|name| name == "bmcp_sim_echo"), "{names:?}");
}
