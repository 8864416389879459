//! Whether the clock can be trusted to remove old records.
//!
//! A serving process writes down every hour how late it is. A clock that is at most
//! [`MAX_UNWITNESSED`] ahead of the last such time is trusted: at worst, records go a day early. After
//! a longer gap, because nothing ran or because the clock was set, retention removes at most a fraction
//! of the records, or waits until somebody confirms the time.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::{
    LedgerError,
    record::{serialize_optional_time, serialize_time, time_text},
    store::{
        Store,
        interceptions::first_id,
        settings,
        sql::{self, Cells, Database, FromRow, RECOUNT_TIMEOUT, Value, all_within, first},
    },
};

/// How far the clock may be ahead of the last time that a process wrote down.
const MAX_UNWITNESSED: SignedDuration = SignedDuration::from_hours(24);
/// How far the clock may be ahead of that of the store's server.
const MAX_AHEAD_OF_SERVER: SignedDuration = SignedDuration::from_mins(5);
/// The setting with the last time that a process wrote down.
const CLOCK: &str = "retention_clock";

/// How long records are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetentionPolicy {
    /// `None`: forever.
    pub keep: Option<Duration>,
    /// The part of all records that may be removed at once after a time in which no process ran.
    pub max_fraction: f64,
}

/// What retention would remove now, and whether it may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RetentionCheck {
    /// The time of this machine.
    #[serde(serialize_with = "serialize_time")]
    pub now: Timestamp,
    /// What started earlier is removed; `None`: nothing is.
    #[serde(serialize_with = "serialize_optional_time")]
    pub cutoff: Option<Timestamp>,
    /// The last time that a process wrote down; if there is none, the time of the newest record.
    #[serde(serialize_with = "serialize_optional_time")]
    pub last_seen: Option<Timestamp>,
    /// The number of records, where it was counted.
    pub records: Option<u64>,
    /// How many of them would be removed.
    pub removable: Option<u64>,
    /// Why nothing is removed, if so.
    pub refusal: Option<String>,
}

/// Checks a time against the store's server, the last time that was written down and the records.
pub(crate) fn check(
    store: &dyn Store,
    policy: &RetentionPolicy,
    now: Timestamp,
) -> Result<RetentionCheck, LedgerError> {
    let cutoff = match policy.keep {
        Some(keep) => now.checked_sub(keep).ok(),
        None => None,
    };
    let last_seen = last_seen(store)?;
    let mut check =
        RetentionCheck { now, cutoff, last_seen, records: None, removable: None, refusal: None };
    if let Some(server) = store.server_time()?
        && now.duration_since(server) > MAX_AHEAD_OF_SERVER
    {
        check.refusal = Some(format!(
            "the clock of this machine ({}) is ahead of that of the store's server ({})",
            time_text(now),
            time_text(server)
        ));
        return Ok(check);
    }
    let Some(seen) = last_seen.filter(|seen| now.duration_since(*seen) > MAX_UNWITNESSED) else {
        return Ok(check);
    };
    if let Some(cutoff) = cutoff {
        let (records, removable) = count(store, cutoff)?;
        (check.records, check.removable) = (Some(records), Some(removable));
        if exceeds(removable, records, policy.max_fraction) {
            check.refusal = Some(format!(
                "the clock says {}, and no process has run since {}; what is too old now is {removable} \
                 of {records} records, a larger part than `ledger.retention_max_fraction` ({}); if the \
                 clock is right, confirm it with `keybridge ledger retention --confirm`",
                time_text(now),
                time_text(seen),
                policy.max_fraction
            ));
        }
    }
    Ok(check)
}

/// Whether a part of a whole is larger than a fraction of it.
fn exceeds(part: u64, whole: u64, fraction: f64) -> bool {
    let number = |count: u64| u32::try_from(count).map_or(f64::from(u32::MAX), f64::from);
    // Both are halved until they are exact as floating-point numbers.
    let shift = (u64::BITS - whole.leading_zeros()).saturating_sub(u32::BITS);
    number(part >> shift) > number(whole >> shift) * fraction
}

/// Writes a time down as one that can be trusted.
pub(crate) fn trust(store: &dyn Store, now: Timestamp) -> Result<(), LedgerError> {
    settings::put(store, CLOCK, time_text(now).as_bytes())
}

fn last_seen(database: &dyn Database) -> Result<Option<Timestamp>, LedgerError> {
    if let Some(stored) = settings::stored(database, CLOCK)? {
        let text = String::from_utf8_lossy(&stored).into_owned();
        let seen = text.parse();
        return seen.map(Some).map_err(|error| LedgerError::Row(format!("`{text}`: {error}")));
    }
    first(database, "SELECT started_at FROM interceptions ORDER BY id DESC LIMIT 1", &[])
}

/// The number of records, and of those that retention would remove.
fn count(database: &dyn Database, cutoff: Timestamp) -> Result<(u64, u64), LedgerError> {
    let sql = "SELECT (SELECT count(*) FROM interceptions),
                 (SELECT count(*) FROM interceptions
                  WHERE id < $1 AND started_at < $2 AND outcome <> 'in_progress')";
    let values: [Value; 2] = [first_id(cutoff).into(), cutoff.into()];
    let found: Option<Counts> =
        all_within(RECOUNT_TIMEOUT, database, sql, &values)?.into_iter().next();
    Ok(found.map_or((0, 0), |Counts { records, removable }| (records, removable)))
}

struct Counts {
    records: u64,
    removable: u64,
}

impl FromRow for Counts {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self { records: sql::count(row)?, removable: sql::count(row)? })
    }
}

#[cfg(test)]
mod tests {
    use super::exceeds;

    #[test]
    fn a_part_is_compared_with_a_fraction_of_the_whole() {
        assert!(!exceeds(0, 0, 0.0));
        assert!(!exceeds(5, 10, 0.5));
        assert!(exceeds(6, 10, 0.5));
        assert!(!exceeds(10, 10, 1.0));
        assert!(exceeds(3 << 40, 5 << 40, 0.5));
        assert!(!exceeds(2 << 40, 5 << 40, 0.5));
    }
}
