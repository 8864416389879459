//! Asking a provider again: when, after how long, and how often in all.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, Method, StatusCode, header};
use jiff::{Timestamp, fmt::rfc2822};
use keybridge_policy::Backoff;

use crate::failure::{Failure, Retry};

/// The delays of retries where the provider does not ask for one.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(8));
/// How long a request waits in all because its provider asks for delays; longer ones are left to the client.
const MAX_REQUESTED_DELAY: Duration = Duration::from_secs(60);
/// The same for a list of models, for which clients wait at their start.
const MAX_REQUESTED_DELAY_OF_MODELS: Duration = Duration::from_secs(3);
/// The share of all requests that may be retried, so that retries cannot multiply an outage.
const SHARE: f64 = 0.2;
/// Retries that are always available, for a provider with few requests.
const RESERVE: f64 = 10.0;

/// How many retries a provider may get; every first attempt adds to it.
#[derive(Debug)]
pub(crate) struct Budget {
    left: Mutex<f64>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: Mutex::new(RESERVE) }
    }
}

impl Budget {
    /// Adds the share of a first attempt.
    pub(crate) fn earn(&self) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left = (*left + SHARE).min(RESERVE);
    }

    /// Takes a retry, if there is one left.
    pub(crate) fn spend(&self) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let has_one = *left >= 1.0;
        if has_one {
            *left -= 1.0;
        }
        has_one
    }
}

/// A retry that is worth making.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RetryDecision {
    pub(crate) reason: Reason,
    /// The delay before it.
    pub(crate) backoff: Duration,
}

/// How the attempt before a retry failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Connection,
    Status(u16),
}

impl Reason {
    /// The status, or `connection`: the name in metrics and logs.
    pub(crate) fn label(self) -> String {
        match self {
            Self::Connection => "connection".into(),
            Self::Status(status) => status.to_string(),
        }
    }
}

/// How long a request to an endpoint waits in all because its provider asks for delays.
pub(crate) fn max_requested_delay(method: &Method, endpoint: &str) -> Duration {
    let below = endpoint.strip_prefix("/v1").unwrap_or(endpoint).strip_prefix("/models");
    let is_models = below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if is_models && method == Method::GET {
        MAX_REQUESTED_DELAY_OF_MODELS
    } else {
        MAX_REQUESTED_DELAY
    }
}

/// Decides whether an attempt is retried, after its status or failure. `retries` were made before, and
/// the provider may ask for a delay of at most `max_delay`.
pub(crate) fn decide(
    outcome: Result<(StatusCode, &HeaderMap), &Failure>,
    retries: u32,
    max_delay: Duration,
) -> Option<RetryDecision> {
    match outcome {
        Ok((status, headers)) => {
            let delay = delay_after(status, headers, max_delay)?;
            let backoff = delay.unwrap_or_else(|| BACKOFF.delay(retries));
            Some(RetryDecision { reason: Reason::Status(status.as_u16()), backoff })
        }
        // A timeout would take as long again, and some connections fail until a setting changes.
        Err(failure)
            if failure.status == StatusCode::BAD_GATEWAY && failure.retry != Retry::Useless =>
        {
            Some(RetryDecision { reason: Reason::Connection, backoff: BACKOFF.delay(retries) })
        }
        Err(_failure) => None,
    }
}

/// Whether a retry may help after an answer, and the delay that the provider asks for.
fn delay_after(
    status: StatusCode,
    headers: &HeaderMap,
    max_delay: Duration,
) -> Option<Option<Duration>> {
    let is_transient = matches!(status.as_u16(), 408 | 409 | 429 | 500 | 502 | 503 | 504 | 529);
    let is_forbidden = || headers.get("x-should-retry").is_some_and(|value| value == "false");
    if !is_transient || is_forbidden() {
        return None;
    }
    let requested = requested_delay(headers, Timestamp::now());
    requested.is_none_or(|delay| delay <= max_delay).then_some(requested)
}

