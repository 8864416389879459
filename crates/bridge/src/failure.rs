//! The one error of the request path and the one place where it becomes an answer.

use std::time::Duration;

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use keybridge_wire::error::{self, ErrorKind, ErrorShape};
use uuid::Uuid;

use crate::headers::X_KEYBRIDGE_INTERCEPTION_ID;

/// Why the bridge itself answers with an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) kind: ErrorKind,
    /// Written for the client.
    pub(crate) detail: String,
    pub(crate) retry: Retry,
}

/// What a client is told about trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// A retry cannot cure it.
    Useless,
    /// A retry may help, after this many seconds when given.
    After(Option<u32>),
}

/// Seconds after which a full queue or a store that is down is worth another try.
const RETRY_AFTER_BUSY: u32 = 2;
/// Seconds until a setting of an administrator may have changed.
const RETRY_AFTER_SETTING: u32 = 60;

impl Failure {
    /// A refusal that the same request will meet again.
    pub(crate) fn refusal(status: StatusCode, kind: ErrorKind, detail: &str) -> Self {
        Self { status, kind, detail: detail.into(), retry: Retry::Useless }
    }

    /// A request that cannot be understood.
    pub(crate) fn invalid(detail: &str) -> Self {
        Self::refusal(StatusCode::BAD_REQUEST, ErrorKind::InvalidRequest, detail)
    }

    /// The ledger or the directory cannot be used now.
    pub(crate) fn store_unavailable(reason: &str) -> Self {
        tracing::error!(reason, "a request was refused because the store cannot be used");
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: ErrorKind::Overloaded,
            detail: "the ledger cannot take this request at present".into(),
            retry: Retry::After(Some(RETRY_AFTER_BUSY)),
        }
    }

    /// What is asked for cannot be done for the time being.
    pub(crate) fn unavailable(detail: String, wait: Duration) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: ErrorKind::Overloaded,
            detail,
            retry: Retry::After(None),
        }
        .after(wait)
    }

    /// With the time after which another try is worth it.
    pub(crate) fn after(self, wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let seconds = u32::try_from(seconds.max(1)).unwrap_or(u32::MAX);
        Self { retry: Retry::After(Some(seconds)), ..self }
    }

    /// More requests than allowed.
    pub(crate) fn too_many_requests(detail: &str) -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            kind: ErrorKind::RateLimit,
            detail: detail.into(),
            retry: Retry::After(Some(RETRY_AFTER_BUSY)),
        }
    }

    /// The process is about to end.
    pub(crate) fn shutting_down() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: ErrorKind::Overloaded,
            detail: "keybridge is shutting down".into(),
            retry: Retry::After(Some(RETRY_AFTER_BUSY)),
        }
    }

    /// The provider could not be asked, or did not answer.
    pub(crate) fn upstream(status: StatusCode, kind: ErrorKind, detail: String) -> Self {
        Self { status, kind, detail, retry: Retry::After(None) }
    }

    /// The provider is silent within an answer.
    pub(crate) fn idle(limit: Duration) -> Self {
        let detail = format!("the provider sent nothing for {} s", limit.as_secs());
        Self::upstream(StatusCode::GATEWAY_TIMEOUT, ErrorKind::Timeout, detail)
    }

    /// The answer in the client's dialect.
    pub(crate) fn render(&self, shape: ErrorShape, interception: Option<Uuid>) -> Response<Body> {
        tracing::info!(
            status = self.status.as_u16(),
            kind = self.kind.as_str(),
            detail = %self.detail,
            interception_id = interception.map(tracing::field::display),
            "answered with an error"
        );
        let id = interception.map(|id| id.to_string());
        let body = error::body(shape, self.kind, &self.detail, id.as_deref());
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert("x-keybridge-error", HeaderValue::from_static(self.kind.as_str()));
        if self.retry == Retry::Useless {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(id) = id.and_then(|id| HeaderValue::from_str(&id).ok()) {
            headers.insert(X_KEYBRIDGE_INTERCEPTION_ID, id);
        }
        response
    }

    /// Every 429 and 503 says when to come back: Codex does not wait otherwise.
    fn retry_after(&self) -> Option<u32> {
        let busy =
            matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        match self.retry {
            Retry::After(Some(seconds)) => Some(seconds),
            Retry::After(None) => busy.then_some(RETRY_AFTER_BUSY),
            Retry::Useless => busy.then_some(RETRY_AFTER_SETTING),
        }
    }
}
