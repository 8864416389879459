//! The roll-ups: sums of records by half hours, days and sessions.
//!
//! A record is summed when it has ended, and its session counts it from its beginning. The writer collects
//! the [`Differences`] of a batch in memory and adds them to the tables in the transaction of the batch, so
//! that a replayed write, which changes no record, changes no sum either. A record without a session id was
//! written by a release that knew no sums; [`unsummed`] adds it later.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::Timestamp;
use uuid::Uuid;

use self::tables::Table;
use crate::{
    LedgerError,
    record::{
        Interception, Outcome, Quality,
        columns::{Cell, FromCell, RowCells},
    },
    store::{
        interceptions::Parent,
        sql::{Cells, Database, Flavour, FromRow, STATEMENT_TIMEOUT, count},
    },
};

pub(crate) mod rebuild;
pub(crate) mod recount;
pub(crate) mod tables;
pub(crate) mod unsummed;

/// Seconds of a slot. Days begin at a whole or half hour of UTC in almost all time zones.
pub(crate) const SLOT_SECONDS: i64 = 1_800;
/// Slots of a day.
pub(crate) const SLOTS_PER_DAY: i64 = 48;
/// Maximum length of a name that sums are kept for, in characters; a longer one is cut.
pub(crate) const MAX_NAME_CHARS: usize = 128;
/// Length of the prompts that are kept with a session, in characters.
pub(crate) const SESSION_PROMPT_CHARS: usize = 200;
/// A count of tokens that is higher is taken for this one, so that no sum overflows.
pub(crate) const MAX_COUNT: i64 = 10_000_000_000_000;

/// The sums of ended requests, in the order of the columns.
pub(crate) const SUMS: [&str; 15] = [
    "completed",
    "failed",
    "cancelled",
    "refused",
    "interrupted",
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_write_input_tokens",
    "estimated_input_tokens",
    "estimated_output_tokens",
    "estimated_cache_read_input_tokens",
    "estimated_cache_write_input_tokens",
    "unknown_usages",
    "tool_calls",
];
/// Where the sums of a quality begin, and those that are not by quality.
const EXACT: usize = 5;
const ESTIMATED: usize = 9;
const UNKNOWN: usize = 13;
const TOOL_CALLS: usize = 14;

/// A column of counts, none of which is so high that their sum overflows.
pub(crate) fn bounded(column: &str) -> String {
    format!("CASE WHEN {column} > {MAX_COUNT} THEN {MAX_COUNT} ELSE {column} END")
}

/// The slot of a time.
pub(crate) fn slot(time: Timestamp) -> i64 {
    time.as_second().div_euclid(SLOT_SECONDS)
}

/// The number of the session that a request belongs to: that of the client, else the thread, else its own.
pub(super) fn session_id(interception: &Interception, parent: Option<Parent>) -> String {
    match &interception.client_session_id {
        Some(session) => session.clone(),
        None => parent.map_or(interception.id, |parent| parent.thread_id).to_string(),
    }
}

/// The shard that a process adds to. Sums of several processes in one shard are right too, but these wait for
/// each other.
pub(crate) fn shard(flavour: Flavour, replica: Uuid) -> i64 {
    const SHARDS: u128 = 1_023;
    match flavour {
        Flavour::Sqlite => 0,
        Flavour::Postgres => i64::try_from(replica.as_u128() % SHARDS).unwrap_or(0) + 1,
    }
}

/// Who may change sums while a transaction runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// All that add to them.
    Shared,
    /// This transaction alone, because it sums records anew.
    Exclusive,
}

/// The key of PostgreSQL's advisory lock of the sums: "kbsums" in ASCII.
pub(crate) const LOCK_KEY: i64 = 0x6b62_7375_6d73;

/// Locks the sums until the transaction ends. In SQLite there is one writer at a time.
pub(crate) fn lock(transaction: &dyn Database, lock: Lock) -> Result<(), LedgerError> {
    if transaction.flavour() == Flavour::Sqlite {
        return Ok(());
    }
    let function = match lock {
        Lock::Shared => "pg_advisory_xact_lock_shared",
        Lock::Exclusive => "pg_advisory_xact_lock",
    };
    transaction.run(
        STATEMENT_TIMEOUT,
        &format!("SELECT {function}({LOCK_KEY})"),
        &[],
        &mut |_row| Ok(()),
    )
}

