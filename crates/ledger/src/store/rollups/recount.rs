//! Counts the sums again, from the records.

use jiff::Timestamp;

use super::{
    MAX_NAME_CHARS, SLOT_SECONDS, SLOTS_PER_DAY, SUMS, select_all_records, tables, unsummed,
};
use crate::{
    LedgerError,
    store::sql::{Cells, Database, FromRow, RECOUNT_TIMEOUT, Value, all, all_within, count},
};

/// What a recount of the sums found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SumsRecount {
    /// Sums that were compared: rows by slot, day or session.
    pub(crate) compared: u64,
    /// Rows that differ or are missing on one side.
    pub(crate) different: u64,
    /// Ended records that are not summed yet.
    pub(crate) not_summed: u64,
}

/// The rows on one side, and those that differ.
struct Compared {
    rows: u64,
    different: u64,
}

impl FromRow for Compared {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self { rows: count(row)?, different: count(row)? })
    }
}

/// Before which time retention has removed records, whose sums stay.
pub(crate) fn removed_before(database: &dyn Database) -> Result<Option<Timestamp>, LedgerError> {
    let cutoffs: Vec<Timestamp> =
        all(database, "SELECT cutoff FROM retention_runs ORDER BY cutoff DESC LIMIT 1", &[])?;
    Ok(cutoffs.first().copied())
}

/// Each sum of a select, with its name.
fn sums_of(names: &[&str]) -> String {
    let sums = names.iter().map(|name| format!("CAST(sum({name}) AS BIGINT) AS {name}"));
    sums.collect::<Vec<_>>().join(", ")
}

/// Compares two selects of the same columns in one statement, so that both see the same records.
fn compare(
    database: &dyn Database,
    counted: &str,
    kept: &str,
    values: &[Value],
) -> Result<Compared, LedgerError> {
    let sql = format!(
        "WITH counted AS MATERIALIZED ({counted}), kept AS MATERIALIZED ({kept})
         SELECT (SELECT count(*) FROM kept),
           (SELECT count(*) FROM (SELECT * FROM counted EXCEPT SELECT * FROM kept) AS a)
           + (SELECT count(*) FROM (SELECT * FROM kept EXCEPT SELECT * FROM counted) AS b)"
    );
    let found: Vec<Compared> = all_within(RECOUNT_TIMEOUT, database, &sql, values)?;
    let nothing = || LedgerError::Row("a recount returned no row".into());
    found.into_iter().next().ok_or_else(nothing)
}

/// Compares the sums with the records that they sum. Sums of what retention has removed cannot be counted.
pub(crate) fn recount(database: &dyn Database) -> Result<SumsRecount, LedgerError> {
    let removed_before = removed_before(database)?.unwrap_or(Timestamp::UNIX_EPOCH);
    // The slot in which the cutoff lies has lost a part.
    let first_slot = (removed_before.as_second() + SLOT_SECONDS - 1).div_euclid(SLOT_SECONDS);
    let first_day = (first_slot + SLOTS_PER_DAY - 1).div_euclid(SLOTS_PER_DAY);
    let slots = by_slot(database, first_slot)?;
    let sessions = by_session(database, removed_before)?;
    let fleet = of_usage(database, &tables::FLEET_SLOTS, first_slot)?;
    let days = of_usage(database, &tables::USER_DAYS, first_day)?;
    let latencies = of_latencies(database, first_slot)?;
    let all = [slots, sessions, fleet, days, latencies];
    Ok(SumsRecount {
        compared: all.iter().map(|compared| compared.rows).sum(),
        different: all.iter().map(|compared| compared.different).sum(),
        not_summed: unsummed::count(database)?,
    })
}

/// The names by which records are summed, as they are kept.
fn names() -> Vec<String> {
    let cut = |column: &str| format!("substr(coalesce({column}, ''), 1, {MAX_NAME_CHARS})");
    ["provider", "model", "client", "credential_kind"].iter().map(|name| cut(name)).collect()
}

/// The ended and summed records as a table `r`, with a column for each sum. Its first columns are those of
/// [`super::RECORD_COLUMNS`].
fn ended_records() -> String {
    let columns =
        "id, user_id, session_id, provider, model, client, credential_kind, agent_id, outcome,
        started_at, upstream_started_at, first_byte_at, ended_at";
    let outcomes = SUMS.get(..5).unwrap_or_default();
    let rest = SUMS.get(5..).unwrap_or_default();
    let is =
        |outcome: &&str| format!("CASE WHEN outcome = '{outcome}' THEN 1 ELSE 0 END AS {outcome}");
    let outcomes: Vec<String> = outcomes.iter().map(is).collect();
    let columns_of_read = format!("{columns}, {}", rest.join(", "));
    format!(
        "WITH read ({columns_of_read}) AS ({})
         SELECT {columns_of_read}, {} FROM read WHERE outcome <> 'in_progress'",
        select_all_records("i.session_id IS NOT NULL"),
        outcomes.join(", ")
    )
}

