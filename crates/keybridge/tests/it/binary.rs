//! The real binary as a process: configuration, first start, commands while it serves, signals and
//! `kill -9`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::slow_store::make_thoughts_endless;

mod configuration;
mod store_care;

pub const BINARY: &str = env!("CARGO_BIN_EXE_keybridge");
pub const TIMEOUT: Duration = Duration::from_secs(30);

pub fn keybridge(dir: &Path, args: &[&str]) -> Output {
    Command::new(BINARY).args(args).env_clear().current_dir(dir).output().unwrap()
}

pub fn json_lines(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A bridge with simulated providers.
pub struct Serving {
    process: Child,
    pub address: String,
    /// Address of the simulated providers and their MCP server.
    simulated: String,
    pub token: String,
}

impl Serving {
    fn start(dir: &Path, token: Option<&str>) -> Self {
        Self::start_with(dir, token, &[])
    }

    /// With settings as variables of the environment.
    pub fn start_with(dir: &Path, token: Option<&str>, settings: &[(&str, &str)]) -> Self {
        let mut process = Command::new(BINARY)
            .args(["serve", "--simulate", "--listen", "127.0.0.1:0"])
            .env_clear()
            .env("KEYBRIDGE_SERVER__SHUTDOWN_GRACE", "300ms")
            .envs(settings.iter().copied())
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut messages = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut line_after = |start: &str| {
            let mut lines = messages.by_ref().map(Result::unwrap);
            lines.find_map(|line| line.strip_prefix(start).map(str::to_owned)).unwrap()
        };
        let address = line_after("keybridge is listening on http://");
        let simulated = line_after("all providers are simulated: http://");
        let simulated = simulated.split('/').next().unwrap().to_owned();
        thread::spawn(move || messages.for_each(drop));
        let token = token.map(str::to_owned).unwrap_or_else(|| {
            let file = dir.join("spool/first-admin-token");
            std::fs::read_to_string(file).unwrap().trim().to_owned()
        });
        Self { process, address, simulated, token }
    }

    /// Sends a request for a scenario and leaves the connection open.
    pub fn ask(&self, scenario: &str) -> TcpStream {
        let body = format!(
            r#"{{"model":"sim-{scenario}","max_tokens":9,"stream":true,"messages":[{{"role":"user","content":"hi"}}]}}"#
        );
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        write!(
            stream,
            "POST /anthropic/v1/messages HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        )
        .unwrap();
        stream
    }

    /// Sends a request to the API and leaves the connection open.
    pub fn get(&self, path: &str) -> TcpStream {
        self.call("GET", path)
    }

    /// Sends a request without a body to the API and leaves the connection open.
    fn post(&self, path: &str) -> TcpStream {
        self.call("POST", path)
    }

    fn call(&self, method: &str, path: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let token = &self.token;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {token}\r\n\
             content-length: 0\r\n\r\n"
        )
        .unwrap();
        stream
    }

    pub fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    pub fn exit_code(mut self) -> Option<i32> {
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status.code();
            }
            thread::sleep(Duration::from_millis(20));
        }
        self.process.kill().unwrap();
        panic!("the process does not exit");
    }
}

/// No process outlives its test, even one that fails.
impl Drop for Serving {
    fn drop(&mut self) {
        let _has_exited = self.process.kill();
        let _status = self.process.wait();
    }
}

pub fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let (mut seen, mut buffer) = (String::new(), [0; 4096]);
    while !seen.contains(wanted) {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the connection closed before {wanted}: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    seen
}

/// The metrics, once they contain a text.
fn read_metrics_until(serving: &Serving, wanted: &str) -> String {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let page = read_until(&mut serving.get("/metrics"), "# EOF");
        if page.contains(wanted) {
            return page;
        }
        assert!(Instant::now() < deadline, "not {wanted}: {page}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn records(dir: &Path) -> Vec<Value> {
    json_lines(&keybridge(dir, &["--json", "interceptions"]))
}

/// The records, once all are settled: a settlement is committed after the last byte has been sent.
fn settled(dir: &Path) -> Vec<Value> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let found = records(dir);
        if found.iter().all(|record| record["outcome"] != "in_progress") {
            return found;
        }
        assert!(Instant::now() < deadline, "not settled: {found:?}");
    }
}

