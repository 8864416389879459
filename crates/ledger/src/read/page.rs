//! Pages of lists, bounded in rows and in bytes.

use std::fmt::Display;

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    LedgerError, Page,
    store::sql::{Cells, Database, FromRow, STATEMENT_TIMEOUT, Value},
};

/// Maximum size of a page; it then has fewer rows, but at least one.
pub const MAX_PAGE_BYTES: usize = 8 << 20;
/// About the size of a row in a response apart from its texts: names of fields, numbers, times, ids.
pub(super) const ROW_BYTES: usize = 1_024;

/// A row and its approximate size in a response.
pub(super) struct Measured<T> {
    pub(super) row: T,
    pub(super) bytes: usize,
}

impl<T: FromRow> FromRow for Measured<T> {
    const COLUMNS: &'static str = T::COLUMNS;

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        let mut cells = MeasuringCells { cells: row, bytes: ROW_BYTES };
        let row = T::from_row(&mut cells)?;
        Ok(Self { row, bytes: cells.bytes })
    }
}

/// Adds up the lengths of the texts that are read.
struct MeasuringCells<'a> {
    cells: &'a mut dyn Cells,
    bytes: usize,
}

impl Cells for MeasuringCells<'_> {
    fn text(&mut self) -> Result<Option<String>, LedgerError> {
        let text = self.cells.text()?;
        self.bytes += text.as_ref().map_or(0, String::len);
        Ok(text)
    }

    fn id(&mut self) -> Result<Option<Uuid>, LedgerError> {
        self.cells.id()
    }

    fn time(&mut self) -> Result<Option<Timestamp>, LedgerError> {
        self.cells.time()
    }

    fn integer(&mut self) -> Result<Option<i64>, LedgerError> {
        self.cells.integer()
    }

    fn boolean(&mut self) -> Result<Option<bool>, LedgerError> {
        self.cells.boolean()
    }

    fn bytes(&mut self) -> Result<Option<Vec<u8>>, LedgerError> {
        self.cells.bytes()
    }
}

/// The rows of a statement that fit on a page; the statement selects one more than `limit`, which shows
/// that there is a next page. The next page begins after the row of the cursor.
pub(super) fn page<T: FromRow, C: Display>(
    database: &dyn Database,
    sql: &str,
    values: &[Value],
    limit: u32,
    cursor: impl Fn(&T) -> C,
) -> Result<Page<T>, LedgerError> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let (mut items, mut size_bytes, mut is_full) = (Vec::new(), 0, false);
    database.run(STATEMENT_TIMEOUT, sql, values, &mut |row| {
        is_full |= items.len() >= limit;
        if is_full {
            return Ok(());
        }
        let Measured { row, bytes } = Measured::from_row(row)?;
        size_bytes += bytes;
        is_full = size_bytes > MAX_PAGE_BYTES && !items.is_empty();
        if !is_full {
            items.push(row);
        }
        Ok(())
    })?;
    let next_cursor = items.last().filter(|_| is_full).map(|item| cursor(item).to_string());
    Ok(Page { items, next_cursor, searched_until: None })
}