/// What [`SUMS`] names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sums([i64; SUMS.len()]);

impl Sums {
    /// Adds the counts of a usage.
    fn add_usage(&mut self, usage: &UsageCounts) {
        let first = match usage.quality {
            Quality::Exact => EXACT,
            Quality::Partial => ESTIMATED,
            Quality::Unknown => {
                self.add_to(UNKNOWN, 1);
                return;
            }
        };
        for (index, count) in (first..).zip(usage.counts) {
            self.add_to(index, count.unwrap_or(0).clamp(0, MAX_COUNT));
        }
    }

    fn add_to(&mut self, index: usize, number: i64) {
        if let Some(sum) = self.0.get_mut(index) {
            *sum = sum.saturating_add(number);
        }
    }

    /// Adds other sums so many times; `-1` takes them away.
    fn add(&mut self, other: &Self, times: i64) {
        for (index, number) in other.0.iter().enumerate() {
            self.add_to(index, number.saturating_mul(times));
        }
    }

    fn push_to(&self, cells: &mut RowCells<'_>) {
        cells.extend(self.0.iter().map(|sum| Cell::Integer(Some(*sum))));
    }
}

/// The tokens of one usage.
pub(crate) struct UsageCounts {
    pub(crate) quality: Quality,
    /// Input, output, read from and written to a cache.
    pub(crate) counts: [Option<i64>; 4],
}

/// The column of an outcome; one in progress is not summed.
const fn outcome_index(outcome: Outcome) -> Option<usize> {
    match outcome {
        Outcome::InProgress => None,
        Outcome::Completed => Some(0),
        Outcome::Failed => Some(1),
        Outcome::Cancelled => Some(2),
        Outcome::Refused => Some(3),
        Outcome::Interrupted => Some(4),
    }
}

/// What is summed of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SummedRecord {
    pub(crate) id: Uuid,
    pub(crate) user_id: Uuid,
    /// `None`: it is not summed yet.
    pub(crate) session_id: Option<String>,
    provider: String,
    model: Option<String>,
    client: Option<String>,
    credential_kind: Option<String>,
    agent_id: Option<String>,
    outcome: Outcome,
    started_at: Timestamp,
    upstream_started_at: Option<Timestamp>,
    first_byte_at: Option<Timestamp>,
    ended_at: Option<Timestamp>,
    sums: Sums,
}

/// The columns of `interceptions i` that a [`SummedRecord`] begins with.
pub(crate) const RECORD_COLUMNS: &str =
    "i.id, i.user_id, i.session_id, i.provider, i.model, i.client,
    i.credential_kind, i.agent_id, i.outcome, i.started_at, i.upstream_started_at, i.first_byte_at,
    i.ended_at";

impl SummedRecord {
    fn before_usage(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        let mut record = Self {
            id: FromCell::from_cell(row)?,
            user_id: FromCell::from_cell(row)?,
            session_id: FromCell::from_cell(row)?,
            provider: FromCell::from_cell(row)?,
            model: FromCell::from_cell(row)?,
            client: FromCell::from_cell(row)?,
            credential_kind: FromCell::from_cell(row)?,
            agent_id: FromCell::from_cell(row)?,
            outcome: FromCell::from_cell(row)?,
            started_at: FromCell::from_cell(row)?,
            upstream_started_at: FromCell::from_cell(row)?,
            first_byte_at: FromCell::from_cell(row)?,
            ended_at: FromCell::from_cell(row)?,
            sums: Sums::default(),
        };
        if let Some(index) = outcome_index(record.outcome) {
            record.sums.add_to(index, 1);
        }
        Ok(record)
    }

