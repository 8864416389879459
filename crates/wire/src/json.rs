//! Raw JSON: reading a document, and editing parts of it without touching the rest.
//!
//! Values are slices of the source, found in one validating pass without recursion. Nothing is decoded
//! until it is needed, so numbers, escapes, white space and key order stay as they were written.

use std::{borrow::Cow, ops::Range};

mod edits;
pub(crate) mod scan;
mod splices;
pub(crate) mod string;

pub use edits::Edits;
pub(crate) use edits::{Splice, apply_splices};
pub use splices::Splices;

use scan::Scanner;

/// The maximum nesting depth of objects and arrays.
pub const MAX_DEPTH: usize = 512;

/// Why a document cannot be read or edited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// The input is empty or only white space.
    #[error("the document is empty")]
    Empty,
    /// The bytes are not UTF-8.
    #[error("invalid UTF-8 at byte {offset}")]
    InvalidUtf8 {
        /// The length of the valid prefix in bytes.
        offset: usize,
    },
    /// The text is not valid JSON.
    #[error("expected {expected} at byte {offset}")]
    Syntax {
        /// Where the text stops being valid JSON.
        offset: usize,
        /// What was expected there.
        expected: &'static str,
    },
    /// Objects and arrays nest deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// The document has more values than its reader takes.
    #[error("too many values")]
    TooManyValues,
    /// The document is valid JSON but not an object.
    #[error("the document is not an object")]
    NotAnObject,
    /// An edit's path leads through a value of the wrong kind.
    #[error("`{path}` is not an {expected}")]
    WrongKind {
        /// The path, its keys joined by dots.
        path: String,
        /// The kind that the edit requires.
        expected: &'static str,
    },
}

/// The kind of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `{…}`.
    Object,
    /// `[…]`.
    Array,
    /// `"…"`.
    String,
    /// A number of any magnitude.
    Number,
    /// `true` or `false`.
    Bool,
    /// `null`.
    Null,
}

/// A value of a document, as a slice of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Value<'a> {
    raw: &'a str,
    start: usize,
}

/// An object with its direct members.
#[derive(Debug, Clone)]
pub struct Object<'a> {
    value: Value<'a>,
    members: Vec<Member<'a>>,
}

/// An iterator over the elements of an array.
#[derive(Debug, Clone)]
pub struct Elements<'a> {
    scanner: Option<Scanner<'a>>,
}

#[derive(Debug, Clone, Copy)]
struct Member<'a> {
    /// The string literal, including its quotes.
    key: Value<'a>,
    value: Value<'a>,
}

impl<'a> Value<'a> {
    /// Parses a document of any kind, validating all of it.
    ///
    /// # Errors
    ///
    /// Returns an error if the source is empty, not UTF-8, not exactly one JSON value, or too deeply nested.
    pub fn parse(source: &'a [u8]) -> Result<Self, JsonError> {
        let mut scanner = Scanner::document(source)?;
        let value = scanner.value()?;
        scanner.expect_end()?;
        Ok(value)
    }

