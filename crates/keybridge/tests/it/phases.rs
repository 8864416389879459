//! When the phases of a request ended, and how many events of a stream were passed on.

use std::time::Duration;

use http_body_util::BodyExt;
use keybridge_providers::{config::ProviderType, routes::AllowedRoute};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::sleep,
};

use crate::support::{
    ENDPOINTS, World, body, client,
    tcp::{read_head, serve},
};

/// The phases in their order.
const PHASES: [&str; 6] =
    ["identified_us", "body_read_us", "credential_us", "opened_us", "connected_us", "settled_us"];
/// Longer than what else happens in a phase.
const DELAY: Duration = Duration::from_millis(300);

/// The phases of a record that it has come to, after checks of their order.
fn phases(record: &Value) -> Vec<&'static str> {
    let known: Vec<_> =
        PHASES.into_iter().filter_map(|name| Some((name, record[name].as_u64()?))).collect();
    assert!(known.is_sorted_by_key(|(_, micros)| *micros), "{known:?}");
    let time = |name: &str| record[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let duration = time("ended_at").duration_since(time("started_at")).as_micros();
    let settled = i128::from(micros(record, "settled_us"));
    // The wall clock may be adjusted meanwhile.
    assert!((settled - duration).abs() < 50_000, "{settled} of {duration}: {record:#}");
    known.into_iter().map(|(name, _)| name).collect()
}

fn micros(record: &Value, phase: &str) -> u64 {
    record[phase].as_u64().unwrap_or_else(|| panic!("no {phase}: {record:#}"))
}

/// The events with data that a client dispatches.
pub fn events(text: &str) -> usize {
    let text = text.replace("\r\n", "\n");
    let blocks = text.split_inclusive("\n\n").filter(|block| block.ends_with("\n\n"));
    blocks.filter(|block| block.lines().any(|line| line.starts_with("data:"))).count()
}

#[tokio::test]
async fn every_phase_of_a_whole_answer_is_recorded_in_order() {
    for path in ENDPOINTS {
        let world = World::start().await;
        assert_status!(world.send(world.centralized(path, &body(path, "text", false))).await, 200);
        let record = world.settled_record().await;
        assert_eq!(phases(&record), PHASES, "{path}: {record:#}");
        assert_eq!(record["events_relayed"], Value::Null, "{path}: no stream");
    }
}

#[tokio::test]
async fn a_stream_has_as_many_events_as_its_client_received() {
    for scenario in ["text", "thinking+tool", "crlf", "split", "long", "huge-event"] {
        for path in ENDPOINTS {
            let world = World::start().await;
            let answer = world.send(world.centralized(path, &body(path, scenario, true))).await;
            let record = world.settled_record().await;
            assert_eq!(phases(&record), PHASES, "{path} {scenario}: {record:#}");
            assert_eq!(record["events_relayed"], events(&answer.text()), "{path} {scenario}");
        }
    }
}

#[tokio::test]
async fn a_withheld_event_is_not_counted() {
    let world = World::start().await;
    let path = "/openai/v1/chat/completions";
    let body = r#"{"model":"sim-text","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let answer = world.send(world.centralized(path, body)).await;
    let record = world.settled_record().await;
    assert_eq!(record["body_edits"], serde_json::json!(["include_usage"]), "{record:#}");
    assert_eq!(record["events_relayed"], events(&answer.text()));
    let sent = world.last_exchange().response_sent;
    assert_eq!(events(&String::from_utf8_lossy(&sent)), events(&answer.text()) + 1);
}

#[tokio::test]
async fn an_event_of_the_bridge_itself_is_not_counted() {
    for path in ENDPOINTS {
        let world = World::start().await;
        let answer = world.send(world.centralized(path, &body(path, "truncated", true))).await;
        let record = world.settled_record().await;
        assert_eq!(record["outcome"], "failed", "{path}");
        let sent = world.last_exchange().response_sent;
        let sent = events(&String::from_utf8_lossy(&sent));
        assert_eq!(record["events_relayed"], sent, "{path}");
        assert!(events(&answer.text()) > sent, "{path}");
    }
}

