//! What is recorded for each way in which a request can end, over real sockets, HTTP/1.1 and HTTP/2.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
    time::{Instant, sleep},
};

use crate::support::{ENDPOINTS, World, answer, body, client, tcp::serve};

/// Checks the last event of a stream that the bridge ended.
pub fn assert_ends_with_error(text: &str, path: &str) {
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    if path.ends_with("/messages") {
        assert!(last.starts_with("event: error\ndata: {\"type\":\"error\""), "{last}");
    } else if path.ends_with("/responses") {
        assert!(last.starts_with("event: error\n") && last.contains("sequence_number"), "{last}");
    } else {
        assert_eq!(last, "data: [DONE]");
        assert!(text.contains("data: {\"error\":"), "{text}");
    }
}

#[tokio::test]
async fn a_truncated_stream_ends_with_an_error_event() {
    for scenario in ["broken", "broken-between", "truncated", "truncated-mid-event"] {
        for path in ENDPOINTS {
            let world = World::start().await;
            let answer = world.send(world.centralized(path, &body(path, scenario, true))).await;
            let what = format!("{path} {scenario}");
            assert_ends_with_error(&answer.text(), path);
            let record = world.settled_record().await;
            assert_eq!(record["outcome"], "failed", "{what}: {record:#}");
            assert_eq!(record["error_kind"], "api_error", "{what}");
            let usage = &record["token_usages"][0];
            assert_ne!(usage["quality"], "exact", "{what}");
            let sent = world.last_exchange().response_sent;
            assert!(answer.body.starts_with(&sent), "{what}: what came was relayed first");
        }
    }
}

#[tokio::test]
async fn a_providers_error_in_mid_stream_is_relayed() {
    for path in ENDPOINTS {
        let world = World::start().await;
        let answer =
            world.send(world.centralized(path, &body(path, "error-mid-stream", true))).await;
        assert_eq!(answer.body, world.last_exchange().response_sent);
        let record = world.settled_record().await;
        assert_eq!(record["outcome"], "failed", "{path}: {record:#}");
        assert!(record["error_message"].is_string());
    }
}

#[tokio::test]
async fn a_providers_error_status_is_recorded_with_its_reason() {
    for path in ENDPOINTS {
        let world = World::start().await;
        let answer = world.send(world.centralized(path, &body(path, "error-429", true))).await;
        assert_status!(answer, 429);
        let record = world.settled_record().await;
        assert_eq!(record["outcome"], "failed");
        assert_eq!(
            (&record["status_code"], &record["upstream_status"]),
            (&429.into(), &429.into())
        );
        assert!(record["error_kind"].is_string() && record["error_message"].is_string());
        assert_eq!(record["token_usages"], serde_json::json!([]));
        assert_eq!(record["prompts"][0]["prompt"], "say hi");
    }
}

#[tokio::test]
async fn a_client_that_disconnects_is_recorded_once_and_cancels_the_request() {
    for http2 in [false, true] {
        for path in ENDPOINTS {
            let world = World::start().await;
            let client = client(http2);
            let response = client
                .request(world.centralized(path, &body(path, "stalled", true)))
                .await
                .unwrap();
            let mut stream = response.into_body();
            let first = stream.frame().await.unwrap().unwrap();
            assert!(!first.into_data().unwrap().is_empty());
            drop((stream, client));
            let left = Instant::now();
            while !world.last_exchange().client_left {
                assert!(left.elapsed() < Duration::from_secs(1), "upstream goes on: {path}");
                sleep(Duration::from_millis(5)).await;
            }
            let record = world.settled_record().await;
            assert_eq!(record["outcome"], "cancelled", "{path} http2={http2}: {record:#}");
            assert_ne!(record["token_usages"][0]["quality"], "exact");
            assert!(record["ended_at"].is_string() && record["first_byte_at"].is_string());
        }
    }
}

#[tokio::test]
async fn the_id_of_a_response_is_recorded_while_it_streams() {
    for path in ENDPOINTS {
        let world = World::start().await;
        let response = client(false)
            .request(world.centralized(path, &body(path, "stalled", true)))
            .await
            .unwrap();
        let mut stream = response.into_body();
        stream.frame().await.unwrap().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let record = loop {
            let record = world.records().await.remove(0);
            if record["token_usages"][0].is_object() {
                break record;
            }
            assert!(Instant::now() < deadline, "{path}: {record:#}");
            sleep(Duration::from_millis(5)).await;
        };
        assert_eq!(record["outcome"], "in_progress", "{path}");
        let id = record["token_usages"][0]["provider_response_id"].as_str().unwrap();
        let sent = world.last_exchange().response_sent;
        assert!(String::from_utf8_lossy(&sent).contains(id), "{path}: {id}");
        assert_ne!(record["token_usages"][0]["quality"], "exact");
    }
}