/// The delay that a provider asks for: milliseconds, seconds, or a date. A figure that is negative or none
/// asks for nothing, and one beyond all limits for a longer delay than any client waits.
pub(crate) fn requested_delay(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let number = |text: &str| text.parse::<f64>().ok();
    let millis = text("retry-after-ms").and_then(number);
    if let Some(delay) = millis.and_then(|millis| delay_of(millis / 1_000.0)) {
        return Some(delay);
    }
    let after = text(header::RETRY_AFTER.as_str())?;
    if let Some(seconds) = number(after) {
        return delay_of(seconds);
    }
    let date = rfc2822::DateTimeParser::new().parse_timestamp(after).ok()?;
    // A date that has passed asks for no delay.
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

fn delay_of(seconds: f64) -> Option<Duration> {
    (seconds >= 0.0).then(|| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue, Method, StatusCode};
    use jiff::Timestamp;
    use keybridge_wire::error::ErrorKind;

    use super::{
        Budget, Reason, RetryDecision, decide, delay_after, max_requested_delay, requested_delay,
    };
    use crate::failure::Failure;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn only_transient_statuses_are_retried() {
        let after = |status: u16, pairs: &[(&'static str, &str)]| {
            let status = StatusCode::from_u16(status).unwrap();
            delay_after(status, &headers(pairs), Duration::from_secs(60))
        };
        for status in [408, 409, 429, 500, 502, 503, 504, 529] {
            assert!(after(status, &[]).is_some(), "{status}");
            assert_eq!(after(status, &[("x-should-retry", "false")]), None);
        }
        for status in [200, 301, 400, 401, 403, 404, 413, 422, 501] {
            assert_eq!(after(status, &[]), None, "{status}");
        }
        assert_eq!(after(429, &[("retry-after", "61")]), None, "too long for a client to wait");
        assert_eq!(after(429, &[("retry-after", "60")]), Some(Some(Duration::from_secs(60))));
    }

    #[test]
    fn clients_do_not_wait_long_for_a_list_of_models() {
        for (method, endpoint, seconds) in [
            (Method::GET, "/v1/models", 3),
            (Method::GET, "/models", 3),
            (Method::GET, "/v1/models/opus", 3),
            (Method::POST, "/models/session", 60),
            (Method::GET, "/v1/modelsets", 60),
            (Method::POST, "/v1/messages", 60),
        ] {
            let delay = max_requested_delay(&method, endpoint);
            assert_eq!(delay.as_secs(), seconds, "{method} {endpoint}");
        }
    }

    #[test]
    fn a_delay_is_requested_in_three_ways() {
        let now: Timestamp = "2026-11-24T05:00:00Z".parse().unwrap();
        for (pairs, expected) in [
            (&[("retry-after", "3")][..], Some(3_000)),
            (&[("retry-after", "0.5")], Some(500)),
            (&[("retry-after", "Tue, 24 Nov 2026 05:00:07 GMT")], Some(7_000)),
            (&[("retry-after", "Tue, 24 Nov 2026 04:00:00 GMT")], Some(0)),
            (&[("retry-after-ms", "250"), ("retry-after", "9")], Some(250)),
            (&[("retry-after", "soon")], None),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "nan")], None),
            (&[("retry-after", "")], None),
            (&[("retry-after-ms", "-5"), ("retry-after", "2")], Some(2_000)),
            (&[("retry-after", "Thu, 31 Dec 9998 23:59:59 GMT")], Some(251_575_268_399_000)),
            (&[("retry-after-ms", "nan"), ("retry-after", "1")], Some(1_000)),
            (&[], None),
        ] {
            let delay = requested_delay(&headers(pairs), now);
            assert_eq!(delay, expected.map(Duration::from_millis), "{pairs:?}");
        }
        for endless in ["inf", "1e300", "99999999999999999999999"] {
            for name in ["retry-after", "retry-after-ms"] {
                let delay = requested_delay(&headers(&[(name, endless)]), now);
                assert!(delay.unwrap() > Duration::from_secs(1 << 60), "{name}: {endless}");
            }
        }
    }

    #[test]
    fn a_connection_that_fails_for_good_is_not_retried() {
        let minute = Duration::from_secs(60);
        let decision = |failure: Failure| decide(Err(&failure), 0, minute).map(|one| one.reason);
        let (status, kind) = (StatusCode::BAD_GATEWAY, ErrorKind::Api);
        let reset = Failure::upstream(status, kind, "connection reset".into());
        assert_eq!(decision(reset), Some(Reason::Connection));
        assert_eq!(decision(Failure::refusal(status, kind, "untrusted certificate")), None);
        let late =
            Failure::upstream(StatusCode::GATEWAY_TIMEOUT, ErrorKind::Timeout, "late".into());
        assert_eq!(decision(late), None);
        let (status, headers) =
            (StatusCode::from_u16(529).unwrap(), headers(&[("retry-after", "2")]));
        let backoff = Duration::from_secs(2);
        let expected = RetryDecision { reason: Reason::Status(529), backoff };
        assert_eq!(decide(Ok((status, &headers)), 0, minute), Some(expected));
        assert_eq!(decide(Ok((status, &headers)), 0, Duration::from_secs(1)), None);
    }

    #[test]
    fn retries_are_a_share_of_all_requests() {
        let budget = Budget::default();
        let spent = |budget: &Budget| std::iter::from_fn(|| budget.spend().then_some(())).count();
        assert_eq!(spent(&budget), 10, "some are always available");
        (0..49).for_each(|_| budget.earn());
        assert_eq!(spent(&budget), 9);
        (0..10_000).for_each(|_| budget.earn());
        assert_eq!(spent(&budget), 10, "and no more than that at once");
    }
}