fn by_slot(database: &dyn Database, first_slot: i64) -> Result<Compared, LedgerError> {
    let slot = database.flavour().slot("started_at");
    let (names, sums) = (names().join(", "), sums_of(&SUMS));
    let counted = format!(
        "SELECT user_id, {slot}, {names}, {sums} FROM ({}) AS r WHERE {slot} >= $1
         GROUP BY 1, 2, 3, 4, 5, 6",
        ended_records()
    );
    let kept = format!(
        "SELECT user_id, slot, provider, model, client, credential_kind, {sums} FROM usage_slots
         WHERE slot >= $1 GROUP BY 1, 2, 3, 4, 5, 6
         HAVING sum(completed + failed + cancelled + refused + interrupted) <> 0"
    );
    compare(database, &counted, &kept, &[first_slot.into()])
}

fn by_session(database: &dyn Database, since: Timestamp) -> Result<Compared, LedgerError> {
    let counted = format!(
        "SELECT c.user_id, c.session_id, c.first_at, c.last_at, c.first_id, c.last_id, c.requests, {}
         FROM (SELECT i.user_id, i.session_id, min(i.started_at) AS first_at,
                 max(i.started_at) AS last_at, {first} AS first_id, {last} AS last_id,
                 count(*) AS requests
               FROM interceptions i WHERE i.session_id IS NOT NULL GROUP BY 1, 2) AS c
         LEFT JOIN (SELECT user_id, session_id, {} FROM ({}) AS r GROUP BY 1, 2) AS e
           ON e.user_id = c.user_id AND e.session_id = c.session_id
         WHERE c.first_at >= $1",
        SUMS.map(|sum| format!("coalesce(e.{sum}, 0)")).join(", "),
        sums_of(&SUMS),
        ended_records(),
        first = database.flavour().first_id(),
        last = database.flavour().latest_id(),
    );
    let kept = format!(
        "SELECT user_id, id, first_at, last_at, first_id, last_id, requests, {} FROM sessions
         WHERE first_at >= $1",
        SUMS.join(", ")
    );
    compare(database, &counted, &kept, &[since.into()])
}

/// Compares a table with the sums of `usage_slots`, from a slot or a day on.
fn of_usage(
    database: &dyn Database,
    table: &tables::Table,
    first: i64,
) -> Result<Compared, LedgerError> {
    let is_shard = |key: &&&str| **key == "shard";
    let keys: Vec<&str> = table.keys().iter().filter(|key| !is_shard(key)).copied().collect();
    let sums = sums_of(&SUMS);
    let from_usage: Vec<String> = keys
        .iter()
        .map(|key| match *key {
            "day" => format!("slot / {SLOTS_PER_DAY}"),
            key => key.to_owned(),
        })
        .collect();
    let time = keys.iter().position(|key| matches!(*key, "slot" | "day")).unwrap_or(0);
    let groups: Vec<String> = (1..=keys.len()).map(|number| number.to_string()).collect();
    let groups = groups.join(", ");
    let of = |name: &str, columns: &[String]| {
        format!(
            "SELECT {}, {sums} FROM {name} WHERE {} >= $1 GROUP BY {groups}
             HAVING sum(completed + failed + cancelled + refused + interrupted) <> 0",
            columns.join(", "),
            columns.get(time).map_or("", String::as_str)
        )
    };
    let own: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    compare(
        database,
        &of(tables::USAGE_SLOTS.name, &from_usage),
        &of(table.name, &own),
        &[first.into()],
    )
}

/// Compares how many requests the phases have.
fn of_latencies(database: &dyn Database, first_slot: i64) -> Result<Compared, LedgerError> {
    let slot = database.flavour().slot("i.started_at");
    let cut = |column: &str| format!("substr(coalesce({column}, ''), 1, {MAX_NAME_CHARS})");
    let names = ["i.provider", "i.model", "i.credential_kind"].map(cut).join(", ");
    let of = |phase: &str, condition: &str| {
        format!(
            "SELECT {slot} AS slot, {names}, '{phase}', count(*) FROM interceptions i
             WHERE i.session_id IS NOT NULL AND {slot} >= $1 AND {condition} GROUP BY 1, 2, 3, 4"
        )
    };
    let counted = format!(
        "{} UNION ALL {}",
        of(
            "first_byte",
            "i.outcome <> 'in_progress' AND i.upstream_started_at IS NOT NULL
             AND i.first_byte_at IS NOT NULL"
        ),
        of("total", "i.outcome = 'completed' AND i.ended_at IS NOT NULL")
    );
    let kept = "SELECT slot, provider, model, credential_kind, phase,
           CAST(sum(requests) AS BIGINT) FROM latency_slots
         WHERE slot >= $1 GROUP BY 1, 2, 3, 4, 5 HAVING sum(requests) <> 0";
    compare(database, &counted, kept, &[first_slot.into()])
}
