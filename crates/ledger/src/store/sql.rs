//! SQL for both databases: statements, their values, and records from rows.
//!
//! A statement is written once, with `$1` for the first value; the differences between the databases
//! are in [`Flavour`].

use std::{str::FromStr, time::Duration};

use jiff::Timestamp;
use uuid::Uuid;

use crate::{LedgerError, record::columns::Cell, store::rollups::SLOT_SECONDS};

/// The tables of the child rows of interceptions.
pub(crate) const CHILD_TABLES: [&str; 7] = [
    "token_usages",
    "prompts",
    "tool_usages",
    "thoughts",
    "upstream_attempts",
    "attachments",
    "answers",
];

/// Timeout of a statement, unless its connection has a shorter one.
pub(crate) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Timeout of a statement that counts whole tables for the command line.
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
    /// A number.
    Integer(Option<i64>),
    /// Whether something is so.
    Boolean(Option<bool>),
}

impl From<&Cell<'_>> for Value {
    fn from(cell: &Cell<'_>) -> Self {
        match cell {
            Cell::Text(text) | Cell::JsonOrText(text) => Self::Text(text.map(str::to_owned)),
            Cell::Json(text) => Self::Text(text.clone()),
            Cell::Id(id) => Self::Id(*id),
            Cell::Time(time) => Self::Time(*time),
            Cell::Integer(integer) => Self::Integer(*integer),
            Cell::Boolean(boolean) => Self::Boolean(*boolean),
        }
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(Some(number))
    }
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

/// The cells of a row, read in order; `None` is NULL. Each method fails when the next cell has another
/// type.
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

/// The value of a cell that must not be NULL.
///
/// # Errors
///
/// When it is NULL.
pub fn required<T>(cell: Option<T>) -> Result<T, LedgerError> {
    cell.ok_or_else(|| LedgerError::Row("a required column is NULL".into()))
}

/// Parses the text of the next cell as a value of an enum.
///
/// # Errors
///
/// When it is none of the enum's values.
pub fn word<T: FromStr>(cells: &mut dyn Cells) -> Result<T, LedgerError>
where
    T::Err: std::fmt::Display,
{
    let text = required(cells.text()?)?;
    text.parse().map_err(|error: T::Err| LedgerError::Row(error.to_string()))
}

/// A count. A negative number, which is never written, is an error.
pub(crate) fn count(cells: &mut dyn Cells) -> Result<u64, LedgerError> {
    required(optional_count(cells)?)
}

pub(crate) fn optional_count<T: TryFrom<i64>>(
    cells: &mut dyn Cells,
) -> Result<Option<T>, LedgerError> {
    let out_of_range = |number: i64| LedgerError::Row(format!("{number} is out of range"));
    cells
        .integer()?
        .map(|number| T::try_from(number).map_err(|_range| out_of_range(number)))
        .transpose()
}

/// A type that can be read from a row.
pub trait FromRow: Sized {
    /// The columns in the order in which they are read, for use in a SELECT.
    const COLUMNS: &'static str;

    /// Reads a row.
    ///
    /// # Errors
    ///
    /// When a cell has another type, or is NULL where it must not be.
    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError>;
}

/// The SQL of one of the two databases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// SQLite.
    Sqlite,
    /// PostgreSQL.
    Postgres,
}

impl Flavour {
    /// The function that finds a text in another: its position, or 0.
    pub(crate) const fn position(self) -> &'static str {
        match self {
            Self::Sqlite => "instr",
            Self::Postgres => "strpos",
        }
    }

    /// The earliest id of a group.
    pub(crate) const fn first_id(self) -> &'static str {
        match self {
            Self::Sqlite => "min(i.id)",
            Self::Postgres => "CAST(min(CAST(i.id AS TEXT) COLLATE \"C\") AS UUID)",
        }
    }

    /// The latest id of a group. PostgreSQL before 18 has no `max(uuid)`.
    pub(crate) const fn latest_id(self) -> &'static str {
        match self {
            Self::Sqlite => "max(i.id)",
            Self::Postgres => "CAST(max(CAST(i.id AS TEXT) COLLATE \"C\") AS UUID)",
        }
    }

    /// The slot of a time.
    pub(crate) fn slot(self, time: &str) -> String {
        match self {
            Self::Sqlite => format!("unixepoch({time}) / {SLOT_SECONDS}"),
            Self::Postgres => {
                format!("CAST(floor(extract(epoch FROM {time}) / {SLOT_SECONDS}) AS bigint)")
            }
        }
    }

    /// The condition that the id in a column is one of a list, a value that [`Self::id_list`] makes. PostgreSQL
    /// looks up the elements of an array, where it would join with those of a JSON array.
    pub(crate) fn is_listed(self, column: &str, list: &str) -> String {
        match self {
            Self::Sqlite => format!("{column} IN (SELECT value FROM json_each({list}))"),
            Self::Postgres => format!("{column} = ANY (CAST(CAST({list} AS text) AS uuid[]))"),
        }
    }

    /// The ids in the first value, which [`Self::id_list`] makes, as rows.
    pub(crate) const fn id_rows(self) -> &'static str {
        match self {
            Self::Sqlite => "SELECT value FROM json_each($1)",
            Self::Postgres => "SELECT unnest(CAST(CAST($1 AS text) AS uuid[]))",
        }
    }

    /// Ids as one value.
    pub(crate) fn id_list(self, ids: &[Uuid]) -> Value {
        match self {
            Self::Sqlite => serde_json::json!(ids).to_string().into(),
            Self::Postgres => {
                let ids: Vec<String> = ids.iter().map(Uuid::to_string).collect();
                format!("{{{}}}", ids.join(",")).into()
            }
        }
    }

    /// The elements of the JSON array in the second value, as texts.
    pub(crate) const fn elements(self) -> &'static str {
        match self {
            Self::Sqlite => "SELECT value FROM json_each($2)",
            Self::Postgres => "SELECT json_array_elements_text(CAST($2 AS json))",
        }
    }

    /// The values of a group as a JSON array of texts.
    pub(crate) fn json_array(self, column: &str) -> String {
        match self {
            Self::Sqlite => format!("json_group_array({column})"),
            Self::Postgres => format!("CAST(json_agg({column}) AS TEXT)"),
        }
    }
}

/// A database that runs statements. Calls block.
pub trait Database: Send + Sync {
    /// Which database it is.
    fn flavour(&self) -> Flavour;

    /// Runs a statement and calls `row` with each of its rows.
    ///
    /// # Errors
    ///
    /// When the database fails or does not respond in time, or `row` fails.
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

/// All rows of a statement with a timeout of its own.
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

/// The number that a statement counts in whole tables.
///
/// # Errors
///
/// When the store fails, or the statement selects no number.
pub(crate) fn count_all(database: &dyn Database, sql: &str) -> Result<u64, LedgerError> {
    let counted: Vec<i64> = all_within(RECOUNT_TIMEOUT, database, sql, &[])?;
    let counted = required(counted.first().copied())?;
    u64::try_from(counted).map_err(|error| LedgerError::Row(error.to_string()))
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

/// Runs a statement and ignores its rows.
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

/// A time.
impl FromRow for Timestamp {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        required(row.time()?)
    }
}

/// An id.
impl FromRow for Uuid {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        required(row.id()?)
    }
}

/// Bytes.
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
