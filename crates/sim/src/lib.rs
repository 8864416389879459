//! Scripted LLM providers over real HTTP, for demonstrations, tests and benches.
//!
//! A scenario is chosen by the model's name (`sim-thinking+tool`) or by the header
//! `x-sim-scenario`; any other model plays [`Scenario::Agent`]. The header `x-sim-turns` scripts a
//! whole conversation, and [`mcp`] has a server whose tools the model can be made to call. What is received is checked and kept
//! ([`Sim::exchanges`]), so that a test can tell what a bridge really sent.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Router, body::Body, extract::Request, response::Response};
use tokio_util::sync::CancellationToken;

mod agent;
mod answer;
pub mod aws;
mod bedrock;
mod chat;
mod checks;
mod errors;
mod exchange;
mod journal;
mod listen;
pub mod mcp;
mod memory;
mod messages;
mod player;
mod prefix;
mod responses;
mod scenario;
mod side;
mod signature;
mod signature_v4;
mod turns;

pub use exchange::{Exchange, KeyAnswer};
pub use scenario::{
    CACHE_READ_TOKENS, CACHE_WRITE_1H_TOKENS, CACHE_WRITE_5M_TOKENS, INPUT_TOKENS, OUTPUT_TOKENS,
    REASONING_TOKENS, Scenario,
};

use aws::AwsSim;
use exchange::Log;
use journal::Journal;
use mcp::McpSim;

/// The simulated providers; clones share what was received.
#[derive(Debug, Clone, Default)]
pub struct Sim {
    log: Arc<Mutex<Log>>,
    journal: Option<Journal>,
    mcp: Option<McpSim>,
    aws: AwsSim,
}

/// Simulated providers that listen; they stop when this is dropped.
#[derive(Debug)]
pub struct SimServer {
    /// Where they listen.
    pub addr: SocketAddr,
    stop: CancellationToken,
}

impl Sim {
    /// Providers that have received nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a line for every answer of a model before its first byte leaves: JSON with the
    /// answer's `response_id`, the `request_sha256` of the body it answers, `path` and `at`. A
    /// request whose line cannot be written is answered 500.
    #[must_use]
    pub fn with_journal(self, file: File) -> Self {
        Self { journal: Some(Journal::new(file)), ..self }
    }

    /// Serves an MCP server too, at `/mcp`.
    #[must_use]
    pub fn with_mcp(self, mcp: McpSim) -> Self {
        Self { mcp: Some(mcp), ..self }
    }

    /// The providers below `/anthropic`, `/openai/v1`, `/copilot`, `/bedrock`, `/mantle` and `/compat/some/path/v1`, and
    /// what they received at `/_sim/exchanges`.
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
    /// When no port can be listened on.
    pub async fn start(&self) -> io::Result<SimServer> {
        self.start_on(([127, 0, 0, 1], 0).into()).await
    }

    /// Listens on an address.
    ///
    /// # Errors
    ///
    /// When it cannot be listened on.
    pub async fn start_on(&self, address: SocketAddr) -> io::Result<SimServer> {
        let (addr, stop) = listen::listen(self.router(), address).await?;
        Ok(SimServer { addr, stop })
    }

    /// What was received, newest last; bounded, the oldest are forgotten.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.log().all()
    }

    /// The latest request received.
    pub fn last(&self) -> Option<Exchange> {
        self.log().last()
    }

    /// Forgets what was received.
    pub fn clear(&self) {
        self.log().clear();
    }

    /// Lets what is held by this name in scripted turns go on, also when the hold comes later;
    /// [`Sim::clear`] makes the name hold again.
    pub fn release(&self, name: &str) {
        self.log().gates.release(name);
    }

    /// Answers a credential with a status from now on; with `None` as usual.
    pub fn answer_key(&self, key: &str, answer: Option<KeyAnswer>) {
        self.log().answer_key(key, answer);
    }

    /// The simulated sources of AWS credentials.
    pub fn aws(&self) -> &AwsSim {
        &self.aws
    }

    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn handle(&self, request: Request) -> Response<Body> {
        if let Some(answer) = self.report(&request) {
            return answer;
        }
        if let Some(mcp) = self.mcp.as_ref().filter(|_| request.uri().path() == mcp::PATH) {
            return mcp.handle(request).await;
        }
        if request.uri().path().starts_with(aws::PATH) {
            return self.aws.handle(request).await;
        }
        answer::answer(&self.log, self.journal.as_ref(), request).await
    }

    /// The simulator's own pages.
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
                let answer = status.map(|status| KeyAnswer { status, retry_after });
                self.answer_key(key, answer);
                serde_json::json!({ "key": key, "status": status, "retry_after": retry_after })
            }
            _ => return Some(player::json(404, &serde_json::json!({ "error": "no such page" }))),
        };
        Some(player::json(200, &json))
    }
}

impl SimServer {
    /// `http://` and the address.
    pub fn base(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl Drop for SimServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
