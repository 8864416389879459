//! How an interception is opened and settled, for both stores.

use std::sync::LazyLock;

use jiff::Timestamp;
use uuid::Uuid;

use crate::record::{
    Interception, Outcome,
    columns::{Cell, RowCells},
};

/// The interception whose tool call another one answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parent {
    pub(super) id: Uuid,
    pub(super) thread_id: Uuid,
}

/// The least id of a time: `UUIDv7` begins with the milliseconds of when it was made.
pub(super) fn first_id(time: Timestamp) -> Uuid {
    let millis = u128::try_from(time.as_millisecond()).unwrap_or(0);
    Uuid::from_u128(millis << 80)
}

/// The places of the columns whose cells the store decides.
struct Places {
    thread_id: Option<usize>,
    parent_id: Option<usize>,
    outcome: Option<usize>,
}

static PLACES: LazyLock<Places> = LazyLock::new(|| {
    let names = Interception::opened_columns();
    let place = |column| names.iter().position(|name| *name == column);
    Places {
        thread_id: place("thread_id"),
        parent_id: place("parent_id"),
        outcome: place("outcome"),
    }
});

/// The columns of a new row.
pub(super) fn opened_columns() -> Vec<&'static str> {
    let mut columns = Interception::opened_columns();
    columns.push("replica_id");
    columns
}

/// Its cells: the record as it was handed over, in progress, in the thread of its parent.
pub(super) fn opened_cells(
    record: &Interception,
    parent: Option<Parent>,
    replica: Option<Uuid>,
) -> RowCells<'_> {
    let mut cells = record.opened_cells();
    let thread_id = parent.map_or(record.id, |parent| parent.thread_id);
    for (place, cell) in [
        (PLACES.thread_id, Cell::Id(Some(thread_id))),
        (PLACES.parent_id, Cell::Id(parent.map(|parent| parent.id))),
        (PLACES.outcome, Cell::Text(Some(Outcome::InProgress.as_str()))),
    ] {
        if let Some(opened) = place.and_then(|place| cells.get_mut(place)) {
            *opened = cell;
        }
    }
    cells.push(Cell::Id(replica));
    cells
}
