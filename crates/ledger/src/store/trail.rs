//! The order of the trail: what is appended to it, and how it gets positions.
//!
//! Ids and times are no cursor: records end late and are committed out of their order. A position is one: all
//! lower positions are visible before it. In SQLite the transaction that changes a record writes its entry,
//! because there is one writer at a time. In PostgreSQL it writes a row of the outbox, and a sequencer
//! moves these rows to the trail, one transaction at a time.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread::Thread,
};

use uuid::Uuid;

use crate::{
    LedgerError,
    store::{
        Store, Write,
        rollups::unsummed::{id_values, is_listed},
        sql::{Database, Flavour, Value, all, count_all, execute, first},
    },
    word_enum,
};

word_enum! {
    /// What an entry of the trail says.
    TrailKind {
        /// A record ended.
        Settled = "settled",
        /// A record changed after its end.
        Amended = "amended",
        /// The content of a record was erased.
        Erased = "erased",
        /// A run of retention removed records.
        Dropped = "dropped",
        /// An administrator changed something.
        Event = "event",
    }
}

/// Maximum number of entries that get a position in one transaction.
pub(crate) const MAX_SEQUENCED: u32 = 1_000;
/// The condition that an ended record was written by a release that knew no trail.
pub(crate) const NOT_IN_TRAIL: &str = "in_trail IS NULL AND outcome <> 'in_progress'";

/// Moves the first rows of the outbox to the positions after `$1`.
const SEQUENCE: &str = "WITH moved AS (
      DELETE FROM outbox WHERE id = ANY (ARRAY (SELECT id FROM outbox ORDER BY id LIMIT $2))
      RETURNING id, kind, interception_id, retention_run_id, event_id),
    appended AS (
      INSERT INTO trail (position, kind, interception_id, retention_run_id, event_id)
      SELECT $1 + row_number() OVER (ORDER BY id), kind, interception_id, retention_run_id, event_id
      FROM moved RETURNING position)
    SELECT count(*) FROM appended";

/// The sequencer's thread, for those whose commits wake it.
#[derive(Debug, Clone, Default)]
pub(crate) struct SequencerThread(Arc<Mutex<Option<Thread>>>);

impl SequencerThread {
    pub(crate) fn set(&self, thread: Thread) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    }

    /// Wakes it after a commit, unless nothing in it can have ended or changed an ended record.
    pub(crate) fn wake_after(&self, batch: &[Write]) {
        let appends = |write: &Write| {
            matches!(write, Write::Settle(..) | Write::Record(..) | Write::Note(..))
        };
        if !batch.iter().any(appends) {
            return;
        }
        if let Some(thread) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            thread.unpark();
        }
    }
}

/// Where a transaction appends its entries.
const fn appended_table(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::Sqlite => "trail",
        Flavour::Postgres => "outbox",
    }
}

/// Appends entries about records, in this order.
pub(crate) fn append(
    transaction: &dyn Database,
    ids: &[Uuid],
    kind: TrailKind,
) -> Result<(), LedgerError> {
    if ids.is_empty() {
        return Ok(());
    }
    let flavour = transaction.flavour();
    let sql = format!(
        "INSERT INTO {} (kind, interception_id) SELECT '{kind}', n.* FROM ({}) AS n",
        appended_table(flavour),
        flavour.id_rows()
    );
    execute(transaction, &sql, &[flavour.id_list(ids)])
}

/// The statement that appends a run of retention to a table, unless the run has been recorded before.
pub(crate) fn append_run_sql(table: &str) -> String {
    format!(
        "INSERT INTO {table} (kind, retention_run_id)
         SELECT '{}', $1 WHERE NOT EXISTS (SELECT 1 FROM retention_runs WHERE id = $1)",
        TrailKind::Dropped
    )
}

/// Appends at most `limit` ended records that an earlier release wrote, oldest first, and returns their number.
/// They get positions after what has ended meanwhile.
pub(crate) fn append_earlier(store: &dyn Store, limit: u32) -> Result<u64, LedgerError> {
    let select =
        format!("SELECT id FROM interceptions WHERE {NOT_IN_TRAIL} ORDER BY id LIMIT {limit}");
    // Usually there are none, and this needs no transaction.
    if first::<Uuid>(store, &select, &[])?.is_none() {
        return Ok(0);
    }
    // Another process may append some too.
    let lock = match store.flavour() {
        Flavour::Sqlite => "",
        Flavour::Postgres => "FOR UPDATE SKIP LOCKED",
    };
    let mut appended = 0;
    store.transaction(&mut |transaction| {
        let ids: Vec<Uuid> = all(transaction, &format!("{select} {lock}"), &[])?;
        appended = u64::try_from(ids.len()).unwrap_or(u64::MAX);
        if ids.is_empty() {
            return Ok(());
        }
        let condition = is_listed(transaction.flavour()).replace('?', "id");
        let mark = format!("UPDATE interceptions SET in_trail = TRUE WHERE {condition}");
        execute(transaction, &mark, &id_values(transaction.flavour(), &ids))?;
        append(transaction, &ids, TrailKind::Settled)
    })?;
    Ok(appended)
}

/// The number of ended records that an earlier release wrote and that have no entry yet.
pub(crate) fn earlier_records(database: &dyn Database) -> Result<u64, LedgerError> {
    count_all(database, &format!("SELECT count(*) FROM interceptions WHERE {NOT_IN_TRAIL}"))
}

/// Gives positions to at most `limit` rows of the outbox, and returns their number. SQLite has no outbox.
pub(crate) fn sequence(store: &dyn Store, limit: u32) -> Result<u64, LedgerError> {
    if store.flavour() == Flavour::Sqlite {
        return Ok(0);
    }
    // Usually nothing waits, and this needs no lock.
    if first::<i64>(store, "SELECT id FROM outbox ORDER BY id LIMIT 1", &[])?.is_none() {
        return Ok(0);
    }
    let mut sequenced = 0;
    store.transaction(&mut |transaction| {
        let lock = "SELECT position FROM trail_head FOR UPDATE";
        let no_head = || LedgerError::Row("the table trail_head is empty".into());
        let last: i64 = first(transaction, lock, &[])?.ok_or_else(no_head)?;
        // This statement begins with the lock held: it sees what other sequencers have committed.
        let values: [Value; 2] = [last.into(), i64::from(limit).into()];
        sequenced = first(transaction, SEQUENCE, &values)?.unwrap_or(0);
        let head = last.saturating_add(sequenced);
        execute(transaction, "UPDATE trail_head SET position = $1", &[head.into()])
    })?;
    Ok(u64::try_from(sequenced).unwrap_or(0))
}

/// The statement that selects the last position of the trail; 0 while it is empty.
pub(crate) const fn head_sql(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::Sqlite => "SELECT coalesce(max(position), 0) FROM trail",
        Flavour::Postgres => "SELECT position FROM trail_head",
    }
}

/// The last position of the trail; 0 while it is empty.
pub(crate) fn head(database: &dyn Database) -> Result<u64, LedgerError> {
    let head: Option<i64> = first(database, head_sql(database.flavour()), &[])?;
    Ok(head.and_then(|head| u64::try_from(head).ok()).unwrap_or(0))
}
