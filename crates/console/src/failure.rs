//! The error responses of the API.

use std::time::Duration;

use axum::{
    Json,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use keybridge_identity::AccountError;
use keybridge_ledger::LedgerError;

use crate::views::{ErrorKind, ErrorResponse, ErrorView};

/// An error response of the API.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    kind: ErrorKind,
    message: String,
    /// What the caller can do.
    hint: Option<&'static str>,
    retry_after: Option<Duration>,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), hint: None, retry_after: None }
    }

    pub(crate) fn not_found(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, message)
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, ErrorKind::Authentication, message)
    }

    pub(crate) fn forbidden(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorKind::Permission, message)
    }

    pub(crate) fn invalid(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorKind::InvalidRequest, message)
    }

    pub(crate) fn internal(reason: &str) -> Self {
        tracing::error!(reason, "an administrative request failed because of an internal error");
        let message = "internal error in keybridge; its log has the reason";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorKind::Internal, message)
    }

    pub(crate) fn unavailable(reason: &str) -> Self {
        tracing::error!(reason, "the store cannot be read");
        let message = "the store cannot be read at the moment";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Unavailable, message)
    }

    pub(crate) fn with_hint(self, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..self }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let error = ErrorView { kind: self.kind, message: self.message, hint: self.hint };
        let mut response = (self.status, Json(ErrorResponse { error })).into_response();
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
            LedgerError::Cursor | LedgerError::Query(_) | LedgerError::TooManyGroups(_) => {
                Self::invalid(message)
            }
            LedgerError::ReadTimeout(_) => {
                tracing::warn!("{message}");
                Self::new(StatusCode::GATEWAY_TIMEOUT, ErrorKind::Timeout, message)
            }
            LedgerError::ReadersBusy(timeout) => {
                tracing::warn!("{message}");
                let busy = Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Busy, message);
                Self { retry_after: Some(timeout), ..busy }
            }
            LedgerError::Closing => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Unavailable, message)
            }
            _ => Self::unavailable(&message),
        }
    }
}

impl From<AccountError> for Failure {
    fn from(error: AccountError) -> Self {
        let message = error.to_string();
        let conflict = |message| Self::new(StatusCode::CONFLICT, ErrorKind::Conflict, message);
        match error {
            AccountError::UserExists(_) => {
                conflict(message).with_hint("choose another name, or change the user with PATCH")
            }
            AccountError::LastAdministrator(_) => conflict(message),
            AccountError::UserName(_) => Self::invalid(message),
            AccountError::NoSuchUser(_) => {
                Self::not_found(&message).with_hint("`GET /api/v1/users` lists the users")
            }
            AccountError::NoSuchToken(_) => Self::not_found(&message),
            AccountError::Token(_) => Self::internal(&message),
            AccountError::Store(error) => error.into(),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}
