//! A JSON object that arrives in pieces, assembled without decoding its strings.

use std::collections::BTreeMap;

use crate::json::{Edits, JsonError, Kind, Value, string};

/// An object as first received, and what was added to its members since.
#[derive(Debug, Clone)]
pub(super) struct PartialObject {
    start: String,
    members: BTreeMap<Vec<String>, PartialValue>,
}

#[derive(Debug, Clone)]
enum PartialValue {
    /// A string literal without its quotes, still escaped.
    Text(String),
    Elements(Vec<String>),
    Value(String),
}

impl PartialObject {
    pub(super) fn new(start: &str) -> Self {
        Self { start: start.to_owned(), members: BTreeMap::new() }
    }

    /// Appends to the string at a path; `escaped` is a string literal without its quotes.
    pub(super) fn append_text(&mut self, path: &[&str], escaped: &str) {
        let Self { start, members } = self;
        match entry(members, path, || PartialValue::Text(initial_text(start, path))) {
            PartialValue::Text(text) => text.push_str(escaped),
            other => *other = PartialValue::Text(escaped.to_owned()),
        }
    }

    /// Adds a value of any kind: strings and arrays are appended, everything else replaces.
    pub(super) fn append(&mut self, path: &[&str], value: &Value<'_>) {
        match value.kind() {
            Kind::String => self.append_text(path, string::unquote(value.raw())),
            Kind::Array => {
                let added = value.elements().map(|element| element.raw().to_owned());
                self.append_elements(path, added);
            }
            Kind::Null => {}
            Kind::Object | Kind::Number | Kind::Bool => self.set(path, value.raw()),
        }
    }

    pub(super) fn append_elements(&mut self, path: &[&str], added: impl Iterator<Item = String>) {
        match entry(&mut self.members, path, || PartialValue::Elements(Vec::new())) {
            PartialValue::Elements(elements) => elements.extend(added),
            other => *other = PartialValue::Elements(added.collect()),
        }
    }

    pub(super) fn set(&mut self, path: &[&str], json: &str) {
        let set = entry(&mut self.members, path, || PartialValue::Value(String::new()));
        *set = PartialValue::Value(json.to_owned());
    }

    /// Renders the object with everything received so far.
    pub(super) fn render(&self) -> Result<String, JsonError> {
        let mut edits = Edits::new();
        for (path, growth) in &self.members {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            match growth {
                PartialValue::Text(text) => edits.set(&path, &format!("\"{text}\"")),
                PartialValue::Value(json) => edits.set(&path, json),
                PartialValue::Elements(elements) => {
                    for element in elements {
                        edits.append(&path, element);
                    }
                }
            }
        }
        let rendered = edits.apply(self.start.as_bytes())?;
        Ok(String::from_utf8_lossy(&rendered).into_owned())
    }
}

/// The value added at a path, created if this is the first addition.
fn entry<'m>(
    members: &'m mut BTreeMap<Vec<String>, PartialValue>,
    path: &[&str],
    initial: impl FnOnce() -> PartialValue,
) -> &'m mut PartialValue {
    let path = path.iter().map(|key| (*key).to_owned()).collect();
    members.entry(path).or_insert_with(initial)
}

/// The string that an object was first received with at a path, without quotes.
fn initial_text(start: &str, path: &[&str]) -> String {
    let start = Value::parse(start.as_bytes()).ok();
    let found = path.iter().fold(start, |value, key| value?.get(key));
    let found = found.filter(|value| value.kind() == Kind::String);
    found.map(|value| string::unquote(value.raw()).to_owned()).unwrap_or_default()
}
