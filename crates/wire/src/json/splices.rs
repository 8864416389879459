//! Edits of places that are found while walking through a document, such as the elements of an array.

use std::ops::Range;

use super::{Object, Splice, Value, apply_splices, edits::removals};

/// Splices into one document: the edits of [`super::Edits`] for places that have no path of keys.
///
/// All values must be of the same document, and none may be edited inside another one that is removed or
/// replaced.
#[derive(Debug, Default)]
pub struct Splices {
    splices: Vec<Splice>,
}

impl Splices {
    /// Replaces a value by another one, which must be valid JSON.
    pub fn replace(&mut self, value: Value<'_>, json: impl Into<String>) {
        self.splices.push(Splice { range: value.range(), text: json.into() });
    }

    /// Adds an element, which must be valid JSON, after an element of an array.
    pub fn insert_after(&mut self, element: Value<'_>, json: &str) {
        let end = element.range().end;
        self.splices.push(Splice { range: end..end, text: format!(",{json}") });
    }

    /// Removes members of an object by their decoded keys and values.
    pub fn remove_members(
        &mut self,
        object: &Object<'_>,
        mut is_removed: impl FnMut(&str, Value<'_>) -> bool,
    ) {
        let ranges = object.members.iter().map(super::Member::range);
        let judged = object.members().map(|(key, value)| is_removed(&key, value));
        let parts: Vec<_> = ranges.zip(judged).collect();
        self.remove(&parts);
    }

    /// Removes elements of an array, by their number and value.
    pub fn remove_elements(
        &mut self,
        array: Value<'_>,
        mut is_removed: impl FnMut(usize, Value<'_>) -> bool,
    ) {
        let elements = array.elements().enumerate();
        let parts: Vec<_> =
            elements.map(|(at, value)| (value.range(), is_removed(at, value))).collect();
        self.remove(&parts);
    }

    /// Whether nothing is edited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.splices.is_empty()
    }

    /// Applies all edits to their document.
    #[must_use]
    pub fn apply(self, source: &[u8]) -> Vec<u8> {
        apply_splices(source, self.splices)
    }

    fn remove(&mut self, parts: &[(Range<usize>, bool)]) {
        if parts.iter().any(|(_, is_removed)| *is_removed) {
            let removals = removals(parts);
            self.splices.extend(removals.map(|range| Splice { range, text: String::new() }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Splices;
    use crate::json::Object;

    /// Removes what is named `x`, or is the number 0, at the top level and in the array `a`.
    fn cleaned(source: &str) -> String {
        let object = Object::parse(source.as_bytes()).unwrap();
        let mut splices = Splices::default();
        splices.remove_members(&object, |key, value| key == "x" || value.raw() == "0");
        if let Some(array) = object.member("a") {
            splices.remove_elements(array, |_at, value| value.raw() == "0");
            if let Some(last) = array.elements().filter(|value| value.raw() != "0").last() {
                splices.insert_after(last, "9");
            }
        }
        String::from_utf8(splices.apply(source.as_bytes())).unwrap()
    }

    #[test]
    fn members_and_elements_go_with_their_surplus_commas() {
        for (source, expected) in [
            (r#"{"x":1,"b":2}"#, r#"{"b":2}"#),
            (r#"{ "b": 2 , "\u0078":1 }"#, r#"{ "b": 2 }"#),
            (r#"{"x":1}"#, "{}"),
            (r#"{"b":1, "x":1, "c":0, "d":[ 0 ]}"#, r#"{"b":1, "d":[ 0 ]}"#),
            (r#"{"a":[0,1, 0 ,2,0]}"#, r#"{"a":[1 ,2,9]}"#),
            (r#"{"a":[ 1, 0 ],"x":[0]}"#, r#"{"a":[ 1,9 ]}"#),
            (r#"{"a":[0,0]}"#, r#"{"a":[]}"#),
            (r#"{"a":[]}"#, r#"{"a":[]}"#),
        ] {
            assert_eq!(cleaned(source), expected, "{source}");
        }
    }
}
