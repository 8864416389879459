//! One list of columns per table: the statements of both stores and the types of a row come from it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Number, Value as Json};
use smallvec::SmallVec;
use uuid::Uuid;

use super::{
    Outcome, Quality, UsageKind,
    text::{Cleaner, Mask},
};
use crate::{
    LedgerError,
    store::sql::{Cells, count, optional_count, required, word},
};

/// A cell as it is written; `None` is NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cell<'a> {
    Text(Option<&'a str>),
    Id(Option<Uuid>),
    Time(Option<Timestamp>),
    Integer(Option<i64>),
    Boolean(Option<bool>),
    /// A JSON text.
    Json(Option<String>),
    /// A text that is JSON or not: what reads it takes anything else for a string.
    JsonOrText(Option<&'a str>),
}

/// The cells of one row, in the order of its columns; without memory of their own up to the width of the
/// widest table.
pub(crate) type RowCells<'a> = SmallVec<[Cell<'a>; 48]>;

/// A type that can be written so that it is read as `R`.
pub(crate) trait ToCell<R = Self> {
    fn cell(&self) -> Cell<'_>;
}

/// The cell of a value that is read as the type it has.
pub(crate) fn cell_of<T: ToCell>(value: &T) -> Cell<'_> {
    value.cell()
}

/// A type that a cell can be read as.
pub(crate) trait FromCell: Sized {
    fn from_cell(row: &mut dyn Cells) -> Result<Self, LedgerError>;
}

/// Each type, how it is written, and how it is read.
macro_rules! cells {
    ($($type:ty: |$value:ident| $cell:expr, |$row:ident| $read:expr;)+) => {$(
        impl ToCell for $type {
            fn cell(&self) -> Cell<'_> {
                let $value = self;
                $cell
            }
        }

        impl FromCell for $type {
            fn from_cell($row: &mut dyn Cells) -> Result<Self, LedgerError> {
                $read
            }
        }
    )+};
}

cells! {
    String: |text| Cell::Text(Some(text)), |row| required(row.text()?);
    Option<String>: |text| Cell::Text(text.as_deref()), |row| row.text();
    Uuid: |id| Cell::Id(Some(*id)), |row| required(row.id()?);
    Option<Uuid>: |id| Cell::Id(*id), |row| row.id();
    Timestamp: |time| Cell::Time(Some(*time)), |row| required(row.time()?);
    Option<Timestamp>: |time| Cell::Time(*time), |row| row.time();
    bool: |is| Cell::Boolean(Some(*is)), |row| required(row.boolean()?);
    Option<bool>: |is| Cell::Boolean(*is), |row| row.boolean();
    u64: |number| Cell::Integer(Some(signed(*number))), |row| count(row);
    Option<u64>: |number| Cell::Integer(number.map(signed)), |row| optional_count(row);
    u32: |number| Cell::Integer(Some((*number).into())), |row| required(optional_count(row)?);
    Option<u32>: |number| Cell::Integer(number.map(i64::from)), |row| optional_count(row);
    u16: |number| Cell::Integer(Some((*number).into())), |row| required(optional_count(row)?);
    Option<u16>: |number| Cell::Integer(number.map(i64::from)), |row| optional_count(row);
    Outcome: |outcome| Cell::Text(Some(outcome.as_str())), |row| word(row);
    Quality: |quality| Cell::Text(Some(quality.as_str())), |row| word(row);
    UsageKind: |kind| Cell::Text(Some(kind.as_str())), |row| word(row);
    Vec<String>: |texts| Cell::Json(Some(Json::from(texts.as_slice()).to_string())), |row| {
        let text = required(row.text()?)?;
        serde_json::from_str(&text).map_err(|error| LedgerError::Row(error.to_string()))
    };
}

impl ToCell for Option<Vec<String>> {
    fn cell(&self) -> Cell<'_> {
        Cell::Json(self.as_ref().map(|texts| Json::from(texts.as_slice()).to_string()))
    }
}

impl ToCell<Json> for BTreeMap<String, Number> {
    fn cell(&self) -> Cell<'_> {
        Cell::Json(Some(serde_json::json!(self).to_string()))
    }
}

impl ToCell<Option<Json>> for Option<String> {
    fn cell(&self) -> Cell<'_> {
        Cell::JsonOrText(self.as_deref())
    }
}

impl FromCell for Json {
    fn from_cell(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(json(required(row.text()?)?))
    }
}

