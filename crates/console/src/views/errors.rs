//! Errors, and how the description of the API lists them.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::{
    ToSchema,
    openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder},
};

use super::SessionView;
use crate::ConfigProblem;

/// What kind of error it is; the status says more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ErrorKind {
    /// The request has no valid token.
    Authentication,
    /// The role does not allow it.
    Permission,
    /// There is no such thing, or the caller may not see it.
    NotFound,
    /// The request is not valid.
    InvalidRequest,
    /// It contradicts the present state.
    Conflict,
    /// Several users have a session with this id.
    Ambiguous,
    /// The configuration is not valid.
    InvalidConfiguration,
    /// All readers are busy.
    Busy,
    /// A read took too long.
    Timeout,
    /// The store cannot be used.
    Unavailable,
    /// A fault of keybridge.
    Internal,
}

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorResponse<E> {
    /// The error.
    pub(crate) error: E,
}

/// An error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub(crate) struct ErrorView {
    /// Its kind.
    pub(crate) kind: ErrorKind,
    /// What failed, for people.
    pub(crate) message: String,
    /// What the caller can do.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(crate) hint: Option<&'static str>,
}

/// The error of a reload whose configuration is not valid.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InvalidConfiguration)]
pub(crate) struct InvalidConfigurationView {
    /// Its kind.
    pub(crate) kind: ErrorKind,
    /// What failed, for people.
    pub(crate) message: &'static str,
    /// Every problem of the configuration.
    pub(crate) problems: Vec<ConfigProblem>,
}

/// The error of an id that sessions of several users have.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AmbiguousSession)]
pub(crate) struct AmbiguousView {
    /// Its kind.
    pub(crate) kind: ErrorKind,
    /// What failed, for people.
    pub(crate) message: String,
    /// The sessions.
    pub(crate) sessions: Vec<SessionView>,
}

/// The descriptions of error responses by status.
pub(crate) fn error_responses(statuses: &[u16]) -> BTreeMap<String, RefOr<Response>> {
    let body = <ErrorResponse<ErrorView> as ToSchema>::name();
    let response = |status: u16| {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(body.clone())));
        ResponseBuilder::new()
            .description(description(status))
            .content("application/json", content.build())
            .build()
    };
    statuses.iter().map(|status| (status.to_string(), response(*status).into())).collect()
}

/// What a status means in this API.
const fn description(status: u16) -> &'static str {
    match status {
        400 => "The request is not valid; the message names the parameter or field",
        401 => "The request has no valid bridge token",
        403 => "The role of the caller does not allow it",
        404 => "There is no such thing, or the caller may not see it",
        409 => "It contradicts the present state",
        413 => "The body is too large",
        415 => "The body is not sent as `application/json`",
        503 => {
            "The store cannot be used, or all readers are busy: `Retry-After` says when to try again"
        }
        504 => "The read took longer than `store.read_timeout`",
        _ => "A fault of keybridge; its log has the reason",
    }
}
