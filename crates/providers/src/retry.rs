//! Asking a provider again: when, after how long, and how often in all.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::{HeaderMap, Response, StatusCode, header};
use jiff::{Timestamp, fmt::rfc2822};
use keybridge_policy::Backoff;

use crate::failure::{Failure, Retry};

/// The delays of retries where the provider does not ask for one.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(8));
/// The longest delay that a provider may ask for; a longer one is left to the client.
const MAX_REQUESTED_DELAY: Duration = Duration::from_secs(60);
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

/// Decides whether an attempt is retried; `retries` were made before.
pub(crate) fn decide<B>(
    result: &Result<Response<B>, Failure>,
    retries: u32,
) -> Option<RetryDecision> {
    match result {
        Ok(answer) => {
            let backoff = backoff_after(answer.status(), answer.headers(), retries)?;
            Some(RetryDecision { reason: Reason::Status(answer.status().as_u16()), backoff })
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

/// The delay after an answer with this status, if a retry may help.
fn backoff_after(status: StatusCode, headers: &HeaderMap, retries: u32) -> Option<Duration> {
    let is_transient = matches!(status.as_u16(), 408 | 409 | 429 | 500 | 502 | 503 | 504 | 529);
    let is_forbidden = || headers.get("x-should-retry").is_some_and(|value| value == "false");
    if !is_transient || is_forbidden() {
        return None;
    }
    match requested_delay(headers, Timestamp::now()) {
        Some(delay) if delay > MAX_REQUESTED_DELAY => None,
        Some(delay) => Some(delay),
        None => Some(BACKOFF.delay(retries)),
    }
}

/// The delay that a provider asks for: milliseconds, seconds, or a date.
pub(crate) fn requested_delay(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let millis = text("retry-after-ms").and_then(|millis| millis.parse::<f64>().ok());
    if let Some(millis) = millis.filter(|millis| millis.is_finite() && *millis >= 0.0) {
        return Duration::try_from_secs_f64(millis / 1_000.0).ok();
    }
    let after = text(header::RETRY_AFTER.as_str())?;
    if let Ok(seconds) = after.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = rfc2822::DateTimeParser::new().parse_timestamp(after).ok()?;
    // A date that has passed asks for no delay.
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue, Response, StatusCode};
    use jiff::Timestamp;
    use keybridge_wire::error::ErrorKind;

    use super::{Budget, Reason, RetryDecision, backoff_after, decide, requested_delay};
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
            backoff_after(StatusCode::from_u16(status).unwrap(), &headers(pairs), 0)
        };
        for status in [408, 409, 429, 500, 502, 503, 504, 529] {
            assert!(after(status, &[]).is_some(), "{status}");
            assert_eq!(after(status, &[("x-should-retry", "false")]), None);
        }
        for status in [200, 301, 400, 401, 403, 404, 413, 422, 501] {
            assert_eq!(after(status, &[]), None, "{status}");
        }
        assert_eq!(after(429, &[("retry-after", "61")]), None, "too long for a client to wait");
        assert_eq!(after(429, &[("retry-after", "60")]), Some(Duration::from_secs(60)));
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
            (&[("retry-after-ms", "nan"), ("retry-after", "1")], Some(1_000)),
            (&[], None),
        ] {
            let delay = requested_delay(&headers(pairs), now);
            assert_eq!(delay, expected.map(Duration::from_millis), "{pairs:?}");
        }
    }

    #[test]
    fn a_connection_that_fails_for_good_is_not_retried() {
        let decision = |failure: Failure| decide::<()>(&Err(failure), 0).map(|one| one.reason);
        let (status, kind) = (StatusCode::BAD_GATEWAY, ErrorKind::Api);
        let reset = Failure::upstream(status, kind, "connection reset".into());
        assert_eq!(decision(reset), Some(Reason::Connection));
        assert_eq!(decision(Failure::refusal(status, kind, "untrusted certificate")), None);
        let late =
            Failure::upstream(StatusCode::GATEWAY_TIMEOUT, ErrorKind::Timeout, "late".into());
        assert_eq!(decision(late), None);
        let overloaded = Response::builder().status(529).header("retry-after", "2").body(());
        let backoff = Duration::from_secs(2);
        let expected = RetryDecision { reason: Reason::Status(529), backoff };
        assert_eq!(decide(&Ok(overloaded.unwrap()), 0), Some(expected));
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
