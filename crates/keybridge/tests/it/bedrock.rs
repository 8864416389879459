//! Amazon Bedrock end to end: what AWS receives, what clients see and what is recorded.

mod requests;

use std::{io::Write, time::Duration};

use http::{HeaderName, HeaderValue};
use http_body_util::BodyExt;
use keybridge::config::Config;
use keybridge_mcp::McpStatus;
use keybridge_providers::{
    bedrock::{AwsSource, BedrockApi, BedrockConfig, Rules},
    config::{ProviderConfig, ProviderType},
};
use keybridge_sim::{
    INPUT_TOKENS, OUTPUT_TOKENS,
    aws::{AccessKey, CONTAINER, LONG_TERM, REGION},
    mcp_server::McpSim,
};
use serde_json::{Value, json};

use crate::support::{Answer, World, body, mcp_server, provider};

const PATH: &str = "/bedrock/v1/messages";
const MODEL: &str = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0";
const UPSTREAM: &str = "/bedrock/model/eu.anthropic.claude-sonnet-4-5-20250929-v1%3A0";

fn keys(key: &AccessKey) -> AwsSource {
    AwsSource::Static {
        access_key_id: key.access_key_id.into(),
        secret_access_key: key.secret_access_key.into(),
        session_token: key.session_token.map(Into::into),
    }
}

/// A provider on the simulated Bedrock, with an access key of the configuration.
fn bedrock(base: &str, key: &AccessKey) -> ProviderConfig {
    ProviderConfig {
        bedrock: Some(BedrockConfig {
            region: REGION.into(),
            api: BedrockApi::Runtime,
            model: MODEL.into(),
            small_fast_model: None,
            source: keys(key),
            assume_role: None,
            rules: Rules::built_in().unwrap(),
        }),
        ..provider(ProviderType::Bedrock, base)
    }
}

/// A world with such a provider, after a change.
async fn world(key: &AccessKey, change: impl FnOnce(&mut ProviderConfig)) -> World {
    World::with(|config| push(config, key, change)).await
}

fn push(config: &mut Config, key: &AccessKey, change: impl FnOnce(&mut ProviderConfig)) {
    let anthropic = config.providers[0].base_url.to_string();
    let mut provider = bedrock(anthropic.trim_end_matches("/anthropic"), key);
    change(&mut provider);
    config.providers.push(provider);
}

async fn ask(world: &World, scenario: &str, stream: bool) -> Answer {
    let bearer = format!("Bearer {}", world.token);
    let headers = [("authorization", bearer.as_str()), ("x-sim-scenario", scenario)];
    world.send(world.post(PATH, &headers, body(PATH, "text", stream))).await
}

/// A text without the ids that differ between responses.
fn without_ids(text: &str) -> String {
    let ids = serials(text);
    ids.into_iter().fold(text.to_owned(), |text, id| text.replace(&id, "ID"))
}

/// The serial numbers of 16 hexadecimal digits in a text.
fn serials(text: &str) -> Vec<String> {
    let is_id = |word: &&str| word.len() >= 16 && word.bytes().all(|b| b.is_ascii_hexdigit());
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    words.filter(is_id).map(|word| word.chars().take(16).collect()).collect()
}

