//! The programs of the benchmark together, without keybridge between them: what is asked for is what
//! comes, and is counted.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_keybridge-bench");

/// A program that listens; ended with this.
struct Listening {
    process: Child,
    address: String,
}

impl Listening {
    fn start(words: &[&str]) -> Self {
        let mut process = Command::new(BINARY).args(words).stdout(Stdio::piped()).spawn().unwrap();
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

/// A run of the load against an address, told to go on at each step.
fn load(to: &str, mock: &str, words: &[&str]) -> Value {
    let mut process = Command::new(BINARY)
        .args(["load", "--to", to, "--mock", mock])
        .args(words)
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
fn what_is_asked_for_comes_and_is_counted() {
    let mock = Listening::start(&["mock"]);
    let relay = Listening::start(&["relay", "--to", &mock.address]);
    // In Messages two events come before the text and three after it.
    let cases: [(&[&str], u64, u64); 5] = [
        (&["--kind", "pingpong", "--streams", "3", "--count", "50", "--warmup", "5"], 150, 150),
        (&["--kind", "whole", "--streams", "2", "--count", "20", "--warmup", "1"], 40, 0),
        (&["--kind", "bunched", "--count", "10", "--warmup", "1", "--events", "30"], 10, 350),
        (&["--kind", "paced", "--count", "10", "--pace-us", "1000"], 10, 10),
        (&["--kind", "idle", "--count", "7"], 0, 7),
    ];
    for to in [&mock.address, &relay.address] {
        for (words, requests, events) in cases {
            let seen = load(to, &mock.address, words);
            assert_eq!(seen["requests"], requests, "{words:?} {seen}");
            assert_eq!(seen["events"], events, "{words:?} {seen}");
        }
    }
    let chat = ["--kind", "bunched", "--count", "2", "--path", "/v1/chat/completions"];
    assert_eq!(load(&mock.address, &mock.address, &chat)["events"], 2 * 33);
}

#[test]
fn a_provider_that_is_not_there_is_an_error() {
    let words = ["load", "--to", "127.0.0.1:1", "--mock", "127.0.0.1:1", "--kind", "whole"];
    let done = Command::new(BINARY).args(words).stdin(Stdio::null()).output().unwrap();
    assert!(!done.status.success());
    assert!(String::from_utf8_lossy(&done.stderr).contains("127.0.0.1:1"));
}

#[test]
fn the_store_is_written_in_each_way() {
    let dir = std::env::temp_dir().join(format!("keybridge-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for (way, scheme) in [("ledger", "sqlite://"), ("autocommit", ""), ("batches", "")] {
        let store = format!("{scheme}{}", dir.join(way).display());
        let words = ["store", "--way", way, "--store", &store, "--count", "20"];
        let done = Command::new(BINARY).args(words).output().unwrap();
        assert!(done.status.success(), "{way}: {}", String::from_utf8_lossy(&done.stderr));
        let told: Value = serde_json::from_slice(&done.stdout).unwrap();
        assert!(told["requests_per_second"].as_f64().unwrap() > 0.0, "{told}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
