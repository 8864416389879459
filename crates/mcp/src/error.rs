//! What goes wrong with an MCP server, in words without secrets.

use http::StatusCode;
use rmcp::{
    ServiceError,
    service::ClientInitializeError,
    transport::{DynamicTransportError, streamable_http_client::StreamableHttpError},
};

use super::{http_client::HttpError, listing::cut};

/// Why a server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// It answered with an error.
    #[error("{message} ({code})")]
    Refused { code: i32, message: String },
    /// What it answered cannot be understood.
    #[error("{0}")]
    Invalid(String),
    /// It answered with an HTTP status that says no.
    #[error("it answered with the status {0}")]
    Status(StatusCode),
    /// It was not reached, or its answer did not arrive.
    #[error("{0}")]
    Unreachable(String),
}

/// Longest piece of a server's error message.
const MAX_MESSAGE: usize = 2000;

/// Of a session that could not be opened.
pub(super) fn not_started(error: &ClientInitializeError) -> Trouble {
    match error {
        ClientInitializeError::TransportError { error, .. } => not_sent(error),
        ClientInitializeError::JsonRpcError(error) => refused(error.code.0, &error.message),
        ClientInitializeError::LegacyFallbackFailed { fallback, .. } => not_started(fallback),
        ClientInitializeError::ConnectionClosed(_) => {
            Trouble::Invalid("the connection ended before there was a session".into())
        }
        ClientInitializeError::NoCompatibleProtocolVersion { .. } => {
            Trouble::Invalid("it knows no version of the protocol that the bridge knows".into())
        }
        // Their texts repeat what the server sent.
        _ => Trouble::Invalid("its answer to the start of a session is not valid".into()),
    }
}

/// Of a request without an answer.
pub(super) fn not_answered(error: &ServiceError) -> Trouble {
    match error {
        ServiceError::McpError(error) => refused(error.code.0, &error.message),
        ServiceError::TransportSend(error) => not_sent(error),
        ServiceError::TransportClosed => {
            Trouble::Unreachable("the connection ended before the answer".into())
        }
        _ => Trouble::Invalid("its answer is not the expected one".into()),
    }
}

fn not_sent(error: &DynamicTransportError) -> Trouble {
    let reason = match error.error.downcast_ref::<StreamableHttpError<HttpError>>() {
        Some(StreamableHttpError::Client(HttpError::Invalid(reason))) => {
            return Trouble::Invalid(reason.clone());
        }
        Some(StreamableHttpError::Client(HttpError::Status(status))) => {
            return Trouble::Status(*status);
        }
        Some(StreamableHttpError::Client(error)) => error.to_string(),
        Some(StreamableHttpError::AuthRequired(_)) => {
            return Trouble::Status(StatusCode::UNAUTHORIZED);
        }
        Some(StreamableHttpError::InsufficientScope(_)) => {
            return Trouble::Status(StatusCode::FORBIDDEN);
        }
        Some(StreamableHttpError::SessionExpired) => "it does not know its own session".into(),
        Some(StreamableHttpError::SessionRecoveryTimeout) => "no new session in time".into(),
        Some(StreamableHttpError::ReinitializationFailed(error)) => {
            let refused = refused(error.code.0, &error.message);
            format!("it refused a new session: {refused}")
        }
        // Their texts may repeat what the server sent.
        _ => "the connection ended before the answer".into(),
    };
    Trouble::Unreachable(reason)
}

fn refused(code: i32, message: &str) -> Trouble {
    Trouble::Refused { code, message: cut(message, MAX_MESSAGE).to_owned() }
}
