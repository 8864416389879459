//! The MCP servers that the administrator names: a kept connection to each, their tools under the
//! ids that models see, and calls to them.
//!
//! A supervisor per server connects, lists its tools, lists them again when they may have changed, and
//! connects again when the server is lost. The tools of a server that was ready stay while it is down:
//! a list that comes and goes would spoil the providers' prompt caches. Only `session.rs`,
//! `transport.rs`, `message.rs` and `trouble.rs` know the SDK.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::{HeaderName, HeaderValue, Uri};
use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::{
    catalogue::ToolSet,
    result::{Content, ToolResult},
    tool::{CallOutcome, Tool},
};
use self::{
    catalogue::{Catalogue, Sets},
    server::Server,
};
use crate::egress::Egress;

mod catalogue;
mod exchange;
mod line;
mod listing;
mod message;
mod result;
mod server;
mod session;
mod sse;
mod tool;
mod transport;
mod trouble;

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
    /// Longest duration of a call.
    pub call_timeout: Duration,
    /// Longest wait for a connection, TLS included.
    pub connect_timeout: Duration,
    /// Largest result in bytes that is given to a model whole.
    pub max_result: usize,
}

/// Whether an MCP server can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum McpStatus {
    /// It was not reached yet.
    Connecting,
    /// It answers.
    Ready,
    /// It could not be reached, or was lost.
    Down,
}

impl McpStatus {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Ready => "ready",
            Self::Down => "down",
        }
    }
}

/// What is known of one MCP server.
#[derive(Debug, Clone)]
pub struct McpState {
    /// Its name in the configuration.
    pub name: String,
    /// Its address without user information and query.
    pub url: String,
    /// Whether it can be asked.
    pub status: McpStatus,
    /// The version of the protocol that was agreed on.
    pub protocol_version: Option<String>,
    /// Its own name and version.
    pub server_info: Option<String>,
    /// The ids of its tools that are injected.
    pub tools: Vec<String>,
    /// Its tools that are malformed and left out, each with the reason.
    pub refused_tools: Vec<String>,
    /// Why it is down.
    pub error: Option<String>,
    /// Since when it has been in this status.
    pub since: jiff::Timestamp,
}

/// The MCP servers of the process.
#[derive(Debug)]
pub(crate) struct Servers {
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
    is_started: AtomicBool,
}

/// What the supervisors share.
#[derive(Debug)]
struct Shared {
    servers: Vec<Arc<Server>>,
    sets: watch::Sender<Sets>,
}

/// The start waits for servers no longer than this.
const TRIED: Duration = Duration::from_secs(5);
/// All sessions are ended within this.
const END: Duration = Duration::from_secs(5);
/// Shorter values of headers are not looked for in texts: they are no secrets and would be found
/// everywhere.
const MIN_SECRET: usize = 4;

impl Servers {
    /// Makes the clients; nothing runs before [`Servers::start`].
    pub(crate) fn new(configs: Vec<McpServerConfig>) -> Self {
        let tasks = TaskTracker::new();
        let servers =
            configs.into_iter().map(|config| Arc::new(Server::new(config, &tasks))).collect();
        let shared = Arc::new(Shared { servers, sets: watch::Sender::new(Sets::default()) });
        let stop = CancellationToken::new();
        Self { shared, stop, tasks, is_started: AtomicBool::new(false) }
    }

    /// Starts the supervisors; once only.
    pub(crate) fn start(&self) {
        if self.is_started.swap(true, Ordering::SeqCst) {
            return;
        }
        for server in &self.shared.servers {
            let server = Arc::clone(server);
            let shared = Arc::clone(&self.shared);
            let stop = self.stop.clone();
            self.tasks.spawn(async move { server.supervise(&shared, &stop).await });
        }
    }

    /// Ends the sessions and the supervisors; takes at most 5 s.
    pub(crate) async fn end(&self) {
        self.stop.cancel();
        self.tasks.close();
        if timeout(END, self.tasks.wait()).await.is_err() {
            tracing::warn!("not every MCP server let its session be ended in time");
        }
    }

    /// Waits until each server was tried once, for at most 5 s: one that hangs stops nobody.
    pub(crate) async fn tried(&self) {
        let trying = async {
            for server in &self.shared.servers {
                server.tried().await;
            }
        };
        if timeout(TRIED, trying).await.is_err() {
            tracing::warn!("an MCP server has not answered yet; requests go on without its tools");
        }
    }

    /// Whether any server has tools for a provider, now or later.
    pub(crate) fn serves(&self, provider: &str) -> bool {
        let mut servers = self.shared.servers.iter();
        servers.any(|server| catalogue::serves(server.config(), Some(provider)))
    }

    /// The tools for requests to a provider.
    pub(crate) fn tools_for(&self, provider: &str) -> Arc<ToolSet> {
        self.shared.sets.borrow().of(provider)
    }

    pub(crate) fn states(&self) -> Vec<McpState> {
        self.shared.servers.iter().map(|server| server.state()).collect()
    }
}

/// Connects to one server, lists its tools and ends the session; for a check from the command line.
pub async fn probe(config: McpServerConfig) -> McpState {
    let servers = Servers::new(vec![config.clone()]);
    servers.start();
    if let Some(server) = servers.shared.servers.first() {
        // It gives up by itself.
        server.tried().await;
    }
    let state = servers.states().pop();
    servers.end().await;
    state.unwrap_or_else(|| McpState::unknown(&config))
}

impl McpState {
    fn unknown(config: &McpServerConfig) -> Self {
        Self {
            name: config.name.clone(),
            url: exchange::shown(&config.url),
            status: McpStatus::Connecting,
            protocol_version: None,
            server_info: None,
            tools: Vec::new(),
            refused_tools: Vec::new(),
            error: None,
            since: jiff::Timestamp::now(),
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Shared {
    /// Makes the sets anew after the catalogue of a server changed.
    fn rebuild(&self) {
        self.sets.send_modify(|sets| {
            // Read under the lock of the sets, so that the last to rebuild has seen every change.
            let catalogues: Vec<(_, Arc<Catalogue>)> =
                self.servers.iter().map(|server| (server.config(), server.catalogue())).collect();
            *sets = Sets::new(&catalogues);
        });
    }
}

impl McpServerConfig {
    /// A server's words without the values of the headers that it was sent.
    fn scrubbed(&self, text: &str) -> String {
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
            .field("url", &exchange::shown(&self.url))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
