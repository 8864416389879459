//! Data on standard output: tables for people, JSON lines for programs.

use std::io::Write;

use keybridge_telemetry::escape_controls;
use serde::Serialize;
use serde_json::Value;

use crate::cli::Exit;

/// Maximum width of a cell.
const MAX_CELL_CHARS: usize = 60;

/// Rows in aligned columns with headings.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).to_vec()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: &[String; N]) {
        self.rows.push(cells.iter().map(|cell| truncate(cell)).collect());
    }

    pub(crate) fn print(&self) -> Result<(), Exit> {
        let mut out = std::io::stdout().lock();
        let columns = self.rows.first().map_or(0, Vec::len);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for row in &self.rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            writeln!(out, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Truncates a cell and escapes control characters: text of a client must not control the terminal.
fn truncate(cell: &str) -> String {
    let clean = escape_controls(cell);
    if clean.chars().count() <= MAX_CELL_CHARS {
        return clean.into_owned();
    }
    let mut short: String = clean.chars().take(MAX_CELL_CHARS - 1).collect();
    short.push('…');
    short
}

/// Prints text; unlike `print!`, a closed pipe is an error, not a panic.
pub(crate) fn text(text: &str) -> Result<(), Exit> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Exit::from)
}

/// Prints an error on standard error; what it quotes cannot control the terminal.
pub(crate) fn error(error: &str) {
    eprintln!("error: {}", escape_controls(error));
}

/// Prints a message of several lines on standard error, such as the problems of a configuration file.
pub(crate) fn lines(message: &str) {
    message.lines().for_each(|line| eprintln!("{}", escape_controls(line)));
}

pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<(), Exit> {
    let line = serde_json::to_string(value).map_err(anyhow::Error::from)?;
    writeln!(std::io::stdout().lock(), "{line}").map_err(Exit::from)
}

pub(crate) fn json_lines<T: Serialize>(values: &[T]) -> Result<(), Exit> {
    values.iter().try_for_each(json_line)
}

/// Prints a record with its rows, a line for each value that is not null.
pub(crate) fn detail(value: &Value) -> Result<(), Exit> {
    let mut out = std::io::stdout().lock();
    for (name, value) in value.as_object().into_iter().flatten() {
        match value {
            Value::Null => {}
            Value::Array(rows) if rows.iter().any(Value::is_object) => {
                rows.iter().try_for_each(|row| print_row(&mut out, name, row))?;
            }
            other => writeln!(out, "{name}: {}", plain_text(other))?,
        }
    }
    Ok(())
}

/// Prints a row that belongs to a record.
fn print_row(out: &mut impl Write, name: &str, row: &Value) -> Result<(), Exit> {
    writeln!(out, "{name}:")?;
    let cells = row.as_object().into_iter().flatten();
    for (name, value) in
        cells.filter(|(name, value)| !value.is_null() && *name != "interception_id")
    {
        writeln!(out, "  {name}: {}", plain_text(value))?;
    }
    Ok(())
}

fn plain_text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => escape_controls(text).into_owned(),
        None => escape_controls(&value.to_string()).into_owned(),
    }
}
