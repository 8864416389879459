//! The tables of sums, and the statements that add to them.

use std::sync::LazyLock;

use jiff::Timestamp;

use super::{Differences, Lock, SLOTS_PER_DAY, SUMS, lock};
use crate::{
    LedgerError,
    store::{
        Store,
        sql::{Database, Flavour, RECOUNT_TIMEOUT, Value, execute},
    },
};

/// A table of sums, or a way to add to one.
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// The columns of a row to add.
    pub(crate) columns: LazyLock<Vec<&'static str>>,
    keys: usize,
    how: How,
    /// Adds one row, whose cells are `?1` and so on.
    pub(crate) row_sql: LazyLock<String>,
}

/// How a row is added.
enum How {
    /// A row with the same key gets the sums of both.
    Sum,
    /// The same, of a session.
    SumSession,
    /// The session is there.
    UpdateSession,
    /// A row with the same key stays.
    Keep,
}

/// The columns of a table: those of its key, then those of the sums.
fn with_sums(keys: &[&'static str]) -> Vec<&'static str> {
    [keys, &SUMS].concat()
}

const USAGE_KEYS: [&str; 7] =
    ["user_id", "slot", "provider", "model", "client", "credential_kind", "shard"];
const FLEET_KEYS: [&str; 6] = ["slot", "provider", "model", "client", "credential_kind", "shard"];
const DAY_KEYS: [&str; 4] = ["day", "user_id", "credential_kind", "shard"];
const LATENCY_KEYS: [&str; 7] =
    ["slot", "provider", "model", "credential_kind", "phase", "bucket", "shard"];
const SESSION_COLUMNS: [&str; 13] = [
    "user_id",
    "id",
    "first_at",
    "last_at",
    "first_id",
    "last_id",
    "ended_at",
    "client",
    "first_prompt",
    "first_prompt_id",
    "last_prompt",
    "last_prompt_id",
    "requests",
];
const PART_KEYS: [&str; 4] = ["user_id", "session_id", "kind", "value"];

pub(crate) static USAGE_SLOTS: Table = Table {
    name: "usage_slots",
    columns: LazyLock::new(|| with_sums(&USAGE_KEYS)),
    keys: USAGE_KEYS.len(),
    how: How::Sum,
    row_sql: LazyLock::new(|| USAGE_SLOTS.sql_of_row()),
};

pub(crate) static FLEET_SLOTS: Table = Table {
    name: "fleet_slots",
    columns: LazyLock::new(|| with_sums(&FLEET_KEYS)),
    keys: FLEET_KEYS.len(),
    how: How::Sum,
    row_sql: LazyLock::new(|| FLEET_SLOTS.sql_of_row()),
};

pub(crate) static USER_DAYS: Table = Table {
    name: "user_days",
    columns: LazyLock::new(|| with_sums(&DAY_KEYS)),
    keys: DAY_KEYS.len(),
    how: How::Sum,
    row_sql: LazyLock::new(|| USER_DAYS.sql_of_row()),
};

pub(crate) static LATENCY_SLOTS: Table = Table {
    name: "latency_slots",
    columns: LazyLock::new(|| [&LATENCY_KEYS[..], &["requests"]].concat()),
    keys: LATENCY_KEYS.len(),
    how: How::Sum,
    row_sql: LazyLock::new(|| LATENCY_SLOTS.sql_of_row()),
};

pub(crate) static SESSIONS: Table = Table {
    name: "sessions",
    columns: LazyLock::new(|| with_sums(&SESSION_COLUMNS)),
    keys: 2,
    how: How::SumSession,
    row_sql: LazyLock::new(|| SESSIONS.sql_of_row()),
};

/// Sessions of which only the sums change.
pub(crate) static CHANGED_SESSIONS: Table = Table {
    name: "sessions",
    columns: LazyLock::new(|| with_sums(&["user_id", "id", "ended_at"])),
    keys: 2,
    how: How::UpdateSession,
    row_sql: LazyLock::new(|| CHANGED_SESSIONS.sql_of_row()),
};

pub(crate) static SESSION_PARTS: Table = Table {
    name: "session_parts",
    columns: LazyLock::new(|| PART_KEYS.to_vec()),
    keys: PART_KEYS.len(),
    how: How::Keep,
    row_sql: LazyLock::new(|| SESSION_PARTS.sql_of_row()),
};

/// The tables of sums by slot and day, each of which has a column `shard`.
static SHARDED: [&Table; 4] = [&USAGE_SLOTS, &FLEET_SLOTS, &USER_DAYS, &LATENCY_SLOTS];

impl Table {
    /// The columns of its key.
    pub(crate) fn keys(&self) -> &[&'static str] {
        self.columns.get(..self.keys).unwrap_or_default()
    }

    /// The columns that are summed.
    pub(crate) fn sums(&self) -> Vec<&'static str> {
        let is_sum = |column: &&&str| **column == "requests" || SUMS.contains(column);
        self.columns.iter().filter(is_sum).copied().collect()
    }

    fn sql_of_row(&self) -> String {
        if !matches!(self.how, How::UpdateSession) {
            return self.rows_sql(1);
        }
        let value = |column: &str| {
            let place = self.columns.iter().position(|name| *name == column);
            place.map_or_else(String::new, |place| format!("?{}", place + 1))
        };
        format!(
            "UPDATE sessions AS t SET {} WHERE t.user_id = {} AND t.id = {}",
            self.changes(value),
            value("user_id"),
            value("id")
        )
    }

    /// A statement that adds several rows, whose cells are `?1` and so on, row after row.
    fn rows_sql(&self, rows: usize) -> String {
        let width = self.columns.len();
        let row = |row: usize| {
            let places: Vec<String> =
                (1..=width).map(|place| format!("?{}", row * width + place)).collect();
            format!("({})", places.join(", "))
        };
        let rows: Vec<String> = (0..rows).map(row).collect();
        format!(
            "INSERT INTO {} AS t ({}) VALUES {} {}",
            self.name,
            self.columns.join(", "),
            rows.join(", "),
            self.on_conflict()
        )
    }

    /// A statement that adds all rows of a table `n`, for PostgreSQL.
    pub(crate) fn bulk_sql(&self, rows: &str) -> String {
        if matches!(self.how, How::UpdateSession) {
            return format!(
                "UPDATE sessions AS t SET {} FROM {rows} WHERE t.user_id = n.user_id AND t.id = n.id",
                self.changes(|column| format!("n.{column}"))
            );
        }
        let columns = self.columns.join(", ");
        format!(
            "INSERT INTO {} AS t ({columns}) SELECT {columns} FROM {rows} {}",
            self.name,
            self.on_conflict()
        )
    }

    /// How many slots a row is about, and the column that says which.
    fn period(&self) -> (&'static str, i64) {
        if self.keys().contains(&"day") { ("day", SLOTS_PER_DAY) } else { ("slot", 1) }
    }

    /// A statement of PostgreSQL that adds the rows before the slot or day `$1` to shard 0.
    fn fold_sql(&self) -> String {
        let columns = self.columns.join(", ");
        let keys = self.keys();
        let (time, _slots) = self.period();
        let selected: Vec<String> = self
            .columns
            .iter()
            .map(|column| match *column {
                "shard" => "0".to_owned(),
                key if keys.contains(&key) => key.to_owned(),
                sum => format!("CAST(sum({sum}) AS BIGINT)"),
            })
            .collect();
        let groups: Vec<&str> = keys.iter().filter(|key| **key != "shard").copied().collect();
        format!(
            "WITH gone AS (DELETE FROM {} WHERE {time} < $1 AND shard <> 0 RETURNING *)
             INSERT INTO {} AS t ({columns}) SELECT {} FROM gone GROUP BY {} {}",
            self.name,
            self.name,
            selected.join(", "),
            groups.join(", "),
            self.on_conflict()
        )
    }

    fn on_conflict(&self) -> String {
        let keys = self.keys().join(", ");
        match self.how {
            How::Keep => format!("ON CONFLICT ({keys}) DO NOTHING"),
            How::Sum | How::SumSession | How::UpdateSession => {
                let changes = self.changes(|column| format!("excluded.{column}"));
                format!("ON CONFLICT ({keys}) DO UPDATE SET {changes}")
            }
        }
    }

    /// The new values of the columns of a row `t` that is there.
    fn changes(&self, new: impl Fn(&str) -> String) -> String {
        let mut changes: Vec<String> = self
            .sums()
            .iter()
            .map(|column| format!("{column} = t.{column} + {}", new(column)))
            .collect();
        let later = |column: &str, condition: &str| {
            format!("{column} = CASE WHEN {condition} THEN {} ELSE t.{column} END", new(column))
        };
        if !matches!(self.how, How::Sum | How::Keep) {
            let (ended_at, new_end) = ("ended_at", new("ended_at"));
            let is_later = format!("{new_end} > t.{ended_at} OR t.{ended_at} IS NULL");
            changes.push(later(ended_at, &is_later));
        }
        if matches!(self.how, How::SumSession) {
            let is_first = format!("{} < t.first_id", new("first_id"));
            let is_last = format!("{} > t.last_id", new("last_id"));
            for column in ["first_at", "first_id"] {
                changes.push(later(column, &is_first));
            }
            for column in ["last_at", "last_id", "client"] {
                changes.push(later(column, &is_last));
            }
            for (column, of, order) in
                [("first_prompt", "first_prompt_id", "<"), ("last_prompt", "last_prompt_id", ">")]
            {
                let is_nearer = format!(
                    "{} {order} t.{of} OR t.{of} IS NULL AND {} IS NOT NULL",
                    new(of),
                    new(of)
                );
                changes.push(later(column, &is_nearer));
                changes.push(later(of, &is_nearer));
            }
        }
        changes.join(", ")
    }
}

/// Adds the rows of days that have ended, which each process has in a shard of its own, to one shard.
pub(crate) fn fold(store: &dyn Store, now: Timestamp) -> Result<(), LedgerError> {
    if store.flavour() == Flavour::Sqlite {
        return Ok(());
    }
    // Few records of the day before yesterday are still written.
    let day = super::slot(now).div_euclid(SLOTS_PER_DAY) - 1;
    for table in SHARDED {
        let (_time, slots) = table.period();
        let bound: Value = (day * SLOTS_PER_DAY / slots).into();
        store.transaction(&mut |transaction| {
            lock(transaction, Lock::Shared)?;
            let fold = table.fold_sql();
            transaction.run(
                RECOUNT_TIMEOUT,
                &fold,
                std::slice::from_ref(&bound),
                &mut |_row| Ok(()),
            )
        })?;
    }
    Ok(())
}

/// How many rows one statement adds.
const ROWS_PER_STATEMENT: usize = 50;

/// Adds differences to those tables that `is_wanted` chooses.
pub(crate) fn add(
    transaction: &dyn Database,
    differences: &Differences,
    shard: i64,
    is_wanted: impl Fn(&Table) -> bool,
) -> Result<(), LedgerError> {
    let mut pending: Option<(&Table, Vec<Vec<Value>>)> = None;
    differences.rows::<LedgerError>(shard, &mut |table, row| {
        if !is_wanted(table) {
            return Ok(());
        }
        let values = row.iter().map(Value::from).collect();
        match &mut pending {
            Some((last, rows)) if std::ptr::eq(*last, table) => rows.push(values),
            _ => {
                if let Some((last, rows)) = pending.replace((table, vec![values])) {
                    add_rows(transaction, last, &rows)?;
                }
            }
        }
        Ok(())
    })?;
    pending.map_or(Ok(()), |(table, rows)| add_rows(transaction, table, &rows))
}

/// Adds rows of a table: many with one statement, the rest one by one, so that few statements are prepared.
fn add_rows(
    transaction: &dyn Database,
    table: &Table,
    rows: &[Vec<Value>],
) -> Result<(), LedgerError> {
    for chunk in rows.chunks(ROWS_PER_STATEMENT) {
        if chunk.len() == ROWS_PER_STATEMENT && !matches!(table.how, How::UpdateSession) {
            let sql = table.rows_sql(chunk.len()).replace('?', "$");
            execute(transaction, &sql, &chunk.concat())?;
            continue;
        }
        let sql = table.row_sql.replace('?', "$");
        chunk.iter().try_for_each(|row| execute(transaction, &sql, row))?;
    }
    Ok(())
}
