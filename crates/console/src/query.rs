//! The parameters of queries; an error names the parameter.

use axum::http::Uri;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use keybridge_ledger::{
    DEFAULT_LIMIT, GroupBy, InterceptionFilter, LedgerError, SessionFilter, UsageFilter, parse,
};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::IntoParams;
use uuid::Uuid;

use crate::{
    export::ExportFormat,
    failure::Failure,
    views::{CREDENTIAL_KINDS, CredentialKindWord, OutcomeWord},
};

/// Maximum number of rows on a page.
pub(crate) const MAX_LIMIT: u32 = 500;
/// Records on a page of an export, which must be read within the time limit of a read.
const EXPORT_LIMIT: u32 = 200;
/// How much of a wrong value an error shows, in characters.
const MAX_SHOWN_CHARS: usize = 64;

/// The parameters of `GET /interceptions`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct InterceptionQuery {
    /// Name of the user.
    #[param(nullable = false)]
    user: Option<String>,
    /// Name of the provider instance.
    #[param(nullable = false)]
    provider: Option<String>,
    /// Requested or served model.
    #[param(nullable = false)]
    model: Option<String>,
    /// Name of the agent or SDK.
    #[param(nullable = false)]
    client: Option<String>,
    /// Id of a session, as in the list of sessions.
    #[param(nullable = false)]
    session: Option<String>,
    /// Id of a thread.
    #[param(nullable = false, value_type = Option<uuid::Uuid>)]
    thread: Option<String>,
    /// Whose credential was used.
    #[param(nullable = false, value_type = Option<CredentialKindWord>, inline)]
    credential_kind: Option<String>,
    /// How it ended.
    #[param(nullable = false, value_type = Option<OutcomeWord>, inline)]
    outcome: Option<String>,
    /// Started at or after this time: RFC 3339, `2026-01-31` or `2026-01-31T09:30` in UTC, a duration before
    /// now such as `90m`, `24h` or `7d`, `now`, `today`, `yesterday`, or Unix seconds.
    #[param(nullable = false, format = "time-text", example = "24h")]
    since: Option<String>,
    /// Started before this time, in the same forms.
    #[param(nullable = false, format = "time-text", example = "now")]
    until: Option<String>,
    /// Words that a prompt has, all of them, in any order and case; `word*` stands for words that begin so.
    #[param(nullable = false, format = "words", example = "refactor*")]
    q: Option<String>,
    /// Maximum number of rows on a page; default 50.
    #[param(nullable = false, value_type = Option<u32>, minimum = 1, maximum = 500)]
    limit: Option<String>,
    /// `next_cursor` of the previous page.
    #[param(nullable = false, format = "cursor")]
    cursor: Option<String>,
}

impl TryFrom<InterceptionQuery> for InterceptionFilter {
    type Error = Failure;

    fn try_from(query: InterceptionQuery) -> Result<Self, Failure> {
        let times = Times::now();
        Ok(Self {
            user: query.user,
            user_id: None,
            provider: query.provider,
            model: query.model,
            client: query.client,
            session: query.session,
            thread: optional("thread", query.thread)?,
            credential_kind: credential_kind(query.credential_kind)?,
            outcome: optional("outcome", query.outcome)?,
            since: times.parse("since", query.since)?,
            until: times.parse("until", query.until)?,
            q: query.q,
            limit: limit(query.limit)?,
            cursor: query.cursor,
        })
    }
}