#[tokio::test]
async fn the_wait_for_a_provider_comes_after_its_connection() {
    for http2 in [false, true] {
        for path in ENDPOINTS {
            let world =
                World::with(|config| config.providers.iter_mut().for_each(|p| p.http2 = http2))
                    .await;
            let request = |text: &str| {
                let mut request = world.centralized(path, text);
                let delay = DELAY.as_millis().to_string().parse().unwrap();
                request.headers_mut().insert("x-sim-delay-ms", delay);
                request
            };
            // On a new connection, then on an idle one.
            for count in 1..3 {
                assert_status!(world.send(request(&body(path, "text", false))).await, 200);
                let record = world.settled_records(count).await.pop().unwrap();
                assert_eq!(phases(&record), PHASES, "{path} {record:#}");
                let connected = micros(&record, "connected_us");
                let delay = u64::try_from(DELAY.as_micros()).unwrap();
                assert!(connected < delay, "{path} http2={http2}: {record:#}");
                let settled = micros(&record, "settled_us");
                assert!(settled >= connected + delay * 9 / 10, "{path} http2={http2}: {record:#}");
            }
        }
    }
}

#[tokio::test]
async fn a_slow_body_comes_before_the_choice_of_a_credential() {
    let world = World::start().await;
    let (path, text) = (ENDPOINTS[0], body(ENDPOINTS[0], "text", false));
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: b\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n",
        world.token,
        text.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    sleep(DELAY).await;
    stream.write_all(text.as_bytes()).await.unwrap();
    let record = world.settled_record().await;
    assert_eq!(phases(&record), PHASES, "{record:#}");
    let delay = u64::try_from(DELAY.as_micros()).unwrap();
    assert!(micros(&record, "identified_us") < delay * 2 / 3, "{record:#}");
    assert!(micros(&record, "body_read_us") > delay * 2 / 3, "{record:#}");
}

#[tokio::test]
async fn a_request_has_the_phases_that_it_came_to() {
    let world = World::start().await;
    let path = ENDPOINTS[0];
    assert_status!(world.send(world.centralized(path, "{no json")).await, 400);
    let refused = world.settled_record().await;
    assert_eq!(refused["outcome"], "refused");
    assert_eq!(phases(&refused), ["identified_us", "body_read_us", "settled_us"], "{refused:#}");

    let world = World::with(|config| {
        config.providers[0].base_url = "http://127.0.0.1:1".parse().unwrap();
        config.providers[0].max_retries = 0;
    })
    .await;
    assert_status!(world.send(world.centralized(path, &body(path, "text", true))).await, 502);
    let failed = world.settled_record().await;
    assert_eq!(failed["outcome"], "failed");
    assert_eq!(failed["connected_us"], Value::Null, "{failed:#}");
    assert_eq!(phases(&failed).len(), PHASES.len() - 1, "{failed:#}");
    assert_eq!(failed["events_relayed"], Value::Null);
}

#[tokio::test]
async fn a_cancelled_stream_has_its_events_so_far() {
    for path in ENDPOINTS {
        let world = World::start().await;
        let client = client(false);
        let request = world.centralized(path, &body(path, "stalled", true));
        let mut stream = client.request(request).await.unwrap().into_body();
        let mut received = String::new();
        while let Ok(Some(frame)) = tokio::time::timeout(DELAY, stream.frame()).await {
            received += &String::from_utf8_lossy(frame.unwrap().data_ref().unwrap());
        }
        drop((stream, client));
        let record = world.settled_record().await;
        assert_eq!(record["outcome"], "cancelled", "{path}");
        assert_eq!(phases(&record), PHASES, "{path}: {record:#}");
        assert_eq!(record["events_relayed"], events(&received), "{path}: {record:#}");
    }
}

#[tokio::test]
async fn the_body_of_an_upload_is_not_waited_for() {
    let provider = serve(move |mut stream| async move {
        while let Some(head) = read_head(&mut stream).await {
            let length = head.to_ascii_lowercase();
            let length = length.split_once("content-length: ").unwrap().1.lines().next().unwrap();
            stream.read_exact(&mut vec![0; length.parse().unwrap()]).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
        }
    });
    let world = World::with(|config| {
        config.providers[1].base_url = format!("http://{provider}/v1").parse().unwrap();
        config.providers[1].allow_routes =
            AllowedRoute::parse(ProviderType::OpenAi, "audio").unwrap();
    })
    .await;
    let bearer = format!("Bearer {}", world.token);
    for (size, is_held) in [(1_000, true), (1 << 20, false)] {
        let headers = [("authorization", &*bearer)];
        let mut request = world.post("/openai/v1/audio/transcriptions", &headers, vec![b'x'; size]);
        request.headers_mut().insert("content-type", "audio/wav".parse().unwrap());
        assert_status!(world.send(request).await, 200);
        let count = if is_held { 1 } else { 2 };
        let record = world.settled_records(count).await.pop().unwrap();
        let expected = PHASES.into_iter().filter(|phase| is_held || *phase != "body_read_us");
        assert_eq!(phases(&record), expected.collect::<Vec<_>>(), "{record:#}");
    }
}
