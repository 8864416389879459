//! The MCP servers that the administrator names: a kept connection to each, their tools under the
//! ids that models see, and calls to them.
//!
//! A supervisor per server connects, lists its tools, lists them again when they may have changed, and
//! reconnects when the server is down. The tools of a server that was ready stay while it is down:
//! a list that comes and goes would spoil the providers' prompt caches. Only `session.rs`,
//! `transport.rs`, `message.rs` and `error.rs` use the SDK.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderName, HeaderValue, Uri};
use keybridge_net::egress::Egress;
use prometheus_client::registry::Registry;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    catalogue::ToolSet,
    definitions::ToolDefinition,
    result::{Content, ToolResult},
    tool::{CallOutcome, Tool},
};
use self::{catalogue::ToolSets, server::Server};

mod catalogue;
mod connection;
mod definitions;
mod error;
mod http_client;
mod listing;
mod message;
mod result;
mod server;
mod session;
mod sse;
mod tool;
mod transport;

/// One MCP server as configured; validated values only.
#[derive(Clone)]
pub struct McpServerConfig {
    /// Unique, of `[a-z0-9-]`; part of the ids of its tools.
    pub name: String,
    /// An http or https address.
    pub url: Uri,
    /// How connections to it are made.
    pub egress: Egress,
    /// Sent with every request to it, and to nobody else.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Which of its tools are injected, by their own names; `None` = all.
    pub allow: Option<regex::Regex>,
    /// Which of its tools are not injected; wins over `allow`.
    pub deny: Option<regex::Regex>,
    /// The providers into whose requests its tools are injected; `None` = all.
    pub providers: Option<Vec<String>>,
    /// Timeout of a call.
    pub call_timeout: Duration,
    /// Timeout of a connection attempt, TLS included.
    pub connect_timeout: Duration,
    /// Largest result in bytes that is not truncated.
    pub max_result: usize,
}

/// Whether an MCP server can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum McpStatus {
    /// The first attempt to connect is still being made.
    Connecting,
    /// There is a session.
    Ready,
    /// It cannot be reached, or the session has failed.
    Down,
}

impl McpStatus {
    /// The name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Ready => "ready",
            Self::Down => "down",
        }
    }
}

/// The state of one MCP server.
#[derive(Debug, Clone)]
pub struct McpState {
    /// Its name in the configuration.
    pub name: String,
    /// Its address without user information and query.
    pub url: String,
    /// Whether it can be called.
    pub status: McpStatus,
    /// The version of the protocol that was agreed on.
    pub protocol_version: Option<String>,
    /// Its own name and version.
    pub server_info: Option<String>,
    /// The ids of its tools that are injected.
    pub tools: Vec<String>,
    /// Its tools that are malformed and left out, each with the reason.
    pub refused_tools: Vec<String>,
    /// The definitions of its tools that are injected.
    pub tool_definitions: Vec<ToolDefinition>,
    /// Why it is down.
    pub error: Option<String>,
    /// Since when it has been in this status.
    pub since: jiff::Timestamp,
}

/// The MCP servers of one configuration.
#[derive(Debug)]
pub struct Servers {
    servers: Vec<Arc<Supervised>>,
    sets: Mutex<CachedToolSets>,
    supervision: Arc<Supervision>,
}

/// A server with its supervisor, which ends when this is dropped.
#[derive(Debug)]
struct Supervised {
    server: Arc<Server>,
    stop: CancellationToken,
    is_started: AtomicBool,
}

/// The tools of all servers, if they are still those of this generation.
#[derive(Debug, Default)]
struct CachedToolSets {
    generation: Option<u64>,
    sets: ToolSets,
}

/// What all supervisors share.
#[derive(Debug, Default)]
struct Supervision {
    /// Counts the changes of any server's tools.
    generation: AtomicU64,
    metrics: definitions::Metrics,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Timeout of the first attempts to connect, for which the start waits.
const START_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout for the end of all sessions.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter values of headers are not masked in texts: they are no secrets and would be found
/// everywhere.
const MIN_SECRET: usize = 4;

impl Servers {
    /// Makes the clients; nothing runs before [`Servers::start`].
    pub fn new(configs: Vec<McpServerConfig>) -> Self {
        Self::with(configs, &[], Arc::default())
    }

    /// The servers of a new configuration; those with the same settings keep their sessions.
    pub fn reconfigured(&self, configs: Vec<McpServerConfig>) -> Self {
        Self::with(configs, &self.servers, Arc::clone(&self.supervision))
    }

    fn with(
        configs: Vec<McpServerConfig>,
        old: &[Arc<Supervised>],
        supervision: Arc<Supervision>,
    ) -> Self {
        let supervised = |config: McpServerConfig| {
            let kept = old.iter().find(|kept| *kept.server.config() == config);
            kept.map(Arc::clone).unwrap_or_else(|| {
                Arc::new(Supervised {
                    server: Arc::new(Server::new(config, &supervision.tasks)),
                    stop: supervision.stop.child_token(),
                    is_started: AtomicBool::new(false),
                })
            })
        };
        let servers = configs.into_iter().map(supervised).collect();
        Self { servers, sets: Mutex::default(), supervision }
    }

