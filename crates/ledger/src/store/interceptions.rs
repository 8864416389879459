//! How an interception is opened and settled, for both stores.

use jiff::Timestamp;
use uuid::Uuid;

use crate::record::{Interception, Outcome, columns::Cell};

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
) -> Vec<Cell<'_>> {
    let names = Interception::opened_columns();
    let mut cells = record.opened_cells();
    for (name, cell) in names.into_iter().zip(&mut cells) {
        match name {
            "thread_id" => {
                *cell = Cell::Id(Some(parent.map_or(record.id, |parent| parent.thread_id)));
            }
            "parent_id" => *cell = Cell::Id(parent.map(|parent| parent.id)),
            "outcome" => *cell = Cell::Text(Some(Outcome::InProgress.as_str())),
            _ => {}
        }
    }
    cells.push(Cell::Id(replica));
    cells
}
