//! Many rows in one statement: an array for each column, combined by `unnest`.

use std::borrow::Cow;

use jiff::Timestamp;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::cells::{JsonText, Time};
use crate::record::columns::{Cell, RowCells};

/// Columns of equal length, with the names and types of the columns that they are written to.
#[derive(Default)]
pub(super) struct Columns<'a> {
    names: Vec<&'static str>,
    kinds: Vec<&'static str>,
    values: Vec<Box<dyn ToSql + Sync + Send + 'a>>,
}

/// The cells of one column, all of the same type.
enum Column<'a> {
    Ids(Vec<Option<Uuid>>),
    Texts(Vec<Option<Cow<'a, str>>>),
    Times(Vec<Option<Time>>),
    Booleans(Vec<Option<bool>>),
    Integers(Vec<Option<i64>>),
    Json(Vec<Option<JsonText>>),
}

impl<'a> Column<'a> {
    /// An empty column for cells of the type of this one.
    fn for_cells_like(cell: &Cell<'_>, count: usize) -> Self {
        match cell {
            Cell::Id(_) => Self::Ids(Vec::with_capacity(count)),
            Cell::Text(_) | Cell::JsonOrText(_) => Self::Texts(Vec::with_capacity(count)),
            Cell::Time(_) => Self::Times(Vec::with_capacity(count)),
            Cell::Boolean(_) => Self::Booleans(Vec::with_capacity(count)),
            Cell::Integer(_) => Self::Integers(Vec::with_capacity(count)),
            Cell::Json(_) => Self::Json(Vec::with_capacity(count)),
        }
    }

    /// Adds a cell; one of another type, which no table has, is NULL.
    fn push(&mut self, cell: Cell<'a>) {
        match (self, cell) {
            (Self::Ids(values), Cell::Id(id)) => values.push(id),
            (Self::Texts(values), Cell::Text(text) | Cell::JsonOrText(text)) => {
                values.push(text.map(storable));
            }
            (Self::Times(values), Cell::Time(time)) => values.push(time.map(Time)),
            (Self::Booleans(values), Cell::Boolean(value)) => values.push(value),
            (Self::Integers(values), Cell::Integer(value)) => values.push(value),
            (Self::Json(values), Cell::Json(text)) => values.push(text.map(JsonText)),
            (Self::Ids(values), _) => values.push(None),
            (Self::Texts(values), _) => values.push(None),
            (Self::Times(values), _) => values.push(None),
            (Self::Booleans(values), _) => values.push(None),
            (Self::Integers(values), _) => values.push(None),
            (Self::Json(values), _) => values.push(None),
        }
    }
}

impl<'a> Columns<'a> {
    fn add(
        &mut self,
        name: &'static str,
        kind: &'static str,
        values: impl ToSql + Sync + Send + 'a,
    ) -> &mut Self {
        self.names.push(name);
        self.kinds.push(kind);
        self.values.push(Box::new(values));
        self
    }

    pub(super) fn ids(
        &mut self,
        name: &'static str,
        cells: impl Iterator<Item = Option<Uuid>>,
    ) -> &mut Self {
        self.add(name, "uuid", cells.collect::<Vec<_>>())
    }

    pub(super) fn texts(
        &mut self,
        name: &'static str,
        cells: impl Iterator<Item = Option<&'a str>>,
    ) -> &mut Self {
        self.add(name, "text", cells.map(|text| text.map(storable)).collect::<Vec<_>>())
    }

    pub(super) fn times(
        &mut self,
        name: &'static str,
        cells: impl Iterator<Item = Option<Timestamp>>,
    ) -> &mut Self {
        self.add(name, "timestamptz", cells.map(|time| time.map(Time)).collect::<Vec<_>>())
    }

    pub(super) fn numbers(
        &mut self,
        name: &'static str,
        cells: impl Iterator<Item = Option<u64>>,
    ) -> &mut Self {
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.add(name, "bigint", cells.map(|count| count.map(signed)).collect::<Vec<_>>())
    }

    pub(super) fn booleans(
        &mut self,
        name: &'static str,
        cells: impl Iterator<Item = Option<bool>>,
    ) -> &mut Self {
        self.add(name, "boolean", cells.collect::<Vec<_>>())
    }

    /// Adds the cells of rows, each of which has a cell for each name.
    pub(super) fn cells(
        &mut self,
        names: &[&'static str],
        rows: impl ExactSizeIterator<Item = RowCells<'a>>,
    ) -> &mut Self {
        let count = rows.len();
        let mut columns: Vec<Column<'a>> = Vec::with_capacity(names.len());
        for row in rows {
            if columns.is_empty() {
                columns.extend(row.iter().map(|cell| Column::for_cells_like(cell, count)));
            }
            for (column, cell) in columns.iter_mut().zip(row) {
                column.push(cell);
            }
        }
        for (name, column) in names.iter().zip(columns) {
            match column {
                Column::Ids(values) => self.add(name, "uuid", values),
                Column::Texts(values) => self.add(name, "text", values),
                Column::Times(values) => self.add(name, "timestamptz", values),
                Column::Booleans(values) => self.add(name, "boolean", values),
                Column::Integers(values) => self.add(name, "bigint", values),
                Column::Json(values) => self.add(name, "jsonb", values),
            };
        }
        self
    }

    /// The rows as a table `n`.
    pub(super) fn table(&self) -> String {
        let arrays: Vec<String> =
            (1..).zip(&self.kinds).map(|(number, kind)| format!("${number}::{kind}[]")).collect();
        format!("unnest({}) AS n ({})", arrays.join(", "), self.names.join(", "))
    }

    pub(super) fn names(&self) -> String {
        self.names.join(", ")
    }

    pub(super) fn values(&self) -> Vec<&(dyn ToSql + Sync)> {
        let mut values: Vec<&(dyn ToSql + Sync)> = Vec::with_capacity(self.values.len());
        for value in &self.values {
            values.push(&**value);
        }
        values
    }
}

/// Replaces the character U+0000, which a text of PostgreSQL cannot contain.
fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}
