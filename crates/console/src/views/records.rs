//! Records, with the names that they have in the store.

use jiff::Timestamp;
use keybridge_ledger::{
    InterceptionDetail, InterceptionItem, TokenCounts, TokenSums,
    record::{
        Answer, Attachment, Interception, Outcome, Prompt, Quality, Thought, TokenUsage, ToolUsage,
        UpstreamAttempt, UsageKind, serialize_optional_time, serialize_time,
    },
};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    OutcomeWord, view,
    words::{QualityWord, UsageKindWord},
};

view! {
    /// One request for a model, and what became of it.
    InterceptionView as Interception from Interception {
        /// Id, also the `x-keybridge-interception-id` of the answer.
        id: Uuid,
        /// The user.
        user_id: Uuid,
        /// The token.
        token_id: Option<Uuid>,
        /// Name of the provider instance.
        provider: String,
        /// Its kind.
        provider_type: String,
        /// The endpoint's path at the provider.
        endpoint: String,
        /// The API dialect.
        dialect: String,
        /// The requested model.
        model: Option<String>,
        /// The model that the answer names.
        model_served: Option<String>,
        /// Whether a stream was requested.
        streaming: bool,
        /// Whether the provider was told to store the response; null if the request does not say.
        store: Option<bool>,
        /// Whether the response was to be generated in the background; null where there is no such choice.
        background: Option<bool>,
        /// Name of the agent or SDK.
        client: Option<String>,
        /// Its `User-Agent`.
        user_agent: Option<String>,
        /// How many times it had sent the request before, as its SDK says.
        client_retry_count: Option<u32>,
        /// The session it claims.
        client_session_id: Option<String>,
        /// The sub-agent it claims.
        agent_id: Option<String>,
        /// That one's parent.
        parent_agent_id: Option<String>,
        /// First interception of the thread this one belongs to.
        thread_id: Option<Uuid>,
        /// Id of the session it belongs to: the client's, else the thread's, else its own. Null for a while after
        /// an upgrade from a release without it.
        session_id: Option<String>,
        /// The interception whose tool call this one answers.
        parent_id: Option<Uuid>,
        /// The tool call that ties it to its parent.
        correlating_tool_call_id: Option<String>,
        /// `centralized` or `byok`.
        credential_kind: Option<String>,
        /// `pool:<key name>`, `request`, `stored`, or `none` if the provider needs no credential.
        credential_source: Option<String>,
        /// `api_key` or `bearer`.
        credential_scheme: Option<String>,
        /// The masked credential.
        credential_hint: Option<String>,
        /// Its length in Unicode scalar values.
        credential_length: Option<u32>,
        /// Its keyed fingerprint, 16 hex digits.
        credential_fingerprint: Option<String>,
        /// When the request arrived.
        #[serde(serialize_with = "serialize_time")]
        #[schema(value_type = String, format = DateTime)]
        started_at: Timestamp,
        /// When the first byte of the answer came.
        #[serde(serialize_with = "serialize_optional_time")]
        #[schema(value_type = Option<String>, format = DateTime)]
        first_byte_at: Option<Timestamp>,
        /// When it ended.
        #[serde(serialize_with = "serialize_optional_time")]
        #[schema(value_type = Option<String>, format = DateTime)]
        ended_at: Option<Timestamp>,
        /// When its caller was identified, in microseconds after `started_at`, as those that follow. They come in
        /// this order, and each is at least the one before.
        identified_us: Option<u64>,
        /// When the whole body was read; null for an upload that is sent while it arrives.
        body_read_us: Option<u64>,
        /// When its credential was chosen and it was admitted.
        credential_us: Option<u64>,
        /// When its record was committed; null where that was not waited for before it was sent.
        opened_us: Option<u64>,
        /// When a connection to a provider first took it: a new one or an idle one, which begins to send it then.
        connected_us: Option<u64>,
        /// When its settlement was handed over.
        settled_us: Option<u64>,
        /// The server-sent events that were passed on; null where the answer is no stream. An error event of the
        /// bridge itself does not count.
        events_relayed: Option<u64>,
        /// How it ended.
        #[schema(value_type = OutcomeWord)]
        outcome: Outcome,
        /// Status sent to the client.
        status_code: Option<u16>,
        /// Status of the provider.
        upstream_status: Option<u16>,
        /// When the request was sent to the provider, where that was once.
        #[serde(serialize_with = "serialize_optional_time")]
        #[schema(value_type = Option<String>, format = DateTime)]
        upstream_started_at: Option<Timestamp>,
        /// The provider's id of the request; of several exchanges, the last one that has an id.
        upstream_request_id: Option<String>,
        /// Kind of the error.
        error_kind: Option<String>,
        /// Its message, without secrets.
        error_message: Option<String>,
        /// Why the model stopped.
        stop_reason: Option<String>,
        /// What a refusal is about: the provider's category, the filters that matched, or `refusal`.
        refusal_category: Option<String>,
        /// The provider's explanation of a refusal, or the model's words.
        refusal_explanation: Option<String>,
        /// The provider's container in which tools ran.
        container_id: Option<String>,
        /// Number of exchanges with providers.
        attempts: u32,
        /// Further turns that called injected tools.
        inner_turns: u32,
        /// Size of the request body as it came.
        request_bytes: u64,
        /// Bytes of the provider's answer that were relayed.
        response_bytes: u64,
        /// Names of the edits to the request body.
        body_edits: Vec<String>,
        /// SHA-256 of the request body as it came, in hex.
        request_sha256: Option<String>,
    }
}