#[tokio::test]
async fn a_client_that_disconnects_before_the_response_is_recorded_as_cancelled() {
    let world = World::start().await;
    let path = ENDPOINTS[0];
    let waiting = client(false).request(world.centralized(path, &body(path, "no-head", true)));
    let _gone = tokio::time::timeout(Duration::from_millis(300), waiting).await.unwrap_err();
    let record = world.settled_record().await;
    assert_eq!(record["outcome"], "cancelled", "{record:#}");
    assert_eq!(record["upstream_status"], Value::Null);
    // The provider has the request and may bill it.
    let usages = record["token_usages"].as_array().unwrap();
    assert_eq!(usages.len(), 1, "{record:#}");
    assert_eq!(
        (&usages[0]["quality"], &usages[0]["input_tokens"], &usages[0]["output_tokens"]),
        (&"unknown".into(), &Value::Null, &Value::Null)
    );
}

#[tokio::test]
async fn disconnecting_after_the_last_event_is_a_success() {
    for path in ENDPOINTS {
        let world = World::start().await;
        let client = client(false);
        let response =
            client.request(world.centralized(path, &body(path, "text", true))).await.unwrap();
        let mut stream = response.into_body();
        let (mut seen, last) = (String::new(), last_event(path));
        while !seen.contains(last) {
            let frame = stream.frame().await.unwrap().unwrap();
            seen.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap()));
        }
        drop((stream, client));
        let record = world.settled_record().await;
        assert_eq!(record["outcome"], "completed", "{path}: {record:#}");
        assert_eq!(record["token_usages"][0]["quality"], "exact");
    }
}

fn last_event(path: &str) -> &'static str {
    match path {
        "/anthropic/v1/messages" => "message_stop\"}",
        "/openai/v1/responses" => "event: response.completed",
        _ => "[DONE]",
    }
}

#[tokio::test]
async fn a_silent_provider_times_out() {
    let short = |config: &mut keybridge::config::Config| {
        for provider in &mut config.providers {
            provider.timeouts.idle = Duration::from_millis(200);
            provider.timeouts.head = Duration::from_millis(400);
        }
    };
    for path in ENDPOINTS {
        let world = World::with(short).await;
        let answer = world.send(world.centralized(path, &body(path, "stalled", true))).await;
        assert_ends_with_error(&answer.text(), path);
        let record = world.settled_record().await;
        assert_eq!(
            (&record["outcome"], &record["error_kind"]),
            (&"failed".into(), &"timeout_error".into())
        );

        let world = World::with(short).await;
        let answer = world.send(world.centralized(path, &body(path, "no-head", true))).await;
        assert_status!(answer, 504);
        let record = world.settled_record().await;
        assert_eq!((&record["outcome"], &record["status_code"]), (&"failed".into(), &504.into()));
    }
}

#[tokio::test]
async fn a_stream_begins_although_its_first_event_is_late_or_large() {
    let large = format!("data: {{\"id\":\"{}", "c".repeat(20 * 1024));
    for (begin, rest) in [
        ("", "data: {\"id\":\"c\",\"choices\":[]}\n\ndata: [DONE]\n\n"),
        ("data: {\"id\":\"c", "\",\"choices\":[]}\n\ndata: [DONE]\n\n"),
        (&large, "\",\"choices\":[]}\n\ndata: [DONE]\n\n"),
    ] {
        let has_begun = Arc::new(Notify::new());
        let (begin, started) = (begin.to_owned(), Arc::clone(&has_begun));
        let address = serve(move |mut stream| {
            let (begin, started) = (begin.clone(), Arc::clone(&started));
            async move {
                let mut head = [0; 64 * 1024];
                let _read = stream.read(&mut head).await.unwrap();
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
                stream.write_all(format!("{head}{begin}").as_bytes()).await.unwrap();
                started.notified().await;
                stream.write_all(rest.as_bytes()).await.unwrap();
            }
        });
        let world = World::with(|config| {
            config.providers[1].base_url = format!("http://{address}").parse().unwrap();
        })
        .await;
        let path = ENDPOINTS[1];
        let request = world.centralized(path, &body(path, "text", true));
        let response = client(false).request(request).await.unwrap();
        has_begun.notify_one();
        let answer = answer(response).await;
        assert_status!(answer, 200);
        assert!(answer.text().contains("data: {\"id\":\""), "{}", answer.text());
        assert_eq!(world.settled_record().await["attempts"], 1);
    }
}

