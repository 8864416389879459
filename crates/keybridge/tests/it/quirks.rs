//! What providers and agents really send: one row of a table per reported quirk.
//!
//! A row is a `[[quirk]]` in `quirks/<topic>.toml`. It starts the product with a scripted provider, sends a
//! request, and checks what the client got, what the provider got and what was recorded. Rows name the public
//! report they stand for, as `owner/repo#number`. What is not said has a default that is the rule of a
//! transparent bridge: the body reaches the provider as the client wrote it, and the client gets the
//! provider's status and bytes.
//!
//! ```toml
//! [[quirk]]
//! about = "a sentence that says what is right"
//! sources = ["owner/repo#1"]
//! config = '''TOML after the default configuration; {provider} is the provider's address'''
//! path = "/openai/v1/chat/completions" # the step: method, path, headers, user, request, stream
//! stream = true
//! events = ['{"id":"c1"}', "data: [DONE]"] # the answer: status, headers, events or body, end
//! record = { "token_usages.0.input_tokens" = 188, "error_message" = { contains = "quota" } }
//! ```
//!
//! `answers` holds several answers, one per request that arrives (then 500), and `then` further steps. See
//! [`Step`] and [`ScriptedAnswer`] for all keys.

use std::{
    collections::{BTreeMap, VecDeque},
    io::Write,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{Method, Request};
use http_body_util::Full;
use keybridge::{
    config::{Config, Overrides},
    env::Env,
};
use keybridge_identity::{Accounts, NewUser, Role};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    Answer, World,
    tcp::{read_head, serve},
    user_with_token,
};

/// The configuration that rows add to.
const CONFIG: &str = r#"
[[providers]]
type = "anthropic"
base_url = "{provider}"
keys = [{ value = "sk-ant-company-0123456789abcdef" }]
[[providers]]
type = "openai"
base_url = "{provider}/v1"
keys = [{ value = "sk-company-0123456789abcdef" }]
[[providers]]
type = "bedrock"
base_url = "{provider}"
[providers.bedrock]
region = "eu-central-1"
model = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
small_fast_model = "eu.anthropic.claude-haiku-4-5-20251001-v1:0"
access_key_id = "AKIAEXAMPLE"
secret_access_key = "an-example-of-a-secret"
"#;

#[derive(Debug, Deserialize)]
struct Table {
    quirk: Vec<Quirk>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Quirk {
    /// What is right, in a sentence.
    about: String,
    /// Public reports, as `owner/repo#number`; empty where the row is our own.
    #[serde(default)]
    sources: Vec<String>,
    #[serde(default)]
    config: String,
    /// The steps, in order.
    steps: Vec<Step>,
}

/// A request and what is expected of it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Step {
    method: Option<String>,
    path: String,
    headers: BTreeMap<String, String>,
    /// The user whose token is shown, or empty: no token.
    user: Option<String>,
    /// The body; by default a short question in the dialect of the path.
    request: Option<String>,
    stream: bool,
    /// The provider's answers, one per request that arrives.
    answers: Vec<ScriptedAnswer>,
    /// The status that the client gets; by default that of the last answer.
    expect_status: Option<u16>,
    /// Whether the client gets other bytes than those of the last answer.
    changed: bool,
    contains: Vec<String>,
    lacks: Vec<String>,
    /// Headers that the client gets; an empty value: none of this name.
    expect_headers: BTreeMap<String, String>,
    /// Whether the client's body is cut off.
    cut: bool,
    /// How many requests reach the provider; by default one per answer.
    requests: Option<usize>,
    /// Method, a blank and the path with its query, as the provider gets it.
    sent_to: Option<String>,
    /// Texts of the provider's last request, head and body; without any, the body is the client's.
    sent_contains: Vec<String>,
    sent_lacks: Vec<String>,
    /// Paths within the record, such as `token_usages.0.raw`, `#` for a length; a value, or
    /// `{ contains = … }`, `{ one_of = […] }`, `{ at_least = … }`, `{ same_as = "path" }` (in the record of
    /// the first step) or `{ absent = true }` (missing or null).
    record: BTreeMap<String, toml::Value>,
    /// The same for the first step's record after this step.
    first_record: BTreeMap<String, toml::Value>,
}

/// What the provider answers.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ScriptedAnswer {
    status: Option<u16>,
    headers: BTreeMap<String, String>,
    body: String,
    /// Data of events, or lines as they are if they begin with a field's name; sent in place of `body`.
    events: Vec<String>,
    /// The size of the chunks that the body is sent in; by default it is one chunk.
    chunk_bytes: Option<usize>,
    /// Whether the body ends with its connection, before its declared end.
    cut: bool,
    /// Whether the body is compressed.
    gzip: bool,
}

