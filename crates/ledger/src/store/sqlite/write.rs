//! The writing connection: a batch is one transaction. When a record cannot be written, the batch is
//! repeated with a savepoint for each record.

use std::{sync::LazyLock, time::Duration};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use uuid::Uuid;

use super::SqliteCells;
use super::batch::{Batch, IdText, Known, LAST_USED_STEP, Statements};
use crate::{
    LedgerError,
    record::{
        NewPrompt, NewTokenUsage, Opening, Outcome, Quality, ServedBy, Settlement, ToolResult,
        columns::{Cell, ChildRow, RowCells, insert_sql},
        objects::ObjectChanges,
        time_text,
    },
    store::{
        Receipt, StoreWriter, Write, WriterConnection,
        interceptions::{Parent, opened_cells, opened_columns},
        needs_record,
        rollups::{SummedRecord, select_with_usages, session_id},
        trail::TrailKind,
    },
};

/// Number of tool results between two looks at the clock.
const RESULTS_PER_CHECK: usize = 100;

/// A connection that writes records.
#[derive(Debug)]
pub(super) struct SqliteWriter {
    connection: Connection,
    commit_timeout: Duration,
}

impl SqliteWriter {
    pub(super) const fn new(connection: Connection, commit_timeout: Duration) -> Self {
        Self { connection, commit_timeout }
    }
}

impl WriterConnection for SqliteWriter {
    fn write(&mut self, work: &mut dyn FnMut(&mut dyn StoreWriter)) {
        work(&mut PreparedWriter {
            statements: Statements::new(&self.connection),
            known: Known::default(),
            commit_timeout: self.commit_timeout,
        });
    }
}

/// A writing connection with its statements.
struct PreparedWriter<'c> {
    statements: Statements<'c>,
    known: Known,
    commit_timeout: Duration,
}

