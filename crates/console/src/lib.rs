//! The API of keybridge for reading records and for administration, and the endpoints for load balancers and
//! metrics.
//!
//! A member sees only their own records, auditors and administrators see all.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{FromRequestParts, Path, RawQuery, State},
    http::{Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use keybridge_identity::{BridgeToken, CallerError, Directory, Identity, Role};
use keybridge_ledger::{Ledger, LedgerError, Reader};
use prometheus_client::registry::Registry;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use self::query::FoundSession;

mod accounts;
mod data_path;
mod metrics;
mod query;

pub use data_path::{
    CircuitBreaker, ConfigProblem, DataPath, KeyRestriction, LastError, LastErrors, McpServer,
    Provider, ProviderKey, ReloadError, Reloaded, ToolDefinition,
};

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
    let api = Router::new()
        .route("/interceptions", get(interceptions))
        .route("/interceptions/{id}", get(interception))
        .route("/sessions", get(sessions))
        .route("/sessions/{id}", get(session))
        .route("/mcp", get(mcp))
        .route("/providers", get(providers))
        .route("/config/reload", post(reload))
        .route("/me", get(me))
        .merge(accounts::router())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed);
    Router::new()
        .route("/healthz", get(|| async { Json(json!({ "status": "ok" })) }))
        .route("/readyz", get(ready))
        .nest("/api/v1", api)
        .route("/metrics", get(metrics::guarded))
        .fallback(not_found)
        .with_state(Console { ledger, directory, registry, data_path, metrics_access })
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

/// An error response of the API.
#[derive(Debug)]
struct Failure {
    status: StatusCode,
    kind: &'static str,
    message: String,
    /// What the caller can do.
    hint: Option<&'static str>,
    retry_after: Option<Duration>,
}

impl Failure {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), hint: None, retry_after: None }
    }

    fn not_found(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication", message)
    }

    fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission", message)
    }

    fn invalid(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    fn internal(reason: &str) -> Self {
        tracing::error!(reason, "an administrative request failed because of an internal error");
        let message = "internal error in keybridge; its log has the reason";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    fn with_hint(self, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..self }
    }

    fn unavailable(reason: &str) -> Self {
        tracing::error!(reason, "the store cannot be read");
        let message = "the store cannot be read at the moment";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    }
}

/// The `error` of a response.
#[derive(Debug, Serialize)]
struct ErrorBody<'a> {
    kind: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let error = ErrorBody { kind: self.kind, message: &self.message, hint: self.hint };
        let body = json!({ "error": error });
        let mut response = (self.status, Json(body)).into_response();
        if let Some(delay) = self.retry_after {
            let seconds = header::HeaderValue::from(delay.as_secs().max(1));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl From<LedgerError> for Failure {
    fn from(error: LedgerError) -> Self {
        let message = error.to_string();
        match error {
            LedgerError::Cursor | LedgerError::Query(_) => Self::invalid(message),
            LedgerError::ReadTimeout(_) => {
                tracing::warn!("{message}");
                Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
            }
            LedgerError::ReadersBusy(timeout) => {
                tracing::warn!("{message}");
                let busy = Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message);
                Self { retry_after: Some(timeout), ..busy }
            }
            LedgerError::Closing => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
            }
            _ => Self::unavailable(&message),
        }
    }
}

/// The authenticated caller of the API.
struct Caller {
    identity: Arc<Identity>,
}

impl Caller {
    /// The user whose records alone the caller may see; `None` for all.
    fn visible_user(&self) -> Option<Uuid> {
        match self.identity.user.role {
            Role::Member => Some(self.identity.user.id),
            Role::Auditor | Role::Admin => None,
        }
    }
}

impl FromRequestParts<Console> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Self, Failure> {
        let bearer = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| {
                Failure::unauthorized("send the bridge token as `Authorization: Bearer <token>`")
            })?;
        let token = BridgeToken::parse(bearer)
            .map_err(|_invalid| Failure::unauthorized(CallerError::Unknown.to_string()))?;
        match console.directory.identify(&token).await {
            Ok(identity) => Ok(Self { identity }),
            Err(CallerError::Unavailable(reason)) => Err(Failure::unavailable(&reason)),
            Err(refused) => Err(Failure::unauthorized(refused.to_string())),
        }
    }
}