#[test]
fn a_wrong_configuration_starts_nothing_and_lists_every_problem() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.toml");
    std::fs::write(&file, "[server]\nlisten = 'x'\ncolour = 1\n[[providers]]\ntype = 'gemini'\n")
        .unwrap();
    for words in [["serve", "--config", "bad.toml"], ["--config", "bad.toml", "check"]] {
        let output = keybridge(dir.path(), &words);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{text}");
        for path in ["server.colour", "server.listen", "providers[0].type"] {
            assert!(text.contains(path), "{path} in {text}");
        }
        assert!(!dir.path().join("keybridge.db").exists(), "nothing was started");
    }
    std::fs::write(dir.path().join("notes.txt"), "remember the milk\n").unwrap();
    for file in ["missing.toml", "notes.txt"] {
        for command in ["serve", "interceptions"] {
            let output = keybridge(dir.path(), &[command, "--config", file]);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{file}: {text}");
            assert!(text.contains("1 problem in the configuration"), "{file}: {text}");
        }
    }
    // An empty file is a configuration of defaults, in which there is no store yet.
    let output = keybridge(dir.path(), &["interceptions", "--config", "/dev/null"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("no store at"), "{text}");
    let output = keybridge(dir.path(), &["serve", "--store", "sqlite:///nowhere/at/all.db"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("store.url"), "{text}");
    assert_eq!(keybridge(dir.path(), &["serve", "--colour"]).status.code(), Some(2));
}

#[test]
fn the_first_user_creates_a_store_that_is_named_and_serve_still_makes_an_administrator() {
    let dir = tempfile::tempdir().unwrap();
    let store = ["--store", "sqlite://named.db"];
    let output =
        keybridge(dir.path(), &[&["--json", "user", "create", "ada"], &store[..]].concat());
    assert_eq!(json_lines(&output)[0]["name"], "ada");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("created the store sqlite://named.db")
    );
    let output =
        keybridge(dir.path(), &[&["--json", "user", "create", "bob"], &store[..]].concat());
    assert_eq!(json_lines(&output)[0]["name"], "bob");
    assert!(output.stderr.is_empty(), "a store is created once");
    std::fs::write(dir.path().join("keybridge.toml"), "store.url = \"sqlite://written.db\"")
        .unwrap();
    let words = ["user", "create", "ada", "--config", "keybridge.toml"];
    assert!(keybridge(dir.path(), &words).status.success());
    assert!(dir.path().join("written.db").exists() && !dir.path().join("keybridge.db").exists());

    let settings = [("KEYBRIDGE_STORE__URL", "sqlite://named.db")];
    let serving = Serving::start_with(dir.path(), None, &settings);
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(0));
    let output = keybridge(dir.path(), &[&["--json", "user", "list"], &store[..]].concat());
    let mut users: Vec<_> = json_lines(&output)
        .iter()
        .map(|user| {
            format!("{} {}", user["name"].as_str().unwrap(), user["role"].as_str().unwrap())
        })
        .collect();
    users.sort();
    assert_eq!(users, ["ada member", "admin admin", "bob member"]);
    // A store that was lost after it was served is not replaced by an empty one.
    std::fs::remove_file(dir.path().join("named.db")).unwrap();
    let output = keybridge(dir.path(), &[&["user", "create", "eve"], &store[..]].concat());
    assert_eq!(output.status.code(), Some(2));
    assert!(!dir.path().join("named.db").exists());
}

#[test]
fn a_command_that_reads_or_administers_creates_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let commands: [&[&str]; 8] = [
        &["interceptions"],
        &["interceptions", "--follow"],
        &["sessions"],
        &["user", "list"],
        &["user", "create", "ada"],
        &["token", "list"],
        &["token", "create", "--user", "ada"],
        &["ledger", "verify"],
    ];
    for command in commands {
        let output = keybridge(dir.path(), command);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{command:?}: {text}");
        assert!(text.contains("no store at sqlite://keybridge.db: start"), "{command:?}: {text}");
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, 0, "{command:?} leaves files behind");
    }
    json_lines(&keybridge(dir.path(), &["--json", "migrate", "--store", "sqlite://other.db"]));
    let words = ["--json", "user", "create", "ada", "--store", "sqlite://other.db"];
    assert_eq!(json_lines(&keybridge(dir.path(), &words))[0]["name"], "ada");
    assert!(!dir.path().join("keybridge.db").exists());
}