    /// The value as written in the source.
    #[must_use]
    pub fn raw(&self) -> &'a str {
        self.raw
    }

    /// Its byte range in the document.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.raw.len()
    }

    /// The kind of the value.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.raw.as_bytes().first() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::String,
            Some(b't' | b'f') => Kind::Bool,
            Some(b'n') => Kind::Null,
            _ => Kind::Number,
        }
    }

    /// The decoded text if the value is a string.
    ///
    /// A lone surrogate, which JavaScript writes when it truncates a string, becomes U+FFFD.
    #[must_use]
    pub fn as_str(&self) -> Option<Cow<'a, str>> {
        (self.kind() == Kind::String).then(|| string::decode(self.raw))
    }

    /// Whether the value is a string that decodes to this text.
    #[must_use]
    pub fn is_text(&self, text: &str) -> bool {
        self.kind() == Kind::String && string::equals(self.raw, text)
    }

    /// The value if it is a non-negative integer, in any notation: `12`, `12.0` or `1.2e1`.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        if self.kind() != Kind::Number {
            return None;
        }
        self.raw.parse().ok().or_else(|| whole_number(self.raw))
    }

    /// The value if it is `true` or `false`.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self.raw {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// Whether the value is `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.kind() == Kind::Null
    }

    /// The value as an object with its direct members, if it is one.
    #[must_use]
    pub fn as_object(&self) -> Option<Object<'a>> {
        if self.kind() != Kind::Object {
            return None;
        }
        let mut scanner = Scanner::inside(*self);
        Object::read(&mut scanner).ok()
    }

    /// The elements if the value is an array; otherwise nothing.
    #[must_use]
    pub fn elements(&self) -> Elements<'a> {
        let scanner = (self.kind() == Kind::Array).then(|| {
            let mut scanner = Scanner::inside(*self);
            scanner.open();
            scanner
        });
        Elements { scanner }
    }

    /// Finds a member of an object without allocating; of duplicate keys, the last one counts.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Self> {
        let [found] = self.get_all([key]);
        found
    }

    /// Finds several members of an object in one pass, with the rules of [`Value::get`].
    #[must_use]
    pub fn get_all<const N: usize>(&self, keys: [&str; N]) -> [Option<Self>; N] {
        if self.kind() != Kind::Object {
            return [None; N];
        }
        Scanner::inside(*self).members(keys)
    }

    /// For each object in an array, the members that [`Value::get_all`] would find, in one pass; nothing
    /// if the value is not an array.
    pub fn objects<'k, const N: usize>(
        &self,
        keys: [&'k str; N],
    ) -> impl Iterator<Item = [Option<Self>; N]> + use<'a, 'k, N> {
        let mut elements = self.elements();
        std::iter::from_fn(move || {
            let scanner = elements.scanner.as_mut()?;
            while let Ok(true) = scanner.has_element() {
                if scanner.starts_with_byte(b'{') {
                    return Some(scanner.members(keys));
                }
                scanner.value().ok()?;
            }
            elements.scanner = None;
            None
        })
    }
}

/// The integer that a number with a fraction or an exponent stands for: some servers write counts so.
fn whole_number(raw: &str) -> Option<u64> {
    let (mantissa, exponent) = match raw.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (raw, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    let dropped = i32::try_from(digits.len() - significant.len()).ok()?;
    let scale = exponent.checked_add(dropped)?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    significant.parse::<u64>().ok()?.checked_mul(10_u64.checked_pow(scale.try_into().ok()?)?)
}

impl Member<'_> {
    /// Its byte range in the document, key and value.
    fn range(&self) -> Range<usize> {
        self.key.start..self.value.range().end
    }
}

impl<'a> Object<'a> {
    /// Parses a document that must be an object, validating all of it.
    ///
    /// # Errors
    ///
    /// Returns an error if the source is empty, not UTF-8, not exactly one JSON object, or too deeply nested.
    pub fn parse(source: &'a [u8]) -> Result<Self, JsonError> {
        let mut scanner = Scanner::document(source)?;
        if !scanner.starts_with_byte(b'{') {
            scanner.value()?;
            scanner.expect_end()?;
            return Err(JsonError::NotAnObject);
        }
        let object = Self::read(&mut scanner)?;
        scanner.expect_end()?;
        Ok(object)
    }

    /// Finds a member by its decoded key; of duplicate keys, the last one counts, as in most parsers.
    #[must_use]
    pub fn member(&self, key: &str) -> Option<Value<'a>> {
        let found = self.members.iter().rev().find(|member| string::equals(member.key.raw, key));
        found.map(|member| member.value)
    }

    /// All members in order, as decoded key and value.
    pub fn members(&self) -> impl Iterator<Item = (Cow<'a, str>, Value<'a>)> + '_ {
        self.members.iter().map(|member| (string::decode(member.key.raw), member.value))
    }

    /// The first of these keys that occurs more than once, however it is escaped.
    #[must_use]
    pub fn first_duplicate<'k>(&self, keys: &[&'k str]) -> Option<&'k str> {
        let is_repeated = |key: &str| {
            let same = self.members.iter().filter(|member| string::equals(member.key.raw, key));
            same.count() > 1
        };
        keys.iter().copied().find(|key| is_repeated(key))
    }

    /// The object as a value.
    #[must_use]
    pub fn value(&self) -> Value<'a> {
        self.value
    }

    fn read(scanner: &mut Scanner<'a>) -> Result<Self, JsonError> {
        let start = scanner.open();
        let mut members = Vec::new();
        while let Some(key) = scanner.next_key()? {
            members.push(Member { key, value: scanner.value()? });
        }
        Ok(Self { value: scanner.slice_from(start), members })
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        let scanner = self.scanner.as_mut()?;
        match scanner.next_element() {
            Ok(Some(value)) => Some(value),
            // The array was validated when its document was parsed, so this is its end.
            Ok(None) | Err(_) => {
                self.scanner = None;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