#[tokio::test]
async fn a_provider_that_cannot_be_reached_is_an_error_in_the_dialect() {
    let world = World::with(|config| {
        for provider in &mut config.providers {
            provider.base_url = "http://127.0.0.1:1/v1".parse().unwrap();
        }
    })
    .await;
    for path in ENDPOINTS {
        let answer = world.send(world.centralized(path, &body(path, "text", true))).await;
        assert_status!(answer, 502);
        assert!(answer.json()["error"]["message"].is_string());
    }
    for record in world.settled_records(3).await {
        assert_eq!((&record["outcome"], &record["attempts"]), (&"failed".into(), &1.into()));
    }
}

#[tokio::test]
async fn responses_that_are_not_json_pass_and_are_recorded_as_failed() {
    for scenario in ["non-json", "empty-body"] {
        let world = World::start().await;
        let path = ENDPOINTS[0];
        let answer = world.send(world.centralized(path, &body(path, scenario, false))).await;
        assert_eq!(answer.body, world.last_exchange().response_sent);
        let record = world.settled_record().await;
        assert_eq!(record["outcome"], "failed", "{scenario}: {record:#}");
    }
}

#[tokio::test]
async fn a_drain_ends_open_streams_with_an_error_and_settles_them() {
    for http2 in [false, true] {
        for path in ENDPOINTS {
            let world = World::start().await;
            let client = client(http2);
            let response = client
                .request(world.centralized(path, &body(path, "stalled", true)))
                .await
                .unwrap();
            world.shutdown.cancel();
            let answer = answer(response).await;
            assert_ends_with_error(&answer.text(), path);
            world.serving.wait().await;
            world.bridge.wait_until_idle().await;
            let record = world.settled_record().await;
            assert_eq!(record["outcome"], "failed", "{path}: {record:#}");
            assert_eq!(record["error_kind"], "overloaded_error");
        }
    }
}

#[tokio::test]
async fn a_drain_lets_short_streams_finish() {
    let world = World::start().await;
    let path = ENDPOINTS[0];
    let request = world.post(
        path,
        &[
            ("authorization", &format!("Bearer {}", world.token)),
            ("x-sim-scenario", "slow"),
            ("x-sim-delay-ms", "20"),
            ("x-sim-tokens", "5"),
        ],
        body(path, "slow", true),
    );
    let response = client(false).request(request).await.unwrap();
    world.shutdown.cancel();
    let answer = answer(response).await;
    assert!(answer.text().contains("message_stop"), "{}", answer.text());
    assert_eq!(world.settled_record().await["outcome"], "completed");
}

#[tokio::test]
async fn a_request_body_that_never_arrives_is_an_error_in_the_dialect() {
    let short = |config: &mut keybridge::config::Config| {
        config.body_timeout = Duration::from_millis(200);
    };
    for path in ENDPOINTS {
        let world = World::with(short).await;
        let mut stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-length: 99\r\n\r\n{{",
            world.token
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains("x-keybridge-error: timeout_error"), "{answer}");
        let record = world.settled_record().await;
        assert_eq!((&record["outcome"], &record["status_code"]), (&"refused".into(), &408.into()));
        assert!(world.sim.exchanges().is_empty());
    }
}

#[tokio::test]
async fn a_slow_client_slows_the_provider() {
    let world = World::start().await;
    let path = ENDPOINTS[0];
    let headers = [
        ("authorization", &*format!("Bearer {}", world.token)),
        ("x-sim-scenario", "long+big-event"),
        ("x-sim-tokens", "200000"),
    ];
    let request = world.post(path, &headers, body(path, "long", true));
    let response = client(false).request(request).await.unwrap();
    // Once the buffers in between are full, no more may be read from the provider.
    let mut before = 0;
    loop {
        sleep(Duration::from_millis(200)).await;
        let sent = world.last_exchange().response_sent.len();
        if sent == before && sent > 0 {
            break;
        }
        before = sent;
    }
    assert!(!world.last_exchange().finished, "the provider is held back at {before} bytes");
    let answer = answer(response).await;
    assert_eq!(answer.body, world.last_exchange().response_sent);
    assert_eq!(world.settled_record().await["outcome"], "completed");
}
