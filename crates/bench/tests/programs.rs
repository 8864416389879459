//! The programs of the benchmark together, without keybridge between them: every requested response
//! arrives and is counted.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_keybridge-bench");

/// A listening program; it is stopped when this is dropped.
struct Listening {
    process: Child,
    address: String,
}

impl Listening {
    fn start(arguments: &[&str]) -> Self {
        let mut process =
            Command::new(BINARY).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut address = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { process, address: address.trim().to_owned() }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Runs the load against an address, continuing at each step.
fn load(to: &str, mock: &str, arguments: &[&str]) -> Value {
    let mut process = Command::new(BINARY)
        .args(["load", "--to", to, "--mock", mock])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    process.stdin.take().unwrap().write_all(b"\n\n").unwrap();
    let lines: Vec<Value> = BufReader::new(process.stdout.take().unwrap())
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    assert!(process.wait().unwrap().success(), "{lines:?}");
    assert!(lines[0]["ready"].is_u64() && lines[1]["seconds"].is_f64(), "{lines:?}");
    lines.into_iter().next_back().unwrap()
}

#[test]
fn every_requested_response_arrives_and_is_counted() {
    let mock = Listening::start(&["mock"]);
    let relay = Listening::start(&["relay", "--to", &mock.address]);
    // The Messages API has two events before the text and three after it.
    let cases: [(&[&str], u64, u64); 5] = [
        (&["--kind", "pingpong", "--streams", "3", "--count", "50", "--warmup", "5"], 150, 150),
        (&["--kind", "whole", "--streams", "2", "--count", "20", "--warmup", "1"], 40, 0),
        (&["--kind", "bunched", "--count", "10", "--warmup", "1", "--events", "30"], 10, 350),
        (&["--kind", "paced", "--count", "10", "--pace-us", "1000"], 10, 10),
        (&["--kind", "idle", "--count", "7"], 0, 7),
    ];
    for to in [&mock.address, &relay.address] {
        for (arguments, requests, events) in cases {
            let seen = load(to, &mock.address, arguments);
            assert_eq!(seen["requests"], requests, "{arguments:?} {seen}");
            assert_eq!(seen["events"], events, "{arguments:?} {seen}");
        }
    }
    let chat = ["--kind", "bunched", "--count", "2", "--path", "/v1/chat/completions"];
    assert_eq!(load(&mock.address, &mock.address, &chat)["events"], 2 * 33);
}

#[test]
fn an_unreachable_provider_is_an_error() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let arguments = ["load", "--to", &address, "--mock", &address, "--kind", "whole"];
    let output = Command::new(BINARY).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains(&address));
}

#[test]
fn each_method_writes_the_store() {
    let dir = std::env::temp_dir().join(format!("keybridge-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for (method, scheme) in [("ledger", "sqlite://"), ("autocommit", ""), ("batches", "")] {
        let store = format!("{scheme}{}", dir.join(method).display());
        let arguments = ["store", "--method", method, "--store", &store, "--count", "20"];
        let output = Command::new(BINARY).args(arguments).output().unwrap();
        assert!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(result["requests_per_second"].as_f64().unwrap() > 0.0, "{result}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
