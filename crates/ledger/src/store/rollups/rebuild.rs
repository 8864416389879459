//! Sums the records anew, where sums differ from them.

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Differences, Lock, SLOT_SECONDS, SLOTS_PER_DAY, SUMS, SummedRecord, lock,
    recount::removed_before,
    select_records,
    tables::{self, Table},
    unsummed,
};
use crate::{
    LedgerError,
    store::{
        Store,
        interceptions::{ID_MARGIN, first_id},
        sql::{Cells, Database, FromRow, STATEMENT_TIMEOUT, Value, all, execute, first, required},
    },
};

/// How many sessions are summed in one transaction.
const SESSIONS_PER_STEP: u32 = 50;

/// The tables of a slot.
static BY_SLOT: [&Table; 3] = [&tables::USAGE_SLOTS, &tables::FLEET_SLOTS, &tables::LATENCY_SLOTS];

/// What was summed anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Half hours.
    pub slots: u64,
    /// Sessions.
    pub sessions: u64,
    /// Half hours and sessions that were left as they are: retention has removed some of their records.
    pub kept: u64,
}

/// Sums the half hours and sessions anew that have records at or after `since`, each in a transaction of its
/// own. Those of which retention has removed records stay. `progress` is called after each step.
pub(crate) fn rebuild(
    store: &dyn Store,
    since: Option<Timestamp>,
    progress: &mut dyn FnMut(&Rebuilt),
) -> Result<Rebuilt, LedgerError> {
    let removed_before = removed_before(store)?;
    let mut rebuilt = Rebuilt::default();
    rebuild_slots(store, since, removed_before, &mut rebuilt, progress)?;
    rebuild_sessions(store, since, removed_before, &mut rebuilt, progress)?;
    Ok(rebuilt)
}

/// A time in seconds; one that cannot be is the earliest or the latest that can.
fn time_of(seconds: i64) -> Timestamp {
    let fallback = if seconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_second(seconds).unwrap_or(fallback)
}

fn rebuild_slots(
    store: &dyn Store,
    since: Option<Timestamp>,
    removed_before: Option<Timestamp>,
    rebuilt: &mut Rebuilt,
    progress: &mut dyn FnMut(&Rebuilt),
) -> Result<(), LedgerError> {
    let first_slot = since.map_or(i64::MIN, super::slot);
    let mut day = None;
    let mut next = last_slot_before(store, None)?;
    while let Some(slot) = next.filter(|slot| *slot >= first_slot) {
        if removed_before.is_some_and(|cutoff| slot * SLOT_SECONDS < cutoff.as_second()) {
            rebuilt.kept += 1;
        } else {
            let of_slot = slot.div_euclid(SLOTS_PER_DAY);
            if let Some(done) = day.replace(of_slot).filter(|done| *done != of_slot) {
                rebuild_day(store, done)?;
            }
            rebuild_slot(store, slot)?;
            rebuilt.slots += 1;
        }
        progress(rebuilt);
        next = last_slot_before(store, Some(slot))?;
    }
    day.map_or(Ok(()), |day| rebuild_day(store, day))
}

/// The latest slot before another that has records or sums.
fn last_slot_before(
    database: &dyn Database,
    before: Option<i64>,
) -> Result<Option<i64>, LedgerError> {
    // Records of an earlier slot may have ids of the time after its end.
    let bound = before.map_or(Timestamp::MAX, |slot| time_of(slot * SLOT_SECONDS));
    let id_bound = before
        .map_or(Uuid::max(), |slot| first_id(time_of(slot * SLOT_SECONDS + ID_MARGIN.as_secs())));
    let sql = "SELECT started_at FROM interceptions WHERE id < $1 AND started_at < $2
               ORDER BY id DESC LIMIT 1";
    let record: Option<Timestamp> = first(database, sql, &[id_bound.into(), bound.into()])?;
    let mut last = record.map(super::slot);
    for table in BY_SLOT {
        let sql =
            format!("SELECT slot FROM {} WHERE slot < $1 ORDER BY slot DESC LIMIT 1", table.name);
        let summed: Option<i64> = first(database, &sql, &[before.unwrap_or(i64::MAX).into()])?;
        last = last.max(summed);
    }
    Ok(last)
}

fn rebuild_slot(store: &dyn Store, slot: i64) -> Result<(), LedgerError> {
    let (start, end) = (slot * SLOT_SECONDS, (slot + 1) * SLOT_SECONDS);
    let sql = select_records(
        store.flavour(),
        "? >= $1 AND ? < $2",
        "i.started_at >= $3 AND i.started_at < $4 AND i.session_id IS NOT NULL",
    );
    let values: [Value; 4] = [
        first_id(time_of(start - ID_MARGIN.as_secs())).into(),
        first_id(time_of(end + ID_MARGIN.as_secs())).into(),
        time_of(start).into(),
        time_of(end).into(),
    ];
    store.transaction(&mut |transaction| {
        lock(transaction, Lock::Exclusive)?;
        let mut differences = Differences::default();
        transaction.run(STATEMENT_TIMEOUT, &sql, &values, &mut |row| {
            differences.ended(&SummedRecord::from_row(row)?);
            Ok(())
        })?;
        for table in BY_SLOT {
            execute(
                transaction,
                &format!("DELETE FROM {} WHERE slot = $1", table.name),
                &[slot.into()],
            )?;
        }
        let is_by_slot = |table: &Table| BY_SLOT.iter().any(|other| other.name == table.name);
        tables::add(transaction, &differences, 0, is_by_slot)
    })
}

