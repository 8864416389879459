//! What both databases share: rows as records, lists and details, users and tokens.
//!
//! Statements are written once, with `$1` for the first value; what differs between the databases
//! is in [`Flavour`].

use std::{str::FromStr, time::Duration};

use jiff::Timestamp;
use uuid::Uuid;

use crate::LedgerError;

pub(crate) mod admin;

/// The tables whose rows belong to an interception.
pub(crate) const CHILDREN: [&str; 4] = ["token_usages", "prompts", "tool_usages", "thoughts"];

/// Longest wait for the answer to a statement that somebody waits for.
pub(crate) const READ_TIME: Duration = Duration::from_secs(30);
/// Longest wait where whole tables are read.
pub(crate) const COUNT_TIME: Duration = Duration::from_secs(3_600);

/// A value in a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(Option<String>),
    Id(Option<Uuid>),
    Time(Option<Timestamp>),
    Bytes(Vec<u8>),
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Self {
        Self::Text(text)
    }
}

impl From<Uuid> for Value {
    fn from(id: Uuid) -> Self {
        Self::Id(Some(id))
    }
}

impl From<Timestamp> for Value {
    fn from(time: Timestamp) -> Self {
        Self::Time(Some(time))
    }
}

impl From<Option<Timestamp>> for Value {
    fn from(time: Option<Timestamp>) -> Self {
        Self::Time(time)
    }
}

/// The cells of a row, taken one after another; `None` is NULL.
pub(crate) trait Cells {
    fn text(&mut self) -> Result<Option<String>, LedgerError>;
    fn id(&mut self) -> Result<Option<Uuid>, LedgerError>;
    fn time(&mut self) -> Result<Option<Timestamp>, LedgerError>;
    fn integer(&mut self) -> Result<Option<i64>, LedgerError>;
    fn boolean(&mut self) -> Result<Option<bool>, LedgerError>;
    fn bytes(&mut self) -> Result<Option<Vec<u8>>, LedgerError>;
}

/// A cell that may not be NULL.
pub(crate) fn some<T>(cell: Option<T>) -> Result<T, LedgerError> {
    cell.ok_or_else(|| LedgerError::Row("a column is NULL that must not be".into()))
}

/// A cell whose text is one of an enum's words.
pub(crate) fn word<T: FromStr>(cells: &mut dyn Cells) -> Result<T, LedgerError>
where
    T::Err: std::fmt::Display,
{
    let text = some(cells.text()?)?;
    text.parse().map_err(|error: T::Err| LedgerError::Row(error.to_string()))
}

/// A count; one that is negative, which nothing writes, is an error and no huge number.
pub(crate) fn count(cells: &mut dyn Cells) -> Result<u64, LedgerError> {
    some(optional_count(cells)?)
}

pub(crate) fn optional_count<T: TryFrom<i64>>(
    cells: &mut dyn Cells,
) -> Result<Option<T>, LedgerError> {
    let wrong = |number: i64| LedgerError::Row(format!("{number} is out of range"));
    cells.integer()?.map(|number| T::try_from(number).map_err(|_range| wrong(number))).transpose()
}

/// A record that a row can be read as.
pub(crate) trait FromRow: Sized {
    /// The columns in the order in which they are read.
    const COLUMNS: &'static str;

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError>;
}

/// What the two databases spell differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    Sqlite,
    Postgres,
}

impl Flavour {
    /// Where a text stands in another, 0 when it does not.
    pub(crate) const fn position(self) -> &'static str {
        match self {
            Self::Sqlite => "instr",
            Self::Postgres => "strpos",
        }
    }

    /// The latest id of a group. PostgreSQL has no maximum of `uuid` before release 18.
    pub(crate) const fn latest_id(self) -> &'static str {
        match self {
            Self::Sqlite => "max(i.id)",
            Self::Postgres => "CAST(max(CAST(i.id AS TEXT) COLLATE \"C\") AS UUID)",
        }
    }

    /// The texts of the JSON array that is the second value.
    pub(crate) const fn elements(self) -> &'static str {
        match self {
            Self::Sqlite => "SELECT value FROM json_each($2)",
            Self::Postgres => "SELECT json_array_elements_text(CAST($2 AS json))",
        }
    }

    /// The different models of a group as a JSON array.
    pub(crate) const fn models(self) -> &'static str {
        match self {
            Self::Sqlite => "json_group_array(DISTINCT i.model)",
            Self::Postgres => "CAST(json_agg(DISTINCT i.model) AS TEXT)",
        }
    }
}

/// A database that answers statements.
pub(crate) trait Database {
    fn flavour(&self) -> Flavour;

    /// Runs a statement and hands over its rows one after another.
    fn run(
        &self,
        patience: Duration,
        sql: &str,
        values: &[Value],
        row: &mut dyn FnMut(&mut dyn Cells) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError>;
}

/// All rows of a statement.
pub(crate) fn all<T: FromRow>(
    database: &dyn Database,
    sql: &str,
    values: &[Value],
) -> Result<Vec<T>, LedgerError> {
    all_within(READ_TIME, database, sql, values)
}

/// All rows of a statement that may take its time.
pub(crate) fn all_within<T: FromRow>(
    patience: Duration,
    database: &dyn Database,
    sql: &str,
    values: &[Value],
) -> Result<Vec<T>, LedgerError> {
    let mut found = Vec::new();
    database.run(patience, sql, values, &mut |row| {
        found.push(T::from_row(row)?);
        Ok(())
    })?;
    Ok(found)
}

/// The first row of a statement.
pub(crate) fn first<T: FromRow>(
    database: &dyn Database,
    sql: &str,
    values: &[Value],
) -> Result<Option<T>, LedgerError> {
    Ok(all(database, sql, values)?.into_iter().next())
}
