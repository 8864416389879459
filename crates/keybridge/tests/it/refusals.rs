//! Every refusal, in every dialect: status, body, headers and record.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use keybridge::config::Config;
use keybridge_identity::{Accounts, UserStatus};
use serde_json::Value;

use crate::support::{Answer, ENDPOINTS, World, body, user_with_token};

/// Checks what all errors of the bridge have in common, and returns the message.
fn check(answer: &Answer, path: &str, status: u16, kind: &str) -> String {
    assert_status!(answer, status, "{path}");
    assert_eq!(answer.headers["x-keybridge-error"], kind, "{path}");
    assert_eq!(answer.headers["content-type"], "application/json");
    if matches!(status, 429 | 503) {
        assert!(answer.headers.contains_key("retry-after"), "{path}");
    }
    if !matches!(status, 429 | 502 | 504) && kind != "overloaded_error" {
        assert_eq!(answer.headers["x-should-retry"], "false", "{path}");
    }
    let json = answer.json();
    if path.ends_with("/messages") {
        assert_eq!(json["type"], "error");
        assert_eq!(json["error"]["type"], kind);
    } else {
        assert!(json["error"]["type"].is_string() && json["error"]["param"].is_null());
        assert!(json["error"].get("code").is_some());
    }
    json["error"]["message"].as_str().unwrap().to_owned()
}

fn assert_refused(record: &Value, status: u16, kind: &str) {
    assert_eq!(record["outcome"], "refused", "{record:#}");
    assert_eq!(record["status_code"], status);
    assert_eq!(record["error_kind"], kind);
    assert_eq!(record["upstream_status"], Value::Null);
}

fn endpoints() -> Vec<&'static str> {
    let mut endpoints = ENDPOINTS.to_vec();
    endpoints.extend(["/copilot/chat/completions", "/copilot/responses", "/copilot/v1/messages"]);
    endpoints
}

#[tokio::test]
async fn a_request_without_a_token_is_told_which_headers_are_read() {
    let world = World::start().await;
    for path in endpoints() {
        let request = world.post(path, &[], body(path, "text", true));
        let message = check(&world.send(request).await, path, 401, "authentication_error");
        assert!(message.contains("Authorization") && message.contains("x-ai-governance-token"));
    }
    assert!(world.records().await.is_empty() && world.sim.exchanges().is_empty());
}

#[tokio::test]
async fn unknown_revoked_expired_and_suspended_tokens_are_refused() {
    let world = World::start().await;
    let accounts = Accounts::new(world.ledger.clone());
    let revoked = user_with_token(&world.ledger, "revoked");
    let token = accounts.tokens(Some("revoked")).unwrap().remove(0);
    accounts.revoke_token(token.id).unwrap();
    let past = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(60);
    let (_row, expired) = accounts.create_token("revoked", None, Some(past)).unwrap();
    let suspended = user_with_token(&world.ledger, "suspended");
    accounts.set_user_status("suspended", UserStatus::Suspended).unwrap();
    let unknown = keybridge_identity::BridgeToken::generate().unwrap();
    let tokens =
        [&revoked, expired.expose(), &suspended, unknown.expose(), "kb_nonsense", "sk-ant-x"];
    for path in endpoints() {
        for token in tokens {
            let bearer = format!("Bearer {token}");
            let centralized =
                world.post(path, &[("authorization", &bearer)], body(path, "text", true));
            check(&world.send(centralized).await, path, 401, "authentication_error");
            let own = [("x-ai-governance-token", token), ("authorization", "Bearer sk-own-key")];
            let byok = world.post(path, &own, body(path, "text", true));
            check(&world.send(byok).await, path, 401, "authentication_error");
        }
    }
    assert!(world.records().await.is_empty() && world.sim.exchanges().is_empty());
}

#[tokio::test]
async fn byok_can_be_disallowed() {
    let world = World::with(|config| {
        config.providers.iter_mut().for_each(|provider| provider.allow_byok = false);
    })
    .await;
    for path in endpoints() {
        let headers =
            [("x-ai-governance-token", world.token.as_str()), ("authorization", "Bearer sk-own")];
        let answer = world.send(world.post(path, &headers, body(path, "text", true))).await;
        let message = check(&answer, path, 403, "permission_error");
        assert!(message.contains("administrator"), "{message}");
    }
    for record in world.settled_records(6).await {
        assert_refused(&record, 403, "permission_error");
        assert_eq!(record["prompts"].as_array().unwrap().len(), 1, "the prompt is recorded");
    }
    assert!(world.sim.exchanges().is_empty());
}

#[tokio::test]
async fn a_missing_byok_credential_is_named_when_there_is_no_key() {
    let no_keys = |config: &mut Config| {
        config.providers.iter_mut().for_each(|provider| provider.keys.clear());
    };
    let no_fallback = |config: &mut Config| {
        config.providers.iter_mut().for_each(|provider| provider.byok_fallback = false);
    };
    for world in [World::with(no_keys).await, World::with(no_fallback).await] {
        for path in endpoints() {
            let headers = [("x-ai-governance-token", world.token.as_str())];
            let answer = world.send(world.post(path, &headers, body(path, "text", true))).await;
            let message = check(&answer, path, 401, "authentication_error");
            assert!(message.contains("without a provider credential"), "{message}");
        }
        for record in world.settled_records(6).await {
            assert_refused(&record, 401, "authentication_error");
        }
        assert!(world.sim.exchanges().is_empty());
    }
}

