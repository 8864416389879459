//! What can be asked of the records, and the shape of the answers.

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use crate::record::{
    Interception, Outcome, Prompt, Thought, TokenUsage, ToolUsage, optional_time, time,
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

/// An interception in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InterceptionItem {
    /// The record.
    #[serde(flatten)]
    pub interception: Interception,
    /// Name of its user.
    pub user: String,
    /// Sum of its rows' input.
    pub input_tokens: u64,
    /// Sum of its rows' output.
    pub output_tokens: u64,
    /// Sum of its rows' cache reads.
    pub cache_read_input_tokens: u64,
    /// Sum of its rows' cache writes.
    pub cache_write_input_tokens: u64,
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
    #[serde(serialize_with = "time")]
    pub first_at: Timestamp,
    /// Latest request.
    #[serde(serialize_with = "time")]
    pub last_at: Timestamp,
    /// When the latest answer ended.
    #[serde(serialize_with = "optional_time")]
    pub ended_at: Option<Timestamp>,
    /// Models that were asked for.
    pub models: Vec<String>,
    /// Number of interceptions.
    pub requests: u64,
    /// Sum of input.
    pub input_tokens: u64,
    /// Sum of output.
    pub output_tokens: u64,
    /// Sum of cache reads.
    pub cache_read_input_tokens: u64,
    /// Sum of cache writes.
    pub cache_write_input_tokens: u64,
    /// Number of tool calls.
    pub tools: u64,
}