/// Sums the slots of a day.
fn rebuild_day(store: &dyn Store, day: i64) -> Result<(), LedgerError> {
    let sums = SUMS.map(|sum| format!("CAST(sum({sum}) AS BIGINT)")).join(", ");
    let sql = format!(
        "INSERT INTO user_days (day, user_id, credential_kind, shard, {})
         SELECT CAST($1 AS BIGINT), user_id, credential_kind, 0, {sums} FROM usage_slots
         WHERE slot >= $2 AND slot < $3 GROUP BY user_id, credential_kind",
        SUMS.join(", ")
    );
    let values: [Value; 3] =
        [day.into(), (day * SLOTS_PER_DAY).into(), ((day + 1) * SLOTS_PER_DAY).into()];
    store.transaction(&mut |transaction| {
        lock(transaction, Lock::Exclusive)?;
        execute(transaction, "DELETE FROM user_days WHERE day = $1", &[day.into()])?;
        execute(transaction, &sql, &values)
    })
}

/// A session of the records.
struct FoundSession {
    user_id: Uuid,
    session_id: String,
    last_at: Timestamp,
}

impl FromRow for FoundSession {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            user_id: required(row.id()?)?,
            session_id: required(row.text()?)?,
            last_at: required(row.time()?)?,
        })
    }
}

fn rebuild_sessions(
    store: &dyn Store,
    since: Option<Timestamp>,
    removed_before: Option<Timestamp>,
    rebuilt: &mut Rebuilt,
    progress: &mut dyn FnMut(&Rebuilt),
) -> Result<(), LedgerError> {
    let sql = format!(
        "SELECT user_id, session_id, max(started_at) FROM interceptions
         WHERE (session_id, user_id) > ($1, $2)
         GROUP BY session_id, user_id ORDER BY session_id, user_id LIMIT {SESSIONS_PER_STEP}"
    );
    let mut after = (String::new(), Uuid::nil());
    loop {
        let found: Vec<FoundSession> = all(store, &sql, &[after.0.clone().into(), after.1.into()])?;
        let Some(last) = found.last() else { return Ok(()) };
        after = (last.session_id.clone(), last.user_id);
        let wanted: Vec<&FoundSession> = found
            .iter()
            .filter(|session| since.is_none_or(|since| session.last_at >= since))
            .collect();
        let mut kept = 0;
        store.transaction(&mut |transaction| {
            kept = 0;
            lock(transaction, Lock::Exclusive)?;
            for session in &wanted {
                if !rebuild_session(transaction, session, removed_before)? {
                    kept += 1;
                }
            }
            Ok(())
        })?;
        rebuilt.sessions += u64::try_from(wanted.len()).unwrap_or(0) - kept;
        rebuilt.kept += kept;
        progress(rebuilt);
    }
}

/// Sums a session anew; `false` if retention has removed records of it.
fn rebuild_session(
    transaction: &dyn Database,
    session: &FoundSession,
    removed_before: Option<Timestamp>,
) -> Result<bool, LedgerError> {
    let key: [Value; 2] = [session.user_id.into(), session.session_id.clone().into()];
    let sql = "SELECT first_at FROM sessions WHERE user_id = $1 AND id = $2";
    let first_at: Option<Timestamp> = first(transaction, sql, &key)?;
    if first_at.zip(removed_before).is_some_and(|(first_at, cutoff)| first_at < cutoff) {
        return Ok(false);
    }
    let sql = "SELECT id FROM interceptions WHERE user_id = $1 AND session_id = $2 ORDER BY id";
    let ids: Vec<Uuid> = all(transaction, sql, &key)?;
    let mut differences = Differences::default();
    for ids in ids.chunks(unsummed::MAX_IDS) {
        unsummed::collect(transaction, ids, &mut differences)?;
    }
    for table in ["sessions", "session_parts"] {
        let id = if table == "sessions" { "id" } else { "session_id" };
        let sql = format!("DELETE FROM {table} WHERE user_id = $1 AND {id} = $2");
        execute(transaction, &sql, &key)?;
    }
    let is_of_session =
        |table: &Table| [tables::SESSIONS.name, tables::SESSION_PARTS.name].contains(&table.name);
    tables::add(transaction, &differences, 0, is_of_session)?;
    Ok(true)
}
