//! The same bytes in and out, in both directions, for every scenario of the simulated provider.

use std::io::Write;

use crate::support::{ENDPOINTS, World, body};

/// Scenarios whose responses end quickly on their own.
const SCENARIOS: &[&str] = &[
    "text",
    "thinking",
    "redacted",
    "tool",
    "parallel-tools",
    "nonzero-index",
    "empty-arguments",
    "custom-tool",
    "reasoning",
    "commentary",
    "web-search",
    "cached",
    "refusal",
    "max-tokens",
    "error-400",
    "error-401",
    "error-402",
    "error-403",
    "error-404",
    "error-408",
    "error-409",
    "error-413",
    "error-422",
    "error-429",
    "error-500",
    "error-502",
    "error-503",
    "error-504",
    "error-529",
    "error-mid-stream",
    "overloaded-mid-stream",
    "big-event",
    "long",
    "crlf",
    "split",
    "no-usage",
    "unknown-events",
    "non-json",
];

fn lower(headers: &[(String, Vec<u8>)], name: &str) -> Vec<Vec<u8>> {
    headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone()).collect()
}

/// Sends a request for a scenario and compares the bytes on both sides, in both directions.
async fn compare(world: &World, path: &str, scenario: &str, stream: bool) {
    let what = format!("{path} {scenario} stream={stream}");
    let sent = body(path, scenario, stream);
    let own = [("x-ai-governance-token", world.token.as_str()), ("authorization", "Bearer sk-own")];
    let request = match scenario {
        // The company's refused key is the bridge's to explain.
        "error-401" => world.post(path, &own, sent.clone()),
        _ => world.centralized(path, &sent),
    };
    let answer = world.send(request).await;
    let exchange = world.last_exchange();
    assert_eq!(exchange.body, sent.as_bytes(), "request of {what}");
    assert_eq!(exchange.problems, Vec::<String>::new(), "{what}");
    assert_eq!(answer.body, exchange.response_sent, "answer of {what}");
    assert_status!(answer, exchange.status, "{what}");
    for (name, value) in exchange.response_headers.iter().filter(|(name, _)| name != "set-cookie") {
        let mut passed = answer.headers.get_all(name.as_str()).iter();
        assert!(passed.any(|passed| passed.as_bytes() == value.as_slice()), "{name} of {what}");
    }
    assert!(!answer.headers.contains_key("set-cookie"), "{what}");
    assert!(answer.headers.contains_key("x-keybridge-interception-id"), "{what}");
}

#[tokio::test]
async fn every_scenario_passes_byte_for_byte() {
    let world = World::start().await;
    for path in ENDPOINTS {
        for stream in [true, false] {
            for scenario in SCENARIOS {
                compare(&world, path, scenario, stream).await;
            }
        }
    }
}

#[tokio::test]
async fn an_event_larger_than_the_limit_passes() {
    let world = World::start().await;
    for path in ENDPOINTS {
        let answer = world.send(world.centralized(path, &body(path, "huge-event", true))).await;
        let exchange = world.last_exchange();
        assert!(answer.body.len() > 16 * 1024 * 1024, "{path}: {}", answer.body.len());
        let tail = answer.body.slice(answer.body.len() - 200..);
        assert!(answer.body == exchange.response_sent, "{path}: {tail:?}");
    }
}

#[tokio::test]
async fn encoded_requests_pass_unchanged_and_are_read() {
    let world = World::start().await;
    let path = "/openai/v1/responses";
    let plain = body(path, "text", true);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain.as_bytes()).unwrap();
    let gzip = encoder.finish().unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(
        plain.as_bytes(),
        ruzstd::encoding::CompressionLevel::Uncompressed,
    );
    let bearer = format!("Bearer {}", world.token);
    for (coding, bytes) in [("gzip", gzip), ("zstd", zstd)] {
        let headers = [("authorization", bearer.as_str()), ("content-encoding", coding)];
        let _answer = world.send(world.post(path, &headers, bytes.clone())).await;
        let exchange = world.last_exchange();
        assert_eq!(exchange.body, bytes, "{coding}");
        assert_eq!(lower(&exchange.headers, "content-encoding"), [coding.as_bytes()]);
    }
    for record in world.settled_records(2).await {
        assert_eq!(record["prompts"][0]["prompt"], "say hi");
        assert_eq!(record["model"], "sim-text");
    }
}

