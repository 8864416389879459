//! Sessions.

use jiff::Timestamp;
use keybridge_ledger::{
    Session,
    record::{serialize_optional_time, serialize_time},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{InterceptionDetailView, records::TokenSumsView};

/// The requests of a client's session, or of a thread when there is no session.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Session)]
pub(crate) struct SessionView {
    /// The client's session id, or the thread's.
    id: String,
    /// Name of the user.
    user: String,
    /// Client of the latest request.
    #[schema(required)]
    client: Option<String>,
    /// Start of the first request.
    #[serde(serialize_with = "serialize_time")]
    #[schema(value_type = String, format = DateTime)]
    first_at: Timestamp,
    /// Start of the latest request.
    #[serde(serialize_with = "serialize_time")]
    #[schema(value_type = String, format = DateTime)]
    last_at: Timestamp,
    /// End of the latest response.
    #[serde(serialize_with = "serialize_optional_time")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
    /// Requested models.
    models: Vec<String>,
    /// Provider instances that were asked by requests that have ended.
    providers: Vec<String>,
    /// Number of sub-agents.
    agents: u64,
    /// The beginning of its first prompt; null when its record is removed, or prompts are not recorded.
    #[schema(required)]
    first_prompt: Option<String>,
    /// The beginning of its latest prompt, in the same way.
    #[schema(required)]
    last_prompt: Option<String>,
    /// Number of interceptions, with those in progress.
    requests: u64,
    /// Number of those in progress; tokens and tool calls are those of the others.
    in_progress: u64,
    /// Number of completed ones.
    completed: u64,
    /// Number of failed ones.
    failed: u64,
    /// Number of those that the client cancelled.
    cancelled: u64,
    /// Number of refused ones.
    refused: u64,
    /// Number of those whose process died.
    interrupted: u64,
    #[serde(flatten)]
    tokens: TokenSumsView,
    /// Number of tool calls.
    tools: u64,
}

impl From<Session> for SessionView {
    fn from(session: Session) -> Self {
        let Session {
            id,
            user,
            client,
            first_at,
            last_at,
            ended_at,
            models,
            providers,
            agents,
            first_prompt,
            last_prompt,
            requests,
            completed,
            failed,
            cancelled,
            refused,
            interrupted,
            tokens,
            tools,
        } = session;
        let ended = completed + failed + cancelled + refused + interrupted;
        Self {
            id,
            user,
            client,
            first_at,
            last_at,
            ended_at,
            models,
            providers,
            agents,
            first_prompt,
            last_prompt,
            requests,
            in_progress: requests.saturating_sub(ended),
            completed,
            failed,
            cancelled,
            refused,
            interrupted,
            tokens: tokens.into(),
            tools,
        }
    }
}

/// A session with a page of its interceptions in order.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SessionDetail)]
pub(crate) struct SessionDetailView {
    #[serde(flatten)]
    pub(crate) session: SessionView,
    /// Its interceptions, oldest first.
    pub(crate) interceptions: Vec<InterceptionDetailView>,
    /// The `cursor` of the next page; null on the last one.
    #[schema(required)]
    pub(crate) next_cursor: Option<String>,
}
