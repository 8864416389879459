//! Lists and details for the API, the command line and the console.

use uuid::Uuid;

use crate::{
    InterceptionDetail, InterceptionItem, LedgerError,
    read::page::Measured,
    record::{
        Answer, Attachment, Interception, Prompt, Thought, TokenUsage, ToolUsage, UpstreamAttempt,
    },
    store::rollups::bounded,
    store::sql::{Database, FromRow, Value, all, first},
};

/// Maximum number of rows on a page.
pub(super) const MAX_LIMIT: u32 = 500;

/// Conditions and their values, joined by AND.
#[derive(Debug, Clone, Default)]
pub(super) struct Conditions {
    pub(super) sql: Vec<String>,
    pub(super) values: Vec<Value>,
}

impl Conditions {
    /// Adds a condition with `?` in place of the value.
    pub(super) fn add(&mut self, sql: &str, value: impl Into<Value>) {
        self.values.push(value.into());
        self.sql.push(sql.replace('?', &format!("${}", self.values.len())));
    }

    pub(super) fn add_some(&mut self, sql: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.add(sql, value);
        }
    }

    pub(super) fn text(&self) -> String {
        if self.sql.is_empty() { "TRUE".into() } else { self.sql.join(" AND ") }
    }
}

/// The sums of an interception `i`, in the order of [`crate::TokenSums`]: exact, estimated, and the
/// number of rows of unknown quality; then the number of tool calls. `bounds` is a condition on
/// `interception_id` from which PostgreSQL knows the partitions when it plans, after ` AND `.
fn sums(bounds: &str) -> Vec<String> {
    const COUNTS: [&str; 4] =
        ["input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens"];
    let of = |what: String, quality: &str| {
        format!(
            "(SELECT {what} FROM token_usages
              WHERE interception_id = i.id AND quality = '{quality}'{bounds})"
        )
    };
    let mut sums = Vec::new();
    for quality in ["exact", "partial"] {
        for count in COUNTS {
            let sum = format!("CAST(coalesce(sum({}), 0) AS BIGINT)", bounded(count));
            sums.push(of(sum, quality));
        }
    }
    sums.push(of("count(*)".into(), "unknown"));
    sums.push(format!("(SELECT count(*) FROM tool_usages WHERE interception_id = i.id{bounds})"));
    sums
}

/// The columns of an [`InterceptionItem`], of an interception `i` and its user `u`; `bounds` are those of
/// [`sums`].
pub(super) fn item_columns(bounds: &str) -> String {
    format!("{}, u.name, {}", Interception::COLUMNS, sums(bounds).join(", "))
}

/// The items of a list; `bounds` are those of [`sums`].
pub(super) fn select_items(bounds: &str) -> String {
    format!("SELECT {} FROM interceptions i JOIN users u ON u.id = i.user_id", item_columns(bounds))
}

pub(super) fn last_id(cursor: &str) -> Result<Uuid, LedgerError> {
    cursor.parse().map_err(|_invalid| LedgerError::Cursor)
}

pub(crate) fn interception(
    database: &dyn Database,
    id: Uuid,
) -> Result<Option<InterceptionDetail>, LedgerError> {
    let sql = format!("{} WHERE i.id = $1", select_items(" AND interception_id = $1"));
    let Some(item) = first::<InterceptionItem>(database, &sql, &[id.into()])? else {
        return Ok(None);
    };
    let mut size_bytes = 0;
    let size = &mut size_bytes;
    let mut upstream_attempts =
        children::<UpstreamAttempt>(database, "upstream_attempts", id, size)?;
    if upstream_attempts.is_empty() {
        upstream_attempts.extend(only_attempt(&item.interception));
    }
    let detail = InterceptionDetail {
        item,
        token_usages: children::<TokenUsage>(database, "token_usages", id, size)?,
        prompts: children::<Prompt>(database, "prompts", id, size)?,
        tool_usages: children::<ToolUsage>(database, "tool_usages", id, size)?,
        thoughts: children::<Thought>(database, "thoughts", id, size)?,
        answers: children::<Answer>(database, "answers", id, size)?,
        attachments: children::<Attachment>(database, "attachments", id, size)?,
        upstream_attempts,
        size_bytes: 0,
    };
    Ok(Some(InterceptionDetail { size_bytes, ..detail }))
}

/// The attempt of a request that was sent once, which is stored in the row of its interception.
pub(super) fn only_attempt(interception: &Interception) -> Option<UpstreamAttempt> {
    let started_at = interception.upstream_started_at?;
    let ended_at = interception.ended_at?;
    let duration = ended_at.duration_since(started_at).as_millis();
    let source = interception.credential_source.as_deref();
    Some(UpstreamAttempt {
        id: interception.id,
        interception_id: interception.id,
        number: 1,
        turn: 0,
        provider: interception.provider.clone(),
        key_name: source.and_then(|source| source.strip_prefix("pool:")).map(str::to_owned),
        credential_kind: interception.credential_kind.clone(),
        body_edits: interception.body_edits.clone(),
        status: interception.upstream_status,
        error_kind: interception.error_kind.clone(),
        provider_request_id: interception.upstream_request_id.clone(),
        started_at,
        duration_ms: Some(u64::try_from(duration).unwrap_or_default()),
        created_at: ended_at,
    })
}

fn children<T: FromRow>(
    database: &dyn Database,
    table: &'static str,
    id: Uuid,
    size_bytes: &mut usize,
) -> Result<Vec<T>, LedgerError> {
    let columns = T::COLUMNS;
    let sql = format!("SELECT {columns} FROM {table} WHERE interception_id = $1 ORDER BY id");
    let rows: Vec<Measured<T>> = all(database, &sql, &[id.into()])?;
    let measured = rows.into_iter().map(|Measured { row, bytes }| {
        *size_bytes += bytes;
        row
    });
    Ok(measured.collect())
}