/// The parameters of `GET /export`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ExportQuery {
    /// `jsonl` (default): a JSON object on each line, as `GET /interceptions/{id}` shows it. `csv`: a row for
    /// each interception, without contents.
    #[param(nullable = false, value_type = Option<ExportFormat>, inline)]
    pub(crate) format: Option<String>,
    /// Started at or after this time: RFC 3339, `2026-01-31` or `2026-01-31T09:30` in UTC, a duration before
    /// now such as `90m`, `24h` or `7d`, `now`, `today`, `yesterday`, or Unix seconds. Default: the first
    /// record.
    #[param(nullable = false, format = "time-text", example = "24h")]
    since: Option<String>,
    /// Started before this time, in the same forms. Default: now.
    #[param(nullable = false, format = "time-text", example = "now")]
    until: Option<String>,
    /// Name of the user.
    #[param(nullable = false)]
    user: Option<String>,
    /// Name of the provider instance.
    #[param(nullable = false)]
    provider: Option<String>,
    /// Requested or served model.
    #[param(nullable = false)]
    model: Option<String>,
    /// Name of the agent or SDK.
    #[param(nullable = false)]
    client: Option<String>,
    /// Whose credential was used.
    #[param(nullable = false, value_type = Option<CredentialKindWord>, inline)]
    credential_kind: Option<String>,
    /// How it ended.
    #[param(nullable = false, value_type = Option<OutcomeWord>, inline)]
    outcome: Option<String>,
}

impl TryFrom<ExportQuery> for InterceptionFilter {
    type Error = Failure;

    fn try_from(query: ExportQuery) -> Result<Self, Failure> {
        let times = Times::now();
        Ok(Self {
            user: query.user,
            provider: query.provider,
            model: query.model,
            client: query.client,
            credential_kind: credential_kind(query.credential_kind)?,
            outcome: optional("outcome", query.outcome)?,
            since: times.parse("since", query.since)?,
            // An export ends even if there are new records all the time.
            until: times.parse("until", query.until)?.or(Some(times.now)),
            limit: EXPORT_LIMIT,
            ..Self::default()
        })
    }
}

/// The parameters of `GET /sessions`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SessionQuery {
    /// Name of the user.
    #[param(nullable = false)]
    user: Option<String>,
    /// Name of the agent or SDK of the latest request.
    #[param(nullable = false)]
    client: Option<String>,
    /// A requested model.
    #[param(nullable = false)]
    model: Option<String>,
    /// Name of a provider instance that was asked.
    #[param(nullable = false)]
    provider: Option<String>,
    /// With a request whose credential was of this kind.
    #[param(nullable = false, value_type = Option<CredentialKindWord>, inline)]
    credential_kind: Option<String>,
    /// With a request that ended so.
    #[param(nullable = false, value_type = Option<OutcomeWord>, inline)]
    outcome: Option<String>,
    /// Words that a prompt has, all of them, as in `q` of `/interceptions`. Of many prompts with them, the newest
    /// count: `searched_until` says how far back.
    #[param(nullable = false, format = "words", example = "refactor*")]
    q: Option<String>,
    /// With a request at or after this time, in the forms of `since` of `/interceptions`.
    #[param(nullable = false, format = "time-text", example = "24h")]
    since: Option<String>,
    /// With a request before this time, in the same forms.
    #[param(nullable = false, format = "time-text", example = "now")]
    until: Option<String>,
    /// Maximum number of rows on a page; default 50.
    #[param(nullable = false, value_type = Option<u32>, minimum = 1, maximum = 500)]
    limit: Option<String>,
    /// `next_cursor` of the previous page.
    #[param(nullable = false, format = "cursor")]
    cursor: Option<String>,
}

impl TryFrom<SessionQuery> for SessionFilter {
    type Error = Failure;

    fn try_from(query: SessionQuery) -> Result<Self, Failure> {
        let times = Times::now();
        Ok(Self {
            user: query.user,
            user_id: None,
            session: None,
            client: query.client,
            model: query.model,
            provider: query.provider,
            credential_kind: credential_kind(query.credential_kind)?,
            outcome: optional("outcome", query.outcome)?,
            q: query.q,
            since: times.parse("since", query.since)?,
            until: times.parse("until", query.until)?,
            limit: limit(query.limit)?,
            cursor: query.cursor,
        })
    }
}

/// The parameters of `GET /sessions/{id}`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct SessionUserQuery {
    /// Name of its user: clients choose the ids, so several users may have a session with the same one.
    #[param(nullable = false)]
    pub(crate) user: Option<String>,
    /// Maximum number of interceptions on a page; default 500.
    #[param(nullable = false, value_type = Option<u32>, minimum = 1, maximum = 500)]
    limit: Option<String>,
    /// `next_cursor` of the previous page.
    #[param(nullable = false, format = "cursor")]
    cursor: Option<String>,
}

