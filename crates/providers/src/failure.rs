//! The error type of the request path.

use std::time::Duration;

use http::{HeaderValue, StatusCode, Uri};
use keybridge_wire::error::ErrorKind;

/// An error that the bridge itself responds with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub status: StatusCode,
    pub kind: ErrorKind,
    /// Written for the client.
    pub detail: String,
    pub retry: Retry,
    /// The error kind of the record, where it is more exact than `kind`: the request was ended because of
    /// its caller, and its provider is not to blame.
    pub record_kind: Option<&'static str>,
    /// The provider's status, if it answered and its answer is replaced by this error.
    pub upstream_status: Option<StatusCode>,
}

/// Whether a client may retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// A retry cannot succeed.
    Useless,
    /// A retry may succeed, after this many seconds if known.
    After(Option<u32>),
}

/// `Retry-After` in seconds for a full queue or an unavailable store.
const RETRY_AFTER_BUSY: u32 = 2;
/// `Retry-After` in seconds for errors that an administrator must fix.
const RETRY_AFTER_SETTING: u32 = 60;

impl Failure {
    /// A refusal that a retry of the same request would meet again.
    pub fn refusal(status: StatusCode, kind: ErrorKind, detail: &str) -> Self {
        Self::new(status, kind, detail.into(), Retry::Useless)
    }

    const fn new(status: StatusCode, kind: ErrorKind, detail: String, retry: Retry) -> Self {
        Self { status, kind, detail, retry, record_kind: None, upstream_status: None }
    }

    /// An invalid request.
    pub fn invalid(detail: &str) -> Self {
        Self::refusal(StatusCode::BAD_REQUEST, ErrorKind::InvalidRequest, detail)
    }

    /// The ledger or the directory is unavailable.
    pub fn store_unavailable(reason: &str) -> Self {
        tracing::error!(reason, "a request was refused because the store is unavailable");
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Overloaded,
            format!("the ledger is unavailable; retry in {RETRY_AFTER_BUSY} s"),
            Retry::After(Some(RETRY_AFTER_BUSY)),
        )
    }

    /// An internal error of keybridge; the reason is only logged.
    pub fn internal(reason: &str) -> Self {
        tracing::error!(reason, "a request failed because of an internal error");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            ErrorKind::Api,
            "internal error in keybridge; its log has the reason".into(),
            Retry::After(None),
        )
    }

    /// The request cannot be served for this long.
    pub fn unavailable(reason: &str, retry_after: Duration) -> Self {
        let seconds = whole_seconds(retry_after);
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Overloaded,
            format!("{reason}; retry in {seconds} s"),
            Retry::After(Some(seconds)),
        )
    }

    /// Sets the delay after which a retry may succeed.
    pub fn with_retry_after(self, retry_after: Duration) -> Self {
        Self { retry: Retry::After(Some(whole_seconds(retry_after))), ..self }
    }

    /// A limit on requests is exceeded.
    pub fn too_many_requests(detail: &str) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::RateLimit,
            detail.into(),
            Retry::After(Some(RETRY_AFTER_BUSY)),
        )
    }

    /// The process is shutting down.
    pub fn shutting_down() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Overloaded,
            "keybridge is shutting down".into(),
            Retry::After(Some(RETRY_AFTER_BUSY)),
        )
    }

    /// An error on the way to the provider or in its answer.
    pub fn upstream(status: StatusCode, kind: ErrorKind, detail: String) -> Self {
        Self::new(status, kind, detail, Retry::After(None))
    }

    /// The provider answered with a redirect. A client that follows it would send its bridge token there,
    /// past the record.
    pub fn redirect(provider: &str, status: StatusCode, location: &HeaderValue) -> Self {
        let target = redirect_target(location);
        let detail = format!(
            "the provider `{provider}` answered with a redirect (status {}) to {target}; redirects are \
             not followed: set its `base_url` to the address that serves the API",
            status.as_u16()
        );
        let upstream_status = Some(status);
        Self { upstream_status, ..Self::refusal(StatusCode::BAD_GATEWAY, ErrorKind::Api, &detail) }
    }

    /// The provider closed the stream before its terminal event or last byte.
    pub fn truncated() -> Self {
        Self::upstream(
            StatusCode::BAD_GATEWAY,
            ErrorKind::Api,
            "the provider closed the stream before completion".into(),
        )
    }

    /// The provider sent no data for longer than the idle timeout.
    pub fn idle(idle_timeout: Duration) -> Self {
        let seconds = idle_timeout.as_secs_f64();
        let detail = format!("timed out: no data from the provider for {seconds} s");
        Self::upstream(StatusCode::GATEWAY_TIMEOUT, ErrorKind::Timeout, detail)
    }

    /// The error kind of the record.
    pub fn recorded_kind(&self) -> &'static str {
        self.record_kind.unwrap_or(self.kind.as_str())
    }

    /// The value of `Retry-After`. Every 429 and 503 has one: Codex does not wait otherwise.
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

/// Where a redirect leads: scheme and host, because the rest may contain a secret.
fn redirect_target(location: &HeaderValue) -> String {
    let Ok(text) = location.to_str() else { return "an unreadable address".into() };
    let text = text.trim();
    let address = match text.strip_prefix("//") {
        Some(address) => format!("https://{address}"),
        None => text.to_owned(),
    };
    let Ok(uri) = address.parse::<Uri>() else { return "an unreadable address".into() };
    let Some(host) = uri.host() else { return "another path of the same host".into() };
    let scheme = uri.scheme_str().unwrap_or("https");
    uri.port_u16()
        .map_or_else(|| format!("{scheme}://{host}"), |port| format!("{scheme}://{host}:{port}"))
}

/// Rounds up to whole seconds, at least one.
fn whole_seconds(duration: Duration) -> u32 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    u32::try_from(seconds.max(1)).unwrap_or(u32::MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_of_a_redirect_is_named_without_what_may_be_secret() {
        let long = format!("https://{}.example/x", "a".repeat(3_000));
        for (location, expected) in [
            ("https://api.example/v1/messages?key=secret", "https://api.example"),
            ("http://user:secret@api.example:8080/x", "http://api.example:8080"),
            ("//user@cdn.example/x", "https://cdn.example"),
            ("/elsewhere?key=secret", "another path of the same host"),
            ("elsewhere", "https://elsewhere"),
            ("https://[::1]:9/", "https://[::1]:9"),
            ("", "an unreadable address"),
            ("ht tp:", "an unreadable address"),
        ] {
            let location = HeaderValue::from_static(location);
            assert_eq!(redirect_target(&location), expected, "{location:?}");
        }
        let _accepted = redirect_target(&long.parse().unwrap());
        let bytes = HeaderValue::from_bytes(b"https://r\xe9sum\xe9.example/").unwrap();
        assert_eq!(redirect_target(&bytes), "an unreadable address");
    }
}