view! {
    /// Sums of tokens of one quality.
    TokenCountsView as TokenCounts from TokenCounts {
        /// Input that was not cached.
        input_tokens: u64,
        /// Output.
        output_tokens: u64,
        /// Input read from a cache.
        cache_read_input_tokens: u64,
        /// Input written to a cache.
        cache_write_input_tokens: u64,
    }
}

/// Sums of tokens; counts of the provider and estimates are separate.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TokenSums)]
pub(crate) struct TokenSumsView {
    /// Rows of the quality `exact`.
    #[serde(flatten)]
    exact: TokenCountsView,
    /// Rows of the quality `partial`.
    estimated: TokenCountsView,
    /// Number of rows of the quality `unknown`.
    unknown_usages: u64,
}

impl From<TokenSums> for TokenSumsView {
    fn from(sums: TokenSums) -> Self {
        let TokenSums { exact, estimated, unknown_usages } = sums;
        Self { exact: exact.into(), estimated: estimated.into(), unknown_usages }
    }
}

/// An interception in a list, with its sums.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InterceptionItem)]
pub(crate) struct InterceptionItemView {
    #[serde(flatten)]
    interception: InterceptionView,
    /// Name of its user.
    user: String,
    #[serde(flatten)]
    tokens: TokenSumsView,
    /// Number of tool calls.
    tool_calls: u64,
}

impl From<InterceptionItem> for InterceptionItemView {
    fn from(item: InterceptionItem) -> Self {
        let InterceptionItem { interception, user, tokens, tool_calls } = item;
        Self { interception: interception.into(), user, tokens: tokens.into(), tool_calls }
    }
}

/// An interception with all that belongs to it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InterceptionDetail)]
pub(crate) struct InterceptionDetailView {
    #[serde(flatten)]
    pub(crate) item: InterceptionItemView,
    /// Token counts.
    token_usages: Vec<TokenUsageView>,
    /// Prompts.
    prompts: Vec<PromptView>,
    /// Tool calls.
    tool_usages: Vec<ToolUsageView>,
    /// Thoughts.
    thoughts: Vec<ThoughtView>,
    /// The texts of the answers, if the configuration has them recorded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    answers: Vec<AnswerView>,
    /// The files that the request carried or named.
    attachments: Vec<AttachmentView>,
    /// The exchanges with providers, in order; `attempts` is their number.
    upstream_attempts: Vec<UpstreamAttemptView>,
}

impl From<InterceptionDetail> for InterceptionDetailView {
    fn from(detail: InterceptionDetail) -> Self {
        let InterceptionDetail {
            item,
            token_usages,
            prompts,
            tool_usages,
            thoughts,
            answers,
            attachments,
            upstream_attempts,
            size_bytes: _,
        } = detail;
        Self {
            item: item.into(),
            token_usages: views(token_usages),
            prompts: views(prompts),
            tool_usages: views(tool_usages),
            thoughts: views(thoughts),
            answers: views(answers),
            attachments: views(attachments),
            upstream_attempts: views(upstream_attempts),
        }
    }
}

fn views<R: Into<V>, V>(rows: Vec<R>) -> Vec<V> {
    rows.into_iter().map(Into::into).collect()
}

