//! Reads of the trail by position, and its check.

use jiff::Timestamp;
use serde::Serialize;
use uuid::Uuid;

use super::{
    lists::{MAX_LIMIT, item_columns},
    page::page,
};
use crate::{
    InterceptionItem, LedgerError, Page,
    store::{
        interceptions::{ID_MARGIN, first_id},
        sql::{
            Cells, Database, Flavour, FromRow, RECOUNT_TIMEOUT, all_within, count, first, required,
            word,
        },
        trail::{NOT_IN_TRAIL, TrailKind, head, head_sql},
    },
};

/// An entry of the trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TrailEntry {
    /// Its position: 1 for the first entry, and one more for each further one.
    pub position: u64,
    /// What it says.
    pub kind: TrailKind,
    /// The record that it is about.
    pub interception_id: Option<Uuid>,
    /// The run of retention that it is about.
    pub retention_run_id: Option<Uuid>,
    /// The change by an administrator that it is about.
    pub event_id: Option<Uuid>,
    /// The record as it is now, which may be later than the entry; `None` when retention has removed it.
    pub interception: Option<InterceptionItem>,
}

impl FromRow for TrailEntry {
    const COLUMNS: &'static str =
        "t.position, t.kind, t.interception_id, t.retention_run_id, t.event_id, i.id IS NOT NULL";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            position: count(row)?,
            kind: word(row)?,
            interception_id: row.id()?,
            retention_run_id: row.id()?,
            event_id: row.id()?,
            interception: match required(row.boolean()?)? {
                true => Some(InterceptionItem::from_row(row)?),
                false => None,
            },
        })
    }
}

/// The entries after a position, in order.
pub(crate) fn entries(
    database: &dyn Database,
    after: u64,
    limit: u32,
) -> Result<Page<TrailEntry>, LedgerError> {
    let limit = limit.clamp(1, MAX_LIMIT);
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    // A poll that finds nothing reads the end of one index, and no statement with the sums is planned.
    let next = "SELECT position FROM trail WHERE position > $1 ORDER BY position LIMIT 1";
    if first::<i64>(database, next, &[after.into()])?.is_none() {
        return Ok(Page { items: Vec::new(), next_cursor: None, searched_until: None });
    }
    let sql = format!(
        "SELECT {}, {} FROM (SELECT * FROM trail WHERE position > $1 ORDER BY position LIMIT {}) AS t
         LEFT JOIN interceptions i ON i.id = t.interception_id LEFT JOIN users u ON u.id = i.user_id
         ORDER BY t.position",
        TrailEntry::COLUMNS,
        item_columns(""),
        limit + 1
    );
    page(database, &sql, &[after.into()], limit, |entry: &TrailEntry| entry.position)
}

/// The position after which all entries are of the records that started at or after a time. It looks through
/// the trail once.
pub(crate) fn position_before(
    database: &dyn Database,
    since: Timestamp,
) -> Result<u64, LedgerError> {
    // Read first: what is appended meanwhile comes after it.
    let head = head(database)?;
    let first_id = first_id(since.checked_sub(ID_MARGIN).unwrap_or(since));
    let sql = "SELECT position FROM trail WHERE interception_id >= $1 ORDER BY position LIMIT 1";
    let position: Option<i64> = first(database, sql, &[first_id.into()])?;
    let before = position.and_then(|position| u64::try_from(position.saturating_sub(1)).ok());
    Ok(before.unwrap_or(head))
}

/// What a check of the trail found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct TrailRecount {
    /// All entries.
    pub(crate) entries: u64,
    /// Ended records that have no position yet, and other entries that wait for one.
    pub(crate) not_in_order: u64,
    /// Positions from 1 to the last that are missing, and entries after the last.
    pub(crate) gaps: u64,
    /// Ended records that neither have an entry nor wait for one.
    pub(crate) without_entry: u64,
    /// Entries that say again what one before says of the same record or run.
    pub(crate) repeated: u64,
}

impl FromRow for TrailRecount {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            entries: count(row)?,
            not_in_order: count(row)?,
            gaps: count(row)?,
            without_entry: count(row)?,
            repeated: count(row)?,
        })
    }
}

/// Checks the trail in one statement, so that all its parts see the same records.
pub(crate) fn recount(database: &dyn Database) -> Result<TrailRecount, LedgerError> {
    let flavour = database.flavour();
    let (waiting, appended) = match flavour {
        Flavour::Sqlite => ("SELECT 0", "SELECT interception_id FROM trail"),
        Flavour::Postgres => (
            "SELECT count(*) FROM outbox",
            "SELECT interception_id FROM trail UNION ALL SELECT interception_id FROM outbox",
        ),
    };
    let head = head_sql(flavour);
    let repeated = |column: &str| {
        format!(
            "SELECT CAST(coalesce(sum(n.entries - 1), 0) AS BIGINT)
             FROM (SELECT count(*) AS entries FROM trail WHERE {column} IS NOT NULL
                   AND kind <> 'amended' GROUP BY {column}, kind HAVING count(*) > 1) AS n"
        )
    };
    let sql = format!(
        "SELECT (SELECT count(*) FROM trail),
           (SELECT count(*) FROM interceptions WHERE {NOT_IN_TRAIL}) + ({waiting}),
           ({head}) - (SELECT count(*) FROM trail WHERE position BETWEEN 1 AND ({head}))
             + (SELECT count(*) FROM trail WHERE position NOT BETWEEN 1 AND ({head})),
           (SELECT count(*) FROM (SELECT id FROM interceptions
              WHERE in_trail IS NOT NULL AND outcome <> 'in_progress' EXCEPT {appended_ids}) AS n),
           ({of_records}) + ({of_runs})",
        appended_ids = format_args!("SELECT interception_id FROM ({appended}) AS a"),
        of_records = repeated("interception_id"),
        of_runs = repeated("retention_run_id"),
    );
    let found: Vec<TrailRecount> = all_within(RECOUNT_TIMEOUT, database, &sql, &[])?;
    let nothing = || LedgerError::Row("a check of the trail returned no row".into());
    found.into_iter().next().ok_or_else(nothing)
}
