//! The data path of keybridge: who asks, with whose credential, recorded before it goes upstream
//! and relayed byte for byte.
//!
//! The crate yields one [`axum::Router`]. It knows its host through [`host::Directory`] and writes
//! the trail through [`keybridge_ledger::Recorder`]. The stages of a request stand in `call.rs`.

use std::{future::Future, sync::Arc};

use aws_lc_rs::hmac;
use axum::{Router, body::Body, extract::Request, response::Response};
use http::{HeaderValue, StatusCode, header};
use keybridge_ledger::Recorder;
use keybridge_wire::error::{ErrorKind, ErrorShape};
use prometheus_client::registry::Registry;
use uuid::Uuid;

use crate::{
    call::Arrival,
    config::BridgeConfig,
    failure::Failure,
    health::ProviderState,
    host::Directory,
    inject::Offers,
    limits::Limits,
    mcp::{McpState, Servers},
    metrics::Metrics,
    provider::Provider,
    relay::Drain,
    route::{Routed, route},
};

mod answer;
pub mod bedrock;
mod body;
mod breaker;
mod call;
mod client;
pub mod config;
mod credential;
mod dump;
pub mod egress;
mod encoding;
mod failure;
mod headers;
pub mod health;
pub mod host;
mod identify;
mod inject;
mod inner;
mod limits;
pub mod listener;
mod looped;
pub mod mcp;
mod metrics;
mod pool;
mod provider;
mod read;
mod relay;
mod retry;
mod route;
mod settlement;
mod upstream;
mod whole;

/// Why a bridge cannot be made of a configuration.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// A key that does not fit into a header.
    #[error("a key of the provider `{provider}` holds characters that no header has")]
    Key {
        /// The provider's name.
        provider: String,
    },
    /// A base URL without a scheme of `http` or `https`, or without a host.
    #[error("the base URL of the provider `{provider}` is not an http or https address")]
    BaseUrl {
        /// The provider's name.
        provider: String,
    },
    /// A provider of the type `bedrock` without the settings of that type.
    #[error("the provider `{provider}` has no settings for Amazon Bedrock")]
    Bedrock {
        /// The provider's name.
        provider: String,
    },
}

/// The data path of one process; clones share everything.
#[derive(Debug, Clone)]
pub struct Bridge {
    shared: Arc<Shared>,
}

/// What all requests share.
pub(crate) struct Shared {
    pub(crate) config: BridgeConfig,
    pub(crate) providers: Vec<Arc<Provider>>,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) recorder: Recorder,
    pub(crate) fingerprint_key: hmac::Key,
    pub(crate) servers: Servers,
    pub(crate) offers: Offers,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) drain: Drain,
    pub(crate) limits: Limits,
}

impl Bridge {
    /// Makes the data path. A default rustls provider must be installed.
    ///
    /// # Errors
    ///
    /// When a base URL is not an http or https address, or a key fits into no header.
    pub fn new(
        mut config: BridgeConfig,
        directory: Arc<dyn Directory>,
        recorder: Recorder,
    ) -> Result<Self, BridgeError> {
        let fingerprint_key = hmac::Key::new(hmac::HMAC_SHA256, &config.server_secret);
        let providers = std::mem::take(&mut config.providers)
            .into_iter()
            .map(|provider| Provider::new(provider, &fingerprint_key).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let limits = Limits::new(&config.limits);
        let servers = Servers::new(std::mem::take(&mut config.tools.servers));
        let shared = Shared {
            config,
            providers,
            directory,
            recorder,
            fingerprint_key,
            servers,
            offers: Offers::default(),
            metrics: Arc::default(),
            drain: Drain::default(),
            limits,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Connects to the MCP servers and stays connected, in the background. What this gives waits
    /// until each was tried once, for 5 s at most: requests after that have the tools of those that
    /// are up, so that a restart does not change prompts.
    pub fn start(&self) -> impl Future<Output = ()> + Send + use<> {
        self.shared.servers.start();
        let shared = Arc::clone(&self.shared);
        async move { shared.servers.tried().await }
    }

    /// How the MCP servers are.
    pub fn mcp_states(&self) -> Vec<McpState> {
        self.shared.servers.states()
    }

    /// How the providers are, in the order of the configuration.
    pub fn provider_states(&self) -> Vec<ProviderState> {
        self.shared.providers.iter().map(|provider| provider.state()).collect()
    }

    /// Ends the sessions with MCP servers.
    pub async fn end_sessions(&self) {
        self.shared.servers.end().await;
    }

    /// Registers the data path's metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        for provider in &self.shared.providers {
            provider.show_keys(&self.shared.metrics);
        }
        self.shared.metrics.register(registry);
    }

    /// Serves everything below the providers' names, and 404 for the rest.
    pub fn router(&self) -> Router {
        let shared = Arc::clone(&self.shared);
        Router::new()
            .fallback(move |request: Request| {
                let shared = Arc::clone(&shared);
                async move { shared.handle(request).await }
            })
            .layer(tower_http::catch_panic::CatchPanicLayer::new())
    }

    /// Ends the streams that are still open with an error in their dialect, and settles them.
    pub fn drain(&self) {
        self.shared.drain.begin();
    }

    /// Waits until no request is in flight.
    pub fn settled(&self) -> impl Future<Output = ()> + Send + 'static {
        let tasks = self.shared.limits.tasks.clone();
        async move {
            tasks.close();
            tasks.wait().await;
        }
    }
}

impl Shared {
    async fn handle(self: &Arc<Self>, request: Request) -> Response {
        let in_flight = self.limits.enter();
        let (head, body) = request.into_parts();
        match route(&self.providers, &head.method, head.uri.path(), &head.headers) {
            Routed::To(route) => {
                let arrival = Arrival { route, head, id: Uuid::now_v7(), in_flight };
                // Boxed: a large future would be moved through every layer above.
                Box::pin(call::call(self, arrival, body)).await
            }
            Routed::Probe => Response::new(Body::empty()),
            Routed::Upgrade(provider) => no_websocket(&provider),
            Routed::NoEndpoint(provider) => {
                read::discard(body, self.config.max_body).await;
                let name = &provider.config.name;
                let what = described(&head);
                not_found(&format!("the provider `{name}` has no endpoint {what}"))
                    .render(provider.config.kind.error_shape(), None)
            }
            Routed::NoProvider => not_found(&format!("no provider for {}", described(&head)))
                .render(ErrorShape::OpenAi, None),
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("providers", &self.providers).finish_non_exhaustive()
    }
}

/// Answers an upgrade such that Codex and Copilot go on over HTTP without delay.
fn no_websocket(provider: &Provider) -> Response {
    let failure = Failure::refusal(
        StatusCode::UPGRADE_REQUIRED,
        ErrorKind::InvalidRequest,
        "this endpoint is served over HTTP, not over WebSocket",
    );
    let mut response = failure.render(provider.config.kind.error_shape(), None);
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("HTTP/1.1"));
    response
}

/// Method and path; one that holds a bridge token is not repeated, neither to the client nor in logs.
fn described(head: &http::request::Parts) -> String {
    let path = head.uri.path();
    let path = if headers::carries_token(path.as_bytes()) { "…" } else { path };
    format!("{} {path}", head.method)
}

fn not_found(detail: &str) -> Failure {
    Failure::refusal(StatusCode::NOT_FOUND, ErrorKind::NotFound, detail)
}
