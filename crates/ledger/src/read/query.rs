//! What can be asked of the records, and the shape of the answers.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::record::{
    Interception, Outcome, Prompt, Thought, TokenUsage, ToolUsage, UpstreamAttempt,
    serialize_optional_time, serialize_time,
};

/// Rows on a page unless the filter says otherwise.
pub const DEFAULT_LIMIT: u32 = 50;

/// Which interceptions are wanted; what is `None` does not restrict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterceptionFilter {
    /// Name of the user.
    pub user: Option<String>,
    /// Id of the user, for those who may see only their own.
    pub user_id: Option<Uuid>,
    /// Provider instance.
    pub provider: Option<String>,
    /// Model as asked for or as answered.
    pub model: Option<String>,
    /// Name of the client.
    pub client: Option<String>,
    /// Client session.
    pub session: Option<String>,
    /// Thread.
    pub thread: Option<Uuid>,
    /// `centralized` or `byok`.
    pub credential_kind: Option<String>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Begun at or after.
    pub since: Option<Timestamp>,
    /// Begun before.
    pub until: Option<Timestamp>,
    /// Text that a prompt contains.
    pub q: Option<String>,
    /// Rows on a page.
    pub limit: u32,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

impl Default for InterceptionFilter {
    fn default() -> Self {
        Self {
            user: None,
            user_id: None,
            provider: None,
            model: None,
            client: None,
            session: None,
            thread: None,
            credential_kind: None,
            outcome: None,
            since: None,
            until: None,
            q: None,
            limit: DEFAULT_LIMIT,
            cursor: None,
        }
    }
}

/// Which sessions are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionFilter {
    /// Id of the user, for those who may see only their own.
    pub user_id: Option<Uuid>,
    /// One session, by its id.
    pub session: Option<String>,
    /// With a request at or after.
    pub since: Option<Timestamp>,
    /// Rows on a page.
    pub limit: u32,
    /// Where the page before ended.
    pub cursor: Option<String>,
}

impl Default for SessionFilter {
    fn default() -> Self {
        Self { user_id: None, session: None, since: None, limit: DEFAULT_LIMIT, cursor: None }
    }
}

/// A part of a list, and where the next one begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Cursor of the next page, if there is one.
    pub next_cursor: Option<String>,
}

/// Sums of tokens of one kind of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TokenCounts {
    /// Input that was not cached.
    pub input_tokens: u64,
    /// Output.
    pub output_tokens: u64,
    /// Input read from a cache.
    pub cache_read_input_tokens: u64,
    /// Input written to a cache.
    pub cache_write_input_tokens: u64,
}

/// Sums of tokens, with what a provider said kept apart from what was estimated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TokenSums {
    /// Rows of the quality `exact`.
    #[serde(flatten)]
    pub exact: TokenCounts,
    /// Rows of the quality `partial`.
    pub estimated: TokenCounts,
    /// How many rows nothing is known of.
    pub unknown_usages: u64,
}

/// What a recount of a store finds; only the first two may be other than 0 in a complete trail,
/// and `interrupted`, which counts requests whose process died.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Recount {
    /// All of them.
    pub interceptions: u64,
    /// Those that a living process is at.
    pub in_progress: u64,
    /// Those whose process died.
    pub interrupted: u64,
    /// Those that nobody is at and that have no end.
    pub without_end: u64,
    /// Token counts, prompts, tool calls, thoughts and upstream attempts of no interception.
    pub usages_without_interception: u64,
    /// Answers of a provider that one user's records count more than once.
    pub duplicate_response_ids: u64,
}

impl Recount {
    /// Whether the trail is what it must be.
    pub const fn is_sound(&self) -> bool {
        self.without_end == 0
            && self.usages_without_interception == 0
            && self.duplicate_response_ids == 0
    }
}

/// An answer that a provider says it gave.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct HandedOut {
    /// Its id.
    pub response_id: String,
    /// SHA-256 of the request's body as the provider got it, in hex.
    pub request_sha256: Option<String>,
}

/// What of a provider's answers is recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// Different ids that were handed out.
    pub response_ids: u64,
    /// Those that exactly one interception has.
    pub found: u64,
    /// Those whose request is recorded without an id: it never reached the bridge, because a client
    /// left or the process died.
    pub found_by_request: u64,
    /// Those that are in no record.
    pub missing: Vec<String>,
    /// Those that several interceptions have.
    pub doubled: Vec<String>,
}

/// An interception in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InterceptionItem {
    /// The record.
    #[serde(flatten)]
    pub interception: Interception,
    /// Name of its user.
    pub user: String,
    /// Its tokens.
    #[serde(flatten)]
    pub tokens: TokenSums,
    /// Number of tool calls.
    pub tool_calls: u64,
}

/// An interception with all that belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InterceptionDetail {
    /// The record and its sums.
    #[serde(flatten)]
    pub item: InterceptionItem,
    /// Token counts.
    pub token_usages: Vec<TokenUsage>,
    /// Prompts.
    pub prompts: Vec<Prompt>,
    /// Tool calls.
    pub tool_usages: Vec<ToolUsage>,
    /// Thoughts.
    pub thoughts: Vec<Thought>,
    /// The exchanges with providers, in their order; [`Interception::attempts`] is their number.
    pub upstream_attempts: Vec<UpstreamAttempt>,
}

/// Requests that belong together: a client's session, or a thread when there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Session {
    /// The client's session id, or the thread's.
    pub id: String,
    /// Name of the user.
    pub user: String,
    /// Name of the client of the latest request.
    pub client: Option<String>,
    /// First request.
    #[serde(serialize_with = "serialize_time")]
    pub first_at: Timestamp,
    /// Latest request.
    #[serde(serialize_with = "serialize_time")]
    pub last_at: Timestamp,
    /// When the latest answer ended.
    #[serde(serialize_with = "serialize_optional_time")]
    pub ended_at: Option<Timestamp>,
    /// Models that were asked for.
    pub models: Vec<String>,
    /// Number of interceptions.
    pub requests: u64,
    /// Tokens of all of them.
    #[serde(flatten)]
    pub tokens: TokenSums,
    /// Number of tool calls.
    pub tools: u64,
}