#[tokio::test]
async fn answers_have_the_shape_of_the_messages_api() {
    let world = world(&LONG_TERM, |_| {}).await;
    for (count, (scenario, stream)) in [
        ("text", false),
        ("thinking+tool", true),
        ("split+parallel-tools+cached", true),
        ("long", true),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = ask(&world, scenario, stream).await;
        assert_status!(answer, 200);
        let operation = if stream { "invoke-with-response-stream" } else { "invoke" };
        let exchange = world.last_exchange();
        assert_eq!(exchange.path_and_query, format!("{UPSTREAM}/{operation}"));
        assert_eq!(exchange.problems, Vec::<String>::new());
        assert!(answer.headers.contains_key("request-id"));
        let type_expected =
            if stream { "text/event-stream; charset=utf-8" } else { "application/json" };
        assert_eq!(answer.headers["content-type"], type_expected);
        let bearer = format!("Bearer {}", world.token);
        let headers = [("authorization", bearer.as_str()), ("x-sim-scenario", scenario)];
        let path = "/anthropic/v1/messages";
        let same = world.post(path, &headers, body(path, "text", stream));
        let same = world.send(same).await.text().replace("sim-text", MODEL);
        assert_eq!(without_ids(&answer.text()), without_ids(&same), "{scenario}");
        let records = world.settled_records(2 * (count + 1)).await;
        let [.., ours, theirs] = records.as_slice() else { panic!("two records") };
        for field in ["outcome", "status_code", "stop_reason", "streaming"] {
            assert_eq!(ours[field], theirs[field], "{scenario}: {field}");
        }
        for (rows, fields) in [
            (
                "token_usages",
                &["input_tokens", "output_tokens", "cache_read_input_tokens", "quality", "extra"][..],
            ),
            ("tool_usages", &["tool", "arguments", "injected"]),
            ("thoughts", &["source", "content"]),
            ("prompts", &["prompt"]),
        ] {
            let pick = |record: &Value| -> Vec<Value> {
                let rows = record[rows].as_array().unwrap().iter();
                rows.map(|row| fields.iter().map(|field| row[*field].clone()).collect()).collect()
            };
            assert_eq!(pick(ours), pick(theirs), "{scenario}: {rows}");
        }
    }
}

#[tokio::test]
async fn the_record_names_the_access_key_and_never_the_secret() {
    let world = world(&CONTAINER, |_| {}).await;
    let answer = ask(&world, "text", true).await;
    assert_status!(answer, 200);
    let record = world.settled_record().await;
    assert_eq!(record["provider"], "bedrock");
    assert_eq!(record["provider_type"], "bedrock");
    assert_eq!(record["dialect"], "messages");
    assert_eq!(record["model"], "sim-text", "as requested");
    assert_eq!(record["model_served"], MODEL);
    assert_eq!(record["outcome"], "completed");
    assert_eq!(record["body_edits"], json!(["bedrock"]));
    assert_eq!(record["credential_kind"], "centralized");
    assert_eq!(record["credential_source"], "pool:aws");
    assert_eq!(record["credential_scheme"], "sigv4");
    assert_eq!(record["credential_hint"], "ASIA...0002");
    assert_eq!(record["credential_length"], 20);
    let usage = &record["token_usages"][0];
    assert_eq!(
        (&usage["input_tokens"], &usage["output_tokens"], &usage["quality"]),
        (&json!(INPUT_TOKENS), &json!(OUTPUT_TOKENS), &json!("exact"))
    );
    let text = format!("{record}{:?}", answer.headers);
    for secret in [CONTAINER.secret_access_key, CONTAINER.session_token.unwrap()] {
        assert!(!text.contains(secret));
    }
    let exchange = world.last_exchange();
    assert!(exchange.headers.iter().all(|(name, _)| !name.starts_with("anthropic-")));
}

