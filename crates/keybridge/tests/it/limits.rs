//! Limits: a request over a limit is refused in its dialect and recorded.

use std::{io::Write as _, time::Duration};

use http::Request;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use keybridge_policy::LimitsConfig;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::task::TaskTracker;

use crate::support::{Answer, ENDPOINTS, World, answer, body, client, user_with_token};

async fn world(limits: LimitsConfig) -> World {
    World::with(|config| config.limits = limits).await
}

/// A stream that stays open until it is dropped.
async fn held(world: &World, token: &str, path: &str) -> http::Response<Incoming> {
    let bearer = format!("Bearer {token}");
    let request = world.post(path, &[("authorization", &bearer)], body(path, "stalled", true));
    let response = client(false).request(request).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    response
}

async fn ask(world: &World, token: &str, path: &str) -> Answer {
    let bearer = format!("Bearer {token}");
    world.send(world.post(path, &[("authorization", &bearer)], body(path, "text", false))).await
}

fn assert_refused(answer: &Answer, path: &str, status: u16) {
    assert_status!(answer, status, "{path}");
    assert!(answer.headers.contains_key("retry-after"), "{path}");
    assert!(answer.headers.contains_key("x-keybridge-interception-id"), "{path}: recorded");
    let is_anthropic = answer.json()["type"] == "error";
    assert_eq!(is_anthropic, path.starts_with("/anthropic"), "{path}: {}", answer.text());
}

#[tokio::test]
async fn a_full_bridge_refuses_and_records() {
    for path in ENDPOINTS {
        let world = world(LimitsConfig { concurrent_requests: 1, ..LimitsConfig::default() }).await;
        let holding = held(&world, &world.token, path).await;
        let other = user_with_token(&world.ledger, "bob");
        assert_refused(&ask(&world, &other, path).await, path, 429);
        assert_eq!(world.sim.exchanges().len(), 1);
        drop(holding);
        let records = world.settled_records(2).await;
        assert_eq!(records[1]["outcome"], "refused", "{path}");
        assert_status!(ask(&world, &other, path).await, 200, "{path}: there is room");
        // An unknown token learns nothing about limits.
        assert_status!(ask(&world, "kb_unknown", path).await, 401);
    }
}

#[tokio::test]
async fn the_limit_of_one_user_does_not_affect_others() {
    for path in ENDPOINTS {
        let limits = LimitsConfig { concurrent_requests_per_user: 2, ..LimitsConfig::default() };
        let world = world(limits).await;
        let bob = user_with_token(&world.ledger, "bob");
        let holding =
            [held(&world, &world.token, path).await, held(&world, &world.token, path).await];
        // Another token of the same user does not help.
        let second = keybridge_identity::Accounts::new(world.ledger.clone())
            .create_token("ada", None, None)
            .unwrap()
            .1
            .expose()
            .to_owned();
        assert_refused(&ask(&world, &second, path).await, path, 429);
        assert_status!(ask(&world, &bob, path).await, 200, "{path}");
        drop(holding);
        let records = world.settled_records(4).await;
        assert_eq!(records[2]["outcome"], "refused");
        assert_eq!(records[2]["error_kind"], "rate_limit_error");
        assert_status!(ask(&world, &second, path).await, 200, "{path}");
    }
}

#[tokio::test]
async fn a_token_is_limited_in_requests_per_second() {
    for path in ENDPOINTS {
        let limits = LimitsConfig { requests_per_second: 1, burst: 3, ..LimitsConfig::default() };
        let world = world(limits).await;
        let bob = user_with_token(&world.ledger, "bob");
        for _ in 0..3 {
            assert_status!(ask(&world, &world.token, path).await, 200, "{path}");
        }
        let refused = ask(&world, &world.token, path).await;
        assert_refused(&refused, path, 429);
        assert_eq!(refused.headers["retry-after"], "1");
        assert_status!(ask(&world, &bob, path).await, 200, "{path}: another token");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_status!(ask(&world, &world.token, path).await, 200, "{path}");
    }
}

