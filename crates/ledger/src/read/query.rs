//! The filters and results of reads.

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::record::{
    Answer, Attachment, Interception, Outcome, Prompt, Thought, TokenUsage, ToolUsage,
    UpstreamAttempt, serialize_optional_time, serialize_time,
};
use crate::word_enum;

/// Default number of rows on a page.
pub const DEFAULT_LIMIT: u32 = 50;

/// The interceptions to list; a field that is `None` does not restrict them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterceptionFilter {
    /// Name of the user.
    pub user: Option<String>,
    /// Id of the user, for callers who may see only their own.
    pub user_id: Option<Uuid>,
    /// Provider instance.
    pub provider: Option<String>,
    /// Requested or served model.
    pub model: Option<String>,
    /// Name of the client.
    pub client: Option<String>,
    /// Session, by the id that it has in the list of sessions: that of the client, or of the thread of
    /// requests without one.
    pub session: Option<String>,
    /// Thread.
    pub thread: Option<Uuid>,
    /// `centralized` or `byok`.
    pub credential_kind: Option<String>,
    /// Outcome.
    pub outcome: Option<Outcome>,
    /// Started at or after.
    pub since: Option<Timestamp>,
    /// Started before.
    pub until: Option<Timestamp>,
    /// Words that a prompt contains, all of them, in any order and case; with a `*` at its end, a word may be the
    /// beginning of a longer one.
    pub q: Option<String>,
    /// Rows on a page.
    pub limit: u32,
    /// `next_cursor` of the previous page.
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

/// The sessions to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionFilter {
    /// Name of the user.
    pub user: Option<String>,
    /// Id of the user, for callers who may see only their own.
    pub user_id: Option<Uuid>,
    /// Sessions with this id, of which each user may have one.
    pub session: Option<String>,
    /// Client of the latest request.
    pub client: Option<String>,
    /// A requested model.
    pub model: Option<String>,
    /// A provider instance that was asked.
    pub provider: Option<String>,
    /// With a request of this kind: `centralized` or `byok`.
    pub credential_kind: Option<String>,
    /// With a request of this outcome.
    pub outcome: Option<Outcome>,
    /// Words that a prompt has.
    pub q: Option<String>,
    /// With a request at or after.
    pub since: Option<Timestamp>,
    /// With a request before.
    pub until: Option<Timestamp>,
    /// Rows on a page.
    pub limit: u32,
    /// `next_cursor` of the previous page.
    pub cursor: Option<String>,
}

impl Default for SessionFilter {
    fn default() -> Self {
        Self {
            user: None,
            user_id: None,
            session: None,
            client: None,
            model: None,
            provider: None,
            credential_kind: None,
            outcome: None,
            q: None,
            since: None,
            until: None,
            limit: DEFAULT_LIMIT,
            cursor: None,
        }
    }
}

/// A page of a list, and the cursor of the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Cursor of the next page, if there is one.
    pub next_cursor: Option<String>,
    /// The time back to which was searched, if the search stopped before the page was full; the next page goes
    /// on from there.
    #[serde(serialize_with = "serialize_optional_time", skip_serializing_if = "Option::is_none")]
    pub searched_until: Option<Timestamp>,
}

/// Sums of tokens of rows of one quality.
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

/// Sums of tokens; counts of the provider and estimates are separate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TokenSums {
    /// Rows of the quality `exact`.
    #[serde(flatten)]
    pub exact: TokenCounts,
    /// Rows of the quality `partial`.
    pub estimated: TokenCounts,
    /// Number of rows of the quality `unknown`.
    pub unknown_usages: u64,
}

word_enum! {
    /// What usage is grouped by.
    GroupBy {
        /// The user.
        User = "user",
        /// The provider instance that served.
        Provider = "provider",
        /// The requested model.
        Model = "model",
        /// The client.
        Client = "client",
        /// Whose credential was used.
        CredentialKind = "credential_kind",
        /// The day of the time zone.
        Day = "day",
        /// The hour of the time zone.
        Hour = "hour",
    }
}

/// The usage to sum; a field that is `None` does not restrict it. Names are compared with those of the
/// roll-ups, which are cut to 128 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageFilter {
    /// Name of the user.
    pub user: Option<String>,
    /// Id of the user, for callers who may see only their own.
    pub user_id: Option<Uuid>,
    /// Provider instance that served.
    pub provider: Option<String>,
    /// Requested model.
    pub model: Option<String>,
    /// Name of the client.
    pub client: Option<String>,
    /// `centralized` or `byok`.
    pub credential_kind: Option<String>,
    /// Started at or after; the half hour of this time counts as a whole.
    pub since: Timestamp,
    /// Started before; the half hour of this time counts as a whole.
    pub until: Timestamp,
    /// What the sums are grouped by, in this order.
    pub group_by: Vec<GroupBy>,
    /// Where days and hours begin.
    pub time_zone: TimeZone,
}

/// Sums of requests that have ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UsageSums {
    /// Completed ones.
    pub completed: u64,
    /// Failed ones.
    pub failed: u64,
    /// Those that the client cancelled.
    pub cancelled: u64,
    /// Refused ones.
    pub refused: u64,
    /// Those whose process died.
    pub interrupted: u64,
    /// Their tokens.
    pub tokens: TokenSums,
    /// Their tool calls.
    pub tool_calls: u64,
}

/// Sums of requests that have something in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageGroup {
    /// What they have in common, in the order of [`UsageFilter::group_by`]: names, where `None` stands for
    /// none; a day as its date; an hour as the time of its start with the offset from UTC.
    pub values: Vec<Option<String>>,
    /// Their sums.
    pub sums: UsageSums,
}