#[test]
fn follow_prints_a_request_that_ends_after_600_newer_ones() {
    let dir = tempfile::tempdir().unwrap();
    let serving = Serving::start(dir.path(), None);
    let mut older = serving.ask("stalled");
    read_until(&mut older, "message_start");
    let id = records(dir.path())[0]["id"].clone();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..150 {
                    read_until(&mut serving.ask("text"), "message_stop");
                }
            });
        }
    });

    let follow = Following::start(dir.path(), &["--limit", "3"]);
    let next = || follow.next();
    for _ in 0..3 {
        assert_eq!(next()["outcome"], "completed");
    }
    // The client leaves, which ends the oldest request.
    drop(older);
    let ended = next();
    assert_eq!((&ended["id"], &ended["outcome"]), (&id, &"cancelled".into()));
    read_until(&mut serving.ask("text"), "message_stop");
    assert_eq!(next()["outcome"], "completed");
    drop(follow);
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(0));
}

#[test]
fn follow_begins_with_all_since_a_time_and_goes_on_after_an_outage() {
    let dir = tempfile::tempdir().unwrap();
    let serving = Serving::start(dir.path(), None);
    let ask = || drop(read_until(&mut serving.ask("text"), "message_stop"));
    (0..3).for_each(|_| ask());
    let follow = Following::start(dir.path(), &["--since", "1h", "--limit", "1"]);
    let mut ids: Vec<Value> = (0..3).map(|_| follow.next()["id"].clone()).collect();
    let store = rusqlite::Connection::open(dir.path().join("keybridge.db")).unwrap();
    store.busy_timeout(TIMEOUT).unwrap();
    store.execute_batch("ALTER TABLE trail RENAME TO away").unwrap();
    let error = follow.errors.recv_timeout(TIMEOUT).unwrap();
    assert!(error.ends_with("trying again until it succeeds"), "{error}");
    store.execute_batch("ALTER TABLE away RENAME TO trail").unwrap();
    (0..2).for_each(|_| ask());
    ids.extend((0..2).map(|_| follow.next()["id"].clone()));
    ids.sort_by_key(Value::to_string);
    ids.dedup();
    assert_eq!(ids.len(), 5);
    assert!(follow.errors.try_recv().is_err(), "an outage is reported once");
    drop(follow);
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(0));
}

/// `keybridge interceptions --follow`, until it is dropped.
struct Following {
    process: Child,
    printed: mpsc::Receiver<String>,
    errors: mpsc::Receiver<String>,
}

impl Following {
    fn start(dir: &Path, options: &[&str]) -> Self {
        let mut process = Command::new(BINARY)
            .args(["interceptions", "--follow", "--json"])
            .args(options)
            .env_clear()
            .current_dir(dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let printed = lines(process.stdout.take().unwrap());
        let errors = lines(process.stderr.take().unwrap());
        Self { process, printed, errors }
    }

    /// The next request that it prints.
    fn next(&self) -> Value {
        let line = self.printed.recv_timeout(TIMEOUT).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// The lines of an output, as they come.
fn lines(output: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _closed = sender.send(line);
        }
    });
    lines
}

#[test]
fn commands_work_on_the_store_of_a_running_bridge() {
    let dir = tempfile::tempdir().unwrap();
    let serving = Serving::start(dir.path(), None);
    let users = json_lines(&keybridge(dir.path(), &["user", "list", "--json"]));
    assert_eq!((&users[0]["name"], &users[0]["role"]), (&"admin".into(), &"admin".into()));

    json_lines(&keybridge(dir.path(), &["--json", "user", "create", "ada", "--role", "auditor"]));
    let words = ["--json", "token", "create", "--user", "ada", "--expires", "90d"];
    let token = json_lines(&keybridge(dir.path(), &words)).remove(0);
    let mut ada = serving;
    ada.token = token["token"].as_str().unwrap().into();
    read_until(&mut ada.ask("text"), "message_stop");
    let found = settled(dir.path());
    assert_eq!((&found[0]["user"], &found[0]["outcome"]), (&"ada".into(), &"completed".into()));
    let shown = keybridge(dir.path(), &["interceptions", "show", found[0]["id"].as_str().unwrap()]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("prompt: hi"));
    assert_eq!(json_lines(&keybridge(dir.path(), &["--json", "sessions"])).len(), 1);

    json_lines(&keybridge(dir.path(), &["--json", "user", "suspend", "ada"]));
    let deadline = Instant::now() + TIMEOUT;
    while !read_until(&mut ada.ask("text"), "\r\n").starts_with("HTTP/1.1 401") {
        assert!(Instant::now() < deadline, "the suspended user still has access");
        thread::sleep(Duration::from_millis(100));
    }
    let again = keybridge(dir.path(), &["user", "create", "ada"]);
    assert_eq!(again.status.code(), Some(1));
    let second = keybridge(dir.path(), &["serve", "--simulate", "--listen", "127.0.0.1:0"]);
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        !second.status.success() && text.contains("another keybridge process is using the store"),
        "{text}"
    );
    ada.signal("-TERM");
    assert_eq!(ada.exit_code(), Some(0));
}

