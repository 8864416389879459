//! Rows of SQLite as records.

use std::str::FromStr;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Params, Row, types::FromSql};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    InterceptionItem, LedgerError,
    record::{Interception, Prompt, Thought, Token, TokenUsage, ToolUsage, User},
};

/// A record that a row can be read as.
pub(super) trait FromRow: Sized {
    /// The columns in the order in which they are read.
    const COLUMNS: &'static str;

    fn from_row(row: &mut Cells<'_, '_>) -> Result<Self, LedgerError>;
}

/// The cells of a row, taken one after another.
pub(super) struct Cells<'a, 'b> {
    row: &'a Row<'b>,
    next: usize,
}

impl<'a, 'b> Cells<'a, 'b> {
    pub(super) const fn new(row: &'a Row<'b>) -> Self {
        Self { row, next: 0 }
    }

    pub(super) fn take<T: FromSql>(&mut self) -> Result<T, LedgerError> {
        let cell = self.row.get(self.next).map_err(|error| LedgerError::Row(error.to_string()))?;
        self.next += 1;
        Ok(cell)
    }

    /// A cell whose text is parsed.
    pub(super) fn parsed<T: FromStr>(&mut self) -> Result<T, LedgerError>
    where
        T::Err: std::fmt::Display,
    {
        let text: String = self.take()?;
        text.parse().map_err(|error: T::Err| LedgerError::Row(format!("`{text}`: {error}")))
    }

    pub(super) fn optional<T: FromStr>(&mut self) -> Result<Option<T>, LedgerError>
    where
        T::Err: std::fmt::Display,
    {
        let text: Option<String> = self.take()?;
        text.map(|text| {
            text.parse().map_err(|error: T::Err| LedgerError::Row(format!("`{text}`: {error}")))
        })
        .transpose()
    }

    pub(super) fn count(&mut self) -> Result<u64, LedgerError> {
        Ok(u64::try_from(self.take::<i64>()?).unwrap_or(0))
    }

    fn optional_count(&mut self) -> Result<Option<u64>, LedgerError> {
        Ok(self.take::<Option<i64>>()?.map(|count| u64::try_from(count).unwrap_or(0)))
    }

    fn json(&mut self) -> Result<Value, LedgerError> {
        let text: String = self.take()?;
        Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }
}

/// All rows of a query.
pub(super) fn all<T: FromRow, P: Params>(
    connection: &Connection,
    sql: &str,
    values: P,
) -> Result<Vec<T>, LedgerError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(values)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(T::from_row(&mut Cells::new(row))?);
    }
    Ok(found)
}

/// The first row of a query.
pub(super) fn first<T: FromRow, P: Params>(
    connection: &Connection,
    sql: &str,
    values: P,
) -> Result<Option<T>, LedgerError> {
    let mut statement = connection.prepare_cached(sql)?;
    let row =
        statement.query_row(values, |row| Ok(T::from_row(&mut Cells::new(row)))).optional()?;
    row.transpose()
}

impl FromRow for User {
    const COLUMNS: &'static str = "id, name, email, role, status, created_at";

    fn from_row(row: &mut Cells<'_, '_>) -> Result<Self, LedgerError> {
        Ok(Self {
            id: row.parsed()?,
            name: row.take()?,
            email: row.take()?,
            role: row.parsed()?,
            status: row.parsed()?,
            created_at: row.parsed()?,
        })
    }
}

impl FromRow for Token {
    const COLUMNS: &'static str =
        "id, user_id, name, token_hash, hint, created_at, expires_at, last_used_at, revoked_at";

    fn from_row(row: &mut Cells<'_, '_>) -> Result<Self, LedgerError> {
        Ok(Self {
            id: row.parsed()?,
            user_id: row.parsed()?,
            name: row.take()?,
            token_hash: row.take()?,
            hint: row.take()?,
            created_at: row.parsed()?,
            expires_at: row.optional()?,
            last_used_at: row.optional()?,
            revoked_at: row.optional()?,
        })
    }
}

impl FromRow for Interception {
    const COLUMNS: &'static str = "i.id, i.user_id, i.token_id, i.provider, i.provider_type,
        i.endpoint, i.dialect, i.model, i.model_served, i.streaming, i.client, i.user_agent,
        i.client_session_id, i.agent_id, i.parent_agent_id, i.thread_id, i.parent_id,
        i.correlating_tool_call_id, i.credential_kind, i.credential_source, i.credential_scheme,
        i.credential_hint, i.credential_length, i.credential_fingerprint, i.started_at,
        i.first_byte_at, i.ended_at, i.outcome, i.status_code, i.upstream_status, i.error_kind,
        i.error_message, i.stop_reason, i.attempts, i.inner_turns, i.request_bytes,
        i.response_bytes, i.body_edits, i.request_sha256";

