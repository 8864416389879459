//! A JSON object that arrives in pieces, put together without decoding its texts.

use std::collections::BTreeMap;

use crate::json::{Edits, JsonError, Kind, Value};

/// An object as it began, and what was added to its members since.
#[derive(Debug, Clone)]
pub(super) struct Growing {
    start: String,
    members: BTreeMap<Vec<String>, Growth>,
}

#[derive(Debug, Clone)]
enum Growth {
    /// The inside of a string literal, still escaped.
    Text(String),
    Elements(Vec<String>),
    Value(String),
}

impl Growing {
    pub(super) fn new(start: &str) -> Self {
        Self { start: start.to_owned(), members: BTreeMap::new() }
    }

    /// Adds to the string at a path; `escaped` is the inside of a string literal.
    pub(super) fn text(&mut self, path: &[&str], escaped: &str) {
        let Self { start, members } = self;
        match member(members, path, || Growth::Text(begun(start, path))) {
            Growth::Text(text) => text.push_str(escaped),
            other => *other = Growth::Text(escaped.to_owned()),
        }
    }

    /// Adds a value of whatever kind: strings are joined, lists too, all else replaces.
    pub(super) fn add(&mut self, path: &[&str], value: &Value<'_>) {
        match value.kind() {
            Kind::String => self.text(path, inside(value.raw())),
            Kind::Array => {
                let added = value.elements().map(|element| element.raw().to_owned());
                self.elements(path, added);
            }
            Kind::Null => {}
            Kind::Object | Kind::Number | Kind::Bool => self.set(path, value.raw()),
        }
    }

    pub(super) fn elements(&mut self, path: &[&str], added: impl Iterator<Item = String>) {
        match member(&mut self.members, path, || Growth::Elements(Vec::new())) {
            Growth::Elements(elements) => elements.extend(added),
            other => *other = Growth::Elements(added.collect()),
        }
    }

    pub(super) fn set(&mut self, path: &[&str], json: &str) {
        let set = member(&mut self.members, path, || Growth::Value(String::new()));
        *set = Growth::Value(json.to_owned());
    }

    /// The object as far as it has come.
    pub(super) fn json(&self) -> Result<String, JsonError> {
        let mut edits = Edits::new();
        for (path, growth) in &self.members {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            match growth {
                Growth::Text(text) => edits.set(&path, &format!("\"{text}\"")),
                Growth::Value(json) => edits.set(&path, json),
                Growth::Elements(elements) => {
                    for element in elements {
                        edits.append(&path, element);
                    }
                }
            }
        }
        let made = edits.apply(self.start.as_bytes())?;
        Ok(String::from_utf8_lossy(&made).into_owned())
    }
}

/// What was added at a path, begun if this is the first of it.
fn member<'m>(
    members: &'m mut BTreeMap<Vec<String>, Growth>,
    path: &[&str],
    begun: impl FnOnce() -> Growth,
) -> &'m mut Growth {
    let path = path.iter().map(|key| (*key).to_owned()).collect();
    members.entry(path).or_insert_with(begun)
}

/// The inside of the string that an object began with at a path.
fn begun(start: &str, path: &[&str]) -> String {
    let start = Value::parse(start.as_bytes()).ok();
    let found = path.iter().fold(start, |value, key| value?.get(key));
    let found = found.filter(|value| value.kind() == Kind::String);
    found.map(|value| inside(value.raw()).to_owned()).unwrap_or_default()
}

/// A string literal without its quotes.
pub(super) fn inside(literal: &str) -> &str {
    literal.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(literal)
}