#[test]
fn a_signal_ends_open_streams_in_their_dialect_and_settles_them() {
    for signal in ["-TERM", "-INT"] {
        let dir = tempfile::tempdir().unwrap();
        let serving = Serving::start(dir.path(), None);
        let mut stream = serving.ask("stalled");
        read_until(&mut stream, "message_start");
        serving.signal(signal);
        let rest = read_until(&mut stream, "event: error");
        assert!(rest.contains("keybridge is shutting down"), "{rest}");
        assert_eq!(serving.exit_code(), Some(0), "{signal}");
        let found = records(dir.path());
        assert_eq!((found.len(), &found[0]["outcome"]), (1, &"failed".into()));
    }
}

/// A bridge whose only reader is busy with a read that never ends, and the client that waits for it.
fn serving_an_endless_read(dir: &Path, grace: &str) -> (Serving, TcpStream) {
    let settings = [
        ("KEYBRIDGE_SERVER__SHUTDOWN_GRACE", grace),
        ("KEYBRIDGE_STORE__MAX_CONNECTIONS", "1"),
        ("KEYBRIDGE_STORE__READ_TIMEOUT", "1h"),
    ];
    let serving = Serving::start_with(dir, None, &settings);
    read_until(&mut serving.ask("text"), "message_stop");
    let record = settled(dir).remove(0);
    make_thoughts_endless(&dir.join("keybridge.db"));
    let path = format!("/api/v1/interceptions/{}", record["id"].as_str().unwrap());
    let reading = serving.get(&path);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let mut other = serving.get("/api/v1/interceptions");
        other.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        if other.read(&mut [0; 64]).is_err() {
            return (serving, reading);
        }
        assert!(Instant::now() < deadline, "the endless read does not begin");
    }
}

#[test]
fn a_running_read_does_not_delay_the_shutdown() {
    let dir = tempfile::tempdir().unwrap();
    let (serving, mut reading) = serving_an_endless_read(dir.path(), "300ms");
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(0));
    let mut answer = String::new();
    let _read = reading.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(records(dir.path()).len(), 1);
}

#[test]
fn a_command_whose_read_takes_too_long_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (serving, _reading) = serving_an_endless_read(dir.path(), "300ms");
    let id = records(dir.path()).remove(0)["id"].as_str().unwrap().to_owned();
    let output = Command::new(BINARY)
        .args(["interceptions", "show", &id])
        .env_clear()
        .env("KEYBRIDGE_STORE__READ_TIMEOUT", "200ms")
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("the read took longer than 0.2 s"), "{error}");
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(0));
}

#[test]
fn a_second_signal_exits_at_once_while_a_read_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (serving, _reading) = serving_an_endless_read(dir.path(), "1h");
    serving.signal("-TERM");
    // Two of the same signal that are pending at once are one.
    let deadline = Instant::now() + TIMEOUT;
    while TcpStream::connect(&serving.address).is_ok() {
        assert!(Instant::now() < deadline, "the first signal has no effect");
        thread::sleep(Duration::from_millis(20));
    }
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(130));
}

#[test]
fn after_kill_9_every_request_that_went_upstream_has_its_row() {
    let dir = tempfile::tempdir().unwrap();
    let serving = Serving::start(dir.path(), None);
    let token = serving.token.clone();
    let mut streams: Vec<TcpStream> = (0..20).map(|_| serving.ask("stalled")).collect();
    for stream in &mut streams {
        read_until(stream, "message_start");
    }
    serving.signal("-KILL");
    assert_eq!(serving.exit_code(), None);
    let open = records(dir.path());
    assert_eq!(open.len(), 20);
    assert!(open.iter().all(|record| record["outcome"] == "in_progress"));

    let again = Serving::start(dir.path(), Some(&token));
    let found = records(dir.path());
    assert_eq!(found.len(), 20);
    for record in &found {
        assert_eq!(record["outcome"], "interrupted");
        assert!(record["ended_at"].is_string());
    }
    read_until(&mut again.ask("text"), "message_stop");
    again.signal("-TERM");
    assert_eq!(again.exit_code(), Some(0));
    assert_eq!(records(dir.path()).len(), 21);
}

