//! Texts from clients and providers: bounded and without secrets in everything that is stored, listed
//! and printed.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::Full;
use keybridge::config::Config;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::TaskTracker;

use crate::support::{ANTHROPIC_KEY, CapturedLog, World, in_own_process, pool_key};

const MESSAGES: &str = "/anthropic/v1/messages";
const BINARY: &str = env!("CARGO_BIN_EXE_keybridge");
const SET_HEADER_SECRET: &str = "gateway-secret-0123456789";
const SECOND_KEY: &str = "sk-ant-second-0123456789abcdef";

/// A provider that gives every request the same answer.
async fn provider_with(status: u16, content_type: &str, body: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = format!(
        "HTTP/1.1 {status} Status\r\ncontent-type: {content_type}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let tasks = TaskTracker::new();
    let answering = tasks.clone();
    tasks.spawn(async move {
        while let Ok((socket, _peer)) = listener.accept().await {
            answering.spawn(serve_one(socket, answer.clone()));
        }
    });
    address
}

async fn serve_one(mut socket: TcpStream, answer: String) {
    let mut request = Vec::new();
    let mut is_complete = false;
    while !is_complete && socket.read_buf(&mut request).await.unwrap_or(0) > 0 {
        let text = String::from_utf8_lossy(&request);
        is_complete = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            body.len() >= length.map_or(0, |length| length.parse().unwrap())
        });
    }
    // The bridge may be gone.
    let _sent = socket.write_all(answer.as_bytes()).await;
}

async fn world_with_provider(address: SocketAddr) -> World {
    World::with(|config| set_provider(config, address)).await
}

/// The provider has two keys, and a secret in a header that is set.
fn set_provider(config: &mut Config, address: SocketAddr) {
    let provider = &mut config.providers[0];
    provider.base_url = format!("http://{address}").parse().unwrap();
    provider.keys.push(pool_key("second", SECOND_KEY));
    let secret = HeaderValue::from_static(SET_HEADER_SECRET);
    provider.set_headers = vec![("x-gateway".parse().unwrap(), secret)];
}

fn request_body(model: &str, content: Value) -> Value {
    json!({ "model": model, "max_tokens": 9, "messages": [{ "role": "user", "content": content }] })
}

fn get(world: &World, path: &str) -> Request<Full<Bytes>> {
    let bearer = format!("Bearer {}", world.token);
    world.request(Method::GET, path, &[("authorization", &bearer)])
}

/// Asserts that a text is nowhere in the files of the store.
fn assert_not_stored(world: &World, secret: &str) {
    let files = fs::read_dir(world.dir()).unwrap().map(|file| file.unwrap().path());
    let stored: Vec<_> = files.filter(|path| path.is_file()).collect();
    assert!(!stored.is_empty());
    for path in stored {
        let bytes = fs::read(&path).unwrap();
        let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{secret} is in {}", path.display());
    }
}

#[tokio::test]
async fn hundreds_of_thousands_of_tool_results_are_recorded_within_bounds() {
    let world = World::start().await;
    let result = json!({ "type": "tool_result", "tool_use_id": "0" });
    let body = request_body("sim-text", Value::from(vec![result.clone(); 100_000]));
    world.send(world.centralized(MESSAGES, &body.to_string())).await;
    let record = world.settled_record().await;
    assert_eq!(record["correlating_tool_call_id"], "0", "{record:#}");
    let more = request_body("sim-text", Value::from(vec![result; 400_000]));
    assert_status!(world.send(world.centralized(MESSAGES, &more.to_string())).await, 400);
    let small = request_body("sim-text", "hi".into()).to_string();
    assert_status!(world.send(world.centralized(MESSAGES, &small)).await, 200);
    assert_eq!(world.settled_records(3).await[2]["outcome"], "completed");
}

#[tokio::test]
async fn a_body_with_millions_of_values_is_refused_as_invalid() {
    let world = World::start().await;
    let body = request_body("sim-text", Value::from(vec![0; 1_000_001]));
    let answer = world.send(world.centralized(MESSAGES, &body.to_string())).await;
    assert_status!(answer, 400);
    assert!(answer.text().contains("more than 1000000 JSON values"), "{}", answer.text());
    assert_eq!(world.settled_record().await["outcome"], "refused");
}