#[tokio::test]
async fn requesting_usage_changes_only_its_place() {
    let world = World::start().await;
    let path = "/openai/v1/chat/completions";
    let sent = r#"{ "model":"sim-text", "stream" : true,"messages":[{"role":"user","content":"a\/b"}], "seed":12345678901234567890123 }"#;
    let answer = world.send(world.centralized(path, sent)).await;
    let exchange = world.last_exchange();
    let upstream = String::from_utf8(exchange.body.to_vec()).unwrap();
    let same = sent.bytes().zip(upstream.bytes()).take_while(|(a, b)| a == b).count();
    let (before, after) = sent.split_at(same);
    assert!(upstream.starts_with(before) && upstream.ends_with(after), "{upstream}");
    let parsed: serde_json::Value = serde_json::from_str(&upstream).unwrap();
    assert_eq!(parsed["stream_options"]["include_usage"], true);

    let seen = String::from_utf8(exchange.response_sent.to_vec()).unwrap();
    let expected: String =
        seen.split_inclusive("\n\n").filter(|event| !event.contains("\"choices\":[]")).collect();
    assert!(expected.len() < seen.len(), "the provider sent a usage chunk");
    assert_eq!(answer.text(), expected);
    let record = world.settled_record().await;
    assert_eq!(record["body_edits"], serde_json::json!(["include_usage"]));
    assert_eq!(record["token_usages"][0]["quality"], "exact");
}

#[tokio::test]
async fn request_headers_pass_except_the_listed_ones() {
    let world = World::start().await;
    let bearer = format!("Bearer {}", world.token);
    let headers = [
        ("authorization", bearer.as_str()),
        ("anthropic-beta", "one,two"),
        ("anthropic-beta", "three"),
        ("anthropic-version", "2023-06-01"),
        ("user-agent", "claude-cli/2.1.330 (external, cli)"),
        ("x-app", "cli"),
        ("x-unknown-to-all", "stays"),
        ("cookie", "a=b"),
        ("x-forwarded-for", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("x-real-ip", "10.0.0.1"),
        ("x-keybridge-anything", "1"),
        ("x-ai-bridge-actor-id", "forged"),
        ("proxy-authorization", "Basic x"),
        ("te", "trailers"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("x-leak", world.token.as_str()),
        ("accept-encoding", "gzip, br"),
    ];
    let path = "/anthropic/v1/messages?beta=true";
    let _answer =
        world.send(world.post(path, &headers, body("/anthropic/v1/messages", "text", true))).await;
    let exchange = world.last_exchange();
    assert_eq!(exchange.path_and_query, "/anthropic/v1/messages?beta=true");
    let kept: Vec<(String, String)> = exchange
        .headers
        .iter()
        .map(|(name, value)| {
            (name.to_ascii_lowercase(), String::from_utf8_lossy(value).into_owned())
        })
        .filter(|(name, _)| !matches!(name.as_str(), "host" | "content-length"))
        .collect();
    let expected = [
        ("content-type", "application/json"),
        ("anthropic-beta", "one,two"),
        ("anthropic-beta", "three"),
        ("anthropic-version", "2023-06-01"),
        ("user-agent", "claude-cli/2.1.330 (external, cli)"),
        ("x-app", "cli"),
        ("x-unknown-to-all", "stays"),
        ("accept-encoding", "identity"),
        ("x-api-key", crate::support::ANTHROPIC_KEY),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(kept, expected);
}

#[tokio::test]
async fn encoded_responses_pass_unchanged_and_are_read() {
    for path in ENDPOINTS {
        let world = World::start().await;
        let bearer = format!("Bearer {}", world.token);
        let headers = [("authorization", bearer.as_str()), ("accept-encoding", "gzip, sdch")];
        let answer = world.send(world.post(path, &headers, body(path, "gzip-answer", false))).await;
        assert_eq!(answer.headers["content-encoding"], "gzip", "{path}");
        assert_eq!(answer.body, world.last_exchange().response_sent);
        let record = world.settled_record().await;
        assert_eq!(record["outcome"], "completed", "{path}: {record:#}");
        assert_eq!(record["token_usages"][0]["quality"], "exact", "{path}");
    }
}

#[tokio::test]
async fn http2_to_a_provider_and_a_path_in_the_base_url_work() {
    let world = World::with(|config| {
        for provider in &mut config.providers {
            provider.http2 = true;
            let base = provider.base_url.to_string().replace("/openai/v1", "/compat/some/path/v1/");
            provider.base_url = base.parse().unwrap();
        }
    })
    .await;
    for path in ENDPOINTS {
        let answer = world.send(world.centralized(path, &body(path, "text", true))).await;
        let exchange = world.last_exchange();
        assert_status!(answer, 200);
        assert_eq!(answer.body, exchange.response_sent);
        assert_eq!(exchange.problems, Vec::<String>::new());
    }
    assert!(world.last_exchange().path_and_query.starts_with("/compat/some/path/v1/responses"));
    assert!(world.settled_records(3).await.iter().all(|r| r["outcome"] == "completed"));
}
