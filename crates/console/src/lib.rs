//! The API of keybridge for reading records and for administration, and the endpoints for load balancers and
//! metrics.
//!
//! A member sees only their own records, auditors and administrators see all.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use keybridge_identity::Directory;
use keybridge_ledger::Ledger;
use prometheus_client::registry::Registry;
use serde_json::json;
use utoipa_axum::router::OpenApiRouter;

use self::{failure::Failure, views::ErrorKind};

mod accounts;
mod attention;
mod caller;
mod data_path;
mod export;
mod extract;
mod failure;
mod metrics;
mod openapi;
mod query;
mod records;
mod state;
mod usage;
mod views;

pub use data_path::{
    CircuitBreaker, ConfigProblem, Configuration, DataPath, KeyRestriction, LastError, LastErrors,
    LastReload, McpServer, Provider, ProviderKey, ReloadError, Reloaded, Setting, SettingOrigin,
    ToolDefinition,
};

/// Maximum size of a request body.
const MAX_BODY_BYTES: usize = 16 * 1024;

/// Who can read `/metrics` on the main listener without a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricsAccess {
    /// Clients on this machine.
    Local,
    /// No client.
    TokenOnly,
}

#[derive(Clone)]
struct Console {
    ledger: Ledger,
    directory: Arc<Directory>,
    registry: Arc<Registry>,
    data_path: Arc<dyn DataPath>,
    metrics_access: MetricsAccess,
    /// The description of the API, as JSON.
    document: Bytes,
}

/// `/metrics` alone, without authentication, for a listener of its own.
pub fn metrics_router(registry: Arc<Registry>) -> Router {
    Router::new().route("/metrics", get(move || async move { metrics::encoded(&registry) }))
}

/// `/api/v1/…`, `/healthz`, `/readyz`, and `/metrics` for auditors, administrators and those that
/// `metrics_access` names.
pub fn router(
    ledger: Ledger,
    directory: Arc<Directory>,
    registry: Arc<Registry>,
    data_path: Arc<dyn DataPath>,
    metrics_access: MetricsAccess,
) -> Router {
    let not_found = || async { Failure::not_found("unknown endpoint") };
    let (api, document) = api();
    // A description whose parts are all strings and numbers is always JSON.
    let document = serde_json::to_vec(&document).unwrap_or_default().into();
    let api = api.method_not_allowed_fallback(method_not_allowed);
    Router::new()
        .route("/healthz", get(|| async { Json(json!({ "status": "ok" })) }))
        .route("/readyz", get(ready))
        .merge(api)
        .route("/metrics", get(metrics::guarded))
        .fallback(not_found)
        .with_state(Console { ledger, directory, registry, data_path, metrics_access, document })
}

/// The API and its description, which has every route of it.
fn api() -> (Router<Console>, utoipa::openapi::OpenApi) {
    let api = records::router()
        .merge(accounts::router())
        .merge(usage::router())
        .merge(attention::router())
        .merge(export::router())
        .merge(state::router())
        .merge(openapi::router())
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES));
    OpenApiRouter::with_openapi(openapi::base()).nest("/api/v1", api).split_for_parts()
}

/// Whether a path is one of [`router`]'s: of `/api` only the version that the console serves, because
/// the data path has prefixes of its own below `/api/v2`.
pub fn is_own(path: &str) -> bool {
    let mut segments = path.split('/').skip(1);
    match segments.next().unwrap_or_default() {
        "healthz" | "readyz" | "metrics" => true,
        "api" => segments.next() == Some("v1"),
        _ => false,
    }
}

async fn ready(State(console): State<Console>) -> Result<Response, Failure> {
    Ok(Json(console.ledger.ready().await?).into_response())
}

async fn method_not_allowed(method: Method) -> Failure {
    let message = format!("this endpoint has no {method}");
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, ErrorKind::InvalidRequest, message)
        .with_hint("the header `allow` lists its methods")
}

#[cfg(test)]
mod tests;