/// A body of this size, padded with spaces.
fn large(path: &str, bytes: usize) -> String {
    let body = body(path, "text", false);
    let padding = "x".repeat(bytes - body.len() - 16);
    body.replacen('{', &format!("{{\"padding\":\"{padding}\","), 1)
}

#[tokio::test]
async fn large_bodies_wait_for_memory_and_small_ones_do_not() {
    let path = ENDPOINTS[0];
    let size = 3 << 20;
    let world = world(LimitsConfig { body_memory: 4 << 20, ..LimitsConfig::default() }).await;
    let bearer = format!("Bearer {}", world.token);
    let headers = [("authorization", bearer.as_str()), ("x-sim-first", "slow:503/1500")];
    let begin = || client(false).request(world.post(path, &headers, large(path, size)));
    // Held by requests to a slow provider.
    let silent = large(path, size).replace("sim-text", "sim-no-head");
    let holding = client(false).request(world.centralized(path, &silent));
    let (held, waited) =
        tokio::join!(tokio::time::timeout(Duration::from_secs(2), holding), async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let bob = user_with_token(&world.ledger, "bob");
            assert_status!(ask(&world, &bob, path).await, 200, "a small one");
            let began = tokio::time::Instant::now();
            let answered = answer(begin().await.unwrap()).await;
            assert_status!(answered, 503, "the provider's");
            began.elapsed()
        },);
    assert!(held.is_err(), "its client has left after 2 s");
    assert!(waited > Duration::from_millis(1_000), "it had to wait: {waited:?}");
    world.settled_records(3).await;
}

#[tokio::test]
async fn a_request_that_waits_too_long_for_memory_is_refused() {
    for path in ENDPOINTS {
        let world = world(LimitsConfig { body_memory: 4 << 20, ..LimitsConfig::default() }).await;
        let silent = large(path, 3 << 20).replace("sim-text", "sim-no-head");
        let holding = client(false).request(world.centralized(path, &silent));
        tokio::pin!(holding);
        let held = tokio::time::timeout(Duration::from_millis(500), &mut holding).await;
        assert!(held.is_err(), "it is held");
        // In pieces, without a length.
        let pieces = large(path, 3 << 20).into_bytes();
        let pieces: Vec<_> = pieces
            .chunks(64 << 10)
            .map(|piece| Ok::<_, std::io::Error>(Frame::data(bytes::Bytes::copy_from_slice(piece))))
            .collect();
        let body = StreamBody::new(futures_util::stream::iter(pieces));
        let request = Request::post(world.url(path))
            .header("authorization", format!("Bearer {}", world.token))
            .body(body)
            .unwrap();
        let connector = hyper_util::client::legacy::connect::HttpConnector::new();
        let sending =
            hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
                .build(connector);
        let asking = sending.request(request);
        tokio::pin!(asking);
        let waits = tokio::time::timeout(Duration::from_millis(500), &mut asking).await;
        assert!(waits.is_err(), "it waits too");
        // Only the timeout ends the wait.
        tokio::time::pause();
        let refused = tokio::select! {
            answered = asking => answer(answered.unwrap()).await,
            _held = &mut holding => panic!("it does not end"),
        };
        tokio::time::resume();
        assert_refused(&refused, path, 503);
    }
}

/// Requests without a token, whose bodies never come, are not those that are limited.
#[tokio::test]
async fn requests_without_a_token_take_no_room_from_those_with_one() {
    let limits = LimitsConfig { concurrent_requests: 2, ..LimitsConfig::default() };
    let world = world(limits).await;
    let path = ENDPOINTS[0];
    let mut strangers = Vec::new();
    for _ in 0..100 {
        let mut stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        strangers.push(stream);
    }
    for _ in 0..5 {
        let answer = ask(&world, &world.token, path).await;
        assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    }
    // Those that are not read on are answered at once.
    let mut answered = 0;
    for stream in &mut strangers {
        let mut buffer = [0; 12];
        let reading = stream.read_exact(&mut buffer);
        if tokio::time::timeout(Duration::from_millis(20), reading).await.is_ok() {
            assert_eq!(&buffer, b"HTTP/1.1 401");
            answered += 1;
        }
    }
    assert!(answered >= 36, "{answered} of 100 are answered before their body has come");
}

