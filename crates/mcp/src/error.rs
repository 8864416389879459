//! Errors of MCP servers, without secrets.

use http::StatusCode;
use rmcp::{
    ServiceError,
    service::ClientInitializeError,
    transport::{DynamicTransportError, streamable_http_client::StreamableHttpError},
};

use super::{http_client::HttpError, listing::truncate};

/// Why a request to an MCP server failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum McpError {
    /// The server answered with a JSON-RPC error.
    #[error("{message} ({code})")]
    Rpc { code: i32, message: String },
    /// The response is malformed.
    #[error("{0}")]
    Invalid(String),
    /// The server answered with an HTTP status that is no success.
    #[error("it answered with the status {0}")]
    Status(StatusCode),
    /// The server was not reached, or its response did not arrive.
    #[error("{0}")]
    Unreachable(String),
}

/// Longest piece of a server's error message.
const MAX_MESSAGE: usize = 2000;

/// The error of a session that could not be opened.
pub(super) fn initialize_error(error: &ClientInitializeError) -> McpError {
    match error {
        ClientInitializeError::TransportError { error, .. } => transport_error(error),
        ClientInitializeError::JsonRpcError(error) => rpc_error(error.code.0, &error.message),
        ClientInitializeError::LegacyFallbackFailed { fallback, .. } => initialize_error(fallback),
        ClientInitializeError::ConnectionClosed(_) => {
            McpError::Invalid("the connection ended before there was a session".into())
        }
        ClientInitializeError::NoCompatibleProtocolVersion { .. } => McpError::Invalid(
            "it supports no version of the protocol that keybridge supports".into(),
        ),
        // Their messages repeat what the server sent.
        _ => McpError::Invalid("its answer to the start of a session is not valid".into()),
    }
}

/// The error of a request without a response.
pub(super) fn request_error(error: &ServiceError) -> McpError {
    match error {
        ServiceError::McpError(error) => rpc_error(error.code.0, &error.message),
        ServiceError::TransportSend(error) => transport_error(error),
        ServiceError::TransportClosed => {
            McpError::Unreachable("the connection ended before the answer".into())
        }
        _ => McpError::Invalid("its answer is not the expected one".into()),
    }
}

fn transport_error(error: &DynamicTransportError) -> McpError {
    let reason = match error.error.downcast_ref::<StreamableHttpError<HttpError>>() {
        Some(StreamableHttpError::Client(HttpError::Invalid(reason))) => {
            return McpError::Invalid(reason.clone());
        }
        Some(StreamableHttpError::Client(HttpError::Status(status))) => {
            return McpError::Status(*status);
        }
        Some(StreamableHttpError::Client(error)) => error.to_string(),
        Some(StreamableHttpError::AuthRequired(_)) => {
            return McpError::Status(StatusCode::UNAUTHORIZED);
        }
        Some(StreamableHttpError::InsufficientScope(_)) => {
            return McpError::Status(StatusCode::FORBIDDEN);
        }
        Some(StreamableHttpError::SessionExpired) => "it does not know its own session".into(),
        Some(StreamableHttpError::SessionRecoveryTimeout) => "no new session in time".into(),
        Some(StreamableHttpError::ReinitializationFailed(error)) => {
            let error = rpc_error(error.code.0, &error.message);
            format!("it refused a new session: {error}")
        }
        // Their messages may repeat what the server sent.
        _ => "the connection ended before the answer".into(),
    };
    McpError::Unreachable(reason)
}

fn rpc_error(code: i32, message: &str) -> McpError {
    McpError::Rpc { code, message: truncate(message, MAX_MESSAGE).to_owned() }
}
