//! A bridge on a loopback port, with a simulated provider and its own ledger.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use keybridge::{
    config::{Config, Overrides},
    env::Env,
    serve::{Server, StartOptions},
    simulate::Simulated,
};
use keybridge_bridge::{
    Bridge,
    config::{RecordPolicy, ToolsConfig},
};
use keybridge_identity::{Accounts, NewUser, Role};
use keybridge_ledger::{InterceptionFilter, Ledger, LedgerError};
use keybridge_mcp::McpServerConfig;
use keybridge_net::egress::Egress;
use keybridge_policy::LimitsConfig;
use keybridge_providers::{
    ProviderError,
    config::{DumpConfig, Key, ProviderConfig, ProviderType, UnknownObjects},
};
use keybridge_sim::{Exchange, Sim, SimServer};
use secrecy::SecretString;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub mod proxy;
pub mod slow_store;
pub mod tcp;
pub mod tls;

/// Centralized keys, as the simulated provider sees them.
pub const ANTHROPIC_KEY: &str = "sk-ant-company-0123456789abcdef";
pub const OPENAI_KEY: &str = "sk-company-0123456789abcdef";

/// A server with a simulated provider; stops when dropped.
pub struct World {
    pub address: SocketAddr,
    pub sim: Sim,
    pub ledger: Ledger,
    pub bridge: Bridge,
    /// Bridge token of the user `ada`.
    pub token: String,
    pub shutdown: CancellationToken,
    pub serving: TaskTracker,
    sim_server: SimServer,
    dir: tempfile::TempDir,
}

/// A centralized key.
pub fn pool_key(name: &str, value: &str) -> Key {
    Key { name: name.into(), value: SecretString::from(value), weight: 1 }
}

/// Dumps into a directory, practically without limit.
pub fn dumps(dir: &std::path::Path) -> DumpConfig {
    DumpConfig { dir: dir.into(), max_bytes: 1 << 30, max_age: Duration::from_secs(3_600) }
}

/// A provider instance of the given type, whose upstream is the simulated one.
pub fn provider(kind: ProviderType, base: &str) -> ProviderConfig {
    let (path, key) = match kind {
        ProviderType::Anthropic => ("/anthropic", Some(ANTHROPIC_KEY)),
        ProviderType::OpenAi => ("/openai/v1", Some(OPENAI_KEY)),
        ProviderType::Copilot => ("/copilot", None),
        ProviderType::Bedrock => ("/bedrock", None),
    };
    let keys = key.map(|value| pool_key("main", value)).into_iter().collect();
    let base_url = format!("{base}{path}").parse().unwrap();
    ProviderConfig { keys, ..ProviderConfig::new(kind, base_url) }
}

/// Lets requests name objects that the simulated provider has without a known maker.
pub fn allow_unknown_objects(config: &mut Config) {
    for provider in &mut config.providers {
        provider.unknown_objects = UnknownObjects::Allow;
    }
}

/// An MCP server with default settings.
pub fn mcp_server(name: &str, url: &str) -> McpServerConfig {
    McpServerConfig {
        name: name.into(),
        url: url.parse().unwrap(),
        headers: Vec::new(),
        allow: None,
        deny: None,
        providers: None,
        call_timeout: Duration::from_secs(20),
        egress: Egress::default(),
        connect_timeout: Duration::from_secs(5),
        max_result: 1 << 20,
    }
}

/// The default configuration, with one provider of each type in front of the simulated one.
pub fn configuration(base: &str, dir: &std::path::Path) -> Config {
    let overrides = Overrides {
        listen: Some("127.0.0.1:0".into()),
        store: Some(format!("sqlite://{}", dir.join("keybridge.db").display())),
    };
    let mut config = Config::load(None, &Env::default(), &overrides).unwrap();
    config.shutdown_grace = Duration::from_millis(300);
    config.ledger.spool = None;
    config.providers = [ProviderType::Anthropic, ProviderType::OpenAi, ProviderType::Copilot]
        .map(|kind| provider(kind, base))
        .into();
    config.limits = LimitsConfig::default();
    config.tools = ToolsConfig::default();
    config.record = RecordPolicy::default();
    config
}

