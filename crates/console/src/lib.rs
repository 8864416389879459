//! The reading API of keybridge, and the probes of load balancers.
//!
//! A member sees only their own records, auditors and administrators see all.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{FromRequestParts, Path, RawQuery, State},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use keybridge_identity::{BridgeToken, CallerError, Directory, Identity, Role};
use keybridge_ledger::{Ledger, LedgerError};
use prometheus_client::registry::Registry;
use serde_json::json;
use uuid::Uuid;

mod data_path;
mod metrics;
mod query;

pub use data_path::{
    CircuitBreaker, ConfigProblem, DataPath, LastError, LastErrors, McpServer, Provider,
    ProviderKey, ReloadError, Reloaded,
};

/// Longest wait for records that are about to be committed.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Console {
    ledger: Ledger,
    directory: Arc<Directory>,
    registry: Arc<Registry>,
    data_path: Arc<dyn DataPath>,
}

/// `/metrics` alone, for whoever reaches it: for a listener of its own.
pub fn metrics_router(registry: Arc<Registry>) -> Router {
    Router::new().route("/metrics", get(move || async move { metrics::encoded(&registry) }))
}

/// `/api/v1/…`, `/healthz`, `/readyz`, and `/metrics` for administrators and for whoever asks from
/// this machine.
pub fn router(
    ledger: Ledger,
    directory: Arc<Directory>,
    registry: Arc<Registry>,
    data_path: Arc<dyn DataPath>,
) -> Router {
    let not_found = || async { Failure::not_found("there is no such call") };
    let api = Router::new()
        .route("/interceptions", get(interceptions))
        .route("/interceptions/{id}", get(interception))
        .route("/sessions", get(sessions))
        .route("/sessions/{id}", get(session))
        .route("/mcp", get(mcp))
        .route("/providers", get(providers))
        .route("/config/reload", post(reload))
        .route("/me", get(me))
        .fallback(not_found);
    Router::new()
        .route("/healthz", get(|| async { Json(json!({ "status": "ok" })) }))
        .route("/readyz", get(ready))
        .nest("/api/v1", api)
        .route("/metrics", get(metrics::guarded))
        .fallback(not_found)
        .with_state(Console { ledger, directory, registry, data_path })
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

/// Why a call is refused, as its caller is told.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    kind: &'static str,
    message: String,
}

impl Failure {
    fn not_found(message: &str) -> Self {
        Self { status: StatusCode::NOT_FOUND, kind: "not_found", message: message.into() }
    }

    fn forbidden(message: &str) -> Self {
        Self { status: StatusCode::FORBIDDEN, kind: "permission", message: message.into() }
    }

    fn invalid(message: String) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind: "invalid_request", message }
    }

    fn unavailable(reason: &str) -> Self {
        tracing::error!(reason, "the store cannot be read");
        let message = "the store cannot be read at present".into();
        Self { status: StatusCode::SERVICE_UNAVAILABLE, kind: "unavailable", message }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = json!({ "error": { "kind": self.kind, "message": self.message } });
        let mut response = (self.status, Json(body)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        match error {
            LedgerError::Cursor => Self::invalid(error.to_string()),
            other => Self::unavailable(&other.to_string()),
        }
    }
}

/// Whoever calls.
struct Reader {
    identity: Arc<Identity>,
}

impl Reader {
    /// The user whose records alone may be seen; `None` for all.
    fn only(&self) -> Option<Uuid> {
        match self.identity.user.role {
            Role::Member => Some(self.identity.user.id),
            Role::Auditor | Role::Admin => None,
        }
    }
}

impl FromRequestParts<Console> for Reader {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Self, Failure> {
        let unauthorized = |message: String| Failure {
            status: StatusCode::UNAUTHORIZED,
            kind: "authentication",
            message,
        };
        let bearer = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| unauthorized("send the bridge token as Authorization: Bearer".into()))?;
        let token = BridgeToken::parse(bearer)
            .map_err(|_invalid| unauthorized(CallerError::Unknown.to_string()))?;
        match console.directory.identify(&token).await {
            Ok(identity) => Ok(Self { identity }),
            Err(CallerError::Unavailable(reason)) => Err(Failure::unavailable(&reason)),
            Err(refused) => Err(unauthorized(refused.to_string())),
        }
    }
}