    fn from_row(row: &mut Cells<'_, '_>) -> Result<Self, LedgerError> {
        Ok(Self {
            id: row.parsed()?,
            user_id: row.parsed()?,
            token_id: row.optional()?,
            provider: row.take()?,
            provider_type: row.take()?,
            endpoint: row.take()?,
            dialect: row.take()?,
            model: row.take()?,
            model_served: row.take()?,
            streaming: row.take()?,
            client: row.take()?,
            user_agent: row.take()?,
            client_session_id: row.take()?,
            agent_id: row.take()?,
            parent_agent_id: row.take()?,
            thread_id: row.optional::<Uuid>()?,
            parent_id: row.optional()?,
            correlating_tool_call_id: row.take()?,
            credential_kind: row.take()?,
            credential_source: row.take()?,
            credential_scheme: row.take()?,
            credential_hint: row.take()?,
            credential_length: row.take()?,
            credential_fingerprint: row.take()?,
            started_at: row.parsed()?,
            first_byte_at: row.optional::<Timestamp>()?,
            ended_at: row.optional()?,
            outcome: row.parsed()?,
            status_code: row.take()?,
            upstream_status: row.take()?,
            error_kind: row.take()?,
            error_message: row.take()?,
            stop_reason: row.take()?,
            attempts: row.take()?,
            inner_turns: row.take()?,
            request_bytes: row.count()?,
            response_bytes: row.count()?,
            body_edits: {
                let text: String = row.take()?;
                serde_json::from_str(&text).map_err(|error| LedgerError::Row(error.to_string()))?
            },
            request_sha256: row.take()?,
        })
    }
}

impl FromRow for InterceptionItem {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut Cells<'_, '_>) -> Result<Self, LedgerError> {
        Ok(Self {
            interception: Interception::from_row(row)?,
            user: row.take()?,
            input_tokens: row.count()?,
            output_tokens: row.count()?,
            cache_read_input_tokens: row.count()?,
            cache_write_input_tokens: row.count()?,
            tool_calls: row.count()?,
        })
    }
}

impl FromRow for TokenUsage {
    const COLUMNS: &'static str = "id, interception_id, provider_response_id, input_tokens,
        output_tokens, cache_read_input_tokens, cache_write_input_tokens, extra, quality,
        created_at";

    fn from_row(row: &mut Cells<'_, '_>) -> Result<Self, LedgerError> {
        Ok(Self {
            id: row.parsed()?,
            interception_id: row.parsed()?,
            provider_response_id: row.take()?,
            input_tokens: row.optional_count()?,
            output_tokens: row.optional_count()?,
            cache_read_input_tokens: row.optional_count()?,
            cache_write_input_tokens: row.optional_count()?,
            extra: row.json()?,
            quality: row.parsed()?,
            created_at: row.parsed()?,
        })
    }
}

impl FromRow for Prompt {
    const COLUMNS: &'static str = "id, interception_id, provider_response_id, prompt, created_at";

    fn from_row(row: &mut Cells<'_, '_>) -> Result<Self, LedgerError> {
        Ok(Self {
            id: row.parsed()?,
            interception_id: row.parsed()?,
            provider_response_id: row.take()?,
            prompt: row.take()?,
            created_at: row.parsed()?,
        })
    }
}

impl FromRow for ToolUsage {
    const COLUMNS: &'static str = "id, interception_id, provider_response_id, tool_call_id, tool,
        arguments, injected, server_url, invocation_error, duration_ms, result_bytes,
        result_is_error, created_at";

    fn from_row(row: &mut Cells<'_, '_>) -> Result<Self, LedgerError> {
        Ok(Self {
            id: row.parsed()?,
            interception_id: row.parsed()?,
            provider_response_id: row.take()?,
            tool_call_id: row.take()?,
            tool: row.take()?,
            arguments: {
                let text: Option<String> = row.take()?;
                text.map(|text| serde_json::from_str(&text).unwrap_or(Value::String(text)))
            },
            injected: row.take()?,
            server_url: row.take()?,
            invocation_error: row.take()?,
            duration_ms: row.optional_count()?,
            result_bytes: row.optional_count()?,
            result_is_error: row.take()?,
            created_at: row.parsed()?,
        })
    }
}

impl FromRow for Thought {
    const COLUMNS: &'static str = "id, interception_id, source, content, created_at";

    fn from_row(row: &mut Cells<'_, '_>) -> Result<Self, LedgerError> {
        Ok(Self {
            id: row.parsed()?,
            interception_id: row.parsed()?,
            source: row.take()?,
            content: row.take()?,
            created_at: row.parsed()?,
        })
    }
}
