//! The list of sessions, from their roll-ups.

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    InterceptionFilter, LedgerError, Page, Session, SessionFilter, TokenSums, WalkBudget,
    read::{
        interceptions,
        lists::{Conditions, MAX_LIMIT, last_id},
        page::page,
        walk::add_ids,
    },
    record::Outcome,
    store::{
        interceptions::{first_id, time_of},
        rollups::{self, SUMS},
        sql::{Cells, Database, Flavour, FromRow, all, count, required},
    },
};

/// Maximum number of models, and of providers, that are listed of a session.
const MAX_PARTS: usize = 100;
/// How many requests with the words of a search are looked at.
const MAX_HITS: usize = 1_000;
/// Maximum number of large sessions that are found.
const MAX_LARGE: u32 = 20;

/// A page of sessions, latest activity first. Sessions with some words are those of the newest [`MAX_HITS`]
/// requests whose prompts have them.
pub(crate) fn sessions(
    database: &dyn Database,
    filter: &SessionFilter,
    budget: WalkBudget,
) -> Result<Page<Session>, LedgerError> {
    let mut conditions = Conditions::default();
    let mut searched_until = None;
    if let Some(q) = &filter.q {
        let hits = InterceptionFilter {
            user: filter.user.clone(),
            user_id: filter.user_id,
            session: filter.session.clone(),
            q: Some(q.clone()),
            ..InterceptionFilter::default()
        };
        let found = interceptions::find(database, &hits, MAX_HITS, budget)?;
        let Some(oldest) = found.ids.last().copied() else {
            let searched_until = found.stopped_at.map(time_of);
            return Ok(Page { items: Vec::new(), next_cursor: None, searched_until });
        };
        let is_full = found.ids.len() == MAX_HITS;
        searched_until = found.stopped_at.or(is_full.then_some(oldest)).map(time_of);
        add_ids(&mut conditions, database.flavour(), &found.ids);
        let of_hits = conditions.text();
        conditions.sql = vec![format!(
            "(s.user_id, s.id) IN
               (SELECT i.user_id, i.session_id FROM interceptions i WHERE {of_hits})"
        )];
    }
    conditions.add_some("s.user_id = ?", filter.user_id);
    conditions.add_some("s.user_id = (SELECT id FROM users WHERE name = ?)", filter.user.clone());
    conditions.add_some("s.id = ?", filter.session.clone());
    conditions.add_some("s.client = ?", filter.client.clone());
    for (kind, value) in [
        ("model", &filter.model),
        ("provider", &filter.provider),
        ("credential_kind", &filter.credential_kind),
    ] {
        // SQLite makes a join of EXISTS, and then sorts all sessions that have the part.
        let part = format!("({} AND p.value = ?) > 0", parts("count(*)", kind));
        conditions.add_some(&part, value.as_deref().map(|value| rollups::name(Some(value))));
    }
    if let Some(outcome) = filter.outcome {
        conditions.sql.push(has_outcome(outcome));
    }
    conditions.add_some("s.last_at >= ?", filter.since);
    conditions.add_some("s.first_at < ?", filter.until);
    if let Some(cursor) = &filter.cursor {
        conditions.add("s.last_id < ?", last_id(cursor)?);
    }
    let limit = filter.limit.clamp(1, MAX_LIMIT);
    let sql = format!(
        "{} WHERE {} ORDER BY s.last_id DESC LIMIT {}",
        select(database.flavour()),
        conditions.text(),
        limit + 1
    );
    let page = page(database, &sql, &conditions.values, limit, |found: &SessionRow| found.last_id)?;
    let items = page.items.into_iter().map(|found| found.session).collect();
    Ok(Page { items, next_cursor: page.next_cursor, searched_until })
}

/// Sessions with a request at or after `since` and at least so many requests, the largest first.
pub(crate) fn large(
    database: &dyn Database,
    user_id: Option<Uuid>,
    since: Timestamp,
    requests: u64,
) -> Result<Vec<Session>, LedgerError> {
    let mut conditions = Conditions::default();
    conditions.add_some("s.user_id = ?", user_id);
    // An index is sorted by the ids, which contain their times.
    conditions.add("s.last_id >= ?", first_id(since));
    conditions.add("s.requests >= ?", i64::try_from(requests).unwrap_or(i64::MAX));
    let sql = format!(
        "{} WHERE {} ORDER BY s.requests DESC LIMIT {MAX_LARGE}",
        select(database.flavour()),
        conditions.text()
    );
    let found: Vec<SessionRow> = all(database, &sql, &conditions.values)?;
    Ok(found.into_iter().map(|found| found.session).collect())
}

/// Selects sessions `s` as [`SessionRow`]s.
fn select(flavour: Flavour) -> String {
    let values = flavour.json_array("p.value");
    format!(
        "SELECT s.id, u.name, s.client, s.first_at, s.last_at, s.ended_at, ({}), ({}), ({}),
           s.first_prompt, s.last_prompt, s.requests, s.{}, s.last_id
         FROM sessions s JOIN users u ON u.id = s.user_id",
        parts(&values, "model"),
        parts(&values, "provider"),
        parts("count(*)", "agent"),
        SUMS.join(", s.")
    )
}

/// A select of parts of a kind of a session `s`.
fn parts(what: &str, kind: &str) -> String {
    format!(
        "SELECT {what} FROM session_parts p
         WHERE p.user_id = s.user_id AND p.session_id = s.id AND p.kind = '{kind}'"
    )
}

/// The condition that a session `s` has a request with this outcome.
fn has_outcome(outcome: Outcome) -> String {
    match outcome {
        Outcome::InProgress => {
            "s.requests > s.completed + s.failed + s.cancelled + s.refused + s.interrupted".into()
        }
        ended => format!("s.{ended} > 0"),
    }
}

/// A session, and the id of its latest interception, by which the list is ordered.
struct SessionRow {
    session: Session,
    last_id: Uuid,
}

impl FromRow for SessionRow {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        let session = Session {
            id: required(row.text()?)?,
            user: required(row.text()?)?,
            client: row.text()?,
            first_at: required(row.time()?)?,
            last_at: required(row.time()?)?,
            ended_at: row.time()?,
            models: names(row)?,
            providers: names(row)?,
            agents: count(row)?,
            first_prompt: row.text()?,
            last_prompt: row.text()?,
            requests: count(row)?,
            completed: count(row)?,
            failed: count(row)?,
            cancelled: count(row)?,
            refused: count(row)?,
            interrupted: count(row)?,
            tokens: TokenSums::from_row(row)?,
            tools: count(row)?,
        };
        Ok(Self { session, last_id: required(row.id()?)? })
    }
}

/// The names in a JSON array, in order.
fn names(row: &mut dyn Cells) -> Result<Vec<String>, LedgerError> {
    let text = row.text()?.unwrap_or_else(|| "[]".to_owned());
    let mut names: Vec<String> =
        serde_json::from_str(&text).map_err(|error| LedgerError::Row(error.to_string()))?;
    names.sort();
    names.truncate(MAX_PARTS);
    Ok(names)
}
