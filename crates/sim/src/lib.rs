//! Scripted LLM providers over real HTTP, for demonstrations, tests and benches.
//!
//! The model's name (`sim-thinking+tool`) or the header `x-sim-scenario` selects a scenario; any other
//! model plays [`Scenario::Agent`]. The header `x-sim-turns` scripts a whole conversation, and
//! [`mcp_server`] provides a server whose tools the model can be made to call. Requests are checked and
//! recorded ([`Sim::exchanges`]), so that a test can see what a bridge really sent.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Router, body::Body, extract::Request, response::Response};
use keybridge_wire::mask::mask;
use tokio_util::sync::CancellationToken;

mod agent;
pub mod aws;
mod bedrock;
mod cache_prefix;
mod chat;
mod checks;
mod credentials;
mod errors;
mod exchange;
mod handler;
mod journal;
mod listen;
pub mod mcp_server;
mod memory;
mod messages;
mod other_routes;
mod player;
mod responses;
mod scenario;
mod signature;
mod signature_v4;
mod turns;

pub use exchange::{Exchange, KeyOverride};
pub use scenario::{
    CACHE_READ_TOKENS, CACHE_WRITE_1H_TOKENS, CACHE_WRITE_5M_TOKENS, INPUT_TOKENS, OUTPUT_TOKENS,
    REASONING_TOKENS, Scenario,
};

use aws::AwsSim;
use exchange::ExchangeLog;
use journal::Journal;
use mcp_server::McpSim;

/// The simulated providers; clones share what they received.
#[derive(Debug, Clone, Default)]
pub struct Sim {
    log: Arc<Mutex<ExchangeLog>>,
    journal: Option<Journal>,
    mcp: Option<McpSim>,
    aws: AwsSim,
}

/// Listening simulated providers; they stop when this is dropped.
#[derive(Debug)]
pub struct SimServer {
    /// The address they listen on.
    pub addr: SocketAddr,
    stop: CancellationToken,
}

impl Sim {
    /// Creates providers that have received nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a line for every model response before its first byte is sent: JSON with the
    /// `response_id`, the `request_sha256` of the request body, `path` and `at`. A request whose line
    /// cannot be written gets a 500.
    #[must_use]
    pub fn with_journal(self, file: File) -> Self {
        Self { journal: Some(Journal::new(file)), ..self }
    }

    /// Also serves an MCP server at `/mcp`.
    #[must_use]
    pub fn with_mcp(self, mcp: McpSim) -> Self {
        Self { mcp: Some(mcp), ..self }
    }

    /// The router of the providers at `/anthropic`, `/openai/v1`, `/copilot`, `/bedrock`, `/mantle` and
    /// `/compat/some/path/v1`, and of what they received at `/_sim/exchanges`, with credentials masked.
    pub fn router(&self) -> Router {
        let sim = self.clone();
        Router::new().fallback(move |request: Request| {
            let sim = sim.clone();
            async move { sim.handle(request).await }
        })
    }

    /// Listens on a free loopback port, over HTTP/1.1 and HTTP/2 without TLS.
    ///
    /// # Errors
    ///
    /// Returns an error if no port can be bound.
    pub async fn start(&self) -> io::Result<SimServer> {
        self.start_on(([127, 0, 0, 1], 0).into()).await
    }

    /// Listens on an address.
    ///
    /// # Errors
    ///
    /// Returns an error if the address cannot be bound.
    pub async fn start_on(&self, address: SocketAddr) -> io::Result<SimServer> {
        let (addr, stop) = listen::listen(self.router(), address).await?;
        Ok(SimServer { addr, stop })
    }

    /// The requests received and their responses, newest last; bounded, the oldest are dropped.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.log().all()
    }

    /// The latest request received.
    pub fn last(&self) -> Option<Exchange> {
        self.log().last()
    }

    /// Clears what was received.
    pub fn clear(&self) {
        self.log().clear();
    }

    /// Releases the holds of this name in scripted turns, including later ones; [`Sim::clear`] restores
    /// the hold.
    pub fn release(&self, name: &str) {
        self.log().gates.release(name);
    }

    /// Responds to a credential with a status from now on; `None` restores the usual response.
    pub fn override_key(&self, key: &str, answer: Option<KeyOverride>) {
        self.log().override_key(key, answer);
    }

    /// The simulated sources of AWS credentials.
    pub fn aws(&self) -> &AwsSim {
        &self.aws
    }

    fn log(&self) -> std::sync::MutexGuard<'_, ExchangeLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn handle(&self, request: Request) -> Response<Body> {
        if let Some(answer) = self.report(&request) {
            return answer;
        }
        if let Some(mcp) = self.mcp.as_ref().filter(|_| request.uri().path() == mcp_server::PATH) {
            return mcp.handle(request).await;
        }
        if request.uri().path().starts_with(aws::PATH) {
            return self.aws.handle(request).await;
        }
        handler::handle(&self.log, self.journal.as_ref(), request).await
    }

    /// Serves the simulator's own pages.
    fn report(&self, request: &Request) -> Option<Response<Body>> {
        let page = request.uri().path().strip_prefix("/_sim/")?;
        let json = match (request.method().as_str(), page) {
            ("GET", "exchanges") => {
                let all = self.exchanges();
                serde_json::Value::from_iter(all.iter().map(Exchange::to_json))
            }
            ("DELETE", "exchanges") => {
                self.clear();
                serde_json::json!({ "cleared": true })
            }
            ("GET", "scenarios") => scenario::list(),
            ("POST", page) if page.starts_with("release/") => {
                self.release(page.trim_start_matches("release/"));
                serde_json::json!({ "released": true })
            }
            ("POST", page) if page.starts_with("keys/") => {
                let mut words = page.trim_start_matches("keys/").split('/');
                let key = words.next().unwrap_or_default();
                let status = words.next().and_then(|status| status.parse().ok());
                let retry_after = words.next().and_then(|seconds| seconds.parse().ok());
                let answer = status.map(|status| KeyOverride { status, retry_after });
                self.override_key(key, answer);
                serde_json::json!({ "key": mask(key), "status": status, "retry_after": retry_after })
            }
            _ => return Some(player::json(404, &serde_json::json!({ "error": "no such page" }))),
        };
        Some(player::json(200, &json))
    }
}

impl SimServer {
    /// The base URL: `http://` and the address.
    pub fn base(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl Drop for SimServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
