//! Durations and times as people write them, in the configuration, on the command line and in the
//! API: one grammar for all three.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo, Timestamp};

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a duration: write a number and a unit (ms, s, m, h, d or w), such as 250ms, 1.5h, 1h30m or 7d"
)]
pub struct DurationError(String);

/// A text that is not a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a time: write RFC 3339, such as 2026-01-31T09:30:00Z, or a duration before now, such as 90m or 7d"
)]
pub struct TimeError(String);

/// Parses `30s`, `1.5h`, `1h30m`, `250ms`, `60d` or `0`: the friendly format of [`Span`], where a day
/// has 24 hours and units of a month or more are not accepted. Fractions are accepted up to hours.
///
/// # Errors
///
/// When the text is something else, is negative or is out of range.
pub fn duration(text: &str) -> Result<Duration, DurationError> {
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let span: Option<Span> = text.parse().ok();
    span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok())
        .and_then(|duration| duration.try_into().ok())
        .ok_or_else(|| DurationError(text.into()))
}

/// Parses an RFC 3339 time, or a [`duration()`] before `now`.
///
/// # Errors
///
/// When the text is neither, or the time is out of range.
pub fn time(text: &str, now: Timestamp) -> Result<Timestamp, TimeError> {
    let before_now = || duration(text).ok().and_then(|duration| now.checked_sub(duration).ok());
    text.trim().parse().ok().or_else(before_now).ok_or_else(|| TimeError(text.into()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::{duration, time};

    #[test]
    fn a_duration_is_a_number_and_a_unit() {
        let rows = [
            ("30s", 30_000),
            ("250ms", 250),
            ("5m", 300_000),
            ("1.5h", 5_400_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("1w", 604_800_000),
            ("0", 0),
            (" 0s ", 0),
        ];
        for (text, ms) in rows {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "30", "s", "-1s", "1s ago", "1 fortnight", "2mo", "1y", "1e99d", "1.5d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_is_rfc_3339_or_a_duration_before_now() {
        let now: Timestamp = "2026-01-31T09:30:00Z".parse().unwrap();
        let rows = [
            ("2026-01-30T00:00:00Z", "2026-01-30T00:00:00Z"),
            ("2026-01-30T00:00:00+01:00", "2026-01-29T23:00:00Z"),
            ("1.5h", "2026-01-31T08:00:00Z"),
            ("1w", "2026-01-24T09:30:00Z"),
            ("0", "2026-01-31T09:30:00Z"),
        ];
        for (text, expected) in rows {
            assert_eq!(time(text, now), Ok(expected.parse().unwrap()), "{text}");
        }
        for text in ["", "yesterday", "2026-01-30", "-1h", "90", "99999999w"] {
            assert!(time(text, now).is_err(), "{text}");
        }
    }
}
