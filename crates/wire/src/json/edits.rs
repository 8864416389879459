//! Edits of a document as splices: everything they do not address stays byte for byte.

use std::{collections::BTreeMap, ops::Range};

use super::{JsonError, Kind, Object, Value, string};

/// A set of edits to a JSON object, collected first and then applied together.
///
/// A path is a list of keys from the outermost object inwards. A later edit of the same place overrides
/// an earlier one. A duplicate key is edited at every occurrence, so that it does not matter which of
/// them a parser uses.
#[derive(Debug, Clone, Default)]
pub struct Edits {
    root: Node,
}

/// The edits of one value and of the values inside it.
#[derive(Debug, Clone, Default)]
struct Node {
    /// Its position among the edits of one object: new members are added in the order of the edits.
    order: usize,
    value_edit: ValueEdit,
    members: BTreeMap<String, Self>,
    prepended: Vec<String>,
    appended: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum ValueEdit {
    #[default]
    Kept,
    Replaced(String),
    Removed,
}

/// A text that replaces a range of the source.
#[derive(Debug)]
pub(crate) struct Splice {
    pub(crate) range: Range<usize>,
    pub(crate) text: String,
}

impl Edits {
    /// Creates an empty set of edits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the value at a path: replaces an existing one, otherwise adds it at the end of its object.
    ///
    /// Objects along the path that are absent or `null` are created.
    pub fn set(&mut self, path: &[&str], json: &str) {
        self.root.descend(path).set_value_edit(ValueEdit::Replaced(json.to_owned()));
    }

    /// Removes the member at a path, if it exists.
    pub fn remove(&mut self, path: &[&str]) {
        self.root.descend(path).set_value_edit(ValueEdit::Removed);
    }

    /// Adds a value after the last element of the array at a path, which is created if absent or `null`.
    pub fn append(&mut self, path: &[&str], json: &str) {
        self.root.descend(path).open_for_edits("[]").appended.push(json.to_owned());
    }

    /// Adds a value before the first element of the array at a path, which is created if absent or `null`.
    ///
    /// Several values keep the order in which they were added.
    pub fn prepend(&mut self, path: &[&str], json: &str) {
        self.root.descend(path).open_for_edits("[]").prepended.push(json.to_owned());
    }

    /// Whether there are no edits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.root.is_unchanged()
    }

    /// Applies all edits to a document.
    ///
    /// # Errors
    ///
    /// Returns an error if the document or a new value is not valid JSON, the document is not an object,
    /// or a path leads through a value of the wrong kind.
    pub fn apply(&self, source: &[u8]) -> Result<Vec<u8>, JsonError> {
        let object = Object::parse(source)?;
        let mut splices = Vec::new();
        self.root.splice(object.value(), &mut Vec::new(), &mut splices)?;
        Ok(apply_splices(source, splices))
    }
}

impl Node {
    /// Finds or creates the node at a path below this one.
    fn descend(&mut self, path: &[&str]) -> &mut Self {
        path.iter().fold(self, |node, key| {
            let node = node.open_for_edits("{}");
            let order = node.members.len();
            node.members
                .entry((*key).to_owned())
                .or_insert_with(|| Self { order, ..Self::default() })
        })
    }

    fn set_value_edit(&mut self, value_edit: ValueEdit) {
        *self = Self { order: self.order, value_edit, ..Self::default() };
    }

    /// Prepares the node for edits inside its value: if that was removed, they go into a new, empty one.
    fn open_for_edits(&mut self, empty: &str) -> &mut Self {
        if self.value_edit == ValueEdit::Removed {
            self.value_edit = ValueEdit::Replaced(empty.to_owned());
        }
        self
    }

    fn is_unchanged(&self) -> bool {
        self.value_edit == ValueEdit::Kept
            && self.prepended.is_empty()
            && self.appended.is_empty()
            && self.members.values().all(Self::is_unchanged)
    }