#[test]
fn bytes_that_are_not_http_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let serving = Serving::start(dir.path(), None);
    for bytes in [&b"\x16\x03\x01\x02\x00 hello"[..], b"GET\r\n\r\n", b"\0\0\0\0\0\0\0\0\0\0\0\0"] {
        let mut stream = TcpStream::connect(&serving.address).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // A reset is as good as status 400.
        let _read = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{text}");
    }
    let mut large = TcpStream::connect(&serving.address).unwrap();
    large.set_read_timeout(Some(TIMEOUT)).unwrap();
    let head = format!("GET /healthz HTTP/1.1\r\nx-large: {}\r\n\r\n", "x".repeat(100_000));
    // The bridge may close the connection before all of it is written.
    let _written = large.write_all(head.as_bytes());
    let mut answer = String::new();
    let _read = large.read_to_string(&mut answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    read_until(&mut serving.ask("text"), "message_stop");
    assert_eq!(records(dir.path()).len(), 1);
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(0));
}

#[test]
fn an_online_check_reaches_providers_and_keys() {
    let dir = tempfile::tempdir().unwrap();
    let serving = Serving::start(dir.path(), None);
    // The bridge itself is the provider, and a bridge token its key.
    let config = format!(
        "[store]\nurl = 'sqlite://other.db'\n\
         [[providers]]\ntype = 'anthropic'\nbase_url = 'http://{0}/anthropic'\n\
         keys = [{{ name = 'good', value = '{1}' }}, {{ name = 'bad', value = 'sk-bad' }}]\n\
         [[providers]]\ntype = 'openai'\nbase_url = 'http://127.0.0.1:1/v1'\n\
         [[mcp_servers]]\nname = 'wiki'\nurl = 'http://{2}/mcp'\n\
         [[mcp_servers]]\nname = 'gone'\nurl = 'http://127.0.0.1:1/mcp'\n",
        serving.address, serving.token, serving.simulated
    );
    std::fs::write(dir.path().join("c.toml"), config).unwrap();
    let output = keybridge(dir.path(), &["check", "--online", "--json", "--config", "c.toml"]);
    assert_eq!(output.status.code(), Some(1));
    let results: Vec<(String, bool)> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|row| (row["check"].as_str().unwrap().into(), row["ok"].as_bool().unwrap()))
        .collect();
    let expected = [
        ("configuration", true),
        ("store", true),
        ("provider anthropic", true),
        ("key good of anthropic", true),
        ("key bad of anthropic", false),
        ("provider openai", false),
        ("MCP server wiki", true),
        ("MCP server gone", false),
    ];
    assert_eq!(results, expected.map(|(what, ok)| (what.to_owned(), ok)));
}

#[test]
fn the_demo_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let output = keybridge(dir.path(), &["demo", "--exit", "--json"]);
    let trail = json_lines(&output);
    assert_eq!(trail.len(), 17);
    assert!(trail.iter().all(|record| record["outcome"] == "completed"));
    let injected = |record: &&Value| record["tool_usages"][0]["injected"] == true;
    let with_tools: Vec<&Value> = trail.iter().filter(injected).collect();
    assert_eq!(with_tools.len(), 3, "one in each dialect");
    for record in with_tools {
        let tool = &record["tool_usages"][0];
        assert_eq!((&tool["tool"], &record["inner_turns"]), (&"echo".into(), &1.into()));
        assert!(tool["server_url"].as_str().unwrap().ends_with("/mcp"), "{tool}");
        assert!(tool["result_bytes"].as_u64().unwrap() > 0, "{tool}");
    }
}

