//! The writing connection: a batch is one transaction; where a record cannot be written, each is a
//! savepoint within it.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, ToSql, params};
use uuid::Uuid;

use super::batch::{Batch, IdText, LAST_USED_STEP, LastUses};
use crate::{
    LedgerError, NewTokenUsage, NewToolUsage, Opening, Settlement, ToolResult,
    record::{Interception, Outcome, Quality, time_text},
    store::StoreWriter,
    store::{Receipt, Write},
};

/// The one connection that writes records.
#[derive(Debug)]
pub(super) struct SqliteWriter {
    connection: Connection,
    last_uses: LastUses,
}

impl SqliteWriter {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, last_uses: LastUses::default() }
    }

    /// All writes or none; `None` if one of them is what cannot be written.
    fn commit_all(&mut self, writes: &[Write]) -> Result<Option<Vec<Receipt>>, LedgerError> {
        let mut batch = self.begin()?;
        let mut receipts = Vec::with_capacity(writes.len());
        for write in writes {
            match one(&mut batch, write) {
                Ok(receipt) => receipts.push(receipt),
                Err(error) if error.is_about_one_record() => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        batch.commit()?;
        Ok(Some(receipts))
    }

    fn begin(&mut self) -> Result<Batch<'_>, LedgerError> {
        Batch::begin(&self.connection, &mut self.last_uses)
    }
}

impl StoreWriter for SqliteWriter {
    fn commit(
        &mut self,
        writes: &[Write],
    ) -> Result<Vec<Result<Receipt, LedgerError>>, LedgerError> {
        // A savepoint costs as much as a statement, and hardly ever is there need for one.
        if let Some(receipts) = self.commit_all(writes)? {
            return Ok(receipts.into_iter().map(Ok).collect());
        }
        let mut batch = self.begin()?;
        let mut receipts = Vec::with_capacity(writes.len());
        for write in writes {
            match batch.apart(|batch| one(batch, write)) {
                Err(error) if !error.is_about_one_record() => return Err(error),
                receipt => receipts.push(receipt),
            }
        }
        batch.commit()?;
        Ok(receipts)
    }

    fn probe(&mut self) -> Result<(), LedgerError> {
        self.connection.execute(
            "INSERT INTO settings (key, value) VALUES ('probe', ?1)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            [time_text(Timestamp::now()).as_bytes()],
        )?;
        Ok(())
    }
}

