//! Asking a provider again: when, after how long, and how often in all.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::rand;
use http::{HeaderMap, Response, StatusCode, header};
use jiff::{Timestamp, fmt::rfc2822};

use crate::failure::Failure;

/// First pause, and the longest one that the bridge makes of its own.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// The longest pause that a provider may ask for; the client is told of a longer one.
const LONGEST_ASKED: Duration = Duration::from_secs(60);
/// The part of all requests that may be asked again, so that retries cannot multiply an outage.
const SHARE: f64 = 0.2;
/// Retries that are always there, for a provider that is asked seldom.
const RESERVE: f64 = 10.0;

/// How many retries a provider may be asked for; every first attempt adds to it.
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
    /// A request is asked for the first time.
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

/// Why a provider is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Again {
    /// The status, or `connection`.
    pub(crate) reason: Reason,
    pub(crate) pause: Duration,
}

/// What the first attempt came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Connection,
    Status(u16),
}

impl Reason {
    /// As metrics and logs name it.
    pub(crate) fn label(self) -> String {
        match self {
            Self::Connection => "connection".into(),
            Self::Status(status) => status.to_string(),
        }
    }
}

/// Whether an attempt is worth another one; `retries` were made before.
pub(crate) fn again<B>(answered: &Result<Response<B>, Failure>, retries: u32) -> Option<Again> {
    match answered {
        Ok(answer) => {
            let pause = after_status(answer.status(), answer.headers(), retries)?;
            Some(Again { reason: Reason::Status(answer.status().as_u16()), pause })
        }
        // What took its time would take it again.
        Err(failure) if failure.status == StatusCode::BAD_GATEWAY => {
            Some(Again { reason: Reason::Connection, pause: own_pause(retries) })
        }
        Err(_failure) => None,
    }
}

/// The pause after an answer, if it is one that a retry may cure.
fn after_status(status: StatusCode, headers: &HeaderMap, retries: u32) -> Option<Duration> {
    let is_curable = matches!(status.as_u16(), 408 | 409 | 429 | 500 | 502 | 503 | 504 | 529);
    let told = headers.get("x-should-retry").and_then(|told| told.to_str().ok());
    match told {
        Some("false") => return None,
        _ if !is_curable => return None,
        _ => {}
    }
    match asked_pause(headers, Timestamp::now()) {
        Some(pause) if pause > LONGEST_ASKED => None,
        Some(pause) => Some(pause),
        None => Some(own_pause(retries)),
    }
}

/// The pause that a provider asks for: milliseconds, seconds, or a date.
pub(crate) fn asked_pause(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
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
    // A date that has passed asks for no pause.
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

/// Doubled each time, three quarters of it at least, the rest by chance.
fn own_pause(retries: u32) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(1 << retries.min(10)).min(LONGEST_PAUSE);
    let mut byte = [0];
    // Without randomness it is the shortest one.
    let _filled = rand::fill(&mut byte);
    let [chance] = byte;
    whole.mul_f64(0.75 + f64::from(chance) / 1_020.0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, HeaderValue, StatusCode};
    use jiff::Timestamp;

    use super::{Budget, after_status, asked_pause, own_pause};

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn only_what_a_retry_may_cure_is_asked_again() {
        let after = |status: u16, pairs: &[(&'static str, &str)]| {
            after_status(StatusCode::from_u16(status).unwrap(), &headers(pairs), 0)
        };
        for status in [408, 409, 429, 500, 502, 503, 504, 529] {
            assert!(after(status, &[]).is_some(), "{status}");
            assert_eq!(after(status, &[("x-should-retry", "false")]), None);
        }
        for status in [200, 301, 400, 401, 403, 404, 413, 422, 501] {
            assert_eq!(after(status, &[]), None, "{status}");
        }
        assert_eq!(after(429, &[("retry-after", "61")]), None, "too long to keep a client waiting");
        assert_eq!(after(429, &[("retry-after", "60")]), Some(Duration::from_secs(60)));
    }

    #[test]
    fn a_pause_is_asked_for_in_three_ways() {
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
            let pause = asked_pause(&headers(pairs), now);
            assert_eq!(pause, expected.map(Duration::from_millis), "{pairs:?}");
        }
    }

    #[test]
    fn pauses_grow_and_vary() {
        for (retries, longest) in [(0, 500), (1, 1_000), (2, 2_000), (9, 8_000), (u32::MAX, 8_000)]
        {
            let pauses: Vec<Duration> = (0..50).map(|_| own_pause(retries)).collect();
            let longest = Duration::from_millis(longest);
            assert!(
                pauses.iter().all(|pause| *pause <= longest && *pause >= longest.mul_f64(0.75))
            );
            assert!(pauses.iter().any(|pause| Some(pause) != pauses.first()));
        }
    }

    #[test]
    fn retries_are_a_part_of_all_requests() {
        let budget = Budget::default();
        let spent = |budget: &Budget| std::iter::from_fn(|| budget.spend().then_some(())).count();
        assert_eq!(spent(&budget), 10, "some are always there");
        (0..49).for_each(|_| budget.earn());
        assert_eq!(spent(&budget), 9);
        (0..10_000).for_each(|_| budget.earn());
        assert_eq!(spent(&budget), 10, "and no more than that at once");
    }
}
