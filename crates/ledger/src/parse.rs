//! Durations and times as people write them, in the configuration, on the command line and in the
//! API: one grammar for all three.

use std::time::Duration;

use jiff::{
    Span, SpanRelativeTo, Timestamp, ToSpan,
    civil::{Date, DateTime},
    tz::TimeZone,
};

/// The forms of a time, for descriptions.
pub const TIME_FORMS: &str = "RFC 3339 (2026-01-31T09:30:00Z), a date or a time without zone in UTC \
     (2026-01-31, 2026-01-31T09:30), a duration before now (90m, 24h, 7d, 2w), `now`, `today`, `yesterday`, or \
     Unix seconds (1769851800)";

/// Unix seconds have as many digits; fewer are more likely a duration whose unit is missing, and more are
/// milliseconds.
const UNIX_SECONDS_DIGITS: std::ops::RangeInclusive<usize> = 9..=11;

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a duration: write a number and a unit (ms, s, m, h, d or w), such as 250ms, 1.5h, 1h30m or 7d"
)]
pub struct DurationError(String);

/// A text that is not a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a time: write {TIME_FORMS}")]
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

/// Parses a time in any of the forms of [`TIME_FORMS`]. Without a zone it is in UTC; a date is the start of
/// that day.
///
/// # Errors
///
/// When the text has none of the forms, or the time is out of range.
pub fn time(text: &str, now: Timestamp) -> Result<Timestamp, TimeError> {
    let text_error = || TimeError(text.into());
    let text = text.trim();
    let parsed = text.parse().ok().or_else(|| named(text, now)).or_else(|| unix_seconds(text));
    let before_now = || duration(text).ok().and_then(|duration| now.checked_sub(duration).ok());
    parsed.or_else(|| in_utc(text)).or_else(before_now).ok_or_else(text_error)
}

/// `now`, and the start of the current or the last day in UTC.
fn named(text: &str, now: Timestamp) -> Option<Timestamp> {
    let today = TimeZone::UTC.to_datetime(now).date();
    match text.to_ascii_lowercase().as_str() {
        "now" => Some(now),
        "today" => start_of(today),
        "yesterday" => start_of(today.checked_sub(1.day()).ok()?),
        _ => None,
    }
}

fn start_of(day: Date) -> Option<Timestamp> {
    TimeZone::UTC.to_timestamp(day.into()).ok()
}

fn unix_seconds(text: &str) -> Option<Timestamp> {
    let is_number =
        UNIX_SECONDS_DIGITS.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = is_number.then(|| text.parse().ok()).flatten()?;
    Timestamp::from_second(seconds).ok()
}

/// A date, or a date and a time, without a zone.
fn in_utc(text: &str) -> Option<Timestamp> {
    // A text with the name of a zone is none of the forms, although it could be read as a civil time.
    if text.contains('[') {
        return None;
    }
    let time: DateTime = text.parse().ok()?;
    TimeZone::UTC.to_timestamp(time).ok()
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
    fn a_time_has_the_forms_that_people_write() {
        let now: Timestamp = "2026-01-31T09:30:00Z".parse().unwrap();
        let rows = [
            ("2026-01-30T00:00:00Z", "2026-01-30T00:00:00Z"),
            ("2026-01-30T00:00:00+01:00", "2026-01-29T23:00:00Z"),
            ("2026-01-30 00:00:00.25-05:00", "2026-01-30T05:00:00.25Z"),
            ("2026-01-30", "2026-01-30T00:00:00Z"),
            ("2024-02-29", "2024-02-29T00:00:00Z"),
            ("2026-01-30T14:45", "2026-01-30T14:45:00Z"),
            ("2026-01-30 14:45:10.5", "2026-01-30T14:45:10.5Z"),
            ("1h", "2026-01-31T08:30:00Z"),
            ("1.5h", "2026-01-31T08:00:00Z"),
            ("90m", "2026-01-31T08:00:00Z"),
            ("24h", "2026-01-30T09:30:00Z"),
            ("7d", "2026-01-24T09:30:00Z"),
            ("1w", "2026-01-24T09:30:00Z"),
            ("2w", "2026-01-17T09:30:00Z"),
            ("0", "2026-01-31T09:30:00Z"),
            ("now", "2026-01-31T09:30:00Z"),
            (" Today ", "2026-01-31T00:00:00Z"),
            ("yesterday", "2026-01-30T00:00:00Z"),
            ("1769851800", "2026-01-31T09:30:00Z"),
            ("999999999", "2001-09-09T01:46:39Z"),
        ];
        for (text, expected) in rows {
            assert_eq!(time(text, now), Ok(expected.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn an_error_names_the_forms_of_a_time() {
        let now: Timestamp = "2026-01-31T09:30:00Z".parse().unwrap();
        let wrong = [
            "",
            "tomorrow",
            "-1h",
            "90",
            "-1769851800",
            "1769851800000",
            "99999999w",
            "2026-02-30",
            "2026-13-01",
            "2026-1-1",
            "31.01.2026",
            "09:30",
            "2026-01-30T25:00",
            "2026-01-30T14:45[Europe/Berlin]",
        ];
        for text in wrong {
            let error = time(text, now).unwrap_err().to_string();
            for form in ["RFC 3339", "2026-01-31", "24h", "today", "yesterday", "Unix seconds"] {
                assert!(error.contains(form), "{error}");
            }
        }
    }
}
