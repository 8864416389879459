//! The data path of keybridge: each request is authenticated, given a credential, recorded before it
//! goes upstream, and relayed byte for byte.
//!
//! [`keybridge_net::listener::Site`] serves it beside its host's own paths. The crate knows its host through
//! [`keybridge_identity::Directory`] and writes the trail through [`keybridge_ledger::Recorder`]. The stages of a
//! request are in `call.rs`.

use std::{future::Future, sync::Arc};

use arc_swap::ArcSwap;
use aws_lc_rs::hmac;
use axum::{body::Body, extract::Request, response::Response};
use futures_util::future::BoxFuture;
use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use keybridge_identity::Directory;
use keybridge_ledger::Ledger;
use keybridge_mcp::{McpServerConfig, McpState, Servers};
use keybridge_net::listener::DataPath;
use keybridge_providers::{
    ProviderError, failure::Failure, health::ProviderState, metrics::ProviderMetrics,
    provider::Provider,
};
use keybridge_wire::error::{ErrorKind, ErrorShape};
use prometheus_client::registry::Registry;
use uuid::Uuid;

use crate::{
    admission::{
        RoutedRequest,
        body::discard,
        limits::Limits,
        route::{RouteMatch, described, not_found, route},
    },
    config::BridgeConfig,
    failure::render,
    metrics::ToolMetrics,
    phases::PhaseTimes,
    shared::Shared,
    tools::InjectedTools,
};

mod access;
mod admission;
mod attempt;
mod call;
pub mod config;
mod failure;
mod headers;
mod metrics;
mod phases;
mod relay;
mod settlement;
mod shared;
mod tools;

/// The data path of one process; clones share everything.
#[derive(Debug, Clone)]
pub struct Bridge {
    current: Arc<ArcSwap<Shared>>,
}

impl Bridge {
    /// Creates the data path. A default rustls provider must be installed.
    ///
    /// # Errors
    ///
    /// When a base URL is not an http or https address, or a key fits into no header.
    pub fn new(
        mut config: BridgeConfig,
        directory: Arc<Directory>,
        ledger: &Ledger,
    ) -> Result<Self, ProviderError> {
        let fingerprint_key = hmac::Key::new(hmac::HMAC_SHA256, &config.server_secret);
        let provider_metrics = Arc::default();
        let shared = Shared {
            providers: providers(&mut config, &fingerprint_key, &provider_metrics, &[])?,
            tools: injected_tools(&mut config, Servers::new, Arc::default()),
            limits: Limits::new(config.limits),
            config,
            directory,
            continuations: ledger.continuations(),
            objects: ledger.objects(),
            recorder: ledger.recorder(),
            fingerprint_key,
            provider_metrics,
        };
        Ok(Self { current: Arc::new(ArcSwap::from_pointee(shared)) })
    }

    /// Serves new requests with another configuration; requests in flight keep the one that they
    /// started with. Providers and MCP servers whose settings have not changed keep the states of their
    /// keys and their sessions. New MCP servers are waited for as in [`Bridge::start`]; sessions with
    /// removed ones are closed after the last request that may need them. Calls must not overlap.
    ///
    /// # Errors
    ///
    /// As [`Bridge::new`]; the old configuration then stays in use.
    pub async fn reload(&self, mut config: BridgeConfig) -> Result<(), ProviderError> {
        let old = self.current.load_full();
        let providers =
            providers(&mut config, &old.fingerprint_key, &old.provider_metrics, &old.providers)?;
        let tools = injected_tools(
            &mut config,
            |servers| old.tools.servers.reconfigured(servers),
            Arc::clone(&old.tools.metrics),
        );
        tools.servers.start();
        tools.servers.wait_for_first_attempts().await;
        for provider in &old.providers {
            if !providers.iter().any(|kept| Arc::ptr_eq(kept, provider)) {
                provider.remove_metrics();
            }
        }
        let new = Shared {
            providers,
            tools,
            limits: old.limits.reconfigured(config.limits),
            config,
            directory: Arc::clone(&old.directory),
            continuations: old.continuations.clone(),
            objects: old.objects.clone(),
            recorder: old.recorder.clone(),
            fingerprint_key: old.fingerprint_key.clone(),
            provider_metrics: Arc::clone(&old.provider_metrics),
        };
        publish_key_metrics(&new.providers);
        self.current.store(Arc::new(new));
        Ok(())
    }

    /// Connects to the MCP servers and keeps them connected in the background. The returned future
    /// waits for the first attempt to connect to each server, for at most 5 s: later requests then have
    /// the tools of all reachable servers, so that a restart does not change prompts.
    pub fn start(&self) -> impl Future<Output = ()> + Send + use<> {
        let shared = self.current.load_full();
        shared.tools.servers.start();
        async move { shared.tools.servers.wait_for_first_attempts().await }
    }

