//! Parses query strings into filters; an error names the parameter.

use jiff::Timestamp;
use keybridge_ledger::{
    InterceptionDetail, InterceptionFilter, LedgerError, MAX_PAGE_BYTES, Reader, Session,
    SessionFilter, parse,
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
            "since" => filter.since = Some(time(&name, &value)?),
            "limit" => filter.limit = limit(&value)?,
            "cursor" => filter.cursor = Some(value),
            _ => return Err(format!("unknown parameter `{name}`")),
        }
    }
    Ok(filter)
}

/// One session by its id, among those of one user or of all.
pub(crate) fn session(
    reader: &Reader<'_>,
    id: &str,
    user_id: Option<Uuid>,
) -> Result<Option<SessionDetail>, LedgerError> {
    let wanted =
        SessionFilter { user_id, session: Some(id.into()), limit: 1, ..SessionFilter::default() };
    let Some(session) = reader.sessions(&wanted)?.items.pop() else { return Ok(None) };
    let mut ids = Vec::new();
    let mut filter = InterceptionFilter {
        user: Some(session.user.clone()),
        session: Some(id.into()),
        limit: MAX_LIMIT,
        ..InterceptionFilter::default()
    };
    let mut page = reader.interceptions(&filter)?;
    if page.items.is_empty() {
        filter.session = None;
        filter.thread = id.parse().ok();
        page = reader.interceptions(&filter)?;
    }
    let mut truncated = loop {
        ids.extend(page.items.iter().map(|item| item.interception.id));
        filter.cursor = page.next_cursor;
        if filter.cursor.is_none() || ids.len() >= MAX_SESSION_INTERCEPTIONS {
            break filter.cursor.is_some();
        }
        page = reader.interceptions(&filter)?;
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
    Ok(Some(SessionDetail { session, interceptions, truncated }))
}

fn pairs(query: Option<&str>) -> Result<Vec<(String, String)>, String> {
    let uri = format!("/?{}", query.unwrap_or_default())
        .parse()
        .map_err(|_invalid| "the query string is not valid".to_owned())?;
    axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri)
        .map(|pairs| pairs.0)
        .map_err(|error| format!("the query string is not valid: {error}"))
}

fn parsed<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String>
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
