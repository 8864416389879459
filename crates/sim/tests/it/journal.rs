//! The journal of the responses that the simulated providers send.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::fs::File;

use aws_lc_rs::digest;
use axum::body::{Body, to_bytes};
use http::{Request, Response};
use http_body_util::BodyExt;
use keybridge_sim::Sim;
use serde_json::Value;
use tempfile::NamedTempFile;
use tower::ServiceExt;

const PATHS: [&str; 3] =
    ["/anthropic/v1/messages", "/openai/v1/chat/completions", "/openai/v1/responses"];
const COMPACT: &str = "/openai/v1/responses/compact";

/// Simulated providers and the journal that they write.
fn journaled() -> (Sim, NamedTempFile) {
    let file = NamedTempFile::new().unwrap();
    (Sim::new().with_journal(file.reopen().unwrap()), file)
}

fn lines(file: &NamedTempFile) -> Vec<Value> {
    let text = std::fs::read_to_string(file.path()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn body(scenario: &str, stream: bool) -> String {
    format!(
        r#"{{"model":"sim-{scenario}","stream":{stream},"max_tokens":9,"input":"hi","messages":[{{"role":"user","content":"hi"}}]}}"#
    )
}

async fn ask(sim: &Sim, path: &str, body: &str) -> Response<Body> {
    ask_with_delay(sim, path, body, 1).await
}

async fn ask_with_delay(sim: &Sim, path: &str, body: &str, delay_ms: u32) -> Response<Body> {
    let request = Request::post(path)
        .header("authorization", "Bearer sk-x")
        .header("x-sim-delay-ms", delay_ms)
        .body(Body::from(body.to_owned()))
        .unwrap();
    sim.router().oneshot(request).await.unwrap()
}

fn sha256(body: &str) -> String {
    let hash = digest::digest(&digest::SHA256, body.as_bytes());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_response_has_one_journal_line_before_its_first_byte() {
    for path in PATHS.into_iter().chain([COMPACT]) {
        for stream in [true, false] {
            let (sim, file) = journaled();
            let body = body("text", stream);
            let mut response = ask(&sim, path, &body).await;
            let written = lines(&file);
            assert_eq!(written.len(), 1, "{path}");
            let first = response.body_mut().frame().await.unwrap().unwrap();
            let first = String::from_utf8_lossy(first.data_ref().unwrap()).into_owned();
            let id = written[0]["response_id"].as_str().unwrap();
            assert!(first.contains(&format!(r#""id":"{id}""#)), "{id}: {first}");
            assert_eq!(written[0]["request_sha256"], sha256(&body));
            assert_eq!(written[0]["path"], path);
            let at = written[0]["at"].as_str().unwrap();
            assert!(at.parse::<jiff::Timestamp>().is_ok(), "{at}");
            let rest = to_bytes(response.into_body(), usize::MAX).await.unwrap();
            assert!(stream || rest.is_empty());
            assert_eq!(lines(&file).len(), 1, "{path}");
        }
    }
}

#[tokio::test]
async fn a_response_that_never_starts_has_no_journal_line() {
    let (sim, file) = journaled();
    let body = body("text", false);
    let received = async {
        while sim.last().is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = ask_with_delay(&sim, PATHS[0], &body, 60_000) => unreachable!("{answer:?}"),
        () = received => {}
    }
    assert!(sim.last().unwrap().client_left);
    assert!(lines(&file).is_empty());
}

#[tokio::test]
async fn a_response_without_an_id_has_no_journal_line() {
    let (sim, file) = journaled();
    for scenario in ["error-500", "non-json", "empty-body", "no-such-scenario"] {
        let _response = ask(&sim, PATHS[2], &body(scenario, true)).await;
    }
    for turns in [r#"[[{"error_event":true}]]"#, r#"[[{"error":500}]]"#, "[[{}]]"] {
        let request = Request::post(PATHS[2]).header("authorization", "Bearer sk-x");
        let request = request.header("x-sim-turns", turns);
        let request = request.body(Body::from(body("text", false))).unwrap();
        let response = sim.router().oneshot(request).await.unwrap();
        assert!(!response.status().is_success(), "{turns}");
    }
    let _counted = ask(&sim, "/anthropic/v1/messages/count_tokens", "{}").await;
    assert!(lines(&file).is_empty());
}

#[tokio::test]
async fn an_id_that_cannot_be_journaled_is_not_sent() {
    let file = NamedTempFile::new().unwrap();
    let sim = Sim::new().with_journal(File::open(file.path()).unwrap());
    for path in PATHS.into_iter().chain([COMPACT]) {
        for stream in [true, false] {
            let response = ask(&sim, path, &body("text", stream)).await;
            assert_eq!(response.status().as_u16(), 500, "{path}");
            let answer = to_bytes(response.into_body(), usize::MAX).await.unwrap();
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            assert!(answer["id"].is_null() && answer["error"].is_object(), "{answer}");
        }
    }
}