impl SessionUserQuery {
    /// The page of its interceptions.
    pub(crate) fn page(&self) -> Result<(u32, Option<Uuid>), Failure> {
        let limit = limit(Some(self.limit.clone().unwrap_or_else(|| MAX_LIMIT.to_string())))?;
        let cursor = self.cursor.as_deref().map(str::parse).transpose();
        Ok((limit, cursor.map_err(|_invalid| Failure::from(LedgerError::Cursor))?))
    }
}

/// The parameters of `GET /usage`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct UsageQuery {
    /// What the sums are grouped by: one or several of `user`, `provider`, `model`, `client`,
    /// `credential_kind`, `day` and `hour`, with commas between them. Without it there is one group.
    #[param(nullable = false, format = "group-by", example = "day,model")]
    group_by: Option<String>,
    /// Where days and hours begin, a name such as `Europe/Berlin`; default `UTC`.
    #[param(nullable = false, format = "time-zone", example = "Europe/Berlin")]
    time_zone: Option<String>,
    /// Started at or after this time, in the forms of `since` of `/interceptions`; the half hour of this time
    /// counts as a whole. Default: 30 days before `until`.
    #[param(nullable = false, format = "time-text", example = "24h")]
    since: Option<String>,
    /// Started before this time, in the same forms; the half hour of this time counts as a whole. Default: now.
    #[param(nullable = false, format = "time-text", example = "now")]
    until: Option<String>,
    /// Name of the user.
    #[param(nullable = false)]
    user: Option<String>,
    /// Name of the provider instance that served.
    #[param(nullable = false)]
    provider: Option<String>,
    /// Requested model.
    #[param(nullable = false)]
    model: Option<String>,
    /// Name of the agent or SDK.
    #[param(nullable = false)]
    client: Option<String>,
    /// Whose credential was used.
    #[param(nullable = false, value_type = Option<CredentialKindWord>, inline)]
    credential_kind: Option<String>,
}

/// The period of a query for usage that names no start.
const DEFAULT_USAGE_PERIOD: SignedDuration = SignedDuration::from_hours(30 * 24);

impl TryFrom<UsageQuery> for UsageFilter {
    type Error = Failure;

    fn try_from(query: UsageQuery) -> Result<Self, Failure> {
        let times = Times::now();
        let until = times.parse("until", query.until)?.unwrap_or(times.now);
        let since = match times.parse("since", query.since)? {
            Some(since) => since,
            None => until.checked_sub(DEFAULT_USAGE_PERIOD).unwrap_or(Timestamp::UNIX_EPOCH),
        };
        if since > until {
            return Err(Failure::invalid("`since` is after `until`".into()));
        }
        let mut group_by = Vec::new();
        for word in query.group_by.iter().flat_map(|words| words.split(',')) {
            let by: GroupBy = parsed("group_by", word.trim())?;
            if group_by.contains(&by) {
                return Err(Failure::invalid(format!("`group_by`: `{by}` is there twice")));
            }
            group_by.push(by);
        }
        let time_zone = query.time_zone.map_or(Ok(TimeZone::UTC), |name| time_zone(&name))?;
        Ok(Self {
            user: query.user,
            user_id: None,
            provider: query.provider,
            model: query.model,
            client: query.client,
            credential_kind: credential_kind(query.credential_kind)?,
            since,
            until,
            group_by,
            time_zone,
        })
    }
}

/// Finds a time zone by its name.
fn time_zone(name: &str) -> Result<TimeZone, Failure> {
    TimeZone::get(name).map_err(|_unknown| {
        let name: String = name.chars().take(MAX_SHOWN_CHARS).collect();
        Failure::invalid(format!("`time_zone`: there is no time zone `{name}`"))
            .with_hint("use a name of the IANA database, such as `Europe/Berlin`")
    })
}

