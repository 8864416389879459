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
    /// Number of interceptions.
    requests: u64,
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
            requests,
            tokens,
            tools,
        } = session;
        let tokens = tokens.into();
        Self { id, user, client, first_at, last_at, ended_at, models, requests, tokens, tools }
    }
}

/// A session with its interceptions in order.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = SessionDetail)]
pub(crate) struct SessionDetailView {
    #[serde(flatten)]
    pub(crate) session: SessionView,
    /// Its interceptions, oldest first.
    pub(crate) interceptions: Vec<InterceptionDetailView>,
    /// Whether there are more interceptions than are shown.
    pub(crate) truncated: bool,
}