#[tokio::test]
async fn a_provider_without_a_key_is_named() {
    let world = World::with(|config| {
        config.providers.iter_mut().for_each(|provider| provider.keys.clear());
    })
    .await;
    for path in ENDPOINTS {
        let answer = world.send(world.centralized(path, &body(path, "text", true))).await;
        let message = check(&answer, path, 503, "api_error");
        assert!(message.contains(path.split('/').nth(1).unwrap()), "{message}");
    }
    for record in world.settled_records(3).await {
        assert_refused(&record, 503, "api_error");
    }
}

#[tokio::test]
async fn copilot_always_needs_the_users_own_token() {
    let world = World::start().await;
    let path = "/copilot/chat/completions";
    let answer = world.send(world.centralized(path, &body(path, "text", false))).await;
    let message = check(&answer, path, 401, "authentication_error");
    assert!(message.contains("Copilot"), "{message}");
}

#[tokio::test]
async fn bodies_that_are_not_a_json_object_are_refused_and_recorded() {
    let world = World::start().await;
    let bodies = ["", "{", "[1]", "nonsense", "{\"model\":\"a\"} trailing", "\"text\""];
    for path in ENDPOINTS {
        for text in bodies {
            let answer = world.send(world.centralized(path, text)).await;
            check(&answer, path, 400, "invalid_request_error");
        }
        for twice in [r#"{"model":"a","model":"b"}"#, r#"{"model":"a","mod\u0065l":"b"}"#] {
            let answer = world.send(world.centralized(path, twice)).await;
            let message = check(&answer, path, 400, "invalid_request_error");
            assert!(message.contains("model"), "{message}");
        }
    }
    for record in world.settled_records(3 * (bodies.len() + 2)).await {
        assert_refused(&record, 400, "invalid_request_error");
    }
    assert!(world.sim.exchanges().is_empty());
}

#[tokio::test]
async fn bodies_over_the_limit_and_unknown_encodings_are_refused() {
    let world = World::with(|config| config.max_body = 1000).await;
    let bearer = format!("Bearer {}", world.token);
    for path in ENDPOINTS {
        let large = "x".repeat(1001);
        let answer = world.send(world.centralized(path, &large)).await;
        check(&answer, path, 413, "request_too_large");
        let coded = [("authorization", bearer.as_str()), ("content-encoding", "lzma")];
        let answer = world.send(world.post(path, &coded, body(path, "text", false))).await;
        check(&answer, path, 400, "invalid_request_error");
        let coded = [("authorization", bearer.as_str()), ("content-encoding", "gzip")];
        let answer = world.send(world.post(path, &coded, body(path, "text", false))).await;
        check(&answer, path, 400, "invalid_request_error");
    }
    assert_eq!(world.settled_records(9).await.len(), 9);
}

#[tokio::test]
async fn a_client_with_a_body_far_over_the_limit_still_gets_the_response() {
    let world = World::with(|config| config.max_body = 1 << 20).await;
    for path in ENDPOINTS {
        let answer = world.send(world.centralized(path, &"x".repeat(8 << 20))).await;
        check(&answer, path, 413, "request_too_large");
    }
    for record in world.settled_records(3).await {
        assert_refused(&record, 413, "request_too_large");
    }
}

#[tokio::test]
async fn requests_over_the_limit_get_429_with_retry_after() {
    let world = World::with(|config| config.limits.concurrent_requests = 1).await;
    let path = ENDPOINTS[0];
    let held = crate::support::client(false)
        .request(world.centralized(path, &body(path, "stalled", true)))
        .await
        .unwrap();
    let answer = world.send(world.centralized(path, &body(path, "text", true))).await;
    check(&answer, path, 429, "rate_limit_error");
    drop(held);
}

#[tokio::test]
async fn unknown_paths_are_404_in_the_providers_dialect() {
    let world = World::start().await;
    let answer = world.send(world.request(Method::GET, "/anthropic/v1/files", &[])).await;
    assert_status!(answer, 404);
    assert_eq!(answer.json()["type"], "error");
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("GET") && message.contains("/anthropic/v1/files"), "{message}");
    let answer = world.send(world.request(Method::POST, "/openai/v1/files", &[])).await;
    assert_status!(answer, 404);
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("POST /openai/v1/files"));
    let answer = world.send(world.request(Method::POST, "/nobody/v1/messages", &[])).await;
    assert_status!(answer, 404);
}

#[tokio::test]
async fn probes_and_upgrades_are_answered_by_the_bridge() {
    let world = World::start().await;
    for path in ["/anthropic", "/anthropic/api/hello", "/api/v2/aibridge/anthropic"] {
        let answer = world.send(world.request(Method::HEAD, path, &[])).await;
        assert_status!(answer, 200, "{path}");
    }
    let upgrade: Request<Full<Bytes>> = world.request(
        Method::GET,
        "/openai/v1/responses",
        &[("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")],
    );
    assert_status!(world.send(upgrade).await, 426);
    assert!(world.sim.exchanges().is_empty());
}

#[tokio::test]
async fn nothing_is_sent_to_a_provider_that_the_ledger_cannot_record() {
    let world = World::start().await;
    world.ledger.close();
    for path in ENDPOINTS {
        let answer = world.send(world.centralized(path, &body(path, "text", true))).await;
        assert_status!(answer, 503, "{path}");
        assert!(answer.headers.contains_key("retry-after"), "{path}");
        assert!(!answer.headers.contains_key("x-should-retry"), "a retry may succeed");
        assert_eq!(answer.headers["x-keybridge-error"], "overloaded_error");
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains("ledger"));
    }
    assert!(world.sim.exchanges().is_empty());
}
