//! What both databases share: statements, their values, and rows as records.
//!
//! A statement is written once, with `$1` for the first value; what differs between the databases
//! is in [`Flavour`].

use std::{str::FromStr, time::Duration};

use jiff::Timestamp;
use uuid::Uuid;

use crate::LedgerError;

/// The tables whose rows belong to an interception.
pub(crate) const CHILDREN: [&str; 5] =
    ["token_usages", "prompts", "tool_usages", "thoughts", "upstream_attempts"];

/// Limit of a statement, unless its connection has a shorter one.
pub(crate) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Limit of a statement that counts whole tables for the command line.
pub(crate) const RECOUNT_TIMEOUT: Duration = Duration::from_secs(3_600);

/// A value in a statement; `None` is NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(Option<String>),
    /// An id.
    Id(Option<Uuid>),
    /// A time.
    Time(Option<Timestamp>),
    /// Bytes.
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

/// The cells of a row, taken one after another; `None` is NULL. Each method fails when the next cell
/// has another type.
pub trait Cells {
    /// The next cell as text.
    fn text(&mut self) -> Result<Option<String>, LedgerError>;
    /// The next cell as an id.
    fn id(&mut self) -> Result<Option<Uuid>, LedgerError>;
    /// The next cell as a time.
    fn time(&mut self) -> Result<Option<Timestamp>, LedgerError>;
    /// The next cell as an integer.
    fn integer(&mut self) -> Result<Option<i64>, LedgerError>;
    /// The next cell as a boolean.
    fn boolean(&mut self) -> Result<Option<bool>, LedgerError>;
    /// The next cell as bytes.
    fn bytes(&mut self) -> Result<Option<Vec<u8>>, LedgerError>;
}

/// A cell that may not be NULL.
///
/// # Errors
///
/// When it is.
pub fn required<T>(cell: Option<T>) -> Result<T, LedgerError> {
    cell.ok_or_else(|| LedgerError::Row("a column is NULL that must not be".into()))
}

/// The next cell, whose text is one of an enum's words.
///
/// # Errors
///
/// When it is none of them.
pub fn word<T: FromStr>(cells: &mut dyn Cells) -> Result<T, LedgerError>
where
    T::Err: std::fmt::Display,
{
    let text = required(cells.text()?)?;
    text.parse().map_err(|error: T::Err| LedgerError::Row(error.to_string()))
}

/// A count; one that is negative, which nothing writes, is an error and no huge number.
pub(crate) fn count(cells: &mut dyn Cells) -> Result<u64, LedgerError> {
    required(optional_count(cells)?)
}

pub(crate) fn optional_count<T: TryFrom<i64>>(
    cells: &mut dyn Cells,
) -> Result<Option<T>, LedgerError> {
    let wrong = |number: i64| LedgerError::Row(format!("{number} is out of range"));
    cells.integer()?.map(|number| T::try_from(number).map_err(|_range| wrong(number))).transpose()
}

/// A record that a row can be read as.
pub trait FromRow: Sized {
    /// The columns in the order in which they are read, as in SELECT.
    const COLUMNS: &'static str;

    /// Reads a row.
    ///
    /// # Errors
    ///
    /// When a cell has another type, or is NULL where it must not be.
    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError>;
}

/// Which of the two databases it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// SQLite.
    Sqlite,
    /// PostgreSQL.
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

/// A database that runs statements. Calls block.
pub trait Database: Send + Sync {
    /// Which database it is.
    fn flavour(&self) -> Flavour;

    /// Runs a statement and calls `row` with its rows one after another.
    ///
    /// # Errors
    ///
    /// When the database fails or does not answer in time, or `row` fails.
    fn run(
        &self,
        timeout: Duration,
        sql: &str,
        values: &[Value],
        row: &mut dyn FnMut(&mut dyn Cells) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError>;
}

/// All rows of a statement.
///
/// # Errors
///
/// When the store fails or a row cannot be read.
pub fn all<T: FromRow>(
    database: &dyn Database,
    sql: &str,
    values: &[Value],
) -> Result<Vec<T>, LedgerError> {
    all_within(STATEMENT_TIMEOUT, database, sql, values)
}

/// All rows of a statement with a limit of its own.
pub(crate) fn all_within<T: FromRow>(
    timeout: Duration,
    database: &dyn Database,
    sql: &str,
    values: &[Value],
) -> Result<Vec<T>, LedgerError> {
    let mut found = Vec::new();
    database.run(timeout, sql, values, &mut |row| {
        found.push(T::from_row(row)?);
        Ok(())
    })?;
    Ok(found)
}

/// The first row of a statement, if any.
///
/// # Errors
///
/// When the store fails or the row cannot be read.
pub fn first<T: FromRow>(
    database: &dyn Database,
    sql: &str,
    values: &[Value],
) -> Result<Option<T>, LedgerError> {
    Ok(all(database, sql, values)?.into_iter().next())
}

/// Runs a statement whose rows, if any, do not matter.
///
/// # Errors
///
/// When the store fails.
pub fn execute(database: &dyn Database, sql: &str, values: &[Value]) -> Result<(), LedgerError> {
    database.run(STATEMENT_TIMEOUT, sql, values, &mut |_row| Ok(()))
}

/// A number.
impl FromRow for i64 {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        required(row.integer()?)
    }
}

/// An id.
impl FromRow for Uuid {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        required(row.id()?)
    }
}

/// A value of the settings.
impl FromRow for Vec<u8> {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        required(row.bytes()?)
    }
}

/// A name and a number.
impl FromRow for (String, i64) {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok((required(row.text()?)?, required(row.integer()?)?))
    }
}