/// The parameters of a list without filters.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Maximum number of rows on a page; default 50.
    #[param(nullable = false, value_type = Option<u32>, minimum = 1, maximum = 500)]
    limit: Option<String>,
    /// `next_cursor` of the previous page.
    #[param(nullable = false, format = "cursor")]
    pub(crate) cursor: Option<String>,
}

impl ListQuery {
    pub(crate) fn limit(&self) -> Result<u32, Failure> {
        limit(self.limit.clone())
    }
}

/// Parses a query string.
pub(crate) fn read<T: DeserializeOwned>(query: Option<&str>) -> Result<T, Failure> {
    let query = query.unwrap_or_default();
    let invalid =
        |reason: String| Failure::invalid(format!("the query string is not valid: {reason}"));
    query.split('&').try_for_each(check_encoding).map_err(invalid)?;
    let uri: Uri =
        format!("/?{query}").parse().map_err(|_error| invalid("it is too long".into()))?;
    axum::extract::Query::try_from_uri(&uri).map(|query| query.0).map_err(|error| {
        let reason =
            std::error::Error::source(&error).map_or_else(String::new, ToString::to_string);
        let reason = reason.replace("unknown field", "unknown parameter");
        invalid(reason.replace("duplicate field", "there are several values of the parameter"))
    })
}

/// Checks that a parameter can be decoded, and without loss.
fn check_encoding(pair: &str) -> Result<(), String> {
    let (name, _value) = pair.split_once('=').unwrap_or((pair, ""));
    let is_encoded = |at: usize| {
        let digits = pair.as_bytes().get(at + 1..at + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if !pair.match_indices('%').all(|(at, _)| is_encoded(at)) {
        return Err(format!("in `{name}`, `%` is not followed by two hex digits; write `%25`"));
    }
    match percent_decode_str(pair).decode_utf8() {
        Ok(text) if text.contains('\0') => Err(format!("`{name}` contains NUL (%00)")),
        Ok(_text) => Ok(()),
        Err(_error) => Err(format!("`{name}` is not UTF-8 when it is decoded")),
    }
}

/// Parses the value of a parameter.
pub(crate) fn parsed<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, Failure>
where
    T::Err: std::fmt::Display,
{
    value.parse().map_err(|error: T::Err| Failure::invalid(format!("`{name}`: {error}")))
}

/// Parses the value of a parameter that may be absent.
pub(crate) fn optional<T: std::str::FromStr>(
    name: &str,
    value: Option<String>,
) -> Result<Option<T>, Failure>
where
    T::Err: std::fmt::Display,
{
    value.map(|value| parsed(name, &value)).transpose()
}

pub(crate) fn credential_kind(value: Option<String>) -> Result<Option<String>, Failure> {
    match value {
        Some(value) if !CREDENTIAL_KINDS.contains(&value.as_str()) => Err(Failure::invalid(
            format!("`credential_kind`: `{value}` is neither `centralized` nor `byok`"),
        )),
        value => Ok(value),
    }
}

fn limit(value: Option<String>) -> Result<u32, Failure> {
    let Some(value) = value else { return Ok(DEFAULT_LIMIT) };
    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
    limit.ok_or_else(|| {
        Failure::invalid(format!("`limit`: `{value}` is not a number from 1 to {MAX_LIMIT}"))
    })
}

/// Parses the times of one query, which have the same now.
pub(crate) struct Times {
    pub(crate) now: Timestamp,
}

impl Times {
    pub(crate) fn now() -> Self {
        Self { now: Timestamp::now() }
    }

    pub(crate) fn parse(
        &self,
        name: &str,
        value: Option<String>,
    ) -> Result<Option<Timestamp>, Failure> {
        let Some(value) = value else { return Ok(None) };
        let parsed = parse::time(&value, self.now).or_else(|error| {
            // A `+` that is not encoded is a space: `2026-01-31T09:30:00 01:00`.
            let with_plus = value.replacen(' ', "+", 1);
            parse::time(&with_plus, self.now).map_err(|_error| error)
        });
        parsed.map(Some).map_err(|error| Failure::invalid(format!("`{name}`: {error}")))
    }
}
