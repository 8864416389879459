//! Requests and tokens summed over a period, from the roll-ups.

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::TimeZone};
use uuid::Uuid;

use crate::{
    GroupBy, LedgerError, TokenSums, Usage, UsageFilter, UsageGroup, UsageSums,
    read::{lists::Conditions, rows::sums_from},
    store::{
        rollups::{self, SLOT_SECONDS, SLOTS_PER_DAY, SUMS},
        sql::{Database, STATEMENT_TIMEOUT, count, required},
    },
};

/// Maximum number of groups of an answer.
pub const MAX_USAGE_GROUPS: usize = 10_000;
/// From so many slots on, people are summed by whole days where that is possible.
const SLOTS_FOR_DAYS: i64 = 7 * SLOTS_PER_DAY;

/// The roll-ups that a part of a period is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    FleetSlots,
    UsageSlots,
    UserDays,
}

impl Source {
    const fn table(self) -> &'static str {
        match self {
            Self::FleetSlots => "fleet_slots",
            Self::UsageSlots => "usage_slots",
            Self::UserDays => "user_days",
        }
    }

    /// The column of time.
    const fn time(self) -> &'static str {
        match self {
            Self::FleetSlots | Self::UsageSlots => "slot",
            Self::UserDays => "day",
        }
    }
}

/// The parts of a period, from one slot to another, and what each is read from.
fn parts(filter: &UsageFilter, from: i64, to: i64) -> Vec<(Source, i64, i64)> {
    let groups_people = filter.group_by.contains(&GroupBy::User);
    let is_of_one = filter.user.is_some() || filter.user_id.is_some();
    if !groups_people && !is_of_one {
        return vec![(Source::FleetSlots, from, to)];
    }
    let others = [&filter.provider, &filter.model, &filter.client];
    let knows_days = others.iter().all(|other| other.is_none())
        && filter.group_by.iter().all(|by| matches!(by, GroupBy::User | GroupBy::CredentialKind));
    if is_of_one || !knows_days || to - from <= SLOTS_FOR_DAYS {
        return vec![(Source::UsageSlots, from, to)];
    }
    let first_day = (from + SLOTS_PER_DAY - 1).div_euclid(SLOTS_PER_DAY);
    let last_day = to.div_euclid(SLOTS_PER_DAY);
    vec![
        (Source::UsageSlots, from, first_day * SLOTS_PER_DAY),
        (Source::UserDays, first_day, last_day),
        (Source::UsageSlots, last_day * SLOTS_PER_DAY, to),
    ]
}

/// The value of a group in a row: of time a slot, else a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Time(String),
    Name(Option<String>),
}

pub(crate) fn usage(database: &dyn Database, filter: &UsageFilter) -> Result<Usage, LedgerError> {
    let from = filter.since.as_second().div_euclid(SLOT_SECONDS);
    let to = (filter.until.as_second() + SLOT_SECONDS - 1).div_euclid(SLOT_SECONDS).max(from);
    let mut groups: BTreeMap<Vec<Key>, UsageSums> = BTreeMap::new();
    let mut times = Times::new(&filter.time_zone);
    let names = match filter.group_by.contains(&GroupBy::User) {
        true => names(database)?,
        false => BTreeMap::new(),
    };
    for part in parts(filter, from, to) {
        read_part(database, filter, part, &names, &mut times, &mut groups)?;
    }
    let mut total = UsageSums::default();
    groups.values().for_each(|sums| total.add(sums));
    let in_progress = in_progress(database, filter)?;
    Ok(Usage {
        since: time_of(from),
        until: time_of(to),
        time_zone: filter.time_zone.iana_name().unwrap_or("UTC").to_owned(),
        is_approximate: times.is_approximate,
        in_progress,
        groups: groups
            .into_iter()
            .map(|(keys, sums)| UsageGroup {
                values: keys
                    .into_iter()
                    .map(|key| match key {
                        Key::Time(time) => Some(time),
                        Key::Name(name) => name,
                    })
                    .collect(),
                sums,
            })
            .collect(),
        total,
    })
}

