//! Lists and details for the API, the command line and the console.

use rusqlite::{Connection, types::Value};
use uuid::Uuid;

use super::rows::{self, Cells, FromRow};
use crate::{
    InterceptionDetail, InterceptionFilter, InterceptionItem, LedgerError, Page, Session,
    SessionFilter,
    record::{Interception, Prompt, Thought, TokenUsage, ToolUsage, time_text},
};

/// Most rows on a page.
const LARGEST_LIMIT: u32 = 500;

/// Conditions and their values, joined by AND.
#[derive(Default)]
struct Conditions {
    sql: Vec<String>,
    values: Vec<Value>,
}

impl Conditions {
    /// Adds a condition in which `?` stands for the value.
    fn add(&mut self, sql: &str, value: impl Into<Value>) {
        self.values.push(value.into());
        self.sql.push(sql.replace('?', &format!("?{}", self.values.len())));
    }

    fn add_some(&mut self, sql: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.add(sql, value);
        }
    }

    fn text(&self) -> String {
        if self.sql.is_empty() { "TRUE".into() } else { self.sql.join(" AND ") }
    }
}

fn select_items() -> String {
    let sum = |column: &str| {
        format!(
            "coalesce((SELECT sum({column}) FROM token_usages WHERE interception_id = i.id), 0)"
        )
    };
    format!(
        "SELECT {}, u.name, {}, {}, {}, {},
         (SELECT count(*) FROM tool_usages WHERE interception_id = i.id)
         FROM interceptions i JOIN users u ON u.id = i.user_id",
        Interception::COLUMNS,
        sum("input_tokens"),
        sum("output_tokens"),
        sum("cache_read_input_tokens"),
        sum("cache_write_input_tokens"),
    )
}

pub(super) fn interceptions(
    connection: &Connection,
    filter: &InterceptionFilter,
) -> Result<Page<InterceptionItem>, LedgerError> {
    let mut conditions = Conditions::default();
    conditions.add_some("u.name = ?", filter.user.clone());
    conditions.add_some("i.user_id = ?", filter.user_id.map(|id| id.to_string()));
    conditions.add_some("i.provider = ?", filter.provider.clone());
    conditions.add_some("(i.model = ? OR i.model_served = ?)", filter.model.clone());
    conditions.add_some("i.client = ?", filter.client.clone());
    conditions.add_some("i.client_session_id = ?", filter.session.clone());
    conditions.add_some("i.thread_id = ?", filter.thread.map(|id| id.to_string()));
    conditions.add_some("i.credential_kind = ?", filter.credential_kind.clone());
    conditions.add_some("i.outcome = ?", filter.outcome.map(|outcome| outcome.as_str().to_owned()));
    conditions.add_some("i.started_at >= ?", filter.since.map(time_text));
    conditions.add_some("i.started_at < ?", filter.until.map(time_text));
    conditions.add_some(
        "EXISTS (SELECT 1 FROM prompts p WHERE p.interception_id = i.id
         AND instr(lower(p.prompt), lower(?)) > 0)",
        filter.q.clone(),
    );
    if let Some(cursor) = &filter.cursor {
        let last: Uuid = cursor.parse().map_err(|_invalid| LedgerError::Cursor)?;
        conditions.add("i.id < ?", last.to_string());
    }
    let limit = filter.limit.clamp(1, LARGEST_LIMIT);
    let sql = format!(
        "{} WHERE {} ORDER BY i.id DESC LIMIT {}",
        select_items(),
        conditions.text(),
        limit + 1
    );
    let items = rows::all(connection, &sql, rusqlite::params_from_iter(conditions.values))?;
    Ok(page(items, limit, |item: &InterceptionItem| item.interception.id.to_string()))
}

/// Cuts what was read beyond a page, which says that there is a next one.
fn page<T>(mut items: Vec<T>, limit: u32, cursor: impl Fn(&T) -> String) -> Page<T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let has_more = items.len() > limit;
    items.truncate(limit);
    let next_cursor = items.last().filter(|_| has_more).map(cursor);
    Page { items, next_cursor }
}