#[test]
fn version_config_and_completions_print_their_data() {
    let dir = tempfile::tempdir().unwrap();
    let text = |words: &[&str]| {
        let output = keybridge(dir.path(), words);
        assert!(output.status.success(), "{words:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(text(&["version"]).starts_with("keybridge 0."));
    assert!(text(&["config", "reference"]).contains("`max_body`"));
    let schema: Value = serde_json::from_str(&text(&["config", "schema"])).unwrap();
    assert!(schema["properties"]["server"].is_object());
    assert!(text(&["completions", "bash"]).contains("keybridge"));
    assert!(text(&["check"]).contains("valid"));
}

#[test]
fn migrate_updates_the_store_and_ledger_verify_counts_it() {
    let dir = tempfile::tempdir().unwrap();
    let plan = json_lines(&keybridge(dir.path(), &["--json", "migrate", "--plan"]));
    assert_eq!(plan[0]["pending"][0], "0001_records");
    assert!(!dir.path().join("keybridge.db").exists(), "--plan creates nothing");
    let applied = json_lines(&keybridge(dir.path(), &["--json", "migrate"]));
    assert_eq!(applied[0]["applied"], plan[0]["pending"]);
    let again = keybridge(dir.path(), &["migrate"]);
    assert_eq!(String::from_utf8_lossy(&again.stdout), "the store is up to date\n");

    let serving = Serving::start(dir.path(), None);
    let answer = read_until(&mut serving.ask("text"), "message_stop");
    let id = answer.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap();
    settled(dir.path());
    let counts = json_lines(&keybridge(dir.path(), &["--json", "ledger", "verify"]));
    assert_eq!((&counts[0]["interceptions"], &counts[0]["without_end"]), (&1.into(), &0.into()));

    let log = dir.path().join("handed-out.jsonl");
    std::fs::write(&log, format!("{{\"response_id\":\"{id}\"}}\n")).unwrap();
    let against = ["--json", "ledger", "verify", "--against", "handed-out.jsonl"];
    let found = json_lines(&keybridge(dir.path(), &against));
    assert_eq!(found[0]["against"]["found"], 1);
    std::fs::write(&log, "{\"response_id\":\"msg_of_nobody\",\"request_sha256\":\"00\"}\n")
        .unwrap();
    let missing = keybridge(dir.path(), &against);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stdout).contains("msg_of_nobody"));
    std::fs::write(&log, "{}\n").unwrap();
    let wrong = keybridge(dir.path(), &against);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("handed-out.jsonl:1"));

    // Records that a dead process left in the spool count as missing until the next start writes them.
    std::fs::create_dir_all(dir.path().join("spool")).unwrap();
    std::fs::write(dir.path().join("spool/x.spool"), "00000000 {}\n").unwrap();
    let leftovers = keybridge(dir.path(), &["ledger", "verify"]);
    assert_eq!(leftovers.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&leftovers.stdout).contains("records left in the spool"));
    serving.signal("-TERM");
    assert_eq!(serving.exit_code(), Some(0));
}

#[test]
fn a_flood_of_refusals_is_a_few_log_lines_and_a_count_of_the_rest() {
    const REQUESTS: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let mut process = Command::new(BINARY)
        .args(["serve", "--simulate", "--listen", "127.0.0.1:0"])
        .env_clear()
        .env("KEYBRIDGE_TELEMETRY__LOG__FORMAT", "json")
        .env("KEYBRIDGE_TELEMETRY__LOG__LINES_PER_SECOND", "1")
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
    let start = "keybridge is listening on http://";
    let address = lines.find_map(|line| line.strip_prefix(start).map(str::to_owned)).unwrap();
    let serving = Serving { process, address, simulated: String::new(), token: String::new() };
    for _ in 0..REQUESTS {
        let mut stream = serving.get("/nowhere");
        read_until(&mut stream, "unknown path");
    }
    let (mut written, mut omitted) = (0, 0);
    while written + omitted < REQUESTS {
        let line = lines.next().unwrap();
        let Ok(line) = serde_json::from_str::<Value>(&line) else { continue };
        match line["message"].as_str().unwrap() {
            "responded with an error" => written += 1,
            "log lines were left out" if line["message_left_out"] == "responded with an error" => {
                omitted += line["lines"].as_u64().unwrap();
            }
            _ => {}
        }
    }
    assert_eq!(written + omitted, REQUESTS);
    assert!(written < REQUESTS / 2, "{written} of {REQUESTS} lines were written");
}