impl<'c> PreparedWriter<'c> {
    /// Commits all writes or none; `None` if one of them cannot be written.
    fn commit_all(&mut self, writes: &[Write]) -> Result<Option<Vec<Receipt>>, LedgerError> {
        let mut batch = self.begin()?;
        let mut receipts = Vec::with_capacity(writes.len());
        for write in writes {
            match write_one(&mut batch, write) {
                Ok(receipt) => receipts.push(receipt),
                Err(error) if error.is_about_one_record() => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        batch.commit()?;
        Ok(Some(receipts))
    }

    fn begin(&mut self) -> Result<Batch<'_, 'c>, LedgerError> {
        Batch::begin(&mut self.statements, &mut self.known, self.commit_timeout)
    }

    /// Writes a record and takes it back.
    fn rehearse(&mut self) -> Result<(), LedgerError> {
        let mut batch = self.begin()?;
        let user = batch
            .statement("SELECT id FROM users LIMIT 1")?
            .query_row([], |row| row.get::<_, String>(0))
            .optional()?;
        if let Some(user) = user.and_then(|user| user.parse().ok()) {
            write_one(&mut batch, &Write::sample(user))?;
        }
        Ok(())
    }
}

impl StoreWriter for PreparedWriter<'_> {
    fn commit(
        &mut self,
        writes: &[Write],
    ) -> Result<Vec<Result<Receipt, LedgerError>>, LedgerError> {
        // A savepoint costs as much as a statement, and is rarely needed.
        if let Some(receipts) = self.commit_all(writes)? {
            return Ok(receipts.into_iter().map(Ok).collect());
        }
        let mut batch = self.begin()?;
        let mut receipts = Vec::with_capacity(writes.len());
        for write in writes {
            match batch.in_savepoint(|batch| write_one(batch, write)) {
                Err(error) if !error.is_about_one_record() => return Err(error),
                receipt => receipts.push(receipt),
            }
        }
        batch.commit()?;
        Ok(receipts)
    }

    fn probe(&mut self) -> Result<(), LedgerError> {
        self.rehearse()?;
        self.statements.connection.execute(
            "INSERT INTO settings (key, value) VALUES ('probe', ?1)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            [time_text(Timestamp::now()).as_bytes()],
        )?;
        Ok(())
    }
}

fn write_one(batch: &mut Batch<'_, '_>, write: &Write) -> Result<Receipt, LedgerError> {
    batch.check_time()?;
    match write {
        Write::Nothing => Ok(Receipt::default()),
        Write::Open(replica, opening) => open(batch, Some(*replica), opening),
        Write::Note(id, usage) => {
            note(batch, *id, usage)?;
            Ok(Receipt::default())
        }
        Write::Settle(id, settlement) => {
            settle(batch, *id, settlement)?;
            Ok(Receipt::default())
        }
        Write::Keep(id, user, continuations) => {
            keep(batch, *id, *user, continuations)?;
            Ok(Receipt::default())
        }
        Write::Objects(id, changes) => {
            put_objects(batch, *id, changes)?;
            Ok(Receipt::default())
        }
        Write::Record(opening, settlement) => {
            let receipt = open(batch, None, opening)?;
            settle(batch, opening.interception.id, settlement)?;
            Ok(receipt)
        }
    }
}

fn open(
    batch: &mut Batch<'_, '_>,
    replica: Option<Uuid>,
    opening: &Opening,
) -> Result<Receipt, LedgerError> {
    static INSERT: LazyLock<String> = LazyLock::new(|| {
        let insert = insert_sql("interceptions", &opened_columns());
        format!("{insert} ON CONFLICT (id) DO NOTHING")
    });
    let interception = &opening.interception;
    let user = IdText::from(interception.user_id);
    let parent = match (interception.parent_id, &interception.correlating_tool_call_id) {
        (Some(parent), _) => named_parent(batch, &user, parent)?,
        (None, Some(call)) => parent(batch, &user, call)?,
        (None, None) => None,
    };
    let session_id = session_id(interception, parent);
    if batch.execute(&INSERT, &opened_cells(interception, parent, &session_id, replica))? == 0 {
        let thread = batch
            .statement("SELECT thread_id FROM interceptions WHERE id = ?1")?
            .query_row([&IdText::from(interception.id)], |row| row.get::<_, Option<String>>(0))?;
        return Ok(Receipt { thread_id: thread.and_then(|thread| thread.parse().ok()) });
    }
    if let Some(prompt) = &opening.prompt {
        let prompt = NewPrompt { provider_response_id: None, prompt: prompt.clone() };
        insert_child(batch, &prompt, interception.id, interception.started_at)?;
    }
    insert_children(batch, &opening.attachments, interception.id, interception.started_at)?;
    for (number, result) in opening.tool_results.iter().enumerate() {
        if number % RESULTS_PER_CHECK == RESULTS_PER_CHECK - 1 {
            batch.check_time()?;
        }
        put_result(batch, &user, interception.id, result)?;
    }
    if let Some(token) = interception.token_id {
        touch_token(batch, token, interception.started_at)?;
    }
    batch.differences.opened(interception, &session_id, opening.prompt.as_deref());
    let thread_id = parent.map_or(interception.id, |parent| parent.thread_id);
    Ok(Receipt { thread_id: Some(thread_id) })
}

/// The interception of the same user whose response made a tool call, and its thread. Some providers
/// give one id to many calls: only the latest of them are looked at, in the order of the index.
fn parent(
    batch: &mut Batch<'_, '_>,
    user: &IdText,
    call: &str,
) -> Result<Option<Parent>, LedgerError> {
    let found = batch
        .statement(
            "SELECT i.id, coalesce(i.thread_id, i.id) FROM
               (SELECT interception_id FROM tool_usages WHERE tool_call_id = ?1
                ORDER BY rowid DESC LIMIT 1000) t
             CROSS JOIN interceptions i ON i.id = t.interception_id
             WHERE i.user_id = ?2 LIMIT 1",
        )?
        .query_row(params![call, user], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })
        .optional()?;
    Ok(found.and_then(|(id, thread_id)| {
        Some(Parent { id: id.parse().ok()?, thread_id: thread_id.parse().ok()? })
    }))
}

