//! The tables whose rows belong to an interception.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Number, Value as Json};
use uuid::Uuid;

use super::{Quality, UsageKind, columns::child_table, serialize_time};

child_table! {
    /// The token counts of one answer of a provider, or of what else was generated for it; `None` is "not
    /// known".
    new NewTokenUsage, table "token_usages" {
        /// What the tokens were spent on.
        kind: UsageKind,
        /// The provider's id of the answer.
        provider_response_id: Option<String>,
        /// The model that the provider names.
        model: Option<String>,
        /// The service tier that served the request.
        service_tier: Option<String>,
        /// The speed of the answer, where the provider offers several.
        speed: Option<String>,
        /// Where the answer was generated.
        region: Option<String>,
        /// Input that was neither read from nor written to a cache.
        #[serde(alias = "input")]
        input_tokens: Option<u64>,
        /// Output, thoughts included.
        #[serde(alias = "output")]
        output_tokens: Option<u64>,
        /// Input read from the provider's cache.
        #[serde(alias = "cache_read")]
        cache_read_input_tokens: Option<u64>,
        /// Input written to the provider's cache.
        #[serde(alias = "cache_write")]
        cache_write_input_tokens: Option<u64>,
        /// The part of the cache writes that is kept for an hour or more.
        cache_write_long_tokens: Option<u64>,
        /// Further figures by name: counts, and amounts that the provider states.
        extra: BTreeMap<String, Number> => Json,
        /// The provider's usage object: JSON, or a string where it was too long and was cut.
        raw: Option<String> => Option<Json>,
        /// How far the figures can be trusted.
        quality: Quality,
    }
    unstored {
        /// Which of the record's answers it is, from 0: an inner loop has several.
        turn: u16,
        /// Which row of that answer it is, from 0, the answer itself.
        part: u16,
        /// Skip the row when the same user's records already hold exact figures of that answer: a
        /// background answer may be fetched many times.
        once_per_response: bool,
    }
    /// The tokens of one answer of a provider, or of what else was generated for it; `None` is "not known",
    /// never zero.
    row TokenUsage
}

impl NewTokenUsage {
    /// The id of its row: a note and the settlement that replaces it have the same.
    pub(crate) fn row_id(&self, record: Uuid) -> Uuid {
        let number = u128::from(self.part) << 16 | u128::from(self.turn);
        Uuid::from_u128(record.as_u128().wrapping_add(number))
    }
}

child_table! {
    /// The user's own words.
    new NewPrompt, table "prompts" {
        /// The provider's id of the answer.
        provider_response_id: Option<String>,
        /// The text.
        prompt: String,
    }
    /// The user's own words.
    row Prompt
}

child_table! {
    /// One tool call of the model.
    new NewToolUsage, table "tool_usages" {
        /// The provider's id of the answer.
        provider_response_id: Option<String>,
        /// The call's id.
        tool_call_id: Option<String>,
        /// The tool's name.
        tool: String,
        /// Its arguments as the model wrote them: JSON, or a string where they are not.
        arguments: Option<String> => Option<Json>,
        /// Whether the bridge injected the tool.
        injected: bool,
        /// The MCP server of an injected tool, or the one that the request told the provider to call.
        server_url: Option<String>,
        /// Why the call of an injected tool, or of one that the provider ran, failed.
        invocation_error: Option<String>,
        /// How long an injected tool's call took.
        duration_ms: Option<u64>,
        /// Size of its result: an injected tool's, the provider's own, or what a later request carried.
        result_bytes: Option<u64>,
        /// Whether the result is an error.
        result_is_error: Option<bool>,
        /// The interception whose request carried the result first; none for an injected tool and for one that
        /// the provider ran, whose results are part of the call's own interception.
        result_interception_id: Option<Uuid>,
        /// SHA-256 of the result that a request carried, in hex: of its text, and everything else as written.
        result_sha256: Option<String>,
        /// The text of the result and everything else in it as written, where the configuration has it recorded;
        /// none for a tool that the provider ran.
        result: Option<String>,
        /// Whether the provider runs the tool rather than the client or the bridge.
        provider_executed: Option<bool>,
        /// Name of the MCP server that the provider calls.
        server_name: Option<String>,
        /// What made the call, where that was a program of the model: a type such as
        /// `code_execution_20260120`.
        caller: Option<String>,
        /// The id of the call whose program made this one.
        caller_tool_call_id: Option<String>,
        /// `requested`, `approved` or `denied`, where the provider asks the user before it calls.
        approval: Option<String>,
    }
    /// One tool call of the model.
    row ToolUsage
}

child_table! {
    /// A file that the request carried or named; its content is not stored.
    new NewAttachment, table "attachments" {
        /// `image`, `document`, `audio`, `video` or `file`.
        kind: String,
        /// Its media type, as the request says.
        media_type: Option<String>,
        /// Its size, decoded, where the request carried it.
        size_bytes: Option<u64>,
        /// SHA-256 of its decoded content in hex, where the request carried it.
        sha256: Option<String>,
        /// The provider's id of the file.
        file_id: Option<String>,
        /// Its URL without credentials and query.
        url: Option<String>,
    }
    /// A file that the request carried or named; its content is not stored.
    row Attachment
}

child_table! {
    /// Thinking, a reasoning summary or a commentary.
    new NewThought, table "thoughts" {
        /// `thinking`, `reasoning_summary`, `commentary` or `reasoning`.
        source: String,
        /// The text.
        content: String,
    }
    /// Thinking, a reasoning summary or a commentary.
    row Thought
}

child_table! {
    /// The text of one answer of a provider, or of one of the choices that it offers.
    new NewAnswer, table "answers" {
        /// The provider's id of the answer.
        provider_response_id: Option<String>,
        /// The text.
        content: String,
    }
    /// The text of one answer of a provider, or of one of the choices that it offers.
    row Answer
}

child_table! {
    /// One exchange with a provider: each key, retry, fallback and inner turn is one.
    new NewUpstreamAttempt, table "upstream_attempts" {
        /// Which of the record's attempts it is, from 1.
        number: u32,
        /// Which of the record's answers it was for, from 0: an inner loop has several.
        turn: u16,
        /// Name of the provider instance.
        provider: String,
        /// Name of the provider's key, where one of its keys was used.
        key_name: Option<String>,
        /// `centralized` or `byok`.
        credential_kind: Option<String>,
        /// Names of the edits to the request body.
        body_edits: Vec<String>,
        /// Status of the provider; none where it did not answer.
        status: Option<u16>,
        /// Kind of the error.
        error_kind: Option<String>,
        /// The provider's id of the request.
        provider_request_id: Option<String>,
        /// When it was sent.
        #[serde(serialize_with = "serialize_time")]
        started_at: Timestamp,
        /// How long it took until its answer was over, or it failed.
        duration_ms: Option<u64>,
    }
    /// One exchange with a provider: each key, retry, fallback and inner turn is one.
    row UpstreamAttempt
}
