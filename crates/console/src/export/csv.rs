//! Rows of an export as CSV (RFC 4180), without contents.

use serde_json::Value;

use crate::views::{Fields, InterceptionView, TokenCountsView};

/// Fields that are not exported: they may have words of the model.
const CONTENTS: &[&str] = &["refusal_explanation"];

/// The columns: those of the record, its user, its sums.
fn columns() -> Vec<String> {
    let own = |name: &&&str| !CONTENTS.contains(*name);
    let record = InterceptionView::FIELDS.iter().filter(own).map(ToString::to_string);
    let exact = TokenCountsView::FIELDS.iter().map(ToString::to_string);
    let estimated = TokenCountsView::FIELDS.iter().map(|name| format!("estimated_{name}"));
    let last = ["unknown_usages", "tool_calls"].map(str::to_owned);
    record.chain(["user".into()]).chain(exact).chain(estimated).chain(last).collect()
}

/// The row with the names of the columns.
pub(super) fn header() -> String {
    line(columns().into_iter())
}

/// The row of an interception in a list, as JSON.
pub(super) fn row(item: &Value) -> String {
    let cells = columns().into_iter().map(|name| {
        let value = match name.strip_prefix("estimated_") {
            Some(name) => item.get("estimated").and_then(|estimated| estimated.get(name)),
            None => item.get(&name),
        };
        value.map_or_else(String::new, cell)
    });
    line(cells)
}

/// A cell: nothing for null, the elements of a list after each other.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => neutral(text),
        Value::Array(elements) => {
            neutral(&elements.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "))
        }
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

/// A text that no spreadsheet takes for a formula.
fn neutral(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        format!("'{text}")
    } else {
        text.into()
    }
}

fn line(cells: impl Iterator<Item = String>) -> String {
    let quoted = cells.map(|cell| {
        if cell.contains(['"', ',', '\r', '\n']) {
            format!("\"{}\"", cell.replace('"', "\"\""))
        } else {
            cell
        }
    });
    quoted.collect::<Vec<_>>().join(",") + "\r\n"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{cell, header, line, row};

    #[test]
    fn cells_are_quoted_and_are_no_formulas() {
        let cells = [
            json!("plain"),
            json!("a,b"),
            json!("say \"hi\"\r\n"),
            json!("=1+1"),
            json!("@SUM(A1)"),
            json!("-2,\"x\""),
            json!(null),
            json!(["a", "b"]),
            json!(-7),
            json!(true),
        ];
        assert_eq!(
            line(cells.iter().map(cell)),
            "plain,\"a,b\",\"say \"\"hi\"\"\r\n\",'=1+1,'@SUM(A1),\"'-2,\"\"x\"\"\",,a b,-7,true\r\n"
        );
    }

    #[test]
    fn a_row_has_a_cell_for_each_column() {
        let item = json!({
            "id": "1", "user": "ada", "input_tokens": 3, "estimated": { "output_tokens": 4 },
            "refusal_explanation": "secret",
        });
        let (header, row) = (header(), row(&item));
        let (names, cells): (Vec<_>, Vec<_>) =
            (header.trim_end().split(',').collect(), row.trim_end().split(',').collect());
        assert_eq!(names.len(), cells.len());
        let of = |name: &str| cells[names.iter().position(|known| *known == name).unwrap()];
        assert_eq!(
            [of("id"), of("user"), of("input_tokens"), of("estimated_output_tokens")],
            ["1", "ada", "3", "4"]
        );
        assert!(!row.contains("secret") && !header.contains("refusal_explanation"));
    }
}
