//! Parses query strings into filters; an error names the parameter.

use jiff::Timestamp;
use keybridge_ledger::{
    DEFAULT_LIMIT, InterceptionDetail, InterceptionFilter, LedgerError, MAX_PAGE_BYTES, Reader,
    Session, SessionFilter, parse,
};
use serde::Serialize;
use uuid::Uuid;

/// Most rows on a page.
const MAX_LIMIT: u32 = 500;
/// Most interceptions shown with a session.
const MAX_SESSION_INTERCEPTIONS: usize = 5_000;

/// A session with its interceptions in order.
#[derive(Debug, Serialize)]
pub(crate) struct SessionDetail {
    #[serde(flatten)]
    session: Session,
    interceptions: Vec<InterceptionDetail>,
    /// Whether there are more interceptions than are shown.
    truncated: bool,
}

pub(crate) fn interceptions(query: Option<&str>) -> Result<InterceptionFilter, String> {
    let mut filter = InterceptionFilter::default();
    for (name, value) in pairs(query)? {
        match name.as_str() {
            "user" => filter.user = Some(value),
            "provider" => filter.provider = Some(value),
            "model" => filter.model = Some(value),
            "client" => filter.client = Some(value),
            "session" => filter.session = Some(value),
            "thread" => filter.thread = Some(parsed(&name, &value)?),
            "credential_kind" if matches!(value.as_str(), "centralized" | "byok") => {
                filter.credential_kind = Some(value);
            }
            "credential_kind" => {
                return Err(format!(
                    "`credential_kind`: `{value}` is neither `centralized` nor `byok`"
                ));
            }
            "outcome" => filter.outcome = Some(parsed(&name, &value)?),
            "since" => filter.since = Some(time(&name, &value)?),
            "until" => filter.until = Some(time(&name, &value)?),
            "q" => filter.q = Some(value),
            "limit" => filter.limit = limit(&value)?,
            "cursor" => filter.cursor = Some(value),
            _ => return Err(format!("unknown parameter `{name}`")),
        }
    }
    Ok(filter)
}

pub(crate) fn sessions(query: Option<&str>) -> Result<SessionFilter, String> {
    let mut filter = SessionFilter::default();
    for (name, value) in pairs(query)? {
        match name.as_str() {
            "user" => filter.user = Some(value),
            "since" => filter.since = Some(time(&name, &value)?),
            "limit" => filter.limit = limit(&value)?,
            "cursor" => filter.cursor = Some(value),
            _ => return Err(format!("unknown parameter `{name}`")),
        }
    }
    Ok(filter)
}

/// The parameters of a list without filters.
pub(crate) struct List {
    pub(crate) limit: u32,
    pub(crate) cursor: Option<String>,
}

pub(crate) fn list(query: Option<&str>) -> Result<List, String> {
    let mut list = List { limit: DEFAULT_LIMIT, cursor: None };
    for (name, value) in pairs(query)? {
        match name.as_str() {
            "limit" => list.limit = limit(&value)?,
            "cursor" => list.cursor = Some(value),
            _ => return Err(format!("unknown parameter `{name}`")),
        }
    }
    Ok(list)
}

/// The parameter of a session: the name of its user.
pub(crate) fn session_user(query: Option<&str>) -> Result<Option<String>, String> {
    let mut user = None;
    for (name, value) in pairs(query)? {
        match name.as_str() {
            "user" => user = Some(value),
            _ => return Err(format!("unknown parameter `{name}`")),
        }
    }
    Ok(user)
}

/// What is found under the id of a session.
pub(crate) enum FoundSession {
    Nothing,
    One(Box<SessionDetail>),
    /// Clients choose the ids, so that several users may have a session with the same one.
    OfSeveralUsers(Vec<Session>),
}

/// The session of a user by its id; or of any user, if only one has a session with this id.
pub(crate) fn session(
    reader: &Reader<'_>,
    id: &str,
    user: Option<String>,
    visible_user: Option<Uuid>,
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
    let mut ids = Vec::new();
    let mut filter = InterceptionFilter {
        user: Some(session.user.clone()),
        session: Some(id.into()),
        limit: MAX_LIMIT,
        ..InterceptionFilter::default()
    };
    let mut truncated = loop {
        let page = reader.interceptions(&filter)?;
        ids.extend(page.items.iter().map(|item| item.interception.id));
        filter.cursor = page.next_cursor;
        if filter.cursor.is_none() || ids.len() >= MAX_SESSION_INTERCEPTIONS {
            break filter.cursor.is_some();
        }
    };
    let (mut interceptions, mut size_bytes) = (Vec::with_capacity(ids.len()), 0);
    for id in ids {
        let Some(detail) = reader.interception(id)? else { continue };
        size_bytes += detail.size_bytes;
        if size_bytes > MAX_PAGE_BYTES && !interceptions.is_empty() {
            truncated = true;
            break;
        }
        interceptions.push(detail);
    }
    interceptions.reverse();
    Ok(FoundSession::One(Box::new(SessionDetail { session, interceptions, truncated })))
}

fn pairs(query: Option<&str>) -> Result<Vec<(String, String)>, String> {
    let uri = format!("/?{}", query.unwrap_or_default())
        .parse()
        .map_err(|_invalid| "the query string is not valid".to_owned())?;
    axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri)
        .map(|pairs| pairs.0)
        .map_err(|error| format!("the query string is not valid: {error}"))
}

pub(crate) fn parsed<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    value.parse().map_err(|error: T::Err| format!("`{name}`: {error}"))
}

fn limit(value: &str) -> Result<u32, String> {
    let limit: u32 = parsed("limit", value)?;
    if (1..=MAX_LIMIT).contains(&limit) {
        Ok(limit)
    } else {
        Err(format!("`limit`: {limit} is not between 1 and {MAX_LIMIT}"))
    }
}

/// An RFC 3339 time, or a duration before now.
fn time(name: &str, value: &str) -> Result<Timestamp, String> {
    parse::time(value, Timestamp::now()).map_err(|error| format!("`{name}`: {error}"))
}