impl World {
    pub async fn start() -> Self {
        Self::with(|_config| {}).await
    }

    /// Starts a world with a changed configuration.
    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let sim = Sim::new();
        let sim_server = sim.start().await.unwrap();
        let base = format!("http://{}", sim_server.addr);
        let dir = tempfile::tempdir().unwrap();
        let mut config = configuration(&base, dir.path());
        change(&mut config);
        let ledger = Ledger::open_with(&config.store_url, &config.ledger).unwrap();
        let token = user_with_token(&ledger, "ada");
        let server = Server::start(config, ledger, Simulated::Nothing, StartOptions::default())
            .await
            .unwrap();
        let (address, ledger, bridge) =
            (server.address().unwrap(), server.ledger.clone(), server.bridge.clone());
        let (shutdown, serving) = (CancellationToken::new(), TaskTracker::new());
        let ending = shutdown.clone();
        serving.spawn(async move { server.serve(ending).await.unwrap() });
        serving.close();
        Self { address, sim, ledger, bridge, token, shutdown, serving, sim_server, dir }
    }

    /// Reloads the configuration of [`World::with`] with this change.
    pub async fn reload(&self, change: impl FnOnce(&mut Config)) -> Result<(), ProviderError> {
        let mut config = configuration(&self.sim_base(), self.dir());
        change(&mut config);
        let server_secret = self.ledger.server_secret().unwrap();
        self.bridge.reload(config.into_bridge(server_secret)).await
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn sim_base(&self) -> String {
        format!("http://{}", self.sim_server.addr)
    }

    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Sends a request over HTTP/1.1 and reads the response to its end.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        answer(client(false).request(request).await.unwrap()).await
    }

    /// A centralized POST request.
    pub fn centralized(&self, path: &str, body: &str) -> Request<Full<Bytes>> {
        let bearer = format!("Bearer {}", self.token);
        self.post(path, &[("authorization", &bearer)], body.to_owned())
    }

    pub fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::post(self.url(path)).header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(body.into())).unwrap()
    }

    pub fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Request<Full<Bytes>> {
        let mut request = Request::builder().method(method).uri(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::default()).unwrap()
    }

    fn store_url(&self) -> String {
        format!("sqlite://{}", self.dir().join("keybridge.db").display())
    }

    /// The records, oldest first, as the API shows them, after all settled ones have been committed.
    pub async fn records(&self) -> Vec<serde_json::Value> {
        self.ledger.recorder().drained().await;
        let filter = InterceptionFilter { limit: 500, ..InterceptionFilter::default() };
        // The server's own ledger is read no more once it has shut down.
        let (ledger, page) = match self.ledger.interceptions(&filter) {
            Err(LedgerError::Closing) => {
                let ledger = Ledger::open(&self.store_url()).unwrap();
                let page = ledger.interceptions(&filter).unwrap();
                (ledger, page)
            }
            page => (self.ledger.clone(), page.unwrap()),
        };
        let mut ids: Vec<_> = page.items.iter().map(|item| item.interception.id).collect();
        ids.reverse();
        ids.into_iter()
            .map(|id| serde_json::to_value(ledger.interception(id).unwrap().unwrap()).unwrap())
            .collect()
    }

    /// Waits until there is one record and it is settled.
    pub async fn settled_record(&self) -> serde_json::Value {
        self.settled_records(1).await.remove(0)
    }

    /// Waits until there are `count` records and all are settled.
    pub async fn settled_records(&self, count: usize) -> Vec<serde_json::Value> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        loop {
            let records = self.records().await;
            let open = records.iter().filter(|record| record["outcome"] == "in_progress").count();
            if records.len() == count && open == 0 {
                return records;
            }
            assert!(tokio::time::Instant::now() < deadline, "not settled: {records:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for the record that a side request writes after its response.
    pub async fn side_request_recorded(&self) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while self.records().await.is_empty() {
            assert!(tokio::time::Instant::now() < deadline, "nothing was recorded");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub fn last_exchange(&self) -> Exchange {
        self.sim.last().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Creates a user with a token and returns the token.
pub fn user_with_token(ledger: &Ledger, name: &str) -> String {
    let accounts = Accounts::new(ledger.clone());
    accounts.create_user(&NewUser { name: name.into(), email: None, role: Role::Member }).unwrap();
    let (_token, secret) = accounts.create_token(name, None, None).unwrap();
    secret.expose().to_owned()
}

/// A client without a connection pool, over HTTP/1.1 or HTTP/2 with prior knowledge.
pub fn client(http2: bool) -> Client<HttpConnector, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).http2_only(http2).pool_max_idle_per_host(0).build_http()
}

/// A response read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Whether the body was truncated.
    pub truncated: bool,
}

/// A response that can say its status and show its body.
pub trait StatusAndBody {
    fn status(&self) -> u16;
    fn shown_body(&self) -> String;
}

impl StatusAndBody for Answer {
    fn status(&self) -> u16 {
        self.status.as_u16()
    }

    fn shown_body(&self) -> String {
        self.text()
    }
}

/// Asserts the status of a response, and shows its body when it is another one.
macro_rules! assert_status {
    ($answer:expr, $status:expr $(,)?) => {
        assert_status!($answer, $status, "response")
    };
    ($answer:expr, $status:expr, $($context:tt)+) => {
        match &$answer {
            answer => {
                use crate::support::StatusAndBody as _;
                let (status, context) = (answer.status(), format!($($context)+));
                assert_eq!(status, $status, "{context}: {}", answer.shown_body());
            }
        }
    };
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub async fn answer(response: http::Response<hyper::body::Incoming>) -> Answer {
    let (head, mut body) = response.into_parts();
    let (mut bytes, mut truncated) = (Vec::new(), false);
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
            Err(_error) => {
                truncated = true;
                break;
            }
        }
    }
    Answer { status: head.status, headers: head.headers, body: bytes.into(), truncated }
}