async fn ready(State(console): State<Console>) -> Result<Response, Failure> {
    Ok(Json(console.ledger.ready().await?).into_response())
}

/// The MCP servers, for auditors and administrators: they are part of the company's network.
async fn mcp(State(console): State<Console>, caller: Caller) -> Result<Response, Failure> {
    caller.check_sees_all("MCP servers")?;
    Ok(Json(json!({ "items": console.data_path.mcp_servers() })).into_response())
}

/// The providers' health, for auditors and administrators.
async fn providers(State(console): State<Console>, caller: Caller) -> Result<Response, Failure> {
    caller.check_sees_all("providers")?;
    Ok(Json(json!({ "items": console.data_path.providers() })).into_response())
}

/// Reads the configuration again; for administrators.
async fn reload(State(console): State<Console>, caller: Caller) -> Result<Response, Failure> {
    caller.check_admin("reload the configuration")?;
    let requested_by = format!("{} through the API", caller.identity.user.name);
    match console.data_path.reload(&requested_by).await {
        Ok(reloaded) => Ok(Json(reloaded).into_response()),
        Err(ReloadError::Nothing) => Err(Failure::new(
            StatusCode::CONFLICT,
            "invalid_request",
            "this process has no configuration to reload",
        )),
        Err(ReloadError::Invalid(problems)) => {
            let message = "the configuration is not valid; the current one stays in force";
            let body = json!({
                "error": { "kind": "invalid_configuration", "message": message, "problems": problems }
            });
            Ok((StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response())
        }
    }
}

async fn method_not_allowed(method: Method) -> Failure {
    let message = format!("this endpoint has no {method}");
    Failure::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request", message)
        .with_hint("the header `allow` lists its methods")
}

async fn me(caller: Caller) -> Response {
    let Identity { user, token } = &*caller.identity;
    Json(json!({ "user": user, "role": user.role, "token": token })).into_response()
}

async fn interceptions(
    State(console): State<Console>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let mut filter = query::interceptions(query.as_deref()).map_err(Failure::invalid)?;
    filter.user_id = caller.visible_user();
    let page = console.ledger.read(move |reader| reader.interceptions(&filter)).await?;
    Ok(Json(page).into_response())
}

async fn interception(
    State(console): State<Console>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let missing = || Failure::not_found("there is no such interception");
    let id: Uuid = id.parse().map_err(|_invalid| missing())?;
    let found = console.ledger.read(move |reader| reader.interception(id)).await?;
    let is_visible = |owner: Uuid| caller.visible_user().is_none_or(|user| user == owner);
    let detail =
        found.filter(|detail| is_visible(detail.item.interception.user_id)).ok_or_else(missing)?;
    Ok(Json(detail).into_response())
}

async fn sessions(
    State(console): State<Console>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let mut filter = query::sessions(query.as_deref()).map_err(Failure::invalid)?;
    filter.user_id = caller.visible_user();
    let page = console.ledger.read(move |reader| reader.sessions(&filter)).await?;
    Ok(Json(page).into_response())
}

async fn session(
    State(console): State<Console>,
    caller: Caller,
    Path(id): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let user = query::session_user(query.as_deref()).map_err(Failure::invalid)?;
    let visible_user = caller.visible_user();
    let read = move |reader: &Reader<'_>| query::session(reader, &id, user, visible_user);
    match console.ledger.read(read).await? {
        FoundSession::Nothing => Err(Failure::not_found("there is no such session")),
        FoundSession::One(session) => Ok(Json(session).into_response()),
        FoundSession::OfSeveralUsers(sessions) => {
            let message = format!(
                "{} users have a session with this id; name one with `?user=`",
                sessions.len()
            );
            let error = json!({ "kind": "ambiguous", "message": message, "sessions": sessions });
            Ok((StatusCode::CONFLICT, Json(json!({ "error": error }))).into_response())
        }
    }
}

#[cfg(test)]
mod tests;