impl FromCell for Option<Json> {
    fn from_cell(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(row.text()?.map(json))
    }
}

/// Text as JSON; any other text is a string.
fn json(text: String) -> Json {
    serde_json::from_str(&text).unwrap_or(Json::String(text))
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Rows of a table that belong to an interception.
pub(crate) trait ChildRow {
    const TABLE: &'static str;
    /// `id`, `interception_id`, those of the list, `created_at`.
    const COLUMNS: &'static [&'static str];

    /// The cells in the order of the columns.
    fn cells(&self, id: Uuid, interception_id: Uuid, created_at: Timestamp) -> RowCells<'_>;

    /// Masks and bounds its texts.
    fn clean_texts<M: Mask>(&mut self, cleaner: &mut Cleaner<'_, M>);

    /// Inserts a row; `?` stands for each cell.
    fn insert_sql() -> &'static str;

    /// Inserts a row, or replaces the one of its record with its id.
    fn upsert_sql() -> &'static str;
}

/// `INSERT` with a `?` for each column.
pub(crate) fn insert_sql(table: &str, columns: &[&str]) -> String {
    let places = vec!["?"; columns.len()].join(", ");
    format!("INSERT INTO {table} ({}) VALUES ({places})", columns.join(", "))
}

/// The columns that change when a row is replaced by one of the same id.
pub(crate) fn replaced_columns<'a>(
    columns: &'a [&'static str],
) -> impl Iterator<Item = &'static str> + 'a {
    columns.iter().copied().filter(|column| !matches!(*column, "id" | "interception_id"))
}