/// The length of what stands for `{image}` in an answer: more than is held of one.
const IMAGE_BYTES: usize = 17 << 20;

impl ScriptedAnswer {
    fn body(&self) -> String {
        let body: String = if self.events.is_empty() {
            self.body.clone()
        } else {
            self.events.iter().map(event).collect()
        };
        body.replace("{image}", &"A".repeat(if body.contains("{image}") { IMAGE_BYTES } else { 0 }))
    }

    fn bytes(&self) -> Vec<u8> {
        let mut body = self.body().into_bytes();
        if self.gzip {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&body).unwrap();
            body = encoder.finish().unwrap();
        }
        let kind = if self.events.is_empty() { "application/json" } else { "text/event-stream" };
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", self.status.unwrap_or(200));
        if !self.headers.contains_key("content-type") {
            head.push_str(&format!("content-type: {kind}\r\n"));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut bytes = format!("{head}transfer-encoding: chunked\r\n\r\n").into_bytes();
        for chunk in body.chunks(self.chunk_bytes.unwrap_or(usize::MAX)) {
            bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
            bytes.extend(chunk);
            bytes.extend(b"\r\n");
        }
        bytes.extend(if self.cut { &b""[..] } else { b"0\r\n\r\n" });
        bytes
    }
}

/// An event of a stream, named by its `type` as the Messages and Responses APIs do.
fn event(data: &String) -> String {
    if [":", "data:", "event:", "id:", "retry:"].iter().any(|field| data.starts_with(field)) {
        return format!("{data}\n\n");
    }
    let named = serde_json::from_str::<Value>(data)
        .ok()
        .and_then(|event| Some(format!("event: {}\n", event.get("type")?.as_str()?)));
    format!("{}data: {data}\n\n", named.unwrap_or_default())
}

/// A request as the provider got it.
#[derive(Debug, Clone)]
struct Seen {
    head: String,
    body: Vec<u8>,
}

