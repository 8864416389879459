//! The row of a new interception, for both stores.

use std::sync::LazyLock;

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use crate::record::{
    Interception, Outcome,
    columns::{Cell, RowCells},
};

/// The interception whose tool call this one returns the result of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parent {
    pub(super) id: Uuid,
    pub(super) thread_id: Uuid,
}

/// By how much the time in the id of a record may differ from its start.
pub(crate) const ID_MARGIN: SignedDuration = SignedDuration::from_mins(10);

/// The smallest id of a time: a `UUIDv7` starts with its time in milliseconds.
pub(crate) fn first_id(time: Timestamp) -> Uuid {
    let millis = u128::try_from(time.as_millisecond()).unwrap_or(0);
    Uuid::from_u128(millis << 80)
}

/// The time of an id.
pub(crate) fn time_of(id: Uuid) -> Timestamp {
    let millis = i64::try_from(id.as_u128() >> 80).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
}

/// The second of an id since the Unix epoch.
pub(crate) fn seconds(id: Uuid) -> i64 {
    i64::try_from((id.as_u128() >> 80) / 1_000).unwrap_or(i64::MAX)
}

/// The smallest id of a second.
pub(crate) fn first_id_of_second(second: i64) -> Uuid {
    let millis = u128::try_from(second).unwrap_or(0) * 1_000;
    Uuid::from_u128(millis << 80)
}

/// The indexes of the columns that the store fills in.
struct ColumnIndexes {
    thread_id: Option<usize>,
    parent_id: Option<usize>,
    outcome: Option<usize>,
    session_id: Option<usize>,
}

static INDEXES: LazyLock<ColumnIndexes> = LazyLock::new(|| {
    let names = Interception::opened_columns();
    let index = |column| names.iter().position(|name| *name == column);
    ColumnIndexes {
        thread_id: index("thread_id"),
        parent_id: index("parent_id"),
        outcome: index("outcome"),
        session_id: index("session_id"),
    }
});

/// The columns of a new row.
pub(super) fn opened_columns() -> Vec<&'static str> {
    let mut columns = Interception::opened_columns();
    columns.push("replica_id");
    columns
}

/// The cells of a new row: the record, in progress, in the thread of its parent and in its session.
pub(super) fn opened_cells<'a>(
    record: &'a Interception,
    parent: Option<Parent>,
    session_id: &'a str,
    replica: Option<Uuid>,
) -> RowCells<'a> {
    let mut cells = record.opened_cells();
    let thread_id = parent.map_or(record.id, |parent| parent.thread_id);
    for (index, cell) in [
        (INDEXES.thread_id, Cell::Id(Some(thread_id))),
        (INDEXES.parent_id, Cell::Id(parent.map(|parent| parent.id))),
        (INDEXES.session_id, Cell::Text(Some(session_id))),
        (INDEXES.outcome, Cell::Text(Some(Outcome::InProgress.as_str()))),
    ] {
        if let Some(opened) = index.and_then(|index| cells.get_mut(index)) {
            *opened = cell;
        }
    }
    cells.push(Cell::Id(replica));
    cells
}
