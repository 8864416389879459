//! Many rows in one statement: an array for each column, joined by `unnest`.

use std::borrow::Cow;

use jiff::Timestamp;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::cells::Time;

/// Columns of equal length and where they go.
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

    /// Texts that this process made for it.
    pub(super) fn made_texts(
        &mut self,
        name: &'static str,
        cells: impl Iterator<Item = String>,
    ) -> &mut Self {
        self.add(name, "text", cells.collect::<Vec<_>>())
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

/// PostgreSQL has no text with the character U+0000.
fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}