#[test]
fn a_record_that_the_store_refuses_stops_neither_the_bridge_nor_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [("KEYBRIDGE_LEDGER__DURABILITY", "process")];
    let serving = Serving::start_with(dir.path(), None, &settings);
    let token = serving.token.clone();
    let database = rusqlite::Connection::open(dir.path().join("keybridge.db")).unwrap();
    database.busy_timeout(TIMEOUT).unwrap();
    database
        .execute_batch(
            "CREATE TRIGGER poison BEFORE INSERT ON interceptions WHEN NEW.model = 'sim-tool'
             BEGIN SELECT RAISE(ABORT, 'poison'); END;",
        )
        .unwrap();
    for scenario in ["text", "tool", "text", "tool", "text"] {
        read_until(&mut serving.ask(scenario), "message_stop");
    }
    let list = || json_lines(&keybridge(dir.path(), &["--json", "ledger", "spool", "list"]));
    let set_aside = || list().iter().find(|file| file["kind"] == "aside").cloned();
    let deadline = Instant::now() + TIMEOUT;
    // An opening and a settlement of each.
    while set_aside().is_none_or(|file| file["entries"] != 4) {
        assert!(Instant::now() < deadline, "{:?}", list());
        thread::sleep(Duration::from_millis(20));
    }
    let file = set_aside().unwrap();
    assert_eq!((&file["of_this_store"], &file["damaged"]), (&true.into(), &0.into()));
    let reasons = file["reasons"].as_object().unwrap();
    assert!(reasons.keys().any(|reason| reason.contains("poison")), "{reasons:?}");
    assert_eq!(keybridge(dir.path(), &["ledger", "verify"]).status.code(), Some(1));
    let export = json_lines(&keybridge(dir.path(), &["ledger", "spool", "export"]));
    assert_eq!(export.iter().filter(|entry| !entry["write"]["open"].is_null()).count(), 2);

    // Nothing that is in the directory keeps a bridge from its start.
    serving.signal("-KILL");
    drop(serving);
    std::fs::create_dir(dir.path().join("spool/0.journal")).unwrap();
    std::fs::write(dir.path().join("spool/1.journal"), [0; 4_696]).unwrap();
    std::fs::write(dir.path().join("spool/2.spool"), "not an entry\n").unwrap();
    let serving = Serving::start_with(dir.path(), Some(&token), &settings);
    read_until(&mut serving.ask("text"), "message_stop");

    let replay = ["--json", "ledger", "spool", "replay"];
    let refused = keybridge(dir.path(), &replay);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    database.execute_batch("DROP TRIGGER poison").unwrap();
    std::fs::remove_dir(dir.path().join("spool/0.journal")).unwrap();
    std::fs::remove_file(dir.path().join("spool/2.corrupt")).unwrap();
    let done = json_lines(&keybridge(dir.path(), &replay));
    assert_eq!((&done[0]["committed"], &done[0]["refused"]), (&4.into(), &0.into()), "{done:?}");
    let verified = json_lines(&keybridge(dir.path(), &["--json", "ledger", "verify"]));
    assert_eq!(
        (&verified[0]["interceptions"], &verified[0]["without_end"]),
        (&6.into(), &0.into())
    );
}

#[test]
fn the_first_administrators_token_is_in_a_file_and_never_in_a_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Command::new(BINARY)
        .args(["serve", "--simulate", "--listen", "127.0.0.1:0"])
        .env_clear()
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut messages = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut log = String::new();
    while !log.contains("simulated: http://") {
        log.push_str(&messages.next().unwrap());
    }
    let file = dir.path().join("spool/first-admin-token");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let token = std::fs::read_to_string(&file).unwrap();
    assert!(token.starts_with("kb_"), "{token}");
    assert!(log.contains(file.to_str().unwrap()), "{log}");

    let tokens = || json_lines(&keybridge(dir.path(), &["--json", "token", "list"]));
    assert!(tokens()[0]["expires_at"].is_string(), "{:?}", tokens());
    let address = log.split("listening on http://").nth(1).unwrap();
    let address = address.split(|c: char| !c.is_ascii_digit() && !".:".contains(c)).next().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let bearer = token.trim();
    write!(stream, "GET /api/v1/me HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {bearer}\r\n\r\n")
        .unwrap();
    assert!(read_until(&mut stream, "\"admin\"").starts_with("HTTP/1.1 200"));
    assert!(tokens()[0]["expires_at"].is_null(), "its use lifts the expiry: {:?}", tokens());

    process.kill().unwrap();
    let mut output = String::new();
    process.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    process.wait().unwrap();
    log.extend(messages);
    assert_eq!(output, "", "standard output may be a log");
    assert!(!log.contains("kb_"), "{log}");
}