/// The start of a slot.
fn time_of(slot: i64) -> Timestamp {
    Timestamp::from_second(slot.saturating_mul(SLOT_SECONDS)).unwrap_or(Timestamp::MAX)
}

fn conditions(filter: &UsageFilter, people: &str) -> Conditions {
    let mut conditions = Conditions::default();
    conditions.add_some(&format!("{people}user_id = ?"), filter.user_id);
    let named = format!("{people}user_id = (SELECT id FROM users WHERE name = ?)");
    conditions.add_some(&named, filter.user.clone());
    for (column, value) in [
        ("provider", &filter.provider),
        ("model", &filter.model),
        ("client", &filter.client),
        ("credential_kind", &filter.credential_kind),
    ] {
        let value = value.as_deref().map(|value| rollups::name(Some(value)));
        conditions.add_some(&format!("{people}{column} = ?"), value);
    }
    conditions
}

fn read_part(
    database: &dyn Database,
    filter: &UsageFilter,
    (source, from, to): (Source, i64, i64),
    names: &BTreeMap<Uuid, String>,
    times: &mut Times<'_>,
    groups: &mut BTreeMap<Vec<Key>, UsageSums>,
) -> Result<(), LedgerError> {
    if from >= to {
        return Ok(());
    }
    let time = source.time();
    let mut conditions = conditions(filter, "t.");
    conditions.add(&format!("t.{time} >= ?"), from);
    conditions.add(&format!("t.{time} < ?"), to);
    let columns: Vec<&str> = filter
        .group_by
        .iter()
        .map(|by| match by {
            GroupBy::User => "t.user_id",
            GroupBy::Provider => "t.provider",
            GroupBy::Model => "t.model",
            GroupBy::Client => "t.client",
            GroupBy::CredentialKind => "t.credential_kind",
            GroupBy::Day | GroupBy::Hour => "t.slot",
        })
        .collect();
    let sums = SUMS.map(|sum| format!("CAST(coalesce(sum(t.{sum}), 0) AS BIGINT)")).join(", ");
    let mut selected: Vec<&str> = columns.clone();
    selected.push(&sums);
    let groups_sql = match columns.is_empty() {
        true => String::new(),
        false => format!("GROUP BY {}", columns.join(", ")),
    };
    let sql = format!(
        "SELECT {} FROM {} t WHERE {} {groups_sql}",
        selected.join(", "),
        source.table(),
        conditions.text()
    );
    database.run(STATEMENT_TIMEOUT, &sql, &conditions.values, &mut |row| {
        let mut keys = Vec::with_capacity(filter.group_by.len());
        for by in &filter.group_by {
            keys.push(match by {
                GroupBy::Day => Key::Time(times.day(required(row.integer()?)?)),
                GroupBy::Hour => Key::Time(times.hour(required(row.integer()?)?)),
                GroupBy::User => Key::Name(names.get(&required(row.id()?)?).cloned()),
                GroupBy::Provider | GroupBy::Model | GroupBy::Client | GroupBy::CredentialKind => {
                    Key::Name(row.text()?.filter(|name| !name.is_empty()))
                }
            });
        }
        let sums = sums_from(row)?;
        if sums == UsageSums::default() {
            return Ok(());
        }
        groups.entry(keys).or_default().add(&sums);
        if groups.len() > MAX_USAGE_GROUPS {
            return Err(LedgerError::TooManyGroups(MAX_USAGE_GROUPS));
        }
        Ok(())
    })
}

/// The names of all people, by their ids.
fn names(database: &dyn Database) -> Result<BTreeMap<Uuid, String>, LedgerError> {
    let mut names = BTreeMap::new();
    database.run(STATEMENT_TIMEOUT, "SELECT id, name FROM users", &[], &mut |row| {
        names.insert(required(row.id()?)?, required(row.text()?)?);
        Ok(())
    })?;
    Ok(names)
}