#[tokio::test]
async fn events_are_relayed_at_once_and_a_client_that_leaves_cancels() {
    let world = world(&LONG_TERM, |_| {}).await;
    let bearer = format!("Bearer {}", world.token);
    let headers = [("authorization", bearer.as_str()), ("x-sim-scenario", "stalled")];
    let request = world.post(PATH, &headers, body(PATH, "text", true));
    let mut answer = crate::support::client(false).request(request).await.unwrap().into_body();
    let mut seen = String::new();
    // The provider sends only half of its events.
    while !seen.contains("content_block_delta") {
        let frame = tokio::time::timeout(Duration::from_secs(10), answer.frame()).await;
        let frame = frame.unwrap().unwrap().unwrap();
        seen.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    drop(answer);
    let record = world.settled_record().await;
    assert_eq!(record["outcome"], "cancelled");
    assert_eq!(record["token_usages"][0]["quality"], "partial");
}

#[tokio::test]
async fn an_event_of_many_megabytes_passes() {
    let world = world(&LONG_TERM, |_| {}).await;
    let answer = ask(&world, "huge-event", true).await;
    assert!(answer.body.len() > 17 << 20 && !answer.truncated);
    assert!(answer.body.ends_with(b"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"));
    assert_eq!(world.settled_record().await["outcome"], "completed");
}

#[tokio::test]
async fn errors_keep_their_status_and_take_the_form_of_the_messages_api() {
    let world = world(&LONG_TERM, |_| {}).await;
    for (count, (status, kind, name)) in [
        (400, "invalid_request_error", "ValidationException"),
        (403, "permission_error", "AccessDeniedException"),
        (404, "not_found_error", "ResourceNotFoundException"),
        (408, "timeout_error", "ModelTimeoutException"),
        (424, "invalid_request_error", "ModelErrorException"),
        (429, "rate_limit_error", "ThrottlingException"),
        (500, "api_error", "InternalServerException"),
        (503, "overloaded_error", "ServiceUnavailableException"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = ask(&world, &format!("error-{status}"), count % 2 == 0).await;
        assert_status!(answer, status);
        let request_id = answer.headers["request-id"].to_str().unwrap();
        let message = format!("{name}: The scenario asks for this error.");
        let expected = json!({
            "type": "error", "error": { "type": kind, "message": message }, "request_id": request_id,
        });
        assert_eq!(answer.json(), expected);
        let record = world.settled_records(count + 1).await.pop().unwrap();
        assert_eq!(
            (&record["outcome"], &record["status_code"]),
            (&json!("failed"), &json!(status))
        );
        assert_eq!(
            (&record["error_kind"], &record["error_message"]),
            (&json!(kind), &json!(message))
        );
    }
}

#[tokio::test]
async fn a_failure_within_a_stream_becomes_an_error_event() {
    let world = world(&LONG_TERM, |_| {}).await;
    for (count, (scenario, kind, says)) in [
        ("error-mid-stream", "api_error", "modelStreamErrorException: The simulated"),
        ("overloaded-mid-stream", "rate_limit_error", "throttlingException: The simulated"),
        ("broken", "api_error", "closed the stream before completion"),
        ("broken-between", "api_error", "closed the stream before completion"),
        ("truncated", "api_error", "closed the stream before completion"),
        ("truncated-mid-event", "api_error", "closed the stream before completion"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = ask(&world, scenario, true).await;
        assert_status!(answer, 200);
        let text = answer.text();
        assert!(text.starts_with("event: message_start\n"), "{scenario}: {text}");
        let last = text.trim_end().rsplit("\n\n").next().unwrap();
        let data = last.strip_prefix("event: error\ndata: ").unwrap_or_else(|| panic!("{text}"));
        let error: Value = serde_json::from_str(data).unwrap();
        assert_eq!(error["error"]["type"], kind, "{scenario}");
        assert!(error["error"]["message"].as_str().unwrap().contains(says), "{scenario}: {error}");
        assert_eq!(text.matches("event: error").count(), 1);
        let record = world.settled_records(count + 1).await.pop().unwrap();
        assert_eq!(record["outcome"], "failed", "{scenario}");
        assert_eq!(record["token_usages"][0]["quality"], "partial", "{scenario}");
    }
}

#[tokio::test]
async fn the_error_of_a_wrong_signature_quotes_no_signed_header() {
    let wrong = AccessKey { secret_access_key: "another/secret", ..CONTAINER };
    let world = world(&wrong, |_| {}).await;
    let answer = ask(&world, "text", true).await;
    assert_status!(answer, 403);
    let error = answer.json();
    assert_eq!(error["error"]["type"], "permission_error");
    let message = "AWS does not accept keybridge's signature (InvalidSignatureException)";
    assert_eq!(error["error"]["message"], message);
    let exchange = world.last_exchange();
    assert_eq!(exchange.problems, ["the signature is wrong"]);
    let told = String::from_utf8_lossy(&exchange.response_sent).into_owned();
    let token = CONTAINER.session_token.unwrap();
    assert!(told.contains(token), "AWS quotes it: {told}");
    let record = world.settled_record().await;
    assert_eq!(record["credential_kind"], "centralized");
    assert_eq!(record["upstream_status"], 403);
    assert!(!format!("{record}{}{:?}", answer.text(), answer.headers).contains(token));
}

#[tokio::test]
async fn a_retry_is_signed_again_and_a_query_or_arn_is_kept() {
    let arn = "arn:aws:bedrock:eu-central-1:123456789012:application-inference-profile/a1b2";
    let world = world(&LONG_TERM, |provider| {
        provider.max_retries = 2;
        provider.bedrock.as_mut().unwrap().model = arn.into();
    })
    .await;
    let bearer = format!("Bearer {}", world.token);
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-sim-scenario", "text"),
        ("x-sim-first", "one:503,429/10"),
        ("x-amz-date", "20200101T000000Z"),
        ("x-amzn-bedrock-trace", "ENABLED"),
    ];
    let request = world.post(&format!("{PATH}?beta=true"), &headers, body(PATH, "text", false));
    let answer = world.send(request).await;
    assert_status!(answer, 200);
    let record = world.settled_record().await;
    assert_eq!(record["attempts"], 3);
    let exchange = world.last_exchange();
    assert_eq!(exchange.problems, Vec::<String>::new());
    let model =
        "arn%3Aaws%3Abedrock%3Aeu-central-1%3A123456789012%3Aapplication-inference-profile%2Fa1b2";
    assert_eq!(exchange.path_and_query, format!("/bedrock/model/{model}/invoke"));
    let passed = exchange.headers.iter().find(|(name, _)| name == "x-amzn-bedrock-trace");
    assert_eq!(passed.unwrap().1, b"ENABLED");
}

#[tokio::test]
async fn an_encoded_request_is_decoded_for_its_translation() {
    let world = world(&LONG_TERM, |_| {}).await;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body(PATH, "text", false).as_bytes()).unwrap();
    let bearer = format!("Bearer {}", world.token);
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-encoding", "gzip"),
        ("x-sim-scenario", "text"),
    ];
    let answer = world.send(world.post(PATH, &headers, encoder.finish().unwrap())).await;
    assert_status!(answer, 200);
    let exchange = world.last_exchange();
    let sent = String::from_utf8(exchange.body.to_vec()).unwrap();
    assert!(sent.contains(r#""max_tokens": 1e3"#), "untouched: {sent}");
    assert!(sent.contains(r#"h\u0069"#), "untouched: {sent}");
}

#[tokio::test]
async fn byok_credentials_are_refused() {
    let world = world(&LONG_TERM, |_| {}).await;
    let with = |own: Option<(&'static str, &'static str)>| {
        let token = world.token.clone();
        let mut headers =
            vec![("x-ai-governance-token", token.as_str()), ("x-sim-scenario", "text")];
        headers.extend(own);
        world.post(PATH, &headers, body(PATH, "text", false))
    };
    for own in [("x-api-key", "sk-ant-own-key"), ("authorization", "Bearer own-key")] {
        let answer = world.send(with(Some(own))).await;
        assert_status!(answer, 403);
        assert_eq!(answer.headers["x-should-retry"], "false");
        let error = answer.json();
        assert_eq!(error["error"]["type"], "permission_error");
        assert!(error["error"]["message"].as_str().unwrap().contains("no credential of your own"));
    }
    assert!(world.sim.last().is_none(), "AWS was not asked");
    let answer = world.send(with(None)).await;
    assert_status!(answer, 200);
}

#[tokio::test]
async fn other_endpoints_do_not_exist() {
    let world = world(&LONG_TERM, |_| {}).await;
    for path in ["/bedrock/v1/messages/batches", "/bedrock/model/m/invoke", "/bedrock/v1/models"] {
        let answer = world.send(world.centralized(path, "{}")).await;
        assert_status!(answer, 404, "{path}");
        assert_eq!(answer.json()["error"]["type"], "not_found_error");
    }
    assert!(world.sim.last().is_none());
}

#[tokio::test]
async fn the_newer_protocol_gets_the_unchanged_request() {
    let world = world(&CONTAINER, |provider| {
        let base = provider.base_url.to_string().replace("/bedrock", "/mantle");
        provider.base_url = base.parse().unwrap();
        provider.bedrock.as_mut().unwrap().api = BedrockApi::Mantle;
    })
    .await;
    for stream in [false, true] {
        let bearer = format!("Bearer {}", world.token);
        let headers = [
            ("authorization", bearer.as_str()),
            ("x-sim-scenario", "thinking+tool"),
            ("anthropic-beta", "some-flag"),
        ];
        let sent = body(PATH, "text", stream);
        let request = world.post(&format!("{PATH}?beta=true&a=%20b"), &headers, sent.clone());
        let answer = world.send(request).await;
        assert_status!(answer, 200);
        let exchange = world.last_exchange();
        assert_eq!(exchange.problems, Vec::<String>::new());
        assert_eq!(exchange.path_and_query, "/mantle/v1/messages?beta=true&a=%20b");
        assert_eq!(exchange.body, sent, "byte for byte");
        assert_eq!(answer.body, exchange.response_sent, "byte for byte");
        let flag = exchange.headers.iter().find(|(name, _)| name == "anthropic-beta");
        assert_eq!(flag.unwrap().1, b"some-flag");
    }
    let records = world.settled_records(2).await;
    for record in records {
        assert_eq!(record["body_edits"], json!([]));
        assert_eq!(record["credential_source"], "pool:aws");
        assert_eq!(record["tool_usages"][0]["tool"], "get_weather");
    }
}

#[tokio::test]
async fn injected_tools_work_over_bedrock() {
    let mcp = McpSim::new();
    let server = mcp.start().await.unwrap();
    let mut mcp_server = mcp_server("sim", &server.url());
    let header = (HeaderName::from_static("x-some"), HeaderValue::from_static("value"));
    mcp_server.headers.push(header);
    let world = World::with(|config| {
        push(config, &LONG_TERM, |_| {});
        config.tools.servers.push(mcp_server);
    })
    .await;
    assert_eq!(world.bridge.mcp_states()[0].status, McpStatus::Ready);
    let turns = json!([
        [{ "thinking": "let me see" }, { "text": "I look. " },
         { "call": "bmcp_sim_echo", "arguments": { "message": "hi" } }],
        [{ "text": "It said: {result}" }],
    ]);
    for (count, stream) in [true, false].into_iter().enumerate() {
        let bearer = format!("Bearer {}", world.token);
        let turns = turns.to_string();
        let headers = [("authorization", bearer.as_str()), ("x-sim-turns", turns.as_str())];
        let answer = world.send(world.post(PATH, &headers, body(PATH, "text", stream))).await;
        let text = answer.text();
        assert_status!(answer, 200, "{text}");
        let said: String =
            text.split(r#""text":""#).filter_map(|part| part.split('"').next()).skip(1).collect();
        assert_eq!(said, "I look. It said: Echo: hi", "{text}");
        assert!(!text.contains("bmcp_"), "{text}");
        let record = world.settled_records(count + 1).await.pop().unwrap();
        assert_eq!((&record["outcome"], &record["inner_turns"]), (&json!("completed"), &json!(1)));
        assert_eq!(record["token_usages"].as_array().unwrap().len(), 2);
        assert_eq!(record["tool_usages"][0]["tool"], "echo");
        let edits = json!(["inject_tools", "parallel_tool_calls", "bedrock"]);
        assert_eq!(record["body_edits"], edits);
        for exchange in world.sim.exchanges() {
            assert_eq!(exchange.problems, Vec::<String>::new());
        }
    }
}