    /// The record from rows of [`RECORD_COLUMNS`] with the quality and the counts of a usage, one row for each
    /// of its usages; its tool calls are given.
    pub(crate) fn add_row(
        record: &mut Option<Self>,
        row: &mut dyn Cells,
        tool_calls: i64,
    ) -> Result<(), LedgerError> {
        let mut read = Self::before_usage(row)?;
        let quality: Option<String> = row.text()?;
        let usage = match quality {
            None => None,
            Some(quality) => Some(UsageCounts {
                quality: quality
                    .parse()
                    .map_err(|error| LedgerError::Row(format!("quality: {error}")))?,
                counts: [row.integer()?, row.integer()?, row.integer()?, row.integer()?],
            }),
        };
        read.sums.add_to(TOOL_CALLS, tool_calls);
        let record = record.get_or_insert(read);
        if let Some(usage) = usage {
            record.sums.add_usage(&usage);
        }
        Ok(())
    }

    fn slot(&self) -> i64 {
        slot(self.started_at)
    }

    /// How long its phases took, in microseconds.
    fn phases(&self) -> impl Iterator<Item = (&'static str, i64)> {
        let between = |from: Option<Timestamp>, to: Option<Timestamp>| {
            Some(to?.as_microsecond().saturating_sub(from?.as_microsecond()))
        };
        let first_byte = between(self.upstream_started_at, self.first_byte_at);
        let total = between(Some(self.started_at), self.ended_at)
            .filter(|_| self.outcome == Outcome::Completed);
        let phases = [("first_byte", first_byte), ("total", total)];
        phases.into_iter().filter_map(|(phase, took)| Some((phase, took?)))
    }
}

impl FromRow for SummedRecord {
    const COLUMNS: &'static str = "";

    /// From [`RECORD_COLUMNS`] with the sums of its usages by quality, and its tool calls.
    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        let mut record = Self::before_usage(row)?;
        for index in EXACT..=TOOL_CALLS {
            let number = count(row)?;
            record.sums.add_to(index, i64::try_from(number).unwrap_or(i64::MAX));
        }
        Ok(record)
    }
}

/// A statement that selects records as [`SummedRecord::add_row`] reads them. The condition is one on their ids,
/// with `?` in place of the column.
pub(crate) fn select_with_usages(condition: &str) -> String {
    let (of_record, of_usage) =
        (condition.replace('?', "i.id"), condition.replace('?', "t.interception_id"));
    format!(
        "SELECT {RECORD_COLUMNS}, t.quality, t.input_tokens, t.output_tokens,
           t.cache_read_input_tokens, t.cache_write_input_tokens
         FROM interceptions i
         LEFT JOIN token_usages t ON t.interception_id = i.id AND {of_usage}
         WHERE {of_record}"
    )
}

/// A statement that selects some [`SummedRecord`]s of `interceptions i`. `condition` is one on the ids of records,
/// with `?` in place of the column; `also` is one on `i`.
pub(crate) fn select_records(flavour: Flavour, condition: &str, also: &str) -> String {
    let on = |column: &str| condition.replace('?', column);
    // PostgreSQL takes a range of ids for a single row, and would group the rows anew for each record.
    let (usages, calls) = match flavour {
        Flavour::Sqlite => (
            grouped("token_usages", &usage_sums(), &on("interception_id")),
            grouped("tool_usages", CALLS, &on("interception_id")),
        ),
        Flavour::Postgres => {
            (of_record("token_usages", &usage_sums()), of_record("tool_usages", CALLS))
        }
    };
    select_summed(&usages, &calls, &format!("{} AND {also}", on("i.id")))
}

/// A statement that selects all [`SummedRecord`]s for which a condition on `interceptions i` holds.
pub(crate) fn select_all_records(condition: &str) -> String {
    let usages = grouped("token_usages", &usage_sums(), "TRUE");
    select_summed(&usages, &grouped("tool_usages", CALLS, "TRUE"), condition)
}

const CALLS: &str = "count(*) AS tool_calls";

