//! `keybridge sim` as a process: its address, its log, signals and `kill -9`.

use std::{
    collections::HashSet,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_keybridge");
const TIMEOUT: Duration = Duration::from_secs(30);

/// Simulated providers in their own process.
struct Simulator {
    process: Child,
    address: String,
}

impl Simulator {
    fn start(dir: &Path, words: &[&str]) -> Self {
        let mut process = Command::new(BINARY)
            .arg("sim")
            .args(words)
            .env_clear()
            .current_dir(dir)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut talk = String::new();
        BufReader::new(process.stderr.take().unwrap()).read_line(&mut talk).unwrap();
        let address = talk.strip_prefix("simulated providers are listening on http://").unwrap();
        Self { process, address: address.trim_end().to_owned() }
    }

    /// The head and the body of a response that is not streamed.
    fn ask(&self) -> String {
        let body =
            r#"{"model":"sim-text","max_tokens":9,"messages":[{"role":"user","content":"hi"}]}"#;
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        write!(
            stream,
            "POST /anthropic/v1/messages HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
             x-api-key: sk-x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn end(mut self, signal: &str) -> Option<i32> {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        self.process.wait().unwrap().code()
    }
}

#[test]
fn ids_are_logged_and_unique_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut answers = Vec::new();
    for signal in ["-KILL", "-TERM", "-INT"] {
        let simulator = Simulator::start(dir.path(), &["--log", "handed-out.jsonl"]);
        answers.extend((0..3).map(|_| simulator.ask()));
        let expected = if signal == "-KILL" { None } else { Some(0) };
        assert_eq!(simulator.end(signal), expected, "{signal}");
    }
    let log = std::fs::read_to_string(dir.path().join("handed-out.jsonl")).unwrap();
    let ids: Vec<String> = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["response_id"].to_string())
        .collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 9, "{ids:?}");
    for (id, answer) in ids.iter().zip(&answers) {
        assert!(answer.contains(id), "{id}: {answer}");
    }
}

#[test]
fn the_address_can_be_chosen_and_an_unusable_log_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let first = Simulator::start(dir.path(), &["--listen", "127.0.0.1:0"]);
    let sim = |words: &[&str]| {
        let mut command = Command::new(BINARY);
        let output = command.arg("sim").args(words).env_clear().current_dir(dir.path()).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = sim(&["--listen", &first.address]);
    assert!(code == Some(1) && said.contains(&first.address), "{said}");
    let (code, said) = sim(&["--log", "no/such/folder/log"]);
    assert!(code == Some(1) && said.contains("no/such/folder/log"), "{said}");
    assert_eq!(first.end("-TERM"), Some(0));
}