/// An interception of the same user, and its thread.
fn named_parent(
    batch: &mut Batch<'_, '_>,
    user: &IdText,
    id: Uuid,
) -> Result<Option<Parent>, LedgerError> {
    let thread = batch
        .statement(
            "SELECT coalesce(thread_id, id) FROM interceptions WHERE id = ?1 AND user_id = ?2",
        )?
        .query_row(params![IdText::from(id), user], |row| row.get::<_, String>(0))
        .optional()?;
    let thread = thread.and_then(|thread| thread.parse().ok());
    Ok(thread.map(|thread_id| Parent { id, thread_id }))
}

/// Stores the size of a result, or the user's answer, and which request carried it, in the row of its tool
/// call. Only the first one counts, because agents resend their whole history with each request.
fn put_result(
    batch: &mut Batch<'_, '_>,
    user: &IdText,
    carrier: Uuid,
    result: &ToolResult,
) -> Result<(), LedgerError> {
    batch.change(
        "UPDATE tool_usages SET result_bytes = ?1, result_is_error = ?2,
           approval = coalesce(?5, approval), result_interception_id = ?6, result_sha256 = ?7,
           result = ?8
         WHERE rowid = (SELECT t.rowid FROM
               (SELECT rowid, interception_id FROM tool_usages WHERE tool_call_id = ?3
                ORDER BY rowid DESC LIMIT 1000) t
             CROSS JOIN interceptions i ON i.id = t.interception_id
             WHERE i.user_id = ?4 LIMIT 1)
         AND result_bytes IS NULL",
        params![
            signed(result.bytes),
            result.is_error,
            result.tool_call_id,
            user,
            result.approval(),
            IdText::from(carrier),
            result.sha256,
            result.result
        ],
    )?;
    Ok(())
}

fn touch_token(batch: &mut Batch<'_, '_>, token: Uuid, now: Timestamp) -> Result<(), LedgerError> {
    if batch.known.last_uses.is_recorded(token, now) {
        return Ok(());
    }
    let stale = now.checked_sub(LAST_USED_STEP).unwrap_or(now);
    let touched = batch.change(
        "UPDATE tokens SET last_used_at = ?1
         WHERE id = ?2 AND (last_used_at IS NULL OR last_used_at < ?3)",
        params![time_text(now), IdText::from(token), time_text(stale)],
    )?;
    if touched > 0 {
        batch.known.last_uses.insert(token, now);
    }
    Ok(())
}

/// Stores continuations; a later value of a key replaces an earlier one.
fn keep(
    batch: &mut Batch<'_, '_>,
    id: Uuid,
    user: Uuid,
    continuations: &[(String, String)],
) -> Result<(), LedgerError> {
    let (id, user) = (IdText::from(id), IdText::from(user));
    for (key, value) in continuations {
        batch.change(
            "INSERT INTO continuations (user_id, key, interception_id, value)
             VALUES (?1, ?2, ?3, ?4) ON CONFLICT (user_id, key) DO UPDATE
             SET interception_id = excluded.interception_id, value = excluded.value",
            params![user, key, id, value],
        )?;
    }
    Ok(())
}

/// Stores the objects that a request made or deleted. What is known keeps its maker.
fn put_objects(
    batch: &mut Batch<'_, '_>,
    id: Uuid,
    changes: &ObjectChanges,
) -> Result<(), LedgerError> {
    let (id, user) = (IdText::from(id), IdText::from(changes.user_id));
    let (provider, at) = (&changes.provider, time_text(changes.at));
    for object in &changes.made {
        batch.change(
            "INSERT INTO objects (provider, id, kind, key, user_id, interception_id, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (provider, id) DO NOTHING",
            params![provider, object.id, object.kind, changes.key, user, id, at],
        )?;
    }
    for object in &changes.deleted {
        batch.change(
            "UPDATE objects SET deleted_at = ?1
             WHERE provider = ?2 AND id = ?3 AND user_id = ?4 AND deleted_at IS NULL",
            params![at, provider, object, user],
        )?;
    }
    Ok(())
}