#[tokio::test]
async fn a_large_encoded_body_goes_upstream_as_it_came() {
    let world = World::start().await;
    let path = ENDPOINTS[0];
    let words = "word ".repeat(4 << 20);
    let text = body(path, "text", false).replace("say", &words);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    let encoded = encoder.finish().unwrap();
    let bearer = format!("Bearer {}", world.token);
    let headers = [("authorization", bearer.as_str()), ("content-encoding", "gzip")];
    let answer = world.send(world.post(path, &headers, encoded.clone())).await;
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    assert!(world.last_exchange().body == encoded, "the encoded bytes, unchanged");
    let record = world.settled_record().await;
    assert!(record["prompts"][0]["prompt"].as_str().unwrap().starts_with("word word"));
}

/// Sends a head that announces a body, and a part of the body.
async fn unfinished(
    world: &World,
    token: &str,
    announced: usize,
    sent: usize,
) -> tokio::net::TcpStream {
    let mut stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
    let path = ENDPOINTS[0];
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {token}\r\ncontent-length: {announced}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; sent]).await.unwrap();
    stream
}

/// Polls until the condition holds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn many_small_unfinished_bodies_count_as_memory_and_leave_room_for_other_users() {
    let budget = 4 << 20;
    let world = world(LimitsConfig { body_memory: budget, ..LimitsConfig::default() }).await;
    let mut streams = Vec::new();
    for _ in 0..40 {
        streams.push(unfinished(&world, &world.token, 200_000, 1_000).await);
    }
    // One user's bodies share half of the memory.
    until("the memory is used", || world.bridge.body_memory() > budget / 2 - 250_000).await;
    assert!(world.bridge.body_memory() <= budget / 2, "{}", world.bridge.body_memory());
    let bob = user_with_token(&world.ledger, "bob");
    let answer = world
        .send(world.post(
            ENDPOINTS[0],
            &[("authorization", &format!("Bearer {bob}"))],
            large(ENDPOINTS[0], 1 << 20),
        ))
        .await;
    assert_status!(answer, 200, "another user's request");
    drop(streams);
    until("the memory is released", || world.bridge.body_memory() == 0).await;
}

#[tokio::test]
async fn a_body_counts_with_what_it_decodes_to() {
    let path = ENDPOINTS[0];
    let world = world(LimitsConfig { body_memory: 32 << 20, ..LimitsConfig::default() }).await;
    let text = large(path, 12 << 20).replace("sim-text", "sim-no-head");
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    let bearer = format!("Bearer {}", world.token);
    let headers = [("authorization", bearer.as_str()), ("content-encoding", "gzip")];
    let encoded = encoder.finish().unwrap();
    assert!(encoded.len() < 200_000);
    let holding = TaskTracker::new();
    let request = world.post(path, &headers, encoded);
    let asking = holding.spawn(client(false).request(request));
    until("the decoded body counts", || world.bridge.body_memory() >= 12 << 20).await;
    asking.abort();
    until("the memory is released", || world.bridge.body_memory() == 0).await;
}

#[tokio::test]
async fn a_client_that_sends_a_byte_a_second_is_refused_in_the_dialect() {
    let world = World::start().await;
    let mut stream = unfinished(&world, &world.token, 1_000, 1).await;
    // The request has been identified.
    until("the body is read", || world.bridge.body_memory() > 0).await;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let mut answer = vec![0; 4_096];
    let read = loop {
        let _sent = stream.write_all(b" ").await;
        let reading = stream.read(&mut answer);
        if let Ok(read) = tokio::time::timeout(Duration::from_secs(1), reading).await {
            break read.unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it is still read");
    };
    tokio::time::resume();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("at less than 1024 bytes per second"), "{answer}");
    assert!(began.elapsed() >= Duration::from_secs(9), "{:?}", began.elapsed());
}

