use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

use super::translate;
use crate::bedrock::{AwsSource, BedrockApi, BedrockConfig, Rules};

const OPUS_4_5: &str = "global.anthropic.claude-opus-4-5-20251101-v1:0";
const SONNET_4_5: &str = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0";
const HAIKU_4_5: &str = "anthropic.claude-haiku-4-5-20251001-v1:0";
const SONNET_4: &str = "anthropic.claude-sonnet-4-20250514-v1:0";
const OPUS_4_6: &str = "anthropic.claude-opus-4-6-v1";

fn config(model: &str) -> BedrockConfig {
    BedrockConfig {
        region: "eu-central-1".into(),
        api: BedrockApi::Runtime,
        model: model.into(),
        small_fast_model: Some(HAIKU_4_5.into()),
        source: AwsSource::Chain,
        assume_role: None,
        rules: Rules::built_in().unwrap(),
    }
}

fn headers(betas: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for beta in betas {
        headers.append("anthropic-beta", HeaderValue::from_str(beta).unwrap());
    }
    headers
}

/// The translated body of a request that asks for this model.
fn body(model: &str, betas: &[&str], body: &Value) -> Value {
    let config = config(model);
    let text = body.to_string();
    let translated = translate(&config, &headers(betas), text.as_bytes()).unwrap();
    serde_json::from_slice(&translated.body).unwrap()
}

#[test]
fn what_bedrock_accepts_stays_byte_for_byte() {
    let config = config(SONNET_4_5);
    let text = "{ \"model\":\"claude-sonnet-4-5\", \"max_tokens\": 1e3,\"stream\":true,\n\
                \"messages\":[{\"role\":\"user\",\"content\":\"h\\u0069\"}],\"top_k\":123456789012345678901234 }";
    let translated = translate(&config, &HeaderMap::new(), text.as_bytes()).unwrap();
    assert_eq!(translated.model, SONNET_4_5);
    assert!(translated.streaming);
    let translated = String::from_utf8(translated.body).unwrap();
    let kept = "\"messages\":[{\"role\":\"user\",\"content\":\"h\\u0069\"}],\"top_k\":123456789012345678901234";
    assert!(translated.contains(kept), "{translated}");
    assert!(translated.contains("\"max_tokens\": 1e3"), "{translated}");
    let value: Value = serde_json::from_str(&translated).unwrap();
    assert_eq!(value["anthropic_version"], "bedrock-2023-05-31");
    assert!(value.get("model").is_none() && value.get("stream").is_none());
    assert!(value.get("anthropic_beta").is_none());
}