/// Stores the token usage of a record in progress, in the row that the settlement then replaces.
fn note(batch: &mut Batch<'_, '_>, id: Uuid, usage: &NewTokenUsage) -> Result<(), LedgerError> {
    let outcome = batch
        .statement(
            "SELECT outcome FROM interceptions WHERE id = ?1
             AND outcome IN ('in_progress', 'interrupted')",
        )?
        .query_row([&IdText::from(id)], |row| row.get::<_, String>(0))
        .optional()?;
    let Some(outcome) = outcome else { return Ok(()) };
    // The sums have what was recorded of it before it was marked.
    let is_summed = outcome == Outcome::Interrupted.as_str();
    if is_summed && let Some(before) = summed_record(batch, id, 0)? {
        batch.differences.take_back(&before);
    }
    put_token_usage(batch, id, usage, Timestamp::now())?;
    if is_summed && let Some(after) = summed_record(batch, id, 0)? {
        batch.differences.ended(&after);
    }
    if is_summed {
        append_change(batch, id)?;
    }
    Ok(())
}

/// Gives the next position to a record. The highest position is that of the last row, so that what is rolled
/// back leaves no gap.
fn append(batch: &mut Batch<'_, '_>, id: Uuid, kind: TrailKind) -> Result<(), LedgerError> {
    let insert = "INSERT INTO trail (kind, interception_id) VALUES (?, ?)";
    let cells = [Cell::Text(Some(kind.as_str())), Cell::Id(Some(id))];
    batch.execute(insert, &cells).map(|_inserted| ())
}

/// Appends the change of a record that was marked as interrupted, by an earlier release perhaps, which appended
/// nothing then.
fn append_change(batch: &mut Batch<'_, '_>, id: Uuid) -> Result<(), LedgerError> {
    let is_new = batch.change(
        "UPDATE interceptions SET in_trail = TRUE WHERE id = ?1 AND in_trail IS NULL",
        [&IdText::from(id)],
    )? > 0;
    append(batch, id, if is_new { TrailKind::Settled } else { TrailKind::Amended })
}

/// What is summed of a record that has this many tool calls.
fn summed_record(
    batch: &mut Batch<'_, '_>,
    id: Uuid,
    tool_calls: usize,
) -> Result<Option<SummedRecord>, LedgerError> {
    static SELECT: LazyLock<String> = LazyLock::new(|| select_with_usages("? = $1"));
    let tool_calls = i64::try_from(tool_calls).unwrap_or(i64::MAX);
    let mut rows = batch.statement(&SELECT)?.query([&IdText::from(id)])?;
    let mut record = None;
    while let Some(row) = rows.next()? {
        SummedRecord::add_row(&mut record, &mut SqliteCells { row, next: 0 }, tool_calls)?;
    }
    Ok(record)
}