/// Whether a new connection is served.
async fn is_served(world: &World) -> bool {
    let Ok(mut stream) = tokio::net::TcpStream::connect(world.address).await else { return false };
    let mut answer = Vec::new();
    let request = b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let _sent = stream.write_all(request).await;
    let _read = stream.read_to_end(&mut answer).await;
    answer.starts_with(b"HTTP/1.1 200")
}

async fn metrics(world: &World) -> String {
    world.send(world.request(http::Method::GET, "/metrics", &[])).await.text()
}

#[tokio::test]
async fn connections_over_a_limit_are_closed_and_counted() {
    for (in_all, per_address, reason) in [(3, 0, "total"), (0, 3, "address")] {
        let world = World::with(|config| {
            config.connection_limits.max_connections = in_all;
            config.connection_limits.max_per_address = per_address;
        })
        .await;
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(tokio::net::TcpStream::connect(world.address).await.unwrap());
        }
        assert!(!is_served(&world).await, "a fourth connection");
        held.clear();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !is_served(&world).await {
            assert!(tokio::time::Instant::now() < deadline, "the others are closed");
        }
        let metrics = metrics(&world).await;
        let refused = metrics
            .lines()
            .find_map(|line| {
                let name = format!("keybridge_connections_refused_total{{reason=\"{reason}\"}} ");
                line.strip_prefix(&name)?.parse::<u64>().ok()
            })
            .unwrap_or_else(|| panic!("{metrics}"));
        assert!(refused >= 1, "{metrics}");
        for name in ["connections_open ", "body_memory_bytes 0", "resident_memory_bytes "] {
            assert!(metrics.contains(&format!("\nkeybridge_{name}")), "{metrics}");
        }
    }
}

#[tokio::test]
async fn requests_through_a_trusted_proxy_are_limited_by_the_address_that_it_names() {
    for path in ENDPOINTS {
        let world = World::with(|config| {
            config.connection_limits.max_per_address = 1;
            config.connection_limits.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        })
        .await;
        let bearer = format!("Bearer {}", world.token);
        let request = |forwarded_for: &str, scenario, stream| {
            let headers = [("authorization", &*bearer), ("x-forwarded-for", forwarded_for)];
            world.post(path, &headers, body(path, scenario, stream))
        };
        let holding = client(false).request(request("192.0.2.1", "stalled", true)).await.unwrap();
        assert_status!(world.send(request("192.0.2.2", "text", false)).await, 200, "{path}");
        let refused = world.send(request("6.6.6.6, 192.0.2.1, 127.0.0.9", "text", false)).await;
        assert_status!(refused, 429, "{path}");
        assert!(refused.headers.contains_key("retry-after"), "{path}");
        assert_eq!(refused.json()["type"] == "error", path.starts_with("/anthropic"), "{path}");
        drop(holding);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while world.send(request("192.0.2.1", "text", false)).await.status != 200 {
            assert!(tokio::time::Instant::now() < deadline, "{path}: the first has ended");
        }
    }
}

#[tokio::test]
async fn a_request_with_too_many_or_too_large_headers_is_refused() {
    let world = World::start().await;
    let many: String = (0..101).map(|number| format!("x-{number}: 1\r\n")).collect();
    let large = format!("x-large: {}\r\n", "x".repeat(80 << 10));
    for (headers, is_read) in [(many, true), (large, false)] {
        let mut stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
        let head = format!("GET /healthz HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
        let _sent = stream.write_all(head.as_bytes()).await;
        let mut answer = [0; 12];
        // What is not read of the head may reset the connection before the answer is read.
        let is_answered = stream.read_exact(&mut answer).await.is_ok();
        assert!(is_answered || !is_read);
        assert!(!is_answered || &answer == b"HTTP/1.1 431");
    }
}
