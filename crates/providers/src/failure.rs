//! The one error of the request path.

use std::time::Duration;

use http::StatusCode;
use keybridge_wire::error::ErrorKind;

/// Why the bridge itself answers with an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub status: StatusCode,
    pub kind: ErrorKind,
    /// Written for the client.
    pub detail: String,
    pub retry: Retry,
}

/// What a client is told about trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
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
    pub fn refusal(status: StatusCode, kind: ErrorKind, detail: &str) -> Self {
        Self { status, kind, detail: detail.into(), retry: Retry::Useless }
    }

    /// A request that cannot be understood.
    pub fn invalid(detail: &str) -> Self {
        Self::refusal(StatusCode::BAD_REQUEST, ErrorKind::InvalidRequest, detail)
    }

    /// The ledger or the directory cannot be used now.
    pub fn store_unavailable(reason: &str) -> Self {
        tracing::error!(reason, "a request was refused because the store cannot be used");
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: ErrorKind::Overloaded,
            detail: "the ledger cannot record this request right now".into(),
            retry: Retry::After(Some(RETRY_AFTER_BUSY)),
        }
    }

    /// A fault of keybridge itself; the reason is for the log only.
    pub fn internal(reason: &str) -> Self {
        tracing::error!(reason, "a request failed because of a fault of keybridge");
        let (status, detail) = (StatusCode::INTERNAL_SERVER_ERROR, "keybridge failed".into());
        Self { status, kind: ErrorKind::Api, detail, retry: Retry::After(None) }
    }

    /// What is asked for cannot be done for the time being.
    pub fn unavailable(detail: String, wait: Duration) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: ErrorKind::Overloaded,
            detail,
            retry: Retry::After(None),
        }
        .after(wait)
    }

    /// With the time after which another try is worth it.
    pub fn after(self, wait: Duration) -> Self {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let seconds = u32::try_from(seconds.max(1)).unwrap_or(u32::MAX);
        Self { retry: Retry::After(Some(seconds)), ..self }
    }

    /// More requests than allowed.
    pub fn too_many_requests(detail: &str) -> Self {
        Self {
            status: StatusCode::TOO_MANY_REQUESTS,
            kind: ErrorKind::RateLimit,
            detail: detail.into(),
            retry: Retry::After(Some(RETRY_AFTER_BUSY)),
        }
    }

    /// The process is about to end.
    pub fn shutting_down() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            kind: ErrorKind::Overloaded,
            detail: "keybridge is shutting down".into(),
            retry: Retry::After(Some(RETRY_AFTER_BUSY)),
        }
    }

    /// The provider could not be asked, or did not answer.
    pub fn upstream(status: StatusCode, kind: ErrorKind, detail: String) -> Self {
        Self { status, kind, detail, retry: Retry::After(None) }
    }

    /// The provider closed its answer before the last event or byte.
    pub fn truncated() -> Self {
        Self::upstream(
            StatusCode::BAD_GATEWAY,
            ErrorKind::Api,
            "the provider closed the stream before completion".into(),
        )
    }

    /// The provider is silent within an answer.
    pub fn idle(limit: Duration) -> Self {
        let detail = format!("the provider sent nothing for {} s", limit.as_secs());
        Self::upstream(StatusCode::GATEWAY_TIMEOUT, ErrorKind::Timeout, detail)
    }

    /// Every 429 and 503 says when to come back: Codex does not wait otherwise.
    pub fn retry_after(&self) -> Option<u32> {
        let busy =
            matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        match self.retry {
            Retry::After(Some(seconds)) => Some(seconds),
            Retry::After(None) => busy.then_some(RETRY_AFTER_BUSY),
            Retry::Useless => busy.then_some(RETRY_AFTER_SETTING),
        }
    }
}

/// The kind of an error by its status.
pub fn kind_of(status: StatusCode) -> ErrorKind {
    match status.as_u16() {
        401 => ErrorKind::Authentication,
        402 => ErrorKind::Billing,
        403 => ErrorKind::Permission,
        404 => ErrorKind::NotFound,
        413 => ErrorKind::RequestTooLarge,
        429 => ErrorKind::RateLimit,
        408 | 504 => ErrorKind::Timeout,
        503 | 529 => ErrorKind::Overloaded,
        400..=499 => ErrorKind::InvalidRequest,
        _ => ErrorKind::Api,
    }
}
