//! Cleans each line before it is written: secrets are masked, control characters are escaped, and a line
//! has a maximum length, whatever the values in it.

use std::{borrow::Cow, io};

use serde_json::Value;
use tracing::Metadata;
use tracing_subscriber::fmt::MakeWriter;

use super::{LogFormat, MaskFn};
use crate::escape_controls;

/// Maximum length of a line in bytes; of a longer line of JSON, each value is cut.
pub const MAX_LINE_BYTES: usize = 16 * 1_024;
/// Maximum length of a value in a line of JSON that is too long.
const MAX_VALUE_BYTES: usize = 1_024;

/// Writes clean lines to another writer.
#[derive(Debug, Clone)]
pub(super) struct CleanLines<W> {
    pub(super) inner: W,
    pub(super) format: LogFormat,
    pub(super) mask: MaskFn,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for CleanLines<W> {
    type Writer = CleanLines<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        CleanLines { inner: self.inner.make_writer(), format: self.format, mask: self.mask }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        let inner = self.inner.make_writer_for(metadata);
        CleanLines { inner, format: self.format, mask: self.mask }
    }
}

/// The formatter writes each line with one call.
impl<W: io::Write> io::Write for CleanLines<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        match clean(text.strip_suffix('\n').unwrap_or(&text), self.format, self.mask) {
            Cow::Borrowed(_unchanged) => self.inner.write_all(line)?,
            Cow::Owned(mut cleaned) => {
                cleaned.push('\n');
                self.inner.write_all(cleaned.as_bytes())?;
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn clean(line: &str, format: LogFormat, mask: MaskFn) -> Cow<'_, str> {
    let masked = mask(line);
    match format {
        LogFormat::Text => {
            let escaped = match masked {
                Cow::Borrowed(masked) => escape_controls(masked),
                Cow::Owned(masked) => Cow::Owned(escape_controls(&masked).into_owned()),
            };
            if escaped.len() <= MAX_LINE_BYTES {
                escaped
            } else {
                cut(&escaped, MAX_LINE_BYTES).into()
            }
        }
        LogFormat::Json if masked.len() <= MAX_LINE_BYTES => masked,
        LogFormat::Json => match serde_json::from_str(&masked) {
            Ok(mut value) => {
                cut_values(&mut value);
                Cow::Owned(value.to_string())
            }
            Err(_never) => Cow::Owned(Value::from(cut(&masked, MAX_LINE_BYTES)).to_string()),
        },
    }
}

fn cut_values(value: &mut Value) {
    match value {
        Value::String(text) if text.len() > MAX_VALUE_BYTES => *text = cut(text, MAX_VALUE_BYTES),
        Value::Array(values) => values.iter_mut().for_each(cut_values),
        Value::Object(members) => members.values_mut().for_each(cut_values),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The beginning of a text, marked as cut.
fn cut(text: &str, max_bytes: usize) -> String {
    let kept = text.get(..text.floor_char_boundary(max_bytes)).unwrap_or_default();
    format!("{kept}…[cut: {} bytes]", text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(text: &str) -> Cow<'_, str> {
        if text.contains("secret") { text.replace("secret", "***").into() } else { text.into() }
    }

    #[test]
    fn a_line_of_text_cannot_forge_another_and_shows_no_secret() {
        let line = clean("INFO a secret\nINFO forged \u{1b}[2J", LogFormat::Text, mask);
        assert_eq!(line, "INFO a ***\\nINFO forged \\u{1b}[2J");
    }

    #[test]
    fn a_long_line_is_cut_and_says_how_long_it_was() {
        let line = clean(&"x".repeat(1 << 20), LogFormat::Text, mask).into_owned();
        assert!(line.len() < MAX_LINE_BYTES + 64 && line.ends_with("…[cut: 1048576 bytes]"));
    }

    #[test]
    fn a_long_line_of_json_stays_json_with_all_of_its_fields() {
        let line = format!(r#"{{"a":"{}","b":7,"c":{{"d":"secret"}}}}"#, "x".repeat(1 << 20));
        let line = clean(&line, LogFormat::Json, mask);
        assert!(line.len() < MAX_LINE_BYTES);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert!(value["a"].as_str().unwrap().ends_with("…[cut: 1048576 bytes]"));
        assert_eq!((&value["b"], &value["c"]["d"]), (&7.into(), &"***".into()));
    }
}
