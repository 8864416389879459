//! The simulated providers over real sockets: both protocols, aborts, and clients that disconnect.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use keybridge_sim::{Exchange, Sim, SimServer};

const PATHS: [&str; 3] =
    ["/anthropic/v1/messages", "/openai/v1/chat/completions", "/openai/v1/responses"];

fn client(http2: bool) -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).http2_only(http2).build_http()
}

fn request(server: &SimServer, path: &str, scenario: &str) -> Request<Full<Bytes>> {
    let body = format!(
        r#"{{"model":"openai:sim-{scenario}","stream":true,"max_tokens":9,"input":"hi","messages":[{{"role":"user","content":"hi"}}]}}"#
    );
    Request::post(format!("{}{path}", server.base()))
        .header("authorization", "Bearer sk-test")
        .header("x-sim-delay-ms", "1")
        .body(Full::from(body))
        .unwrap()
}

/// Reads the body as far as it arrives, and whether it was aborted.
async fn read(mut body: impl http_body::Body<Data = Bytes> + Unpin) -> (Vec<u8>, bool) {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => read.extend_from_slice(frame.data_ref().unwrap()),
            Err(_broken) => return (read, true),
        }
    }
    (read, false)
}

/// Waits until the latest exchange meets a condition.
async fn until(sim: &Sim, wanted: impl Fn(&Exchange) -> bool) -> Exchange {
    let search = async {
        loop {
            if let Some(exchange) = sim.last().filter(&wanted) {
                return exchange;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), search).await.unwrap()
}

#[tokio::test]
async fn every_response_is_journaled_before_its_first_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("handed-out.jsonl");
    let file = std::fs::File::options().append(true).create(true).open(&path).unwrap();
    let sim = Sim::new().with_journal(file);
    let server = sim.start().await.unwrap();
    let client = client(false);
    for (number, scenario) in ["text", "broken", "split", "error-429"].into_iter().enumerate() {
        for at in PATHS {
            let response = client.request(request(&server, at, scenario)).await.unwrap();
            let mut body = response.into_body();
            let _first = body.frame().await;
            let lines = std::fs::read_to_string(&path).unwrap();
            let Some(last) = lines.lines().last().filter(|_| scenario != "error-429") else {
                continue;
            };
            read(body).await;
            let line: serde_json::Value = serde_json::from_str(last).unwrap();
            assert_eq!(line["path"], at);
            assert_eq!(line["request_sha256"].as_str().unwrap().len(), 64);
            let exchange = until(&sim, |exchange| exchange.finished).await;
            let id = line["response_id"].as_str().unwrap();
            let sent = String::from_utf8_lossy(&exchange.response_sent).into_owned();
            assert!(sent.contains(&format!("\"id\":\"{id}\"")), "{number} {at}: {id}");
        }
    }
    let lines = std::fs::read_to_string(&path).unwrap();
    let ids: std::collections::HashSet<_> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["response_id"].clone())
        .collect();
    assert_eq!((lines.lines().count(), ids.len()), (9, 9), "errors have no id");
}

#[tokio::test]
async fn a_request_whose_response_cannot_be_journaled_fails() {
    let full = std::fs::File::options().append(true).open("/dev/full").unwrap();
    let sim = Sim::new().with_journal(full);
    let server = sim.start().await.unwrap();
    let answer = client(false).request(request(&server, PATHS[0], "text")).await.unwrap();
    assert_eq!(answer.status().as_u16(), 500);
    let (body, _) = read(answer.into_body()).await;
    assert!(!String::from_utf8_lossy(&body).contains("msg_"), "no id is sent");
}

#[tokio::test]
async fn both_protocols_carry_every_dialect() {
    let sim = Sim::new();
    let server = sim.start().await.unwrap();
    for http2 in [false, true] {
        for path in PATHS {
            let response = client(http2).request(request(&server, path, "slow")).await.unwrap();
            assert_eq!(response.status().as_u16(), 200);
            let (body, is_broken) = read(response.into_body()).await;
            let exchange = until(&sim, |exchange| exchange.finished).await;
            assert!(!is_broken && body == exchange.response_sent, "{path}");
            assert!(!exchange.client_left && exchange.problems.is_empty(), "{exchange:?}");
        }
    }
}

#[tokio::test]
async fn an_aborted_stream_fails_at_the_client_after_the_bytes_sent() {
    let sim = Sim::new();
    let server = sim.start().await.unwrap();
    for http2 in [false, true] {
        for (scenario, is_whole) in [("broken", false), ("broken-between", true)] {
            let request = request(&server, PATHS[0], scenario);
            let response = client(http2).request(request).await.unwrap();
            let (body, is_broken) = read(response.into_body()).await;
            assert!(is_broken && body == sim.last().unwrap().response_sent, "{scenario}");
            assert_eq!(body.ends_with(b"\n\n"), is_whole, "{scenario}");
        }
    }
}

#[tokio::test]
async fn a_client_that_disconnects_is_noticed() {
    let sim = Sim::new();
    let server = sim.start().await.unwrap();
    for http2 in [false, true] {
        sim.clear();
        let client = client(http2);
        let mut response = client.request(request(&server, PATHS[0], "stalled")).await.unwrap();
        assert!(response.body_mut().frame().await.unwrap().is_ok());
        assert!(!sim.last().unwrap().client_left);
        drop((response, client));
        let exchange = until(&sim, |exchange| exchange.client_left).await;
        assert!(!exchange.finished && exchange.disconnected_at.is_some());

        sim.clear();
        let client = self::client(http2);
        let waiting = client.request(request(&server, PATHS[2], "no-head"));
        tokio::select! {
            _answer = waiting => assert!(sim.exchanges().is_empty(), "nothing is sent"),
            _received = until(&sim, |_| true) => {}
        }
        drop(client);
        assert_eq!(until(&sim, |exchange| exchange.client_left).await.status, 0);
    }
}

#[tokio::test]
async fn a_dropped_server_no_longer_responds() {
    let server = Sim::new().start().await.unwrap();
    let (gone, addr) = (request(&server, PATHS[0], "text"), server.addr);
    drop(server);
    let refused = async { while tokio::net::TcpStream::connect(addr).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap();
    assert!(client(false).request(gone).await.is_err());
}