pub(super) fn interception(
    connection: &Connection,
    id: Uuid,
) -> Result<Option<InterceptionDetail>, LedgerError> {
    let id = id.to_string();
    let sql = format!("{} WHERE i.id = ?1", select_items());
    let Some(item) = rows::first(connection, &sql, [&id])? else { return Ok(None) };
    Ok(Some(InterceptionDetail {
        item,
        token_usages: children::<TokenUsage>(connection, "token_usages", &id)?,
        prompts: children::<Prompt>(connection, "prompts", &id)?,
        tool_usages: children::<ToolUsage>(connection, "tool_usages", &id)?,
        thoughts: children::<Thought>(connection, "thoughts", &id)?,
    }))
}

fn children<T: FromRow>(
    connection: &Connection,
    table: &'static str,
    id: &str,
) -> Result<Vec<T>, LedgerError> {
    let columns = T::COLUMNS;
    let sql = format!("SELECT {columns} FROM {table} WHERE interception_id = ?1 ORDER BY id");
    rows::all(connection, &sql, [id])
}

impl FromRow for Session {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut Cells<'_, '_>) -> Result<Self, LedgerError> {
        Ok(Self {
            id: row.take()?,
            user: row.take()?,
            client: row.take()?,
            first_at: row.parsed()?,
            last_at: row.parsed()?,
            ended_at: row.optional()?,
            models: {
                let text: String = row.take()?;
                let mut models: Vec<String> = serde_json::from_str::<Vec<Option<String>>>(&text)
                    .map_err(|error| LedgerError::Row(error.to_string()))?
                    .into_iter()
                    .flatten()
                    .collect();
                models.sort();
                models
            },
            requests: row.count()?,
            input_tokens: row.count()?,
            output_tokens: row.count()?,
            cache_read_input_tokens: row.count()?,
            cache_write_input_tokens: row.count()?,
            tools: row.count()?,
        })
    }
}

pub(super) fn sessions(
    connection: &Connection,
    filter: &SessionFilter,
) -> Result<Page<Session>, LedgerError> {
    let mut conditions = Conditions::default();
    conditions.add_some("i.user_id = ?", filter.user_id.map(|id| id.to_string()));
    conditions
        .add_some("coalesce(i.client_session_id, i.thread_id, i.id) = ?", filter.session.clone());
    let inner = conditions.text();
    let mut outer = Conditions { sql: Vec::new(), values: conditions.values };
    outer.add_some("last_at >= ?", filter.since.map(time_text));
    outer.add_some("last_id < ?", filter.cursor.clone());
    let limit = filter.limit.clamp(1, LARGEST_LIMIT);
    let sql = format!(
        "WITH sums AS (
           SELECT coalesce(i.client_session_id, i.thread_id, i.id) AS session, i.user_id AS user_id,
             max(i.id) AS last_id, min(i.started_at) AS first_at, max(i.started_at) AS last_at,
             max(i.ended_at) AS ended_at, json_group_array(DISTINCT i.model) AS models,
             count(*) AS requests,
             sum((SELECT coalesce(sum(input_tokens), 0) FROM token_usages WHERE interception_id = i.id)) AS input,
             sum((SELECT coalesce(sum(output_tokens), 0) FROM token_usages WHERE interception_id = i.id)) AS output,
             sum((SELECT coalesce(sum(cache_read_input_tokens), 0) FROM token_usages WHERE interception_id = i.id)) AS cache_read,
             sum((SELECT coalesce(sum(cache_write_input_tokens), 0) FROM token_usages WHERE interception_id = i.id)) AS cache_write,
             sum((SELECT count(*) FROM tool_usages WHERE interception_id = i.id)) AS tools
           FROM interceptions i WHERE {inner} GROUP BY session, i.user_id)
         SELECT session, u.name, (SELECT client FROM interceptions WHERE id = last_id), first_at,
           last_at, ended_at, models, requests, input, output, cache_read, cache_write, tools, last_id
         FROM sums JOIN users u ON u.id = sums.user_id WHERE {} ORDER BY last_id DESC LIMIT {}",
        outer.text(),
        limit + 1
    );
    let found: Vec<WithLast> =
        rows::all(connection, &sql, rusqlite::params_from_iter(outer.values))?;
    let page = page(found, limit, |found| found.last_id.clone());
    let items = page.items.into_iter().map(|found| found.session).collect();
    Ok(Page { items, next_cursor: page.next_cursor })
}

/// A session with the id of its latest interception, by which the list is ordered.
struct WithLast {
    session: Session,
    last_id: String,
}

impl FromRow for WithLast {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut Cells<'_, '_>) -> Result<Self, LedgerError> {
        Ok(Self { session: Session::from_row(row)?, last_id: row.take()? })
    }
}
