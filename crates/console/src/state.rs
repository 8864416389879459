//! The caller, and the state of the data path: providers, MCP servers, configuration.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    Configuration, Console, McpServer, Provider, ReloadError, Reloaded,
    caller::Caller,
    failure::Failure,
    openapi::{AccessErrors, CallerErrors, Conflict},
    views::{ErrorKind, ErrorResponse, InvalidConfigurationView, ListView, MeView},
};

pub(crate) fn router() -> OpenApiRouter<Console> {
    OpenApiRouter::new()
        .routes(routes!(show_me))
        .routes(routes!(list_providers))
        .routes(routes!(list_mcp_servers))
        .routes(routes!(show_configuration))
        .routes(routes!(reload_configuration))
}

/// Show the caller
///
/// The user, the role and the token of this request.
#[utoipa::path(
    get, path = "/me", tag = "accounts",
    responses((status = 200, description = "The caller", body = MeView), CallerErrors),
)]
async fn show_me(caller: Caller) -> Json<MeView> {
    Json(MeView::from(&*caller.identity))
}

/// List the MCP servers
///
/// With the state of the connection and the offered tools; for auditors and administrators, because they
/// are part of the company's network.
#[utoipa::path(
    get, path = "/mcp", tag = "operation",
    responses((status = 200, description = "The servers", body = ListView<McpServer>), AccessErrors),
)]
async fn list_mcp_servers(
    State(console): State<Console>,
    caller: Caller,
) -> Result<Json<ListView<McpServer>>, Failure> {
    caller.check_sees_all("MCP servers")?;
    Ok(Json(ListView { items: console.data_path.mcp_servers() }))
}

/// List the providers
///
/// With the state of their keys and circuit breakers and their last errors; for auditors and
/// administrators.
#[utoipa::path(
    get, path = "/providers", tag = "operation",
    responses((status = 200, description = "The providers", body = ListView<Provider>), AccessErrors),
)]
async fn list_providers(
    State(console): State<Console>,
    caller: Caller,
) -> Result<Json<ListView<Provider>>, Failure> {
    caller.check_sees_all("providers")?;
    Ok(Json(ListView { items: console.data_path.providers() }))
}

/// Show the configuration in force
///
/// Every setting with its value and where that comes from, without secrets, and the last reload; for auditors
/// and administrators.
#[utoipa::path(
    get, path = "/config", tag = "operation",
    responses((status = 200, description = "The configuration", body = Configuration), AccessErrors),
)]
async fn show_configuration(
    State(console): State<Console>,
    caller: Caller,
) -> Result<Json<Configuration>, Failure> {
    caller.check_sees_all("configuration")?;
    Ok(Json(console.data_path.configuration()))
}

/// Reload the configuration
///
/// Reads it again and applies it to new requests; for administrators.
#[utoipa::path(
    post, path = "/config/reload", tag = "operation",
    responses(
        (status = 200, description = "The new configuration is in force", body = Reloaded),
        (status = 422, description = "It is not valid; the present one stays in force",
            body = ErrorResponse<InvalidConfigurationView>),
        AccessErrors, Conflict,
    ),
)]
async fn reload_configuration(
    State(console): State<Console>,
    caller: Caller,
) -> Result<Response, Failure> {
    caller.check_admin("reload the configuration")?;
    let requested_by = format!("{} through the API", caller.identity.user.name);
    match console.data_path.reload(&requested_by).await {
        Ok(reloaded) => Ok(Json(reloaded).into_response()),
        Err(ReloadError::Nothing) => Err(Failure::new(
            StatusCode::CONFLICT,
            ErrorKind::InvalidRequest,
            "this process has no configuration to reload",
        )),
        Err(ReloadError::Invalid(problems)) => {
            let error = InvalidConfigurationView {
                kind: ErrorKind::InvalidConfiguration,
                message: "the configuration is not valid; the current one stays in force",
                problems,
            };
            let body = Json(ErrorResponse { error });
            Ok((StatusCode::UNPROCESSABLE_ENTITY, body).into_response())
        }
    }
}
