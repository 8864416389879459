//! Rows as records.

use serde_json::Value;

use crate::{
    InterceptionItem, LedgerError, Session, TokenCounts, TokenSums,
    record::{Interception, Prompt, Thought, TokenUsage, ToolUsage},
    store::sql::{Cells, FromRow, count, optional_count, required, word},
};

/// Text as JSON; what is none is a string.
fn json(text: String) -> Value {
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

impl FromRow for Interception {
    const COLUMNS: &'static str = "i.id, i.user_id, i.token_id, i.provider, i.provider_type,
        i.endpoint, i.dialect, i.model, i.model_served, i.streaming, i.client, i.user_agent,
        i.client_session_id, i.agent_id, i.parent_agent_id, i.thread_id, i.parent_id,
        i.correlating_tool_call_id, i.credential_kind, i.credential_source, i.credential_scheme,
        i.credential_hint, i.credential_length, i.credential_fingerprint, i.started_at,
        i.first_byte_at, i.ended_at, i.outcome, i.status_code, i.upstream_status, i.error_kind,
        i.error_message, i.stop_reason, i.attempts, i.inner_turns, i.request_bytes,
        i.response_bytes, CAST(i.body_edits AS TEXT), i.request_sha256";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            id: required(row.id()?)?,
            user_id: required(row.id()?)?,
            token_id: row.id()?,
            provider: required(row.text()?)?,
            provider_type: required(row.text()?)?,
            endpoint: required(row.text()?)?,
            dialect: required(row.text()?)?,
            model: row.text()?,
            model_served: row.text()?,
            streaming: required(row.boolean()?)?,
            client: row.text()?,
            user_agent: row.text()?,
            client_session_id: row.text()?,
            agent_id: row.text()?,
            parent_agent_id: row.text()?,
            thread_id: row.id()?,
            parent_id: row.id()?,
            correlating_tool_call_id: row.text()?,
            credential_kind: row.text()?,
            credential_source: row.text()?,
            credential_scheme: row.text()?,
            credential_hint: row.text()?,
            credential_length: optional_count(row)?,
            credential_fingerprint: row.text()?,
            started_at: required(row.time()?)?,
            first_byte_at: row.time()?,
            ended_at: row.time()?,
            outcome: word(row)?,
            status_code: optional_count(row)?,
            upstream_status: optional_count(row)?,
            error_kind: row.text()?,
            error_message: row.text()?,
            stop_reason: row.text()?,
            attempts: required(optional_count(row)?)?,
            inner_turns: required(optional_count(row)?)?,
            request_bytes: count(row)?,
            response_bytes: count(row)?,
            body_edits: {
                let text = required(row.text()?)?;
                serde_json::from_str(&text).map_err(|error| LedgerError::Row(error.to_string()))?
            },
            request_sha256: row.text()?,
        })
    }
}

impl FromRow for TokenCounts {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            input_tokens: count(row)?,
            output_tokens: count(row)?,
            cache_read_input_tokens: count(row)?,
            cache_write_input_tokens: count(row)?,
        })
    }
}

impl FromRow for TokenSums {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            exact: TokenCounts::from_row(row)?,
            estimated: TokenCounts::from_row(row)?,
            unknown_usages: count(row)?,
        })
    }
}

impl FromRow for InterceptionItem {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            interception: Interception::from_row(row)?,
            user: required(row.text()?)?,
            tokens: TokenSums::from_row(row)?,
            tool_calls: count(row)?,
        })
    }
}

impl FromRow for Session {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            id: required(row.text()?)?,
            user: required(row.text()?)?,
            client: row.text()?,
            first_at: required(row.time()?)?,
            last_at: required(row.time()?)?,
            ended_at: row.time()?,
            models: {
                let text = required(row.text()?)?;
                let mut models: Vec<String> = serde_json::from_str::<Vec<Option<String>>>(&text)
                    .map_err(|error| LedgerError::Row(error.to_string()))?
                    .into_iter()
                    .flatten()
                    .collect();
                models.sort();
                models
            },
            requests: count(row)?,
            tokens: TokenSums::from_row(row)?,
            tools: count(row)?,
        })
    }
}

impl FromRow for TokenUsage {
    const COLUMNS: &'static str = "id, interception_id, provider_response_id, input_tokens,
        output_tokens, cache_read_input_tokens, cache_write_input_tokens, CAST(extra AS TEXT),
        quality, created_at";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            id: required(row.id()?)?,
            interception_id: required(row.id()?)?,
            provider_response_id: row.text()?,
            input_tokens: optional_count(row)?,
            output_tokens: optional_count(row)?,
            cache_read_input_tokens: optional_count(row)?,
            cache_write_input_tokens: optional_count(row)?,
            extra: json(required(row.text()?)?),
            quality: word(row)?,
            created_at: required(row.time()?)?,
        })
    }
}

impl FromRow for Prompt {
    const COLUMNS: &'static str = "id, interception_id, provider_response_id, prompt, created_at";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            id: required(row.id()?)?,
            interception_id: required(row.id()?)?,
            provider_response_id: row.text()?,
            prompt: required(row.text()?)?,
            created_at: required(row.time()?)?,
        })
    }
}

impl FromRow for ToolUsage {
    const COLUMNS: &'static str = "id, interception_id, provider_response_id, tool_call_id, tool,
        arguments, injected, server_url, invocation_error, duration_ms, result_bytes,
        result_is_error, created_at";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            id: required(row.id()?)?,
            interception_id: required(row.id()?)?,
            provider_response_id: row.text()?,
            tool_call_id: row.text()?,
            tool: required(row.text()?)?,
            arguments: row.text()?.map(json),
            injected: required(row.boolean()?)?,
            server_url: row.text()?,
            invocation_error: row.text()?,
            duration_ms: optional_count(row)?,
            result_bytes: optional_count(row)?,
            result_is_error: row.boolean()?,
            created_at: required(row.time()?)?,
        })
    }
}

impl FromRow for Thought {
    const COLUMNS: &'static str = "id, interception_id, source, content, created_at";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            id: required(row.id()?)?,
            interception_id: required(row.id()?)?,
            source: required(row.text()?)?,
            content: required(row.text()?)?,
            created_at: required(row.time()?)?,
        })
    }
}