/// Settles a record that is in progress, or that was marked as interrupted too early. A settled record
/// is not changed.
fn settle(
    batch: &mut Batch<'_, '_>,
    record: Uuid,
    settlement: &Settlement,
) -> Result<(), LedgerError> {
    static SETTLE: LazyLock<String> = LazyLock::new(|| {
        let set = Settlement::COLUMNS.join(" = ?, ");
        format!(
            "UPDATE interceptions SET {set} = ?, in_trail = TRUE
             WHERE id = ? AND outcome = 'in_progress'"
        )
    });
    static SETTLE_INTERRUPTED: LazyLock<String> = LazyLock::new(|| {
        let set = Settlement::COLUMNS.join(" = ?, ");
        format!("UPDATE interceptions SET {set} = ? WHERE id = ? AND outcome = 'interrupted'")
    });
    static SERVED_BY: LazyLock<String> = LazyLock::new(|| {
        // Unknown values stay as the record was opened.
        let set =
            ServedBy::COLUMNS.iter().map(|column| format!("{column} = coalesce(?, {column})"));
        let set: Vec<String> = set.collect();
        format!("UPDATE interceptions SET {} WHERE id = ?", set.join(", "))
    });
    let cells = with_id(settlement.cells(), record);
    let mut is_settled = batch.execute(&SETTLE, &cells)? > 0;
    if is_settled {
        append(batch, record, TrailKind::Settled)?;
    } else if let Some(before) = summed_record(batch, record, 0)? {
        is_settled = batch.execute(&SETTLE_INTERRUPTED, &cells)? > 0;
        if is_settled {
            batch.differences.take_back(&before);
            append_change(batch, record)?;
        }
    }
    if !is_settled {
        let exists = batch
            .statement("SELECT 1 FROM interceptions WHERE id = ?1")?
            .exists([&IdText::from(record)])?;
        if !exists && needs_record(settlement) {
            return Err(LedgerError::no_record());
        }
        tracing::debug!(interception_id = %record, "the record was already settled");
        return Ok(());
    }
    if let Some(served_by) = &settlement.served_by {
        batch.execute(&SERVED_BY, &with_id(served_by.cells(), record))?;
    }
    let (id, now) = (IdText::from(record), settlement.ended_at);
    if let Some(response) = &settlement.provider_response_id {
        batch.change(
            "UPDATE prompts SET provider_response_id = ?1 WHERE interception_id = ?2",
            params![response, id],
        )?;
    }
    let mut is_known = false;
    for usage in &settlement.token_usages {
        // The further rows of an answer go with the first one.
        if usage.part == 0 {
            is_known = usage.once_per_response && has_exact_usage(batch, &id, usage)?;
        }
        if !is_known {
            put_token_usage(batch, record, usage, now)?;
        }
    }
    // What an answer says is recorded once, however often it is fetched.
    if !is_known {
        insert_children(batch, &settlement.tool_usages, record, now)?;
        insert_children(batch, &settlement.thoughts, record, now)?;
        insert_children(batch, &settlement.answers, record, now)?;
    }
    insert_children(batch, &settlement.upstream_attempts, record, now)?;
    let tool_calls = if is_known { 0 } else { settlement.tool_usages.len() };
    if let Some(settled) = summed_record(batch, record, tool_calls)? {
        batch.differences.ended(&settled);
    }
    Ok(())
}

/// The cells, followed by the id of their record.
fn with_id(mut cells: RowCells<'_>, record: Uuid) -> RowCells<'_> {
    cells.push(Cell::Id(Some(record)));
    cells
}

fn insert_children<T: ChildRow>(
    batch: &mut Batch<'_, '_>,
    rows: &[T],
    record: Uuid,
    now: Timestamp,
) -> Result<(), LedgerError> {
    rows.iter().try_for_each(|row| insert_child(batch, row, record, now))
}

fn insert_child<T: ChildRow>(
    batch: &mut Batch<'_, '_>,
    row: &T,
    record: Uuid,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let id = batch.row_id();
    batch.execute(T::insert_sql(), &row.cells(id, record, now)).map(|_inserted| ())
}

/// Inserts a row of token usage, or replaces that of a note.
fn put_token_usage(
    batch: &mut Batch<'_, '_>,
    record: Uuid,
    usage: &NewTokenUsage,
    now: Timestamp,
) -> Result<(), LedgerError> {
    let cells = usage.cells(usage.row_id(record), record, now);
    batch.execute(NewTokenUsage::upsert_sql(), &cells).map(|_put| ())
}

/// Whether records of the same user have exact token usage of this response of the same provider.
fn has_exact_usage(
    batch: &mut Batch<'_, '_>,
    id: &IdText,
    usage: &NewTokenUsage,
) -> Result<bool, LedgerError> {
    let Some(response) = &usage.provider_response_id else { return Ok(false) };
    let known = batch
        .statement(
            "SELECT 1 FROM token_usages u JOIN interceptions i ON i.id = u.interception_id
             JOIN interceptions o ON o.id = ?3 AND o.user_id = i.user_id AND o.provider = i.provider
             WHERE u.provider_response_id = ?1 AND u.quality = ?2 LIMIT 1",
        )?
        .exists(params![response, Quality::Exact.as_str(), id])?;
    Ok(known)
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
