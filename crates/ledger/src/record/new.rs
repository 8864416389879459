//! What the request path hands over: the opening of a record and its settlement.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::record::{Interception, Outcome, Quality};

/// A record to be opened.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Opening {
    /// The record as far as it is known; its thread and parent are found by the ledger.
    pub interception: Interception,
    /// The user's own words.
    pub prompt: Option<String>,
    /// Results of earlier tool calls that the request carries.
    pub tool_results: Vec<ToolResult>,
}

/// The size of a tool's result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolResult {
    /// The call it answers.
    pub tool_call_id: String,
    /// Its size.
    pub bytes: u64,
    /// Whether the client marked it as an error.
    pub is_error: Option<bool>,
}

/// What became of a record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settlement {
    /// When it was over.
    pub ended_at: Timestamp,
    /// When the first byte of the answer came.
    pub first_byte_at: Option<Timestamp>,
    /// How it ended.
    pub outcome: Outcome,
    /// Status sent to the client.
    pub status_code: Option<u16>,
    /// Status of the provider.
    pub upstream_status: Option<u16>,
    /// Kind of the error.
    pub error_kind: Option<String>,
    /// Its message, without secrets.
    pub error_message: Option<String>,
    /// The model as answered.
    pub model_served: Option<String>,
    /// Why the model stopped.
    pub stop_reason: Option<String>,
    /// How often the provider was asked.
    pub attempts: u32,
    /// Further turns that called injected tools.
    pub inner_turns: u32,
    /// Bytes of the provider's answer that were relayed.
    pub response_bytes: u64,
    /// The provider's id of the answer, put on the prompt too.
    pub provider_response_id: Option<String>,
    /// Token counts, a row per answer of the provider.
    pub token_usages: Vec<NewTokenUsage>,
    /// Tool calls of the model.
    pub tool_usages: Vec<NewToolUsage>,
    /// Thoughts of the model.
    pub thoughts: Vec<NewThought>,
    /// Who answered, where that is not as the record was opened.
    #[serde(default)]
    pub served_by: Option<ServedBy>,
}

/// The provider and the credential that a request came to in the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServedBy {
    /// The provider instance.
    pub provider: String,
    /// `pool:<key name>`.
    pub credential_source: String,
    /// The masked credential.
    pub credential_hint: String,
    /// Its length in Unicode scalar values.
    pub credential_length: u32,
    /// Its keyed fingerprint, 16 hex digits.
    pub credential_fingerprint: String,
}

impl Settlement {
    /// A settlement of which only time and outcome are known.
    pub fn new(ended_at: Timestamp, outcome: Outcome) -> Self {
        Self {
            ended_at,
            first_byte_at: None,
            outcome,
            status_code: None,
            upstream_status: None,
            error_kind: None,
            error_message: None,
            model_served: None,
            stop_reason: None,
            attempts: 0,
            inner_turns: 0,
            response_bytes: 0,
            provider_response_id: None,
            token_usages: Vec::new(),
            tool_usages: Vec::new(),
            thoughts: Vec::new(),
            served_by: None,
        }
    }
}

/// The token counts of one answer; `None` is "not known".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTokenUsage {
    /// The provider's id of the answer.
    pub provider_response_id: Option<String>,
    /// Input that was not cached.
    pub input: Option<u64>,
    /// Output.
    pub output: Option<u64>,
    /// Input read from the provider's cache.
    pub cache_read: Option<u64>,
    /// Input written to the provider's cache.
    pub cache_write: Option<u64>,
    /// Further counts by name.
    pub extra: BTreeMap<String, u64>,
    /// How far the figures can be trusted.
    pub quality: Quality,
    /// Which of the record's answers it is, from 0: an inner loop has several.
    #[serde(default)]
    pub turn: u16,
    /// Skip the row when the same user's records hold exact figures of that answer already: a
    /// background answer may be fetched many times.
    pub once_per_response: bool,
}

impl Default for NewTokenUsage {
    fn default() -> Self {
        Self {
            provider_response_id: None,
            input: None,
            output: None,
            cache_read: None,
            cache_write: None,
            extra: BTreeMap::new(),
            quality: Quality::Unknown,
            turn: 0,
            once_per_response: false,
        }
    }
}

impl NewTokenUsage {
    /// The id of its row: that of a note and of the settlement that replaces it are the same.
    pub(crate) fn row(&self, record: Uuid) -> Uuid {
        Uuid::from_u128(record.as_u128().wrapping_add(self.turn.into()))
    }
}

/// One tool call of the model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewToolUsage {
    /// The provider's id of the answer.
    pub provider_response_id: Option<String>,
    /// The call's id.
    pub tool_call_id: Option<String>,
    /// The tool's name.
    pub tool: String,
    /// Its arguments as they came.
    pub arguments: Option<String>,
    /// Whether the bridge injected the tool.
    pub injected: bool,
    /// The MCP server of an injected tool.
    pub server_url: Option<String>,
    /// Why an injected tool's call failed.
    pub invocation_error: Option<String>,
    /// How long an injected tool's call took.
    pub duration_ms: Option<u64>,
    /// Size of an injected tool's result.
    #[serde(default)]
    pub result_bytes: Option<u64>,
    /// Whether an injected tool called its result an error.
    #[serde(default)]
    pub result_is_error: Option<bool>,
}

/// Thinking, a reasoning summary or a commentary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewThought {
    /// Where it comes from.
    pub source: String,
    /// The text.
    pub content: String,
}