/// How long a provider took to the first byte of its answers, to a quarter of an octave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderLatency {
    /// The provider instance.
    pub provider: String,
    /// The number of requests.
    pub requests: u64,
    /// Half of them took at most this many microseconds.
    pub p50_us: u64,
    /// 95 of 100 took at most this many microseconds.
    pub p95_us: u64,
}

/// The usage of a period.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The start of the first half hour that is summed.
    pub since: Timestamp,
    /// The end of the last one.
    pub until: Timestamp,
    /// The time zone in which days and hours begin.
    pub time_zone: String,
    /// Whether days or hours of this zone begin within a half hour of UTC, which then counts for the one that it
    /// begins in.
    pub is_approximate: bool,
    /// Requests of the period that have not ended; the sums do not have them.
    pub in_progress: u64,
    /// The sums of each group, in order.
    pub groups: Vec<UsageGroup>,
    /// The sums of all.
    pub total: UsageSums,
}

/// The result of a recount.
///
/// In a consistent store only `interceptions`, `in_progress`, `interrupted`, `duplicate_response_ids`,
/// `compared_sums`, `trail_entries`, `trail_not_in_order` and, for a while after an upgrade, `not_summed` can be
/// other than 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Recount {
    /// All interceptions.
    pub interceptions: u64,
    /// Those in progress in a living process.
    pub in_progress: u64,
    /// Those whose process died.
    pub interrupted: u64,
    /// Those that have no end and are in no living process.
    pub without_end: u64,
    /// Token counts, prompts, tool calls, thoughts and upstream attempts without an interception.
    pub usages_without_interception: u64,
    /// Response ids that occur more than once in the records of one user: some providers give an id
    /// again, so that this need not be a fault.
    pub duplicate_response_ids: u64,
    /// Rows of roll-ups that were compared with the records. What retention has removed cannot be compared.
    pub compared_sums: u64,
    /// Those that differ.
    pub different_sums: u64,
    /// Ended interceptions that are not summed yet, because an earlier release recorded them.
    pub not_summed: u64,
    /// Entries of the trail.
    pub trail_entries: u64,
    /// Ended interceptions and other entries that have no position in the trail yet.
    pub trail_not_in_order: u64,
    /// Positions of the trail that are missing.
    pub trail_gaps: u64,
    /// Ended interceptions that neither have an entry in the trail nor wait for one.
    pub trail_without_entry: u64,
    /// Entries of the trail that repeat what another one says.
    pub trail_repeated: u64,
}

impl Recount {
    /// Whether the records are consistent.
    pub const fn is_sound(&self) -> bool {
        self.without_end == 0
            && self.usages_without_interception == 0
            && self.different_sums == 0
            && self.trail_gaps == 0
            && self.trail_without_entry == 0
            && self.trail_repeated == 0
    }
}

/// A response in a provider's own log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ProviderLogEntry {
    /// Its id.
    pub response_id: String,
    /// SHA-256 of the request body that the provider received, in hex.
    pub request_sha256: Option<String>,
}

/// The comparison of a provider's log with the records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// Distinct response ids in the log.
    pub response_ids: u64,
    /// Those in exactly one interception, or in at most as many as there are lines with them.
    pub found: u64,
    /// Those whose request is recorded without a response id: the response did not reach keybridge,
    /// because the client disconnected or the process died.
    pub found_by_request: u64,
    /// Those that are not recorded.
    pub missing: Vec<String>,
    /// Those in more interceptions than there are lines with them.
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

/// An interception with its child rows.
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
    /// The texts of the answers, if they are recorded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<Answer>,
    /// The files that the request carried or named.
    pub attachments: Vec<Attachment>,
    /// The exchanges with providers, in order; [`Interception::attempts`] is their number.
    pub upstream_attempts: Vec<UpstreamAttempt>,
    /// The approximate size of the child rows in a response.
    #[serde(skip)]
    pub size_bytes: usize,
}

/// The requests of a client's session, or of a thread when there is no session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Session {
    /// The client's session id, or the thread's.
    pub id: String,
    /// Name of the user.
    pub user: String,
    /// Client of the latest request.
    pub client: Option<String>,
    /// Start of the first request.
    #[serde(serialize_with = "serialize_time")]
    pub first_at: Timestamp,
    /// Start of the latest request.
    #[serde(serialize_with = "serialize_time")]
    pub last_at: Timestamp,
    /// End of the latest response.
    #[serde(serialize_with = "serialize_optional_time")]
    pub ended_at: Option<Timestamp>,
    /// Requested models.
    pub models: Vec<String>,
    /// Provider instances that were asked by requests that have ended.
    pub providers: Vec<String>,
    /// Number of sub-agents.
    pub agents: u64,
    /// The beginning of its first prompt, while the record of it is kept.
    pub first_prompt: Option<String>,
    /// The beginning of its latest prompt, while the record of it is kept.
    pub last_prompt: Option<String>,
    /// Number of interceptions, with those in progress.
    pub requests: u64,
    /// Number of completed ones.
    pub completed: u64,
    /// Number of failed ones.
    pub failed: u64,
    /// Number of those that the client cancelled.
    pub cancelled: u64,
    /// Number of refused ones.
    pub refused: u64,
    /// Number of those whose process died.
    pub interrupted: u64,
    /// Tokens of those that have ended.
    #[serde(flatten)]
    pub tokens: TokenSums,
    /// Number of tool calls.
    pub tools: u64,
}
