//! Reads of the records: interceptions and sessions.

use axum::{
    Json,
    extract::{RawQuery, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use keybridge_ledger::{InterceptionFilter, LedgerError, Reader, Session, SessionFilter};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    Console,
    caller::Caller,
    extract::PathText,
    failure::Failure,
    openapi::{FindErrors, ReadErrors},
    query::{self, InterceptionQuery, MAX_LIMIT, SessionQuery, SessionUserQuery},
    views::{
        AmbiguousView, ErrorKind, ErrorResponse, InterceptionDetailView, InterceptionItemView,
        PageView, SessionDetailView, SessionView,
    },
};

pub(crate) fn router() -> OpenApiRouter<Console> {
    OpenApiRouter::new()
        .routes(routes!(list_interceptions))
        .routes(routes!(show_interception))
        .routes(routes!(list_sessions))
        .routes(routes!(show_session))
}

/// List interceptions, newest first
///
/// A member gets their own, auditors and administrators those of all users.
#[utoipa::path(
    get, path = "/interceptions", tag = "records", params(InterceptionQuery),
    responses((status = 200, description = "A page", body = PageView<InterceptionItemView>), ReadErrors),
)]
async fn list_interceptions(
    State(console): State<Console>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<PageView<InterceptionItemView>>, Failure> {
    let query: InterceptionQuery = query::read(query.as_deref())?;
    let mut filter = InterceptionFilter::try_from(query)?;
    filter.user_id = caller.visible_user();
    let page = console.ledger.read(move |reader| reader.interceptions(&filter)).await?;
    Ok(Json(PageView::of(page)))
}

/// Show an interception
///
/// With its token counts, prompts, tool calls, thoughts, attachments and exchanges with providers.
#[utoipa::path(
    get, path = "/interceptions/{id}", tag = "records",
    params(("id" = Uuid, Path, description = "Id of the interception")),
    responses(
        (status = 200, description = "The interception", body = InterceptionDetailView), FindErrors,
    ),
)]
async fn show_interception(
    State(console): State<Console>,
    caller: Caller,
    PathText(id): PathText,
) -> Result<Json<InterceptionDetailView>, Failure> {
    let missing = || Failure::not_found("there is no such interception");
    let id: Uuid = id.parse().map_err(|_invalid| missing())?;
    let found = console.ledger.read(move |reader| reader.interception(id)).await?;
    let is_visible = |owner: Uuid| caller.visible_user().is_none_or(|user| user == owner);
    let detail =
        found.filter(|detail| is_visible(detail.item.interception.user_id)).ok_or_else(missing)?;
    Ok(Json(detail.into()))
}

/// List sessions, latest activity first
///
/// A session is the requests of one user with one session id of the client, or of one thread where the
/// client sends none.
#[utoipa::path(
    get, path = "/sessions", tag = "records", params(SessionQuery),
    responses((status = 200, description = "A page", body = PageView<SessionView>), ReadErrors),
)]
async fn list_sessions(
    State(console): State<Console>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<PageView<SessionView>>, Failure> {
    let query: SessionQuery = query::read(query.as_deref())?;
    let mut filter = SessionFilter::try_from(query)?;
    filter.user_id = caller.visible_user();
    let page = console.ledger.read(move |reader| reader.sessions(&filter)).await?;
    Ok(Json(PageView::of(page)))
}

/// Show a session with its interceptions, oldest first
///
/// The interceptions come in pages.
#[utoipa::path(
    get, path = "/sessions/{id}", tag = "records",
    params(("id" = String, Path, description = "Id of the session"), SessionUserQuery),
    responses(
        (status = 200, description = "The session", body = SessionDetailView),
        (status = 409, description = "Several users have a session with this id: name one with `user`",
            body = ErrorResponse<AmbiguousView>),
        FindErrors,
    ),
)]
async fn show_session(
    State(console): State<Console>,
    caller: Caller,
    PathText(id): PathText,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    let query: SessionUserQuery = query::read(query.as_deref())?;
    let (page, visible_user) = (query.page()?, caller.visible_user());
    let read = move |reader: &Reader<'_>| find_session(reader, &id, query.user, visible_user, page);
    match console.ledger.read(read).await? {
        FoundSession::Nothing => Err(Failure::not_found("there is no such session")),
        FoundSession::One(session) => Ok(Json(session).into_response()),
        FoundSession::OfSeveralUsers(sessions) => {
            let message = format!(
                "{} users have a session with this id; name one with `?user=`",
                sessions.len()
            );
            let sessions = sessions.into_iter().map(Into::into).collect();
            let error = AmbiguousView { kind: ErrorKind::Ambiguous, message, sessions };
            Ok((StatusCode::CONFLICT, Json(ErrorResponse { error })).into_response())
        }
    }
}

/// What is found under the id of a session.
enum FoundSession {
    Nothing,
    One(Box<SessionDetailView>),
    /// Clients choose the ids, so that several users may have a session with the same one.
    OfSeveralUsers(Vec<Session>),
}

/// The session of a user by its id; or of any user, if only one has a session with this id.
fn find_session(
    reader: &Reader<'_>,
    id: &str,
    user: Option<String>,
    visible_user: Option<Uuid>,
    (limit, after): (u32, Option<Uuid>),
) -> Result<FoundSession, LedgerError> {
    let wanted = SessionFilter {
        user,
        user_id: visible_user,
        session: Some(id.into()),
        limit: MAX_LIMIT,
        ..SessionFilter::default()
    };
    let mut sessions = reader.sessions(&wanted)?.items;
    if sessions.len() > 1 {
        return Ok(FoundSession::OfSeveralUsers(sessions));
    }
    let Some(session) = sessions.pop() else { return Ok(FoundSession::Nothing) };
    let filter = InterceptionFilter {
        user: Some(session.user.clone()),
        session: Some(id.into()),
        limit,
        ..InterceptionFilter::default()
    };
    let page = reader.export_page(&filter, after)?;
    Ok(FoundSession::One(Box::new(SessionDetailView {
        session: session.into(),
        interceptions: page.items.into_iter().map(Into::into).collect(),
        next_cursor: page.next_cursor,
    })))
}