/// How many requests of a period are in progress, which no sum has yet.
fn in_progress(database: &dyn Database, filter: &UsageFilter) -> Result<u64, LedgerError> {
    let mut conditions = conditions(filter, "i.");
    conditions.add("i.started_at >= ?", filter.since);
    conditions.add("i.started_at < ?", filter.until);
    let sql = format!(
        "SELECT count(*) FROM interceptions i WHERE i.outcome = 'in_progress' AND {}",
        conditions.text()
    );
    let mut found = 0;
    database.run(STATEMENT_TIMEOUT, &sql, &conditions.values, &mut |row| {
        found = count(row)?;
        Ok(())
    })?;
    Ok(found)
}

/// The days and hours of slots in a time zone.
struct Times<'a> {
    zone: &'a TimeZone,
    /// Whether a day or an hour began within a slot.
    is_approximate: bool,
    days: BTreeMap<i64, String>,
    hours: BTreeMap<i64, String>,
}

impl<'a> Times<'a> {
    const fn new(zone: &'a TimeZone) -> Self {
        Self { zone, is_approximate: false, days: BTreeMap::new(), hours: BTreeMap::new() }
    }

    fn note_offset(&mut self, slot: i64) -> i64 {
        let offset = i64::from(self.zone.to_offset(time_of(slot)).seconds());
        self.is_approximate |= offset.rem_euclid(SLOT_SECONDS) != 0;
        offset
    }

    /// The date of the day that a slot begins in.
    fn day(&mut self, slot: i64) -> String {
        if let Some(day) = self.days.get(&slot) {
            return day.clone();
        }
        self.note_offset(slot);
        let day = self.zone.to_datetime(time_of(slot)).date().to_string();
        self.days.insert(slot, day.clone());
        day
    }

    /// The start of the hour that a slot begins in, with its offset from UTC.
    fn hour(&mut self, slot: i64) -> String {
        if let Some(hour) = self.hours.get(&slot) {
            return hour.clone();
        }
        let offset = self.note_offset(slot);
        let local = self.zone.to_datetime(time_of(slot));
        let sign = if offset < 0 { '-' } else { '+' };
        let minutes = offset.unsigned_abs() / 60;
        let hour = format!(
            "{}T{:02}:00:00{sign}{:02}:{:02}",
            local.date(),
            local.hour(),
            minutes / 60,
            minutes % 60
        );
        self.hours.insert(slot, hour.clone());
        hour
    }
}

impl UsageSums {
    fn add(&mut self, other: &Self) {
        for (sum, number) in [
            (&mut self.completed, other.completed),
            (&mut self.failed, other.failed),
            (&mut self.cancelled, other.cancelled),
            (&mut self.refused, other.refused),
            (&mut self.interrupted, other.interrupted),
            (&mut self.tool_calls, other.tool_calls),
        ] {
            *sum = sum.saturating_add(number);
        }
        self.tokens.add(&other.tokens);
    }

    /// The number of requests that have ended.
    pub const fn requests(&self) -> u64 {
        self.completed
            .saturating_add(self.failed)
            .saturating_add(self.cancelled)
            .saturating_add(self.refused)
            .saturating_add(self.interrupted)
    }
}

impl TokenSums {
    fn add(&mut self, other: &Self) {
        for (sum, more) in
            [(&mut self.exact, &other.exact), (&mut self.estimated, &other.estimated)]
        {
            for (count, number) in [
                (&mut sum.input_tokens, more.input_tokens),
                (&mut sum.output_tokens, more.output_tokens),
                (&mut sum.cache_read_input_tokens, more.cache_read_input_tokens),
                (&mut sum.cache_write_input_tokens, more.cache_write_input_tokens),
            ] {
                *count = count.saturating_add(number);
            }
        }
        self.unknown_usages = self.unknown_usages.saturating_add(other.unknown_usages);
    }
}