/// The sums of usages by quality, as [`SUMS`] names them.
fn usage_sums() -> String {
    let counts =
        ["input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens"];
    let mut sums = Vec::new();
    for (quality, name) in [("exact", ""), ("partial", "estimated_")] {
        for count in counts {
            let bounded = bounded(count);
            sums.push(format!(
                "CAST(coalesce(sum({bounded}) FILTER (WHERE quality = '{quality}'), 0) AS BIGINT)
                 AS {name}{count}"
            ));
        }
    }
    sums.push("count(*) FILTER (WHERE quality = 'unknown') AS unknown_usages".to_owned());
    sums.join(", ")
}

/// The sums of a table's rows by record.
fn grouped(table: &str, sums: &str, condition: &str) -> String {
    format!(
        "LEFT JOIN (SELECT interception_id, {sums} FROM {table} WHERE {condition}
                    GROUP BY interception_id) AS {table} ON {table}.interception_id = i.id"
    )
}

/// The sums of a table's rows of the record `i`.
fn of_record(table: &str, sums: &str) -> String {
    format!(
        "LEFT JOIN LATERAL (SELECT {sums} FROM {table} c WHERE c.interception_id = i.id) AS {table}
           ON TRUE"
    )
}

fn select_summed(usages: &str, calls: &str, condition: &str) -> String {
    let names = SUMS.get(EXACT..TOOL_CALLS).unwrap_or_default();
    let read: Vec<String> =
        names.iter().map(|name| format!("coalesce(token_usages.{name}, 0)")).collect();
    format!(
        "SELECT {RECORD_COLUMNS}, {}, coalesce(tool_usages.tool_calls, 0)
         FROM interceptions i {usages} {calls} WHERE {condition}",
        read.join(", ")
    )
}

/// 2^(1/4), 2^(2/4) and 2^(3/4), times 2^32 and rounded up.
const QUARTERS: [u128; 3] = [5_107_605_668, 6_074_001_000, 7_223_245_206];

/// The bucket of a time in microseconds: `b` where it is at least 2^(b/4) and less than 2^((b+1)/4).
pub(crate) fn bucket(micros: i64) -> i64 {
    let micros = u64::try_from(micros).unwrap_or(0).max(1);
    let octave = micros.ilog2();
    // The mantissa in [1, 2), scaled to 32 bits, is compared with the powers 2^(k/4).
    let mantissa = (u128::from(micros) << 32 >> octave) & 0x1_ffff_ffff;
    let quarter = QUARTERS.iter().filter(|power| mantissa >= **power).count();
    i64::from(octave) * 4 + i64::try_from(quarter).unwrap_or(0)
}

/// The end of a bucket in microseconds, rounded down.
pub(crate) fn bucket_end(bucket: i64) -> u64 {
    let next = u32::try_from(bucket + 1).unwrap_or(0).min(4 * 62);
    let power = [1_u128 << 32, QUARTERS[0], QUARTERS[1], QUARTERS[2]]
        .into_iter()
        .nth(usize::try_from(next % 4).unwrap_or(0))
        .unwrap_or(1 << 32);
    u64::try_from((power << (next / 4)) >> 32).unwrap_or(u64::MAX)
}

/// A name as a key: cut, and empty for none. A text function of SQLite ends at U+0000 too.
pub(crate) fn name(text: Option<&str>) -> String {
    let text = text.unwrap_or_default();
    let text = text.split_once('\0').map_or(text, |(before, _)| before);
    cut(text, MAX_NAME_CHARS).to_owned()
}