/// A provider that gives one scripted answer after the other.
#[derive(Debug, Clone, Default)]
struct Provider {
    answers: Arc<Mutex<VecDeque<ScriptedAnswer>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Provider {
    fn start(&self) -> SocketAddr {
        let provider = self.clone();
        serve(move |mut stream| {
            let provider = provider.clone();
            async move { while provider.exchange(&mut stream).await.is_some() {} }
        })
    }

    async fn exchange(&self, stream: &mut TcpStream) -> Option<()> {
        let seen = read_request(stream).await?;
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        let next = self.answers.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let answer = next.unwrap_or_else(|| ScriptedAnswer {
            status: Some(500),
            headers: [("x-should-retry".to_owned(), "false".to_owned())].into(),
            body: r#"{"error":{"message":"no answer left"}}"#.to_owned(),
            ..ScriptedAnswer::default()
        });
        stream.write_all(&answer.bytes()).await.ok()?;
        (!answer.cut).then_some(())
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<Seen> {
    let head = read_head(stream).await?;
    let field = |name: &str| {
        head.lines().find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let mut body = Vec::new();
    if field("transfer-encoding").is_some() {
        while let size @ 1.. = read_chunk_size(stream).await? {
            let from = body.len();
            body.resize(from + size + 2, 0);
            stream.read_exact(&mut body[from..]).await.ok()?;
            body.truncate(from + size);
        }
        stream.read_u16().await.ok()?;
    } else if let Some(length) = field("content-length") {
        body.resize(length.parse().unwrap(), 0);
        stream.read_exact(&mut body).await.ok()?;
    }
    Some(Seen { head, body })
}

async fn read_chunk_size(stream: &mut TcpStream) -> Option<usize> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.ok()?);
    }
    usize::from_str_radix(String::from_utf8(line).unwrap().trim(), 16).ok()
}

fn default_request(path: &str, stream: bool) -> String {
    let rest = if stream { r#","stream":true"# } else { "" };
    if path.ends_with("/messages") {
        format!(
            r#"{{"model":"m","max_tokens":64,"messages":[{{"role":"user","content":"Which boat?"}}]{rest}}}"#
        )
    } else if path.ends_with("/responses") {
        format!(r#"{{"model":"m","input":"Which boat?"{rest}}}"#)
    } else {
        let options = if stream { r#","stream_options":{"include_usage":true}"# } else { "" };
        format!(
            r#"{{"model":"m","messages":[{{"role":"user","content":"Which boat?"}}]{rest}{options}}}"#
        )
    }
}

/// A world with a scripted provider and the tokens of its users.
struct Scene {
    world: World,
    provider: Provider,
    tokens: BTreeMap<String, String>,
    first_record: Option<Value>,
}

impl Scene {
    async fn start(config: &str) -> Self {
        let provider = Provider::default();
        let text = format!("{CONFIG}{config}")
            .replace("{provider}", &format!("http://{}", provider.start()));
        let world = World::with(|world| {
            let overrides = Overrides {
                listen: Some("127.0.0.1:0".into()),
                store: Some(world.store_url.clone()),
            };
            let parsed = Config::parse(&text, &Env::default(), &overrides).unwrap();
            let ledger = world.ledger.clone();
            *world = Config { ledger, shutdown_grace: world.shutdown_grace, ..parsed };
        })
        .await;
        let accounts = Accounts::new(world.ledger.clone());
        let admin = NewUser { name: "root".into(), email: None, role: Role::Admin };
        accounts.create_user(&admin).unwrap();
        let (_token, secret) = accounts.create_token("root", None, None).unwrap();
        let tokens = [
            ("root".to_owned(), secret.expose().to_owned()),
            ("ada".to_owned(), world.token.clone()),
        ];
        Self { world, provider, tokens: tokens.into(), first_record: None }
    }

    fn token(&mut self, user: &str) -> String {
        let ledger = &self.world.ledger;
        self.tokens.entry(user.to_owned()).or_insert_with(|| user_with_token(ledger, user)).clone()
    }

    async fn run(&mut self, step: &Step) -> Result<(), String> {
        self.provider.seen.lock().unwrap().clear();
        *self.provider.answers.lock().unwrap() = step.answers.iter().cloned().collect();
        let method: Method = step.method.as_deref().unwrap_or("POST").parse().unwrap();
        let body = match (&step.request, &method) {
            (Some(request), _) => request.clone(),
            (None, &Method::POST) => default_request(&step.path, step.stream),
            _ => String::new(),
        };
        let mut request = Request::builder().method(method).uri(self.world.url(&step.path));
        if !step.headers.contains_key("content-type") {
            request = request.header("content-type", "application/json");
        }
        let user = step.user.as_deref().unwrap_or("ada");
        if !user.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.token(user)));
        }
        for (name, value) in &step.headers {
            let value = value.replace("{token}", &self.token("ada"));
            request = request.header(name, value);
        }
        let answer =
            self.world.send(request.body(Full::new(Bytes::from(body.clone()))).unwrap()).await;
        check_client(step, &answer)?;
        self.check_provider(step, &body)?;
        self.check_record(step, &answer).await
    }

    fn check_provider(&self, step: &Step, body: &str) -> Result<(), String> {
        let seen = self.provider.seen.lock().unwrap().clone();
        let wanted = step.requests.unwrap_or(step.answers.len());
        ensure(seen.len() == wanted, || {
            format!("{} requests instead of {wanted}: {seen:?}", seen.len())
        })?;
        let Some(last) = seen.last() else { return Ok(()) };
        let sent_to = last.head.lines().next().unwrap().trim_end_matches(" HTTP/1.1");
        ensure(step.sent_to.as_ref().is_none_or(|wanted| wanted == sent_to), || {
            format!("sent to {sent_to}")
        })?;
        let sent = String::from_utf8_lossy(&last.body);
        if step.sent_contains.is_empty() && step.sent_lacks.is_empty() {
            ensure(sent == body, || format!("the provider got {sent}\ninstead of {body}"))?;
        }
        contained(
            &format!("{}{sent}", last.head),
            &step.sent_contains,
            &step.sent_lacks,
            "the provider's request",
        )
    }

    async fn check_record(&mut self, step: &Step, answer: &Answer) -> Result<(), String> {
        // A side request that only reads has a record if its answer carries usage.
        let is_read = step.method.as_deref() == Some("GET") && step.record.is_empty();
        let id = answer.headers.get("x-keybridge-interception-id");
        if let Some(id) = id.filter(|_| !is_read) {
            let record = self.record(id.to_str().unwrap()).await?;
            for (path, wanted) in &step.record {
                holds(&record, path, wanted, self.first_record.as_ref())?;
            }
            self.first_record.get_or_insert(record);
        } else {
            ensure(step.record.is_empty(), || "nothing was recorded".to_owned())?;
        }
        if !step.first_record.is_empty() {
            let id = self.first_record.as_ref().unwrap()["id"].as_str().unwrap().to_owned();
            let record = self.record(&id).await?;
            for (path, wanted) in &step.first_record {
                holds(&record, path, wanted, None)?;
            }
        }
        Ok(())
    }

    /// The settled record as the API shows it to an administrator.
    async fn record(&mut self, id: &str) -> Result<Value, String> {
        let bearer = format!("Bearer {}", self.token("root"));
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let path = format!("/api/v1/interceptions/{id}");
            let headers = [("authorization", bearer.as_str())];
            let answer = self.world.send(self.world.request(Method::GET, &path, &headers)).await;
            if answer.status == 200 && answer.json()["outcome"] != "in_progress" {
                return Ok(answer.json());
            }
            ensure(tokio::time::Instant::now() < deadline, || {
                format!("not settled: {}", answer.text())
            })?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn check_client(step: &Step, answer: &Answer) -> Result<(), String> {
    let (last, text) = (step.answers.last(), answer.text());
    let status = step.expect_status.or_else(|| Some(last?.status.unwrap_or(200)));
    ensure(status.is_none_or(|status| answer.status == status), || {
        format!("status {} instead of {status:?}: {text}", answer.status)
    })?;
    if let Some(last) = last.filter(|_| !step.changed) {
        ensure(text == last.body(), || {
            format!("the client got {text}\ninstead of {}", last.body())
        })?;
    }
    for (name, wanted) in &step.expect_headers {
        let got = answer.headers.get(name).map_or("", |value| value.to_str().unwrap());
        ensure(got == wanted, || format!("the header {name} is {got:?} instead of {wanted:?}"))?;
    }
    ensure(answer.truncated == step.cut, || format!("cut off: {}: {text}", answer.truncated))?;
    contained(&text, &step.contains, &step.lacks, "the client's body")
}

fn ensure(holds: bool, told: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(told()) }
}

fn contained(text: &str, contains: &[String], lacks: &[String], what: &str) -> Result<(), String> {
    for part in contains {
        ensure(text.contains(part.as_str()), || format!("{what} lacks {part}: {text}"))?;
    }
    for part in lacks {
        ensure(!text.contains(part.as_str()), || format!("{what} contains {part}: {text}"))?;
    }
    Ok(())
}

fn look(record: &Value, path: &str) -> Value {
    path.split('.').fold(record.clone(), |value, part| match (&value, part) {
        (Value::Array(items), "#") => items.len().into(),
        (Value::String(text), "#") => text.chars().count().into(),
        (Value::Array(items), index) => {
            items.get(index.parse::<usize>().unwrap()).cloned().unwrap_or_default()
        }
        (value, name) => value.get(name).cloned().unwrap_or_default(),
    })
}

fn holds(
    record: &Value,
    path: &str,
    wanted: &toml::Value,
    first: Option<&Value>,
) -> Result<(), String> {
    let got = look(record, path);
    let operator =
        wanted.as_table().filter(|table| table.len() == 1).and_then(|table| table.iter().next());
    let right = match operator.map(|(name, value)| (name.as_str(), value)) {
        Some(("contains", part)) => {
            let text = got.as_str().map_or_else(|| got.to_string(), str::to_owned);
            text.contains(part.as_str().unwrap())
        }
        Some(("one_of", values)) => {
            values.as_array().unwrap().iter().any(|value| json(value) == got)
        }
        Some(("at_least", least)) => got.as_i64() >= least.as_integer() && !got.is_null(),
        Some(("same_as", other)) => {
            first.is_some_and(|first| look(first, other.as_str().unwrap()) == got)
        }
        Some(("absent", _)) => got.is_null(),
        _ => json(wanted) == got,
    };
    ensure(right, || format!("{path} is {got} instead of {wanted}, in {record:#}"))
}

fn json(value: &toml::Value) -> Value {
    serde_json::to_value(value).unwrap()
}

/// Runs all rows of a table and reports each that does not hold.
async fn run_table(topic: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/it/quirks/{topic}.toml"));
    let table: Table = toml::from_str(&std::fs::read_to_string(&file).unwrap())
        .unwrap_or_else(|error| panic!("{error}"));
    let mut failures = Vec::new();
    for quirk in &table.quirk {
        for source in &quirk.sources {
            let named = source.split_once('#').filter(|(repo, number)| {
                repo.split('/').count() == 2 && number.bytes().all(|byte| byte.is_ascii_digit())
            });
            assert!(named.is_some(), "{source} is no owner/repo#number");
        }
        let mut scene = Scene::start(&quirk.config).await;
        for (number, step) in quirk.steps.iter().enumerate() {
            if let Err(told) = scene.run(step).await {
                failures.push(format!("{topic}: {} (step {number}): {told}", quirk.about));
            }
        }
    }
    println!("{topic}: {} quirks", table.quirk.len());
    assert!(failures.is_empty(), "{} of {topic} fail:\n{}", failures.len(), failures.join("\n\n"));
}

/// One test per table, so that they run side by side.
macro_rules! tables {
    ($($topic:ident)*) => {
        $(#[tokio::test]
        async fn $topic() {
            run_table(stringify!($topic)).await;
        })*

        #[test]
        fn every_table_is_run() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/quirks");
            let mut files: Vec<_> = std::fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
                .collect();
            files.sort();
            let mut named = vec![$(stringify!($topic)),*];
            named.sort_unstable();
            assert_eq!(files, named);
        }
    };
}

tables! { bedrock endings error_texts include_usage objects pools quoted_keys routes stream_ends trail usage vendors }