#[tokio::test]
async fn names_of_megabytes_are_cut_and_marked_wherever_they_come_from() {
    const MAX_CONTENT: usize = 1 << 20;
    let long = "x".repeat(2 << 20);
    let answer = json!({
        "id": long, "type": "message", "role": "assistant", "model": long, "stop_reason": long,
        "content": [{ "type": "tool_use", "id": long, "name": long, "input": { "a": long } }],
        "usage": { "input_tokens": 1, "output_tokens": 1 },
    });
    let address = provider_with(200, "application/json", answer.to_string()).await;
    let world = World::with(|config| {
        set_provider(config, address);
        let contents = &mut config.record.contents;
        (contents.prompt, contents.arguments) = (MAX_CONTENT, MAX_CONTENT);
    })
    .await;
    let asked = request_body(&long, long.as_str().into()).to_string();
    let bearer = format!("Bearer {}", world.token);
    let headers = [("authorization", bearer.as_str()), ("user-agent", &"u".repeat(8_000))];
    let answer = world.send(world.post(MESSAGES, &headers, asked)).await;
    assert!(answer.body.len() > 2 << 20, "the client gets the whole answer");
    let record = world.settled_record().await;
    let call = &record["tool_usages"][0];
    for text in [
        &record["model"],
        &record["model_served"],
        &record["stop_reason"],
        &record["token_usages"][0]["provider_response_id"],
        &call["tool"],
        &call["tool_call_id"],
    ] {
        let text = text.as_str().unwrap();
        assert!(text.len() <= 16 * 1_024 && text.contains("…[cut: 2097152 bytes"), "{text}");
    }
    assert!(call["tool_call_id"].as_str().unwrap().len() <= 1_024);
    assert!(record["user_agent"].as_str().unwrap().len() <= 1_024);
    for (content, length) in
        [(&record["prompts"][0]["prompt"], 2_097_152), (&call["arguments"], 2_097_160)]
    {
        let text = content.as_str().unwrap();
        assert!(text.len() <= MAX_CONTENT, "{}", text.len());
        assert!(text.ends_with(&format!("…[cut: {length} bytes]")), "{}", &text[text.len() - 60..]);
    }
    let list = world.send(get(&world, "/api/v1/interceptions")).await;
    assert!(list.body.len() < 64 * 1_024, "the list has {} bytes", list.body.len());
}

#[tokio::test]
async fn a_bridge_token_pasted_anywhere_into_a_request_is_not_stored() {
    let world = World::start().await;
    let token = world.token.clone();
    let mut body = request_body(
        &format!("sim-text{token}"),
        json!([
            { "type": "text", "text": format!("use {token} and x{token}y") },
        ]),
    );
    body["metadata"] = json!({ "user_id": format!("user_session_{token}") });
    let bearer = format!("Bearer {token}");
    let agent = format!("claude-cli/1.0 {token}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("user-agent", "claude-cli/1.0"),
        ("x-claude-code-agent-id", agent.as_str()),
    ];
    world.send(world.post(MESSAGES, &headers, body.to_string())).await;
    let record = world.settled_record().await;
    let hint = format!("{}...{}", &token[..4], &token[token.len() - 4..]);
    assert_eq!(record["model"], format!("sim-text{hint}"));
    assert_eq!(record["prompts"][0]["prompt"], format!("use {hint} and x{hint}y"));
    assert_eq!(record["client_session_id"], hint);
    assert_not_stored(&world, &token);
}

#[tokio::test]
async fn a_secret_that_an_answer_repeats_is_not_stored() {
    // The token is known once the world is there, so the provider's answer names another valid one.
    let other = keybridge_identity::BridgeToken::generate().unwrap();
    let secrets = [ANTHROPIC_KEY, SECOND_KEY, SET_HEADER_SECRET, other.expose()];
    let all = secrets.join(" ");
    let answer = json!({
        "id": format!("msg_{all}"), "type": "message", "role": "assistant", "model": all,
        "stop_reason": all,
        "content": [
            { "type": "thinking", "thinking": all, "signature": "s" },
            { "type": "tool_use", "id": all, "name": all, "input": { "a": all } },
        ],
        "usage": { "input_tokens": 1, "output_tokens": 1, "server_tool_use": { all.as_str(): 1 } },
    });
    let address = provider_with(200, "application/json", answer.to_string()).await;
    let world = world_with_provider(address).await;
    let body = request_body("claude", "hi".into()).to_string();
    let answer = world.send(world.centralized(MESSAGES, &body)).await;
    assert!(answer.text().contains(other.expose()), "the client gets what the model said");
    let record = world.settled_record().await;
    assert_eq!(record["outcome"], "completed");
    assert!(record["thoughts"][0]["content"].as_str().unwrap().starts_with("sk-a...cdef sk-a"));
    for secret in secrets {
        assert_not_stored(&world, secret);
    }
}

#[tokio::test]
async fn a_central_key_that_a_provider_quotes_in_an_error_is_not_stored_however_long_the_message() {
    let quoted = format!("{}{ANTHROPIC_KEY} {SECOND_KEY} {SET_HEADER_SECRET}", "x".repeat(8_170));
    let error = json!({
        "type": "error", "error": { "type": format!("bad {SECOND_KEY}"), "message": quoted },
    });
    let address = provider_with(400, "application/json", error.to_string()).await;
    let world = world_with_provider(address).await;
    let body = request_body("claude", "hi".into()).to_string();
    assert_status!(world.send(world.centralized(MESSAGES, &body)).await, 400);
    let record = world.settled_record().await;
    assert_eq!(record["error_kind"], "bad sk-a...cdef");
    let message = record["error_message"].as_str().unwrap();
    assert!(!message.contains("sk-ant-c"), "{}", &message[message.len() - 60..]);
    for secret in [ANTHROPIC_KEY, SECOND_KEY, SET_HEADER_SECRET] {
        assert_not_stored(&world, secret);
    }
}