fn one(batch: &mut Batch<'_>, write: &Write) -> Result<Receipt, LedgerError> {
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
        Write::Keep(id, user, kept) => {
            keep(batch, *id, *user, kept)?;
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
    batch: &mut Batch<'_>,
    replica: Option<Uuid>,
    opening: &Opening,
) -> Result<Receipt, LedgerError> {
    let interception = &opening.interception;
    let (id, user) = (IdText::from(interception.id), IdText::from(interception.user_id));
    let parent = match &interception.correlating_tool_call_id {
        Some(call) => parent(batch, &user, call)?,
        None => None,
    };
    let now = time_text(interception.started_at);
    if !insert(batch, replica, interception, parent.as_ref(), &now)? {
        let thread = batch
            .statement("SELECT thread_id FROM interceptions WHERE id = ?1")?
            .query_row([&id], |row| row.get::<_, Option<String>>(0))?;
        return Ok(Receipt { thread_id: thread.and_then(|thread| thread.parse().ok()) });
    }
    if let Some(prompt) = &opening.prompt {
        let row = batch.row();
        batch
            .statement(
                "INSERT INTO prompts (id, interception_id, prompt, created_at)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![row, id, prompt, now])?;
    }
    for result in &opening.tool_results {
        put_result(batch, &user, result)?;
    }
    if let Some(token) = interception.token_id {
        touch(batch, token, interception.started_at)?;
    }
    let thread_id = parent.map_or(Some(interception.id), |parent| parent.thread_id.parse().ok());
    Ok(Receipt { thread_id })
}

/// The interception whose tool call another one answers.
struct Parent {
    id: String,
    thread_id: String,
}

/// The interception of the same user whose answer made a tool call, and its thread.
fn parent(batch: &mut Batch<'_>, user: &IdText, call: &str) -> Result<Option<Parent>, LedgerError> {
    let found = batch
        .statement(
            "SELECT i.id, coalesce(i.thread_id, i.id) FROM tool_usages t
             JOIN interceptions i ON i.id = t.interception_id
             WHERE t.tool_call_id = ?1 AND i.user_id = ?2 ORDER BY t.id DESC LIMIT 1",
        )?
        .query_row(params![call, user], |row| {
            Ok(Parent { id: row.get(0)?, thread_id: row.get(1)? })
        })
        .optional()?;
    Ok(found)
}

/// Puts the size of a result on the row of the call it answers; the first one counts, because
/// agents send their whole history again and again.
fn put_result(
    batch: &mut Batch<'_>,
    user: &IdText,
    result: &ToolResult,
) -> Result<(), LedgerError> {
    batch
        .statement(
            "UPDATE tool_usages SET result_bytes = ?1, result_is_error = ?2
         WHERE id = (SELECT t.id FROM tool_usages t
             JOIN interceptions i ON i.id = t.interception_id
             WHERE t.tool_call_id = ?3 AND i.user_id = ?4 ORDER BY t.id DESC LIMIT 1)
         AND result_bytes IS NULL",
        )?
        .execute(params![signed(result.bytes), result.is_error, result.tool_call_id, user])?;
    Ok(())
}

fn touch(batch: &mut Batch<'_>, token: Uuid, now: Timestamp) -> Result<(), LedgerError> {
    if batch.last_uses.has(token, now) {
        return Ok(());
    }
    let stale = now.checked_sub(LAST_USED_STEP).unwrap_or(now);
    let touched = batch
        .statement(
            "UPDATE tokens SET last_used_at = ?1
         WHERE id = ?2 AND (last_used_at IS NULL OR last_used_at < ?3)",
        )?
        .execute(params![time_text(now), IdText::from(token), time_text(stale)])?;
    if touched > 0 {
        batch.last_uses.note(token, now);
    }
    Ok(())
}

/// Whether a record was new.
fn insert(
    batch: &mut Batch<'_>,
    replica: Option<Uuid>,
    record: &Interception,
    parent: Option<&Parent>,
    now: &str,
) -> Result<bool, LedgerError> {
    let id = IdText::from(record.id);
    let thread: &dyn ToSql = parent.map_or(&id, |parent| &parent.thread_id);
    let body_edits = serde_json::to_string(&record.body_edits)
        .map_err(|error| LedgerError::Row(error.to_string()))?;
    let inserted = batch
        .statement(
            "INSERT INTO interceptions (id, user_id, token_id, provider, provider_type, endpoint,
         dialect, model, streaming, client, user_agent, client_session_id, agent_id,
         parent_agent_id, thread_id, parent_id, correlating_tool_call_id, credential_kind,
         credential_source, credential_scheme, credential_hint, credential_length,
         credential_fingerprint, started_at, outcome, attempts, inner_turns, request_bytes,
         response_bytes, body_edits, request_sha256, replica_id)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18,
         ?19, ?20, ?21, ?22, ?23, ?24, ?25, 0, 0, ?26, 0, ?27, ?28, ?29)
         ON CONFLICT (id) DO NOTHING",
        )?
        .execute(params![
            id,
            IdText::from(record.user_id),
            record.token_id.map(IdText::from),
            record.provider,
            record.provider_type,
            record.endpoint,
            record.dialect,
            record.model,
            record.streaming,
            record.client,
            record.user_agent,
            record.client_session_id,
            record.agent_id,
            record.parent_agent_id,
            thread,
            parent.map(|parent| &parent.id),
            record.correlating_tool_call_id,
            record.credential_kind,
            record.credential_source,
            record.credential_scheme,
            record.credential_hint,
            record.credential_length,
            record.credential_fingerprint,
            now,
            Outcome::InProgress.as_str(),
            signed(record.request_bytes),
            body_edits,
            record.request_sha256,
            replica.map(IdText::from),
        ])?;
    Ok(inserted > 0)
}

/// Keeps what later requests need; of a key that comes again the latest value counts.
fn keep(
    batch: &mut Batch<'_>,
    id: Uuid,
    user: Uuid,
    kept: &[(String, String)],
) -> Result<(), LedgerError> {
    let (id, user) = (IdText::from(id), IdText::from(user));
    for (key, value) in kept {
        batch
            .statement(
                "INSERT INTO continuations (user_id, key, interception_id, value)
             VALUES (?1, ?2, ?3, ?4) ON CONFLICT (user_id, key) DO UPDATE
             SET interception_id = excluded.interception_id, value = excluded.value",
            )?
            .execute(params![user, key, id, value])?;
    }
    Ok(())
}

/// Notes what is known of the tokens of a record in progress, in the row that the settlement then
/// replaces.
fn note(batch: &mut Batch<'_>, id: Uuid, usage: &NewTokenUsage) -> Result<(), LedgerError> {
    let row = usage.row(id).into();
    let id = id.into();
    let is_open = batch
        .statement(
            "SELECT 1 FROM interceptions WHERE id = ?1
             AND outcome IN ('in_progress', 'interrupted')",
        )?
        .exists([&id])?;
    if is_open {
        put_token_usage(batch, &row, &id, usage, &time_text(Timestamp::now()))?;
    }
    Ok(())
}