    /// Collects the splices for a value of the source.
    fn splice<'p>(
        &'p self,
        value: Value<'_>,
        path: &mut Vec<&'p str>,
        splices: &mut Vec<Splice>,
    ) -> Result<(), JsonError> {
        if self.value_edit != ValueEdit::Kept || value.is_null() {
            if let Some(text) = self.render(path)? {
                splices.push(Splice { range: value.range(), text });
            }
            return Ok(());
        }
        self.splice_inside(value, path, splices)
    }

    fn splice_inside<'p>(
        &'p self,
        value: Value<'_>,
        path: &mut Vec<&'p str>,
        splices: &mut Vec<Splice>,
    ) -> Result<(), JsonError> {
        if !self.members.is_empty() {
            let object = value.as_object().ok_or_else(|| wrong_kind(path, "object"))?;
            self.splice_members(&object, path, splices)?;
        }
        if !self.prepended.is_empty() || !self.appended.is_empty() {
            if value.kind() != Kind::Array {
                return Err(wrong_kind(path, "array"));
            }
            self.splice_elements(value, splices)?;
        }
        Ok(())
    }

    fn splice_members<'p>(
        &'p self,
        object: &Object<'_>,
        path: &mut Vec<&'p str>,
        splices: &mut Vec<Splice>,
    ) -> Result<(), JsonError> {
        let mut members = Vec::with_capacity(object.members.len());
        for member in &object.members {
            let edit = self.members.get_key_value(string::decode(member.key.raw).as_ref());
            let is_removed = edit.is_some_and(|(_, node)| node.value_edit == ValueEdit::Removed);
            members.push((member.range(), is_removed));
            if let Some((key, node)) = edit
                && !is_removed
            {
                path.push(key);
                node.splice(member.value, path, splices)?;
                path.pop();
            }
        }
        let removals = removals(&members);
        splices.extend(removals.map(|range| Splice { range, text: String::new() }));

        let mut needs_comma = members.iter().any(|(_, is_removed)| !is_removed);
        let mut text = String::new();
        for (key, json) in self.new_members(object, path)? {
            if needs_comma {
                text.push(',');
            }
            text.push_str(&serde_json::Value::from(key).to_string());
            text.push(':');
            text.push_str(&json);
            needs_comma = true;
        }
        let inside = object.value.start + 1;
        let end = object.members.last().map_or(inside, |member| member.value.range().end);
        splices.push(Splice { range: end..end, text });
        Ok(())
    }

    /// The members that the object lacks, in the order of the edits.
    fn new_members<'p>(
        &'p self,
        object: &Object<'_>,
        path: &mut Vec<&'p str>,
    ) -> Result<Vec<(&'p str, String)>, JsonError> {
        let absent = self.members.iter().filter(|(key, _)| object.member(key).is_none());
        let mut absent: Vec<_> = absent.collect();
        absent.sort_by_key(|(_, node)| node.order);
        let mut rendered = Vec::new();
        for (key, node) in absent {
            path.push(key);
            rendered.extend(node.render(path)?.map(|json| (key.as_str(), json)));
            path.pop();
        }
        Ok(rendered)
    }

    fn splice_elements(
        &self,
        array: Value<'_>,
        splices: &mut Vec<Splice>,
    ) -> Result<(), JsonError> {
        for json in self.prepended.iter().chain(&self.appended) {
            Value::parse(json.as_bytes())?;
        }
        let inside = array.start + 1;
        let (mut before, mut after) = (self.prepended.join(","), self.appended.join(","));
        let last = array.elements().last();
        if last.is_some() && !before.is_empty() {
            before.push(',');
        }
        if !after.is_empty() && (last.is_some() || !before.is_empty()) {
            after.insert(0, ',');
        }
        let end = last.map_or(inside, |element| element.range().end);
        splices.push(Splice { range: inside..inside, text: before });
        splices.push(Splice { range: end..end, text: after });
        Ok(())
    }

    /// Renders the value where the source has none; `None` if there is nothing to create.
    fn render<'p>(&'p self, path: &mut Vec<&'p str>) -> Result<Option<String>, JsonError> {
        let base = match &self.value_edit {
            ValueEdit::Removed => return Ok(None),
            ValueEdit::Replaced(json) => json.as_str(),
            ValueEdit::Kept if !self.prepended.is_empty() || !self.appended.is_empty() => "[]",
            ValueEdit::Kept if self.creates_value() => "{}",
            ValueEdit::Kept => return Ok(None),
        };
        let value = Value::parse(base.as_bytes())?;
        let mut splices = Vec::new();
        self.splice_inside(value, path, &mut splices)?;
        let rendered = apply_splices(base.as_bytes(), splices);
        Ok(Some(String::from_utf8_lossy(&rendered).into_owned()))
    }

    fn creates_value(&self) -> bool {
        match self.value_edit {
            ValueEdit::Removed => false,
            ValueEdit::Replaced(_) => true,
            ValueEdit::Kept => {
                !self.prepended.is_empty()
                    || !self.appended.is_empty()
                    || self.members.values().any(Self::creates_value)
            }
        }
    }
}

/// The ranges to delete when members or elements are removed, each with its surplus comma; given are the
/// ranges of all, and whether each is removed.
pub(super) fn removals(parts: &[(Range<usize>, bool)]) -> impl Iterator<Item = Range<usize>> {
    let mut runs = parts.chunk_by(|(_, one), (_, other)| one == other).peekable();
    let mut kept_end = None;
    std::iter::from_fn(move || {
        let run = runs.next()?;
        let ((first, is_removed), (last, _)) = (run.first()?, run.last()?);
        let (start, end) = (first.start, last.end);
        if !is_removed {
            kept_end = Some(end);
            return Some(end..end);
        }
        let next = runs.peek().and_then(|run| run.first()).map(|(range, _)| range.start);
        Some(match (kept_end, next) {
            (Some(kept_end), _) => kept_end..end,
            (None, Some(next)) => start..next,
            (None, None) => start..end,
        })
    })
    .filter(|range| !range.is_empty())
}

/// Applies splices to the source; what is inserted at the same position keeps its order, and comes before
/// what is removed or replaced from there on.
pub(crate) fn apply_splices(source: &[u8], mut splices: Vec<Splice>) -> Vec<u8> {
    splices.sort_by_key(|splice| (splice.range.start, splice.range.end));
    let added: usize = splices.iter().map(|splice| splice.text.len()).sum();
    let mut result = Vec::with_capacity(source.len() + added);
    let mut at = 0;
    for Splice { range, text } in splices {
        result.extend_from_slice(source.get(at..range.start).unwrap_or_default());
        result.extend_from_slice(text.as_bytes());
        at = range.end;
    }
    result.extend_from_slice(source.get(at..).unwrap_or_default());
    result
}

fn wrong_kind(path: &[&str], expected: &'static str) -> JsonError {
    JsonError::WrongKind { path: path.join("."), expected }
}