/// `INSERT` that replaces a row of the same id.
pub(crate) fn upsert_sql(table: &str, columns: &[&'static str]) -> String {
    let replaced: Vec<String> =
        replaced_columns(columns).map(|column| format!("{column} = excluded.{column}")).collect();
    format!(
        "{} ON CONFLICT (interception_id, id) DO UPDATE SET {}",
        insert_sql(table, columns),
        replaced.join(", ")
    )
}

/// The type that a column is read as: that in which it is written unless another is given.
macro_rules! read_type {
    ($written:ty) => {
        $written
    };
    ($written:ty, $read:ty) => {
        $read
    };
}

/// Defines a table of child rows of interceptions: the type that is written (`new`) and the type that is
/// read (`row`). `=>` sets the type of a column that is read as a different type; a field in `unstored`
/// has no column.
macro_rules! child_table {
    (
        $(#[$new_meta:meta])*
        new $new:ident, table $table:literal {
            $($(#[$meta:meta])* $field:ident: $type:ty $(=> $read:ty)?,)+
        }
        $(unstored { $($(#[$other_meta:meta])* $other:ident: $other_type:ty,)+ })?
        $(#[$row_meta:meta])*
        row $row:ident
    ) => {
        $(#[$new_meta])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct $new {
            $($(#[$meta])* pub $field: $type,)+
            $($($(#[$other_meta])* pub $other: $other_type,)+)?
        }

        $(#[$row_meta])*
        #[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
        pub struct $row {
            /// Id.
            pub id: Uuid,
            /// The interception it belongs to.
            pub interception_id: Uuid,
            $($(#[$meta])* pub $field: $crate::record::columns::read_type!($type $(, $read)?),)+
            /// When the row was created.
            #[serde(serialize_with = "serialize_time")]
            pub created_at: Timestamp,
        }

        impl $crate::record::columns::ChildRow for $new {
            const TABLE: &'static str = $table;
            const COLUMNS: &'static [&'static str] =
                &["id", "interception_id", $(stringify!($field),)+ "created_at"];

            fn cells(
                &self,
                id: Uuid,
                interception_id: Uuid,
                created_at: Timestamp,
            ) -> $crate::record::columns::RowCells<'_> {
                use $crate::record::columns::{Cell, ToCell};
                smallvec::smallvec![
                    Cell::Id(Some(id)),
                    Cell::Id(Some(interception_id)),
                    $(ToCell::<$crate::record::columns::read_type!($type $(, $read)?)>::cell(
                        &self.$field,
                    ),)+
                    Cell::Time(Some(created_at)),
                ]
            }

            fn clean_texts<M: $crate::record::text::Mask>(
                &mut self,
                cleaner: &mut $crate::record::text::Cleaner<'_, M>,
            ) {
                $crate::record::text::clean_fields!(self, cleaner, $($field),+);
            }

            fn insert_sql() -> &'static str {
                static SQL: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
                    $crate::record::columns::insert_sql($new::TABLE, $new::COLUMNS)
                });
                &SQL
            }

            fn upsert_sql() -> &'static str {
                static SQL: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
                    $crate::record::columns::upsert_sql($new::TABLE, $new::COLUMNS)
                });
                &SQL
            }
        }

        impl $crate::store::sql::FromRow for $row {
            const COLUMNS: &'static str =
                concat!("id, interception_id, ", $(stringify!($field), ", ",)+ "created_at");

            fn from_row(
                row: &mut dyn $crate::store::sql::Cells,
            ) -> Result<Self, $crate::LedgerError> {
                use $crate::record::columns::FromCell;
                Ok(Self {
                    id: FromCell::from_cell(row)?,
                    interception_id: FromCell::from_cell(row)?,
                    $($field: FromCell::from_cell(row)?,)+
                    created_at: FromCell::from_cell(row)?,
                })
            }
        }
    };
}

/// Code for columns that are written when a record is opened.
macro_rules! when_opened {
    (settled, $code:expr) => {};
    ($when:ident, $code:expr) => {
        $code
    };
}

/// Code for columns that are written when a record is settled.
#[cfg(test)]
macro_rules! when_settled {
    (opened, $code:expr) => {};
    ($when:ident, $code:expr) => {
        $code
    };
}

/// Defines the table of interceptions. Before each column stands when it is written: `opened`,
/// `settled`, or `both`.
macro_rules! interceptions_table {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $($(#[$field_meta:meta])* $when:ident $field:ident: $type:ty,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)+
        }

        impl $name {
            /// Masks and bounds its texts.
            pub(crate) fn clean_texts<M: $crate::record::text::Mask>(
                &mut self,
                cleaner: &mut $crate::record::text::Cleaner<'_, M>,
            ) {
                $crate::record::text::clean_fields!(self, cleaner, $($field),+);
            }

            /// The columns that are written when a record is opened.
            pub(crate) fn opened_columns() -> Vec<&'static str> {
                let mut columns = Vec::with_capacity(48);
                $($crate::record::columns::when_opened!($when, columns.push(stringify!($field)));)+
                columns
            }

            /// Their cells.
            pub(crate) fn opened_cells(&self) -> $crate::record::columns::RowCells<'_> {
                let mut cells = $crate::record::columns::RowCells::new();
                $($crate::record::columns::when_opened!($when, cells.push($crate::record::columns::cell_of(&self.$field)));)+
                cells
            }

            /// The columns that are written when a record is settled.
            #[cfg(test)]
            pub(crate) fn settled_columns() -> Vec<&'static str> {
                let mut columns = Vec::with_capacity(48);
                $($crate::record::columns::when_settled!($when, columns.push(stringify!($field)));)+
                columns
            }
        }

        impl $crate::store::sql::FromRow for $name {
            const COLUMNS: &'static str = $crate::record::columns::of_interception!($($field)+);

            fn from_row(
                row: &mut dyn $crate::store::sql::Cells,
            ) -> Result<Self, $crate::LedgerError> {
                use $crate::record::columns::FromCell;
                Ok(Self { $($field: FromCell::from_cell(row)?,)+ })
            }
        }
    };
}

/// Columns of the table `interceptions i`, as in SELECT.
macro_rules! of_interception {
    ($first:ident $($field:ident)+) => {
        concat!("i.", stringify!($first), $(", i.", stringify!($field)),+)
    };
}

/// Implements the columns of `interceptions` for a type whose fields have the same names.
macro_rules! interception_columns {
    ($name:ident { $($field:ident),+ $(,)? }) => {
        impl $name {
            /// The columns of the interception that it changes.
            pub(crate) const COLUMNS: &'static [&'static str] = &[$(stringify!($field)),+];

            /// Masks and bounds their texts.
            pub(crate) fn clean_texts<M: $crate::record::text::Mask>(
                &mut self,
                cleaner: &mut $crate::record::text::Cleaner<'_, M>,
            ) {
                $crate::record::text::clean_fields!(self, cleaner, $($field),+);
            }

            /// Their cells.
            pub(crate) fn cells(&self) -> $crate::record::columns::RowCells<'_> {
                smallvec::smallvec![$($crate::record::columns::cell_of(&self.$field)),+]
            }
        }
    };
}

#[cfg(test)]
pub(crate) use when_settled;
pub(crate) use {
    child_table, interception_columns, interceptions_table, of_interception, read_type, when_opened,
};