    /// The states of the MCP servers.
    pub fn mcp_states(&self) -> Vec<McpState> {
        self.current.load().tools.servers.states()
    }

    /// The states of the providers, in the order of the configuration.
    pub fn provider_states(&self) -> Vec<ProviderState> {
        self.current.load().providers.iter().map(|provider| provider.state()).collect()
    }

    /// Closes the sessions with MCP servers.
    pub async fn close_mcp_sessions(&self) {
        self.current.load_full().tools.servers.close().await;
    }

    /// The memory in bytes that is reserved for request bodies.
    pub fn body_memory(&self) -> usize {
        self.current.load().limits.memory.used()
    }

    /// Registers the data path's metrics.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let shared = self.current.load();
        publish_key_metrics(&shared.providers);
        shared.provider_metrics.register(registry);
        shared.tools.metrics.register(registry);
        shared.tools.servers.register_metrics(registry);
    }

    /// Ends the streams that are still open with an error in their dialect, and settles their records.
    pub fn drain(&self) {
        self.current.load().directory.end_requests();
    }

    /// Waits until no request is in flight.
    pub fn wait_until_idle(&self) -> impl Future<Output = ()> + Send + 'static {
        let tasks = self.current.load().limits.tasks.clone();
        async move {
            tasks.close();
            tasks.wait().await;
        }
    }
}

impl DataPath for Bridge {
    fn answer(&self, request: Request) -> BoxFuture<'static, Response> {
        let shared = self.current.load_full();
        Box::pin(async move { handle(&shared, request).await })
    }
}

/// The providers of a configuration; existing ones with the same settings are kept.
fn providers(
    config: &mut BridgeConfig,
    fingerprint_key: &hmac::Key,
    metrics: &Arc<ProviderMetrics>,
    old: &[Arc<Provider>],
) -> Result<Vec<Arc<Provider>>, ProviderError> {
    let configs = std::mem::take(&mut config.providers).into_iter();
    let providers = configs.map(|config| {
        let before = old.iter().find(|before| before.config.name == config.name);
        if let Some(before) = before.filter(|before| before.config == config) {
            return Ok(Arc::clone(before));
        }
        let provider = Provider::new(config, fingerprint_key, Arc::clone(metrics))?;
        if let Some(before) = before {
            provider.copy_key_states(before);
        }
        Ok(Arc::new(provider))
    });
    providers.collect()
}

/// The tools of a configuration; takes the servers out of it.
fn injected_tools(
    config: &mut BridgeConfig,
    servers: impl FnOnce(Vec<McpServerConfig>) -> Servers,
    metrics: Arc<ToolMetrics>,
) -> Arc<InjectedTools> {
    let servers = servers(std::mem::take(&mut config.tools.servers));
    Arc::new(InjectedTools::new(servers, config.tools.clone(), metrics))
}

/// Publishes the states of all providers' keys in the metrics.
fn publish_key_metrics(providers: &[Arc<Provider>]) {
    for provider in providers {
        provider.publish_key_metrics();
    }
}

/// Routes a request and handles it.
async fn handle(shared: &Arc<Shared>, request: Request) -> Response {
    let (mut head, body) = request.into_parts();
    let in_flight = shared.limits.count_request(head.extensions.remove());
    match route(&shared.providers, &head) {
        RouteMatch::Endpoint(route) => {
            let (id, started_at) = (Uuid::now_v7(), Timestamp::now());
            let phases = PhaseTimes::start();
            let request = RoutedRequest { route, head, id, started_at, phases, in_flight };
            call::serve(shared, request, body).await
        }
        RouteMatch::Probe => Response::new(Body::empty()),
        RouteMatch::Upgrade(provider) => no_websocket(&provider),
        RouteMatch::Refused(provider, refusal) => {
            if let Some(_permit) = shared.limits.try_discard_permit() {
                discard(body, shared.config.max_body).await;
            }
            let failure = refusal.failure(&provider.config.name, &head);
            render(&failure, provider.config.kind.error_shape(), None)
        }
        RouteMatch::NoProvider => {
            let failure = not_found(&format!(
                "unknown path {}: it must start with the name of a configured provider",
                described(&head)
            ));
            render(&failure, ErrorShape::OpenAi, None)
        }
    }
}

/// Rejects an upgrade such that Codex and Copilot fall back to HTTP without delay.
fn no_websocket(provider: &Provider) -> Response {
    let failure = Failure::refusal(
        StatusCode::UPGRADE_REQUIRED,
        ErrorKind::InvalidRequest,
        "this endpoint does not support WebSocket; use HTTP",
    );
    let mut response = render(&failure, provider.config.kind.error_shape(), None);
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("HTTP/1.1"));
    response
}