#[test]
fn requests_for_haiku_use_the_small_model() {
    let config = config(OPUS_4_5);
    for (request, model, streaming) in [
        (json!({ "model": "claude-3-5-Haiku-latest" }), HAIKU_4_5, false),
        (json!({ "model": "claude-opus-4-5", "stream": true }), OPUS_4_5, true),
        (json!({ "stream": false }), OPUS_4_5, false),
    ] {
        let translated = translate(&config, &HeaderMap::new(), request.to_string().as_bytes());
        let translated = translated.unwrap();
        assert_eq!((translated.model, translated.streaming), (model, streaming), "{request}");
    }
    let without = BedrockConfig { small_fast_model: None, ..config };
    let translated = translate(&without, &HeaderMap::new(), br#"{"model":"haiku"}"#).unwrap();
    assert_eq!(translated.model, OPUS_4_5);
}

#[test]
fn fields_that_bedrock_refuses_are_removed() {
    let request = json!({
        "model": "m", "max_tokens": 9, "metadata": { "user_id": "u" }, "service_tier": "auto",
        "container": "c", "inference_geo": "eu", "output_config": { "effort": "low" },
        "context_management": { "edits": [] }, "messages": [],
    });
    let flags = ["effort-2025-11-24,context-management-2025-06-27"];
    let removed = ["metadata", "service_tier", "container", "inference_geo"];
    for (model, betas, has_output_config, has_context_management) in [
        (OPUS_4_5, &flags[..], true, false),
        (SONNET_4_5, &flags, false, true),
        (HAIKU_4_5, &flags, false, true),
        (SONNET_4, &flags, false, false),
        // Without a flag since this model.
        (OPUS_4_6, &flags, true, false),
        (OPUS_4_6, &[], true, false),
        (OPUS_4_5, &[], false, false),
        (SONNET_4_5, &[], false, false),
    ] {
        let value = body(model, betas, &request);
        for field in removed {
            assert!(value.get(field).is_none(), "{model}: {field}");
        }
        assert_eq!(value.get("output_config").is_some(), has_output_config, "{model}");
        assert_eq!(value.get("context_management").is_some(), has_context_management, "{model}");
        assert_eq!(value["max_tokens"], 9);
        assert_eq!(value["messages"], json!([]));
    }
}

#[test]
fn only_flags_that_bedrock_accepts_go_into_the_body() {
    let betas = [
        "claude-code-20250219, interleaved-thinking-2025-05-14",
        "effort-2025-11-24,interleaved-thinking-2025-05-14,oauth-2025-04-20,context-1m-2025-08-07",
    ];
    let request = json!({ "model": "m", "anthropic_beta": ["of-the-body"] });
    let value = body(OPUS_4_5, &betas, &request);
    let passing = ["interleaved-thinking-2025-05-14", "effort-2025-11-24", "context-1m-2025-08-07"];
    assert_eq!(value["anthropic_beta"], json!(passing));
    let value = body(SONNET_4, &betas, &request);
    assert_eq!(
        value["anthropic_beta"],
        json!(["interleaved-thinking-2025-05-14", "context-1m-2025-08-07"])
    );
    assert!(body(SONNET_4, &["oauth-2025-04-20"], &request).get("anthropic_beta").is_none());
}

#[test]
fn adaptive_thinking_becomes_a_budget_for_models_without_it() {
    let request = |max_tokens: Value, effort: Option<&str>| {
        let mut request =
            json!({ "model": "m", "max_tokens": max_tokens, "thinking": { "type": "adaptive" } });
        if let Some(effort) = effort {
            request["output_config"] = json!({ "effort": effort });
        }
        request
    };
    let enabled = |budget: u64| json!({ "type": "enabled", "budget_tokens": budget });
    let disabled = json!({ "type": "disabled" });
    for (max_tokens, effort, expected) in [
        (json!(10_000), Some("low"), enabled(2_000)),
        (json!(10_000), Some("medium"), enabled(5_000)),
        (json!(10_000), Some("high"), enabled(8_000)),
        (json!(10_000), None, enabled(8_000)),
        (json!(10_000), Some("odd"), enabled(8_000)),
        (json!(10_000), Some("max"), enabled(9_500)),
        (json!(1_280), None, enabled(1_024)),
        (json!(1_279), None, disabled.clone()),
        (json!(5_119), Some("low"), disabled.clone()),
        (json!(5_120), Some("low"), enabled(1_024)),
        (json!(1e4), None, enabled(8_000)),
        (json!(null), None, disabled.clone()),
    ] {
        for model in [OPUS_4_5, SONNET_4_5, HAIKU_4_5, SONNET_4] {
            let value = body(model, &[], &request(max_tokens.clone(), effort));
            assert_eq!(value["thinking"], expected, "{model} {max_tokens} {effort:?}");
        }
        let value = body(OPUS_4_6, &[], &request(max_tokens, effort));
        assert_eq!(value["thinking"], json!({ "type": "adaptive" }));
    }
    let given = json!({ "model": "m", "thinking": { "type": "enabled", "budget_tokens": 2_000 } });
    assert_eq!(body(SONNET_4, &[], &given)["thinking"], given["thinking"]);
}

#[test]
fn the_rules_of_an_unnamed_profile_follow_the_requested_model() {
    let arn = "arn:aws:bedrock:eu-central-1:123456789012:application-inference-profile/abc123";
    let thinking = json!({ "type": "adaptive" });
    let request =
        |model: &str| json!({ "model": model, "max_tokens": 4_000, "thinking": thinking });
    assert_eq!(body(arn, &[], &request("claude-opus-4-6"))["thinking"], thinking);
    assert_eq!(body(arn, &[], &request("claude-opus-4-5"))["thinking"]["budget_tokens"], 3_200);
}

#[test]
fn custom_rules_replace_the_built_in_ones() {
    let text = r#"
        as_of = "2027-01-01"
        betas = [{ flag = "new-flag", models = ["opus"] }]
        fields = [{ in = "request", names = ["speed"], models = [] }]
        thinking = { not_adaptive = [], default_percent = 1, smallest_budget = 1, percent = {} }
    "#;
    let config = BedrockConfig { rules: Rules::read(text).unwrap(), ..config(SONNET_4) };
    let request = br#"{"model":"m","metadata":{},"speed":"fast","thinking":{"type":"adaptive"}}"#;
    let translated = translate(&config, &headers(&["new-flag"]), request).unwrap();
    let value: Value = serde_json::from_slice(&translated.body).unwrap();
    assert_eq!(
        value,
        json!({ "metadata": {}, "thinking": { "type": "adaptive" }, "anthropic_version": "bedrock-2023-05-31" })
    );
    assert!(Rules::read("as_of = \"2027-01-01\"").is_err());
    assert!(Rules::read(&format!("{text}\nunknown = 1")).is_err());
}