view! {
    /// The tokens of one answer of a provider, or of what else was generated for it; null is "not known",
    /// never zero.
    TokenUsageView as TokenUsage from TokenUsage {
        /// Id.
        id: Uuid,
        /// The interception it belongs to.
        interception_id: Uuid,
        /// What the tokens were spent on.
        #[schema(value_type = UsageKindWord)]
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
        input_tokens: Option<u64>,
        /// Output, thoughts included.
        output_tokens: Option<u64>,
        /// Input read from the provider's cache.
        cache_read_input_tokens: Option<u64>,
        /// Input written to the provider's cache.
        cache_write_input_tokens: Option<u64>,
        /// The part of the cache writes that is kept for an hour or more.
        cache_write_long_tokens: Option<u64>,
        /// Further figures by name: counts, and amounts that the provider states.
        extra: Value,
        /// The provider's usage object: JSON, or a string where it was too long and was cut.
        raw: Option<Value>,
        /// How far the figures can be trusted.
        #[schema(value_type = QualityWord)]
        quality: Quality,
        /// When the row was created.
        #[serde(serialize_with = "serialize_time")]
        #[schema(value_type = String, format = DateTime)]
        created_at: Timestamp,
    }
}

view! {
    /// The user's own words.
    PromptView as Prompt from Prompt {
        /// Id.
        id: Uuid,
        /// The interception it belongs to.
        interception_id: Uuid,
        /// The provider's id of the answer.
        provider_response_id: Option<String>,
        /// The text.
        prompt: String,
        /// When the row was created.
        #[serde(serialize_with = "serialize_time")]
        #[schema(value_type = String, format = DateTime)]
        created_at: Timestamp,
    }
}

view! {
    /// One tool call of the model.
    ToolUsageView as ToolUsage from ToolUsage {
        /// Id.
        id: Uuid,
        /// The interception it belongs to.
        interception_id: Uuid,
        /// The provider's id of the answer.
        provider_response_id: Option<String>,
        /// The call's id.
        tool_call_id: Option<String>,
        /// The tool's name.
        tool: String,
        /// Its arguments as the model wrote them: JSON, or a string where they are not.
        arguments: Option<Value>,
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
        /// The interception whose request carried the result first; null for an injected tool and for one that the
        /// provider ran, whose results are part of the call's own interception.
        result_interception_id: Option<Uuid>,
        /// SHA-256 of the result that a request carried, in hex: of its text, and everything else as written.
        result_sha256: Option<String>,
        /// The text of the result and everything else in it as written; null unless the configuration has it
        /// recorded.
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
        /// When the row was created.
        #[serde(serialize_with = "serialize_time")]
        #[schema(value_type = String, format = DateTime)]
        created_at: Timestamp,
    }
}

view! {
    /// A file that the request carried or named; its content is not stored.
    AttachmentView as Attachment from Attachment {
        /// Id.
        id: Uuid,
        /// The interception it belongs to.
        interception_id: Uuid,
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
        /// When the row was created.
        #[serde(serialize_with = "serialize_time")]
        #[schema(value_type = String, format = DateTime)]
        created_at: Timestamp,
    }
}

view! {
    /// Thinking, a reasoning summary or a commentary.
    ThoughtView as Thought from Thought {
        /// Id.
        id: Uuid,
        /// The interception it belongs to.
        interception_id: Uuid,
        /// `thinking`, `reasoning_summary`, `commentary` or `reasoning`.
        source: String,
        /// The text.
        content: String,
        /// When the row was created.
        #[serde(serialize_with = "serialize_time")]
        #[schema(value_type = String, format = DateTime)]
        created_at: Timestamp,
    }
}

view! {
    /// The text of one answer of a provider, or of one of the choices that it offers.
    AnswerView as Answer from Answer {
        /// Id.
        id: Uuid,
        /// The interception it belongs to.
        interception_id: Uuid,
        /// The provider's id of the answer.
        provider_response_id: Option<String>,
        /// The text.
        content: String,
        /// When the row was created.
        #[serde(serialize_with = "serialize_time")]
        #[schema(value_type = String, format = DateTime)]
        created_at: Timestamp,
    }
}

view! {
    /// One exchange with a provider: each key, retry, fallback and inner turn is one.
    UpstreamAttemptView as UpstreamAttempt from UpstreamAttempt {
        /// Id.
        id: Uuid,
        /// The interception it belongs to.
        interception_id: Uuid,
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
        #[schema(value_type = String, format = DateTime)]
        started_at: Timestamp,
        /// How long it took until its answer was over, or it failed.
        duration_ms: Option<u64>,
        /// When the row was created.
        #[serde(serialize_with = "serialize_time")]
        #[schema(value_type = String, format = DateTime)]
        created_at: Timestamp,
    }
}
