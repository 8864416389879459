//! Data on standard output: tables for people, JSON lines for programs.

use std::io::Write;

use serde::Serialize;
use serde_json::Value;

use crate::cli::Exit;

/// Widest that a cell is shown.
const CELL_CHARS: usize = 60;

/// Rows under headings, in aligned columns.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).to_vec()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: &[String; N]) {
        self.rows.push(cells.iter().map(|cell| shortened(cell)).collect());
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

/// One line, and no control characters: a client's claims must not steer the terminal.
fn shortened(cell: &str) -> String {
    let clean: String = cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.chars().count() <= CELL_CHARS {
        return clean;
    }
    let mut short: String = clean.chars().take(CELL_CHARS - 1).collect();
    short.push('…');
    short
}

/// Text as it is; unlike `print!`, a reader that has gone is an error and no panic.
pub(crate) fn text(text: &str) -> Result<(), Exit> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Exit::from)
}

pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<(), Exit> {
    let line = serde_json::to_string(value).map_err(anyhow::Error::from)?;
    writeln!(std::io::stdout().lock(), "{line}").map_err(Exit::from)
}

pub(crate) fn json_lines<T: Serialize>(values: &[T]) -> Result<(), Exit> {
    values.iter().try_for_each(json_line)
}

/// A record with all that belongs to it, a line per value that is known.
pub(crate) fn detail(value: &Value) -> Result<(), Exit> {
    let mut out = std::io::stdout().lock();
    for (name, value) in value.as_object().into_iter().flatten() {
        match value {
            Value::Null => {}
            Value::Array(rows) if rows.iter().any(Value::is_object) => {
                rows.iter().try_for_each(|row| child(&mut out, name, row))?;
            }
            other => writeln!(out, "{name}: {}", plain(other))?,
        }
    }
    Ok(())
}

/// A row that belongs to a record.
fn child(out: &mut impl Write, name: &str, row: &Value) -> Result<(), Exit> {
    writeln!(out, "{name}:")?;
    let cells = row.as_object().into_iter().flatten();
    for (name, value) in
        cells.filter(|(name, value)| !value.is_null() && *name != "interception_id")
    {
        writeln!(out, "  {name}: {}", plain(value))?;
    }
    Ok(())
}

fn plain(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
}
