//! A scripted MCP server over streamable HTTP, for tests of a bridge that calls tools.
//!
//! The transport follows <https://modelcontextprotocol.io/specification/2025-11-25>: JSON-RPC by
//! `POST /mcp`, the server's notifications by `GET /mcp`, the end of a session by `DELETE /mcp`.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::listen;

mod http;
mod rpc;
mod state;
mod tools;

use state::State;

/// The path of the endpoint.
pub(crate) const PATH: &str = "/mcp";
/// How long an address may still be in use by a server that has just stopped.
const BIND_TIMEOUT: Duration = Duration::from_secs(5);
const BIND_RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// A scripted MCP server; clones share their settings and what they received.
///
/// Its tools are `echo`, `add`, `slow`, `fail`, `big`, `image`, `structured`, `odd`, `resource`,
/// `invalid`, `protocol-error` and `gone`; a tool of any other name returns its arguments.
#[derive(Debug, Clone, Default)]
pub struct McpSim {
    state: Arc<Mutex<State>>,
}

/// A listening MCP server; it and its connections stop when this is dropped.
#[derive(Debug)]
pub struct McpSimServer {
    /// The address it listens on.
    pub addr: SocketAddr,
    stop: CancellationToken,
}

/// A tool call.
#[derive(Debug, Clone)]
pub struct McpCall {
    /// The name of the tool.
    pub tool: String,
    /// The arguments as received; null if there were none.
    pub arguments: Value,
    /// A number that increases with each call to any server of this process.
    pub order: u64,
    /// The headers of the request, names in lower case.
    pub headers: Vec<(String, String)>,
}

impl McpSim {
    /// Creates a server with the default tools that has received nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The server at `/mcp`.
    pub fn router(&self) -> Router {
        let sim = self.clone();
        Router::new().fallback(move |request: Request| {
            let sim = sim.clone();
            async move { sim.handle(request).await }
        })
    }

    /// Listens on a free loopback port.
    ///
    /// # Errors
    ///
    /// Returns an error if no port can be bound.
    pub async fn start(&self) -> io::Result<McpSimServer> {
        self.start_on(([127, 0, 0, 1], 0).into()).await
    }

    /// Listens on an address, also that of a server that was just dropped. Existing sessions continue
    /// unless [`McpSim::expire_sessions`] ended them.
    ///
    /// # Errors
    ///
    /// Returns an error if the address cannot be bound; retries for some seconds if it is in use.
    pub async fn start_on(&self, address: SocketAddr) -> io::Result<McpSimServer> {
        let started = Instant::now();
        loop {
            match listen::listen(self.router(), address).await {
                Ok((addr, stop)) => return Ok(McpSimServer { addr, stop }),
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse
                        && started.elapsed() < BIND_TIMEOUT =>
                {
                    tokio::time::sleep(BIND_RETRY_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Changes the tools and notifies the listeners.
    pub fn set_tools(&self, tools: Vec<Value>) {
        self.state().set_tools(tools);
    }

    /// Sets the maximum number of tools per page: at least 1, by default 2.
    pub fn set_page_size(&self, page_size: usize) {
        self.state().page_size = page_size.max(1);
    }

    /// Drops all sessions: later requests with their ids get a 404.
    pub fn expire_sessions(&self) {
        self.state().expire_sessions();
    }

    /// Responds with 401 from now on unless a request has this header with this value.
    pub fn require_header(&self, name: &str, value: &str) {
        self.state().required = Some((name.to_ascii_lowercase(), value.to_owned()));
    }

    /// Sets whether responses are event streams, the default, or plain JSON.
    pub fn answer_with_sse(&self, with_sse: bool) {
        self.state().with_sse = with_sse;
    }

    /// Responds to every request with this status until it is reset to `None`.
    pub fn refuse_with(&self, status: Option<u16>) {
        self.state().refused_with = status;
    }

    /// The tool calls, newest last; bounded, the oldest are dropped.
    pub fn calls(&self) -> Vec<McpCall> {
        self.state().calls()
    }

    /// The number of cancellations received.
    pub fn cancelled(&self) -> usize {
        self.state().counts.cancelled
    }

    /// The number of calls in progress.
    pub fn running(&self) -> usize {
        self.state().running()
    }

    /// The number of sessions opened.
    pub fn sessions_opened(&self) -> usize {
        self.state().counts.opened
    }

    /// The number of sessions that clients ended.
    pub fn sessions_deleted(&self) -> usize {
        self.state().counts.deleted
    }

    /// The number of open notification streams.
    pub fn listeners(&self) -> usize {
        self.state().listeners()
    }

    /// How often the tools were listed; only first pages count.
    pub fn lists(&self) -> usize {
        self.state().counts.lists
    }

    /// Clears calls and counters; settings and sessions stay.
    pub fn clear(&self) {
        self.state().clear();
    }

    pub(crate) async fn handle(&self, request: Request) -> Response<Body> {
        http::handle(self, request).await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl McpSimServer {
    /// The base URL: `http://` and the address.
    pub fn base(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The URL of the endpoint.
    pub fn url(&self) -> String {
        format!("{}{PATH}", self.base())
    }
}

impl Drop for McpSimServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