/// A request body for an endpoint that selects a scenario of the simulated provider.
pub fn body(path: &str, scenario: &str, stream: bool) -> String {
    let model = format!("sim-{scenario}");
    if path.ends_with("/messages") {
        format!(
            r#"{{ "model":"{model}", "max_tokens": 1e3,"stream":{stream},"messages":[{{"role":"user","content":"say h\u0069"}}],"big":123456789012345678901234 }}"#
        )
    } else if path.ends_with("/chat/completions") {
        format!(
            r#"{{ "model":"{model}","stream":{stream},"stream_options":{{"include_usage":true}},"messages":[{{"role":"user","content":"say h\u0069"}}],"x":1.0 }}"#
        )
    } else {
        format!(r#"{{ "model":"{model}","stream":{stream},"input":"say h\u0069", "store":false }}"#)
    }
}

/// An intercepted endpoint of each dialect.
pub const ENDPOINTS: [&str; 3] =
    ["/anthropic/v1/messages", "/openai/v1/chat/completions", "/openai/v1/responses"];

/// Whether this is the process that runs a test alone, because the test changes what all tests of a
/// process share, such as the logger. Otherwise runs that process and checks that the test passes.
pub fn in_own_process(test: &str) -> bool {
    const OWN_PROCESS: &str = "KEYBRIDGE_TEST_OWN_PROCESS";
    if std::env::var(OWN_PROCESS).is_ok_and(|name| name == test) {
        return true;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", test])
        .env(OWN_PROCESS, test)
        .output()
        .unwrap();
    let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{}\n{}", texts[0], texts[1]);
    false
}

/// All that is logged in this process from now on.
#[derive(Debug, Clone, Default)]
pub struct CapturedLog(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl CapturedLog {
    /// Captures everything down to a level, as the product formats it.
    pub fn start(level: tracing::Level) -> Self {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(level)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
        log
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl std::io::Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