/// Settles a record that is in progress, or that was taken for dead too early; one that is settled
/// stays as it is.
fn settle(batch: &mut Batch<'_>, record: Uuid, settlement: &Settlement) -> Result<(), LedgerError> {
    let id = IdText::from(record);
    let now = time_text(settlement.ended_at);
    let changed = batch
        .statement(
            "UPDATE interceptions SET model_served = ?2, first_byte_at = ?3, ended_at = ?4,
             outcome = ?5, status_code = ?6, upstream_status = ?7, error_kind = ?8,
             error_message = ?9, stop_reason = ?10, attempts = ?11, inner_turns = ?12,
             response_bytes = ?13
             WHERE id = ?1 AND outcome IN ('in_progress', 'interrupted')",
        )?
        .execute(params![
            id,
            settlement.model_served,
            settlement.first_byte_at.map(time_text),
            now,
            settlement.outcome.as_str(),
            settlement.status_code,
            settlement.upstream_status,
            settlement.error_kind,
            settlement.error_message,
            settlement.stop_reason,
            settlement.attempts,
            settlement.inner_turns,
            signed(settlement.response_bytes),
        ])?;
    if changed == 0 {
        tracing::debug!(interception_id = %record, "the record was settled before");
        return Ok(());
    }
    if let Some(served) = &settlement.served_by {
        batch.statement(
            "UPDATE interceptions SET provider = ?2, credential_source = ?3, credential_hint = ?4,
             credential_length = ?5, credential_fingerprint = ?6 WHERE id = ?1",
        )?
        .execute(params![
            id,
            served.provider,
            served.credential_source,
            served.credential_hint,
            served.credential_length,
            served.credential_fingerprint,
        ])?;
    }
    if let Some(response) = &settlement.provider_response_id {
        batch
            .statement("UPDATE prompts SET provider_response_id = ?1 WHERE interception_id = ?2")?
            .execute(params![response, id])?;
    }
    for usage in &settlement.token_usages {
        if usage.once_per_response && is_known(batch, &id, usage)? {
            continue;
        }
        put_token_usage(batch, &usage.row(record).into(), &id, usage, &now)?;
    }
    for usage in &settlement.tool_usages {
        insert_tool_usage(batch, &id, usage, &now)?;
    }
    for thought in &settlement.thoughts {
        let row = batch.row();
        batch
            .statement(
                "INSERT INTO thoughts (id, interception_id, source, content, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![row, id, thought.source, thought.content, now])?;
    }
    Ok(())
}

fn put_token_usage(
    batch: &mut Batch<'_>,
    row: &IdText,
    id: &IdText,
    usage: &NewTokenUsage,
    now: &str,
) -> Result<(), LedgerError> {
    let extra =
        serde_json::to_string(&usage.extra).map_err(|error| LedgerError::Row(error.to_string()))?;
    batch
        .statement(
            "INSERT INTO token_usages (id, interception_id, provider_response_id, input_tokens,
         output_tokens, cache_read_input_tokens, cache_write_input_tokens, extra, quality,
         created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
         ON CONFLICT (id) DO UPDATE SET provider_response_id = excluded.provider_response_id,
         input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
         cache_read_input_tokens = excluded.cache_read_input_tokens,
         cache_write_input_tokens = excluded.cache_write_input_tokens, extra = excluded.extra,
         quality = excluded.quality, created_at = excluded.created_at",
        )?
        .execute(params![
            row,
            id,
            usage.provider_response_id,
            usage.input.map(signed),
            usage.output.map(signed),
            usage.cache_read.map(signed),
            usage.cache_write.map(signed),
            extra,
            usage.quality.as_str(),
            now,
        ])?;
    Ok(())
}

/// Whether the same user's records hold exact figures of this answer.
fn is_known(
    batch: &mut Batch<'_>,
    id: &IdText,
    usage: &NewTokenUsage,
) -> Result<bool, LedgerError> {
    let Some(response) = &usage.provider_response_id else { return Ok(false) };
    let known = batch
        .statement(
            "SELECT 1 FROM token_usages u JOIN interceptions i ON i.id = u.interception_id
             WHERE u.provider_response_id = ?1 AND u.quality = ?2
             AND i.user_id = (SELECT user_id FROM interceptions WHERE id = ?3)",
        )?
        .exists(params![response, Quality::Exact.as_str(), id])?;
    Ok(known)
}

fn insert_tool_usage(
    batch: &mut Batch<'_>,
    id: &IdText,
    usage: &NewToolUsage,
    now: &str,
) -> Result<(), LedgerError> {
    let row = batch.row();
    batch.statement(
        "INSERT INTO tool_usages (id, interception_id, provider_response_id, tool_call_id, tool,
         arguments, injected, server_url, invocation_error, duration_ms, result_bytes,
         result_is_error, created_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?
    .execute(params![
        row,
        id,
        usage.provider_response_id,
        usage.tool_call_id,
        usage.tool,
        usage.arguments.as_deref().map(as_json),
        usage.injected,
        usage.server_url,
        usage.invocation_error,
        usage.duration_ms.map(signed),
        usage.result_bytes.map(signed),
        usage.result_is_error,
        now,
    ])?;
    Ok(())
}

/// Arguments as JSON text: as they came when they are JSON, else as a JSON string.
fn as_json(arguments: &str) -> String {
    if serde_json::from_str::<serde::de::IgnoredAny>(arguments).is_ok() {
        arguments.to_owned()
    } else {
        serde_json::Value::from(arguments).to_string()
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
