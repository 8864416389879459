//! What needs attention.

use serde::Serialize;
use utoipa::ToSchema;

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    /// Requests fail or are refused, or records wait.
    Critical,
    /// Something works worse than it should.
    Warning,
    /// Something will need attention, or is unusual.
    Notice,
}

/// The rule that found something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AttentionKind {
    /// The store takes no records.
    StoreDown,
    /// A provider refuses a key.
    KeyRefused,
    /// A key is not used for more than five minutes.
    KeyRests,
    /// A circuit breaker is open.
    BreakerOpen,
    /// The first bytes of a provider take more than twice as long as in the week before.
    ProviderSlow,
    /// An MCP server is down.
    McpServerDown,
    /// A session of the last 24 hours has 1,000 requests or more.
    LargeSession,
    /// A token ends within seven days.
    TokenEnds,
}

/// Something that needs attention.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Attention)]
pub(crate) struct AttentionView {
    /// How bad it is.
    pub(crate) severity: Severity,
    /// The rule that found it.
    pub(crate) kind: AttentionKind,
    /// What it is about: a name or an id.
    pub(crate) subject: String,
    /// What it is, in a sentence.
    pub(crate) message: String,
    /// The call that shows more.
    pub(crate) path: String,
}