#[test]
fn a_secret_that_a_provider_quotes_is_not_logged() {
    if !in_own_process("untrusted_text::a_secret_that_a_provider_quotes_is_not_logged") {
        return;
    }
    let log = CapturedLog::start(tracing::Level::INFO);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let answer = json!({
        "id": "msg_1", "type": "message", "role": "assistant", "content": [],
        "model": format!("{ANTHROPIC_KEY} {}", "x".repeat(1 << 20)), "stop_reason": "end_turn",
        "usage": { "input_tokens": 1, "output_tokens": 1 },
    });
    runtime.block_on(async {
        let address = provider_with(200, "application/json", answer.to_string()).await;
        let world = world_with_provider(address).await;
        let body = request_body("claude", "hi".into()).to_string();
        assert_status!(world.send(world.centralized(MESSAGES, &body)).await, 200);
        world.settled_record().await;
    });
    let text = log.text();
    assert!(text.contains("settled") && text.contains("sk-a...cdef"), "{text}");
    assert!(!text.contains(ANTHROPIC_KEY), "{text}");
    assert!(text.lines().all(|line| line.len() < 4_096), "{text}");
}

/// A command on the store of a world.
fn command(world: &World, args: &[&str]) -> Command {
    let store = format!("sqlite://{}", world.dir().join("keybridge.db").display());
    let mut command = Command::new(BINARY);
    command.args(["--store", &store]).args(args).env_clear().current_dir(world.dir());
    command
}

/// What the command prints.
fn printed(world: &World, args: &[&str]) -> String {
    let output = command(world, args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn escapes_and_newlines_from_outside_are_printed_as_escapes() {
    let world = World::start().await;
    let hostile = "sim-text\u{1b}[2J\noutcome: forged\u{202e}\u{9b}";
    let body = request_body(hostile, format!("prompt {hostile}").into()).to_string();
    world.send(world.centralized(MESSAGES, &body)).await;
    let record = world.settled_record().await;
    let id = record["id"].as_str().unwrap();
    let shown = "\\u{1b}[2J\\noutcome: forged\\u{202e}\\u{9b}";
    for args in
        [&["interceptions"][..], &["interceptions", "show", id], &["sessions"], &["user", "list"]]
    {
        let text = printed(&world, args);
        assert!(text.contains(shown) || args[0] == "user", "{args:?}: {text}");
        let is_plain = |c: char| c == '\n' || !c.is_control() && c != '\u{202e}';
        assert!(text.chars().all(is_plain), "{args:?}: {text:?}");
        assert!(!text.lines().any(|line| line.starts_with("outcome: forged")), "{args:?}: {text}");
    }
    let follow = command(&world, &["interceptions", "--follow"]).stdout(Stdio::piped()).spawn();
    let mut follow = follow.unwrap();
    let mut line = String::new();
    BufReader::new(follow.stdout.take().unwrap()).read_line(&mut line).unwrap();
    follow.kill().unwrap();
    follow.wait().unwrap();
    assert!(line.contains(shown), "{line}");
    let wrong = command(&world, &["interceptions", "show", hostile]).output().unwrap();
    let error = String::from_utf8(wrong.stderr).unwrap();
    assert_eq!(wrong.status.code(), Some(2));
    assert!(!error.contains(['\u{1b}', '\u{202e}', '\u{9b}']), "{error:?}");
    assert!(error.contains("\\u{202e}\\u{9b}"), "{error:?}");
    let json: Value = serde_json::from_str(&printed(&world, &["--json", "interceptions"])).unwrap();
    assert_eq!(json["model"], hostile, "JSON is not changed");
}

#[tokio::test]
async fn a_page_of_large_records_has_fewer_rows_and_the_cursor_leads_to_the_rest() {
    let world = World::start().await;
    let body = request_body("sim-text", "hi".into()).to_string();
    for _ in 0..20 {
        assert_status!(world.send(world.centralized(MESSAGES, &body)).await, 200);
    }
    world.settled_records(20).await;
    // As an earlier release may have stored it.
    let connection = rusqlite::Connection::open(world.dir().join("keybridge.db")).unwrap();
    connection.busy_timeout(Duration::from_secs(30)).unwrap();
    connection
        .execute("UPDATE interceptions SET error_message = hex(zeroblob(500000))", ())
        .unwrap();
    let (mut ids, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let path = format!("/api/v1/interceptions?limit=500{cursor}");
        let answer = world.send(get(&world, &path)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert!(answer.body.len() <= 8 << 20, "{}", answer.body.len());
        let page = answer.json();
        let items = page["items"].as_array().unwrap();
        ids.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        pages += 1;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    ids.dedup();
    assert_eq!((ids.len(), pages), (20, 3));
    assert_eq!(printed(&world, &["--json", "interceptions"]).lines().count(), 20);
}