    /// Registers the metrics of these servers and of those that replace them.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.supervision.metrics.register(registry);
    }

    /// Starts the supervisors that are not running yet.
    pub fn start(&self) {
        for supervised in &self.servers {
            if supervised.is_started.swap(true, Ordering::SeqCst) {
                continue;
            }
            let server = Arc::clone(&supervised.server);
            let (stop, supervision) = (supervised.stop.clone(), Arc::clone(&self.supervision));
            self.supervision
                .tasks
                .spawn(async move { server.supervise(&supervision, &stop).await });
        }
    }

    /// Closes the sessions and stops the supervisors; takes at most 5 s.
    pub async fn close(&self) {
        let Supervision { stop, tasks, .. } = &*self.supervision;
        stop.cancel();
        tasks.close();
        if timeout(SHUTDOWN_TIMEOUT, tasks.wait()).await.is_err() {
            tracing::warn!("some MCP servers did not answer the end of their session in time");
        }
    }

    /// Waits for the first attempt to connect to each server, for at most 5 s.
    pub async fn wait_for_first_attempts(&self) {
        let attempts = async {
            for supervised in &self.servers {
                supervised.server.wait_for_first_attempt().await;
            }
        };
        if timeout(START_TIMEOUT, attempts).await.is_err() {
            tracing::warn!(
                "an MCP server has not answered yet; requests are sent without its tools"
            );
        }
    }

    /// Whether any server has tools for a provider, now or later.
    pub fn serves(&self, provider: &str) -> bool {
        self.servers().any(|server| catalogue::serves(server.config(), Some(provider)))
    }

    /// The tools for requests to a provider.
    pub fn tools_for(&self, provider: &str) -> Arc<ToolSet> {
        // Read before the catalogues: a later change makes new sets.
        let generation = Some(self.supervision.generation.load(Ordering::Acquire));
        let mut current = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        if current.generation != generation {
            let catalogues: Vec<_> =
                self.servers().map(|server| (server.config(), server.catalogue())).collect();
            *current = CachedToolSets { generation, sets: ToolSets::new(&catalogues) };
        }
        current.sets.of(provider)
    }

    pub fn states(&self) -> Vec<McpState> {
        self.servers().map(Server::state).collect()
    }

    fn servers(&self) -> impl Iterator<Item = &Server> {
        self.servers.iter().map(|supervised| supervised.server.as_ref())
    }
}

impl Supervision {
    /// Invalidates the tool sets.
    fn tools_changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Connects to one server, lists its tools and ends the session; for a check from the command line.
pub async fn probe(config: McpServerConfig) -> McpState {
    let servers = Servers::new(vec![config.clone()]);
    servers.start();
    for server in servers.servers() {
        // Each attempt has its own timeouts.
        server.wait_for_first_attempt().await;
    }
    let state = servers.states().pop();
    servers.close().await;
    state.unwrap_or_else(|| McpState::unknown(&config))
}

impl McpState {
    fn unknown(config: &McpServerConfig) -> Self {
        Self {
            name: config.name.clone(),
            url: http_client::display_url(&config.url),
            status: McpStatus::Connecting,
            protocol_version: None,
            server_info: None,
            tools: Vec::new(),
            refused_tools: Vec::new(),
            tool_definitions: Vec::new(),
            error: None,
            since: jiff::Timestamp::now(),
        }
    }
}

impl PartialEq for McpServerConfig {
    fn eq(&self, other: &Self) -> bool {
        let pattern = |pattern: &Option<regex::Regex>| pattern.as_ref().map(ToString::to_string);
        let same_limits = self.call_timeout == other.call_timeout
            && self.connect_timeout == other.connect_timeout
            && self.max_result == other.max_result;
        same_limits
            && self.name == other.name
            && self.url == other.url
            && self.egress == other.egress
            && self.headers == other.headers
            && self.providers == other.providers
            && pattern(&self.allow) == pattern(&other.allow)
            && pattern(&self.deny) == pattern(&other.deny)
    }
}

impl McpServerConfig {
    /// A server's text without the values of the configured headers.
    fn without_secrets(&self, text: &str) -> String {
        let mut secrets: Vec<&str> = self
            .headers
            .iter()
            .filter_map(|(_, value)| value.to_str().ok())
            .flat_map(|value| std::iter::once(value).chain(value.split_ascii_whitespace()))
            .filter(|value| value.len() >= MIN_SECRET && !value.eq_ignore_ascii_case("bearer"))
            .collect();
        // The whole before its parts.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }
}

impl fmt::Debug for McpServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("McpServerConfig")
            .field("name", &self.name)
            .field("url", &http_client::display_url(&self.url))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