/// Reads records, with all that this process had of them when the call came.
async fn reading<T: Send + 'static>(
    console: Console,
    call: impl FnOnce(&Ledger) -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, Failure> {
    // While the store is down what is there can be read all the same.
    let _drained = tokio::time::timeout(PATIENCE, console.ledger.recorder().drained()).await;
    blocking(console, call).await
}

/// Runs a call of the ledger where it may block.
async fn blocking<T: Send + 'static>(
    console: Console,
    call: impl FnOnce(&Ledger) -> Result<T, LedgerError> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(move || call(&console.ledger)).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(Failure::unavailable(&error.to_string())),
    }
}

async fn ready(State(console): State<Console>) -> Response {
    match blocking(console, Ledger::ready).await {
        Ok(readiness) => Json(readiness).into_response(),
        Err(failure) => failure.into_response(),
    }
}

/// The MCP servers, for whoever may see more than their own records: they are part of the company's
/// network.
async fn mcp(State(console): State<Console>, reader: Reader) -> Result<Response, Failure> {
    if reader.only().is_some() {
        return Err(Failure::forbidden("only auditors and administrators see the MCP servers"));
    }
    Ok(Json(json!({ "items": console.data_path.mcp_servers() })).into_response())
}

/// The providers' health, for whoever may see more than their own records.
async fn providers(State(console): State<Console>, reader: Reader) -> Result<Response, Failure> {
    if reader.only().is_some() {
        return Err(Failure::forbidden("only auditors and administrators see the providers"));
    }
    Ok(Json(json!({ "items": console.data_path.providers() })).into_response())
}

/// Reads the configuration again; for administrators.
async fn reload(State(console): State<Console>, reader: Reader) -> Result<Response, Failure> {
    if reader.identity.user.role != Role::Admin {
        return Err(Failure::forbidden("only administrators reload the configuration"));
    }
    let asked_by = format!("{} through the API", reader.identity.user.name);
    match console.data_path.reload(&asked_by).await {
        Ok(reloaded) => Ok(Json(reloaded).into_response()),
        Err(ReloadError::Nothing) => Err(Failure {
            status: StatusCode::CONFLICT,
            kind: "invalid_request",
            message: "this process has no configuration that could be read again".into(),
        }),
        Err(ReloadError::Invalid(problems)) => {
            let message = "the configuration is not valid and stays as it was";
            let body = json!({
                "error": { "kind": "invalid_configuration", "message": message, "problems": problems }
            });
            Ok((StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response())
        }
    }
}

async fn me(reader: Reader) -> Response {
    let Identity { user, token } = &*reader.identity;
    Json(json!({ "user": user, "role": user.role, "token": token })).into_response()
}

async fn interceptions(
    State(console): State<Console>,
    reader: Reader,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let mut filter = query::interceptions(query.as_deref()).map_err(Failure::invalid)?;
    filter.user_id = reader.only();
    let page = reading(console, move |ledger| ledger.interceptions(&filter)).await?;
    Ok(Json(page).into_response())
}

async fn interception(
    State(console): State<Console>,
    reader: Reader,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let missing = || Failure::not_found("there is no such interception");
    let id: Uuid = id.parse().map_err(|_invalid| missing())?;
    let found = reading(console, move |ledger| ledger.interception(id)).await?;
    let is_visible = |owner: Uuid| reader.only().is_none_or(|only| only == owner);
    let detail =
        found.filter(|detail| is_visible(detail.item.interception.user_id)).ok_or_else(missing)?;
    Ok(Json(detail).into_response())
}

async fn sessions(
    State(console): State<Console>,
    reader: Reader,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let mut filter = query::sessions(query.as_deref()).map_err(Failure::invalid)?;
    filter.user_id = reader.only();
    let page = reading(console, move |ledger| ledger.sessions(&filter)).await?;
    Ok(Json(page).into_response())
}

async fn session(
    State(console): State<Console>,
    reader: Reader,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let only = reader.only();
    let found = reading(console, move |ledger| query::session(ledger, &id, only)).await?;
    let session = found.ok_or_else(|| Failure::not_found("there is no such session"))?;
    Ok(Json(session).into_response())
}

#[cfg(test)]
mod tests;