/// The beginning of a text.
pub(crate) fn cut(text: &str, chars: usize) -> &str {
    text.char_indices().nth(chars).and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct UsageKey {
    user_id: Uuid,
    fleet: FleetKey,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct FleetKey {
    slot: i64,
    provider: String,
    model: String,
    client: String,
    credential_kind: String,
}

/// What a batch changes of the sums of a user in a slot.
#[derive(Debug, Clone, Default)]
struct SlotDifference {
    sums: Sums,
    /// How many requests took how long, by phase and bucket.
    latencies: Vec<(&'static str, i64, i64)>,
}

/// What a batch changes of a session.
#[derive(Debug, Clone)]
struct SessionDifference {
    /// Whether one of its requests began; otherwise only sums change.
    is_opened: bool,
    first: (Uuid, Timestamp),
    last: (Uuid, Timestamp),
    client: Option<String>,
    ended_at: Option<Timestamp>,
    first_prompt: Option<(Uuid, String)>,
    last_prompt: Option<(Uuid, String)>,
    requests: i64,
    sums: Sums,
}

/// Something that occurs in a session.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PartKey {
    user_id: Uuid,
    session_id: String,
    kind: &'static str,
    value: String,
}

/// What a batch of writes changes of the sums.
#[derive(Debug, Clone, Default)]
pub(crate) struct Differences {
    usage: BTreeMap<UsageKey, SlotDifference>,
    sessions: BTreeMap<(Uuid, String), SessionDifference>,
    parts: BTreeSet<PartKey>,
}

impl Differences {
    /// A record was written that is new.
    pub(crate) fn opened(
        &mut self,
        interception: &Interception,
        session_id: &str,
        prompt: Option<&str>,
    ) {
        let Interception { id, user_id, started_at, .. } = *interception;
        let (model, agent) = (interception.model.as_deref(), interception.agent_id.as_deref());
        self.open(
            (id, started_at),
            (user_id, session_id),
            interception.client.as_deref(),
            prompt,
            [("model", model), ("agent", agent)],
        );
    }

    /// A record that was not summed before is in the store.
    pub(super) fn found(&mut self, record: &SummedRecord, session_id: &str, prompt: Option<&str>) {
        self.open(
            (record.id, record.started_at),
            (record.user_id, session_id),
            record.client.as_deref(),
            prompt,
            [("model", record.model.as_deref()), ("agent", record.agent_id.as_deref())],
        );
        self.ended_in(record, session_id, 1);
    }

    fn open(
        &mut self,
        at: (Uuid, Timestamp),
        (user_id, session_id): (Uuid, &str),
        client: Option<&str>,
        prompt: Option<&str>,
        parts: [(&'static str, Option<&str>); 2],
    ) {
        let session = self.session(user_id, session_id, at, client);
        session.is_opened = true;
        session.requests += 1;
        if let Some(prompt) = prompt {
            let kept = || Some((at.0, cut(prompt, SESSION_PROMPT_CHARS).to_owned()));
            if session.first_prompt.as_ref().is_none_or(|(id, _)| at.0 < *id) {
                session.first_prompt = kept();
            }
            if session.last_prompt.as_ref().is_none_or(|(id, _)| at.0 > *id) {
                session.last_prompt = kept();
            }
        }
        for (kind, value) in parts {
            self.part(user_id, session_id, kind, value);
        }
    }

    /// A record has ended.
    pub(crate) fn ended(&mut self, record: &SummedRecord) {
        if let Some(session_id) = &record.session_id {
            self.ended_in(record, session_id, 1);
        }
    }

    /// A record that has been summed is about to change.
    pub(crate) fn take_back(&mut self, record: &SummedRecord) {
        if let Some(session_id) = &record.session_id {
            self.ended_in(record, session_id, -1);
        }
    }

    fn ended_in(&mut self, record: &SummedRecord, session_id: &str, times: i64) {
        if record.outcome == Outcome::InProgress {
            return;
        }
        let fleet = FleetKey {
            slot: record.slot(),
            provider: name(Some(&record.provider)),
            model: name(record.model.as_deref()),
            client: name(record.client.as_deref()),
            credential_kind: name(record.credential_kind.as_deref()),
        };
        let key = UsageKey { user_id: record.user_id, fleet };
        let slot = self.usage.entry(key).or_default();
        slot.sums.add(&record.sums, times);
        let phases = record.phases().map(|(phase, micros)| (phase, bucket(micros), times));
        slot.latencies.extend(phases);
        let at = (record.id, record.started_at);
        let session = self.session(record.user_id, session_id, at, record.client.as_deref());
        session.sums.add(&record.sums, times);
        if times > 0 {
            session.ended_at = session.ended_at.max(record.ended_at);
            self.part(record.user_id, session_id, "provider", Some(&record.provider));
            let kind = record.credential_kind.as_deref();
            self.part(record.user_id, session_id, "credential_kind", kind);
        }
    }

    fn session(
        &mut self,
        user_id: Uuid,
        session_id: &str,
        at: (Uuid, Timestamp),
        client: Option<&str>,
    ) -> &mut SessionDifference {
        let session = self.sessions.entry((user_id, session_id.to_owned())).or_insert_with(|| {
            SessionDifference {
                is_opened: false,
                first: at,
                last: at,
                client: client.map(str::to_owned),
                ended_at: None,
                first_prompt: None,
                last_prompt: None,
                requests: 0,
                sums: Sums::default(),
            }
        });
        if at.0 < session.first.0 {
            session.first = at;
        }
        if at.0 > session.last.0 {
            session.last = at;
            session.client = client.map(str::to_owned);
        }
        session
    }

    fn part(&mut self, user_id: Uuid, session_id: &str, kind: &'static str, value: Option<&str>) {
        if let Some(value) = value {
            let session_id = session_id.to_owned();
            self.parts.insert(PartKey { user_id, session_id, kind, value: name(Some(value)) });
        }
    }

    /// Calls `add` with each row to add, table by table and each in the order of its key, so that processes that
    /// write concurrently wait for each other and never in a circle.
    pub(crate) fn rows<'a, E>(
        &'a self,
        shard: i64,
        add: &mut dyn FnMut(&'static Table, RowCells<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut fleet, mut days) = (BTreeMap::new(), BTreeMap::new());
        let mut latencies = BTreeMap::new();
        for (UsageKey { user_id, fleet: key }, SlotDifference { sums, latencies: took }) in
            &self.usage
        {
            let mut cells = RowCells::from_iter([Cell::Id(Some(*user_id))]);
            cells.extend(key.cells());
            add(&tables::USAGE_SLOTS, with_sums(cells, shard, sums))?;
            let day = (key.slot.div_euclid(SLOTS_PER_DAY), user_id, key.credential_kind.as_str());
            fleet.entry(key).or_insert_with(Sums::default).add(sums, 1);
            days.entry(day).or_insert_with(Sums::default).add(sums, 1);
            for (phase, bucket, times) in took {
                let key = (
                    key.slot,
                    key.provider.as_str(),
                    key.model.as_str(),
                    key.credential_kind.as_str(),
                    *phase,
                    *bucket,
                );
                *latencies.entry(key).or_insert(0) += times;
            }
        }
        for (key, sums) in &fleet {
            add(&tables::FLEET_SLOTS, with_sums(RowCells::from_iter(key.cells()), shard, sums))?;
        }
        for ((day, user_id, kind), sums) in &days {
            let cells =
                [Cell::Integer(Some(*day)), Cell::Id(Some(**user_id)), Cell::Text(Some(kind))];
            add(&tables::USER_DAYS, with_sums(RowCells::from_iter(cells), shard, sums))?;
        }
        for ((slot, provider, model, credential_kind, phase, bucket), requests) in latencies {
            add(
                &tables::LATENCY_SLOTS,
                RowCells::from_iter([
                    Cell::Integer(Some(slot)),
                    Cell::Text(Some(provider)),
                    Cell::Text(Some(model)),
                    Cell::Text(Some(credential_kind)),
                    Cell::Text(Some(phase)),
                    Cell::Integer(Some(bucket)),
                    Cell::Integer(Some(shard)),
                    Cell::Integer(Some(requests)),
                ]),
            )?;
        }
        for (key, session) in self.sessions.iter().filter(|(_, session)| session.is_opened) {
            add(&tables::SESSIONS, session.cells(key))?;
        }
        for (key, session) in self.sessions.iter().filter(|(_, session)| !session.is_opened) {
            add(&tables::CHANGED_SESSIONS, session.changed_cells(key))?;
        }
        self.parts.iter().try_for_each(|part| add(&tables::SESSION_PARTS, part.cells()))
    }

    /// Takes out the parts of sessions that are known to be in the store, and returns the others.
    pub(crate) fn new_parts(&mut self, known: &KnownParts) -> BTreeSet<PartKey> {
        self.parts.retain(|part| !known.0.contains(part));
        self.parts.clone()
    }
}

/// The parts of sessions that a connection has committed lately, so that they are not written again.
#[derive(Debug, Default)]
pub(crate) struct KnownParts(HashSet<PartKey>);

impl KnownParts {
    /// Maximum number of parts that are remembered.
    const MAX: usize = 4_096;

    /// Remembers parts that are committed.
    pub(crate) fn add(&mut self, parts: BTreeSet<PartKey>) {
        if self.0.len() + parts.len() > Self::MAX {
            self.0.clear();
        }
        self.0.extend(parts);
    }

    /// Forgets all: sessions may have been summed anew.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

fn with_sums<'a>(mut cells: RowCells<'a>, shard: i64, sums: &Sums) -> RowCells<'a> {
    cells.push(Cell::Integer(Some(shard)));
    sums.push_to(&mut cells);
    cells
}

impl FleetKey {
    fn cells(&self) -> [Cell<'_>; 5] {
        [
            Cell::Integer(Some(self.slot)),
            Cell::Text(Some(&self.provider)),
            Cell::Text(Some(&self.model)),
            Cell::Text(Some(&self.client)),
            Cell::Text(Some(&self.credential_kind)),
        ]
    }
}

impl SessionDifference {
    fn cells<'a>(&'a self, (user_id, id): &'a (Uuid, String)) -> RowCells<'a> {
        let text = |prompt: &'a Option<(Uuid, String)>| {
            Cell::Text(prompt.as_ref().map(|(_, text)| text.as_str()))
        };
        let of = |prompt: &Option<(Uuid, String)>| Cell::Id(prompt.as_ref().map(|(id, _)| *id));
        let mut cells = RowCells::from_iter([
            Cell::Id(Some(*user_id)),
            Cell::Text(Some(id)),
            Cell::Time(Some(self.first.1)),
            Cell::Time(Some(self.last.1)),
            Cell::Id(Some(self.first.0)),
            Cell::Id(Some(self.last.0)),
            Cell::Time(self.ended_at),
            Cell::Text(self.client.as_deref()),
            text(&self.first_prompt),
            of(&self.first_prompt),
            text(&self.last_prompt),
            of(&self.last_prompt),
            Cell::Integer(Some(self.requests)),
        ]);
        self.sums.push_to(&mut cells);
        cells
    }

    fn changed_cells<'a>(&'a self, (user_id, id): &'a (Uuid, String)) -> RowCells<'a> {
        let mut cells = RowCells::from_iter([
            Cell::Id(Some(*user_id)),
            Cell::Text(Some(id)),
            Cell::Time(self.ended_at),
        ]);
        self.sums.push_to(&mut cells);
        cells
    }
}

impl PartKey {
    fn cells(&self) -> RowCells<'_> {
        RowCells::from_iter([
            Cell::Id(Some(self.user_id)),
            Cell::Text(Some(&self.session_id)),
            Cell::Text(Some(self.kind)),
            Cell::Text(Some(&self.value)),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::{bucket, bucket_end, cut};

    #[test]
    fn a_bucket_has_its_lower_bound_and_not_its_upper_one() {
        assert_eq!(bucket(-5), 0);
        assert_eq!(bucket(0), 0);
        for micros in 1_u32..200_000 {
            let exact = f64::from(micros).log2() * 4.0;
            let found = f64::from(i32::try_from(bucket(micros.into())).unwrap());
            // The logarithm itself is rounded.
            assert!(
                found <= exact + 1e-9 && exact < found + 1.0 + 1e-9,
                "{micros}: {found} {exact}"
            );
        }
        assert_eq!(bucket(1 << 40), 160);
        assert_eq!(bucket(i64::MAX), 251);
        for number in 4..200 {
            let end = i64::try_from(bucket_end(number)).unwrap();
            assert!(bucket(end) <= number + 1 && bucket(end + 1) > number, "{number}: {end}");
        }
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("äöü", 2), "äö");
        assert_eq!(cut("äöü", 3), "äöü");
        assert_eq!(cut("", 3), "");
    }
}
