//! A scripted MCP server over streamable HTTP, for tests of a bridge that calls tools itself.
//!
//! The transport is that of <https://modelcontextprotocol.io/specification/2025-11-25>: JSON-RPC by
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

mod answer;
mod http;
mod state;
mod tools;

use state::State;

/// Where the server answers.
pub(crate) const PATH: &str = "/mcp";
/// How long an address may still be taken by a server that has just stopped.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(5);
const ADDRESS_PAUSE: Duration = Duration::from_millis(10);

/// A scripted MCP server; clones share their settings and what was received.
///
/// Its tools are `echo`, `add`, `slow`, `fail`, `big`, `image`, `structured`, `odd`, `resource`,
/// `invalid`, `protocol-error` and `gone`; a tool of another name answers with its arguments.
#[derive(Debug, Clone, Default)]
pub struct McpSim {
    state: Arc<Mutex<State>>,
}

/// A scripted MCP server that listens; it and its connections stop when this is dropped.
#[derive(Debug)]
pub struct McpSimServer {
    /// Where it listens.
    pub addr: SocketAddr,
    stop: CancellationToken,
}

/// A call of a tool.
#[derive(Debug, Clone)]
pub struct McpCall {
    /// The tool's name.
    pub tool: String,
    /// The arguments as they came; null where there were none.
    pub arguments: Value,
    /// A number that grows from call to call, over all servers of this process.
    pub order: u64,
    /// The headers of the call's request, names in lower case.
    pub headers: Vec<(String, String)>,
}

impl McpSim {
    /// A server with the usual tools that has received nothing yet.
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
    /// When no port can be listened on.
    pub async fn start(&self) -> io::Result<McpSimServer> {
        self.start_on(([127, 0, 0, 1], 0).into()).await
    }

    /// Listens on an address, also on that of a server that was dropped just now. Sessions of
    /// before go on, unless [`McpSim::expire_sessions`] ended them.
    ///
    /// # Errors
    ///
    /// When it cannot be listened on, for some seconds when it is in use.
    pub async fn start_on(&self, address: SocketAddr) -> io::Result<McpSimServer> {
        let begun = Instant::now();
        loop {
            match listen::listen(self.router(), address).await {
                Ok((addr, stop)) => return Ok(McpSimServer { addr, stop }),
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse
                        && begun.elapsed() < ADDRESS_PATIENCE =>
                {
                    tokio::time::sleep(ADDRESS_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Changes the tools, and tells those who listen for notifications.
    pub fn set_tools(&self, tools: Vec<Value>) {
        self.state().set_tools(tools);
    }

    /// How many tools a page of the list has at most; 2 at first, at least 1.
    pub fn set_page_size(&self, page_size: usize) {
        self.state().page_size = page_size.max(1);
    }

    /// Forgets all sessions: later requests with their ids are answered 404.
    pub fn expire_sessions(&self) {
        self.state().expire_sessions();
    }

    /// Answers 401 from now on unless this header comes with this value.
    pub fn require_header(&self, name: &str, value: &str) {
        self.state().required = Some((name.to_ascii_lowercase(), value.to_owned()));
    }

    /// Whether a request is answered by an event stream, as at first, or by plain JSON.
    pub fn answer_with_sse(&self, with_sse: bool) {
        self.state().with_sse = with_sse;
    }

    /// Answers every request with this status, until it is `None` again.
    pub fn refuse_with(&self, status: Option<u16>) {
        self.state().refused_with = status;
    }

    /// The calls of tools, newest last; bounded, the oldest are forgotten.
    pub fn calls(&self) -> Vec<McpCall> {
        self.state().calls()
    }

    /// How many cancellations came.
    pub fn cancelled(&self) -> usize {
        self.state().counts.cancelled
    }

    /// How many calls wait at this moment.
    pub fn running(&self) -> usize {
        self.state().running()
    }

    /// How many sessions were opened.
    pub fn sessions_opened(&self) -> usize {
        self.state().counts.opened
    }

    /// How many sessions their clients ended.
    pub fn sessions_deleted(&self) -> usize {
        self.state().counts.deleted
    }

    /// How many streams for notifications are open.
    pub fn listeners(&self) -> usize {
        self.state().listeners()
    }

    /// How many times the tools were listed; pages after the first do not count.
    pub fn lists(&self) -> usize {
        self.state().counts.lists
    }

    /// Forgets calls and counts; settings and sessions stay.
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
    /// `http://` and the address.
    pub fn base(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The address of its endpoint.
    pub fn url(&self) -> String {
        format!("{}{PATH}", self.base())
    }
}

impl Drop for McpSimServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
