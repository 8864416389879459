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
    pub(super) fn cells(&mut self, names: &[&'static str], rows: Vec<RowCells<'a>>) -> &mut Self {
        let mut rows: Vec<_> = rows.into_iter().map(IntoIterator::into_iter).collect();
        for name in names {
            let column: Vec<Cell<'a>> = rows.iter_mut().filter_map(Iterator::next).collect();
            self.column(name, column);
        }
        self
    }

    /// Adds a column of cells of the same type.
    fn column(&mut self, name: &'static str, cells: Vec<Cell<'a>>) {
        macro_rules! values {
            ($kind:ident) => {
                cells.into_iter().map(|cell| match cell {
                    Cell::$kind(value) => value.into(),
                    _ => None,
                })
            };
        }
        match cells.first() {
            Some(Cell::Text(_)) => self.texts(name, values!(Text)),
            Some(Cell::JsonOrText(_)) => self.texts(name, values!(JsonOrText)),
            Some(Cell::Id(_)) => self.ids(name, values!(Id)),
            Some(Cell::Time(_)) => self.times(name, values!(Time)),
            Some(Cell::Boolean(_)) => self.booleans(name, values!(Boolean)),
            Some(Cell::Integer(_)) => {
                self.add(name, "bigint", values!(Integer).collect::<Vec<Option<i64>>>())
            }
            Some(Cell::Json(_)) => {
                let texts = values!(Json).map(|text: Option<String>| text.map(JsonText));
                self.add(name, "jsonb", texts.collect::<Vec<_>>())
            }
            None => self,
        };
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
