//! A validating scanner that finds where JSON values begin and end, without recursion.

use super::{JsonError, MAX_DEPTH, Value, string, string::SpecialBytes};

/// A position in a document.
///
/// To read a container, call [`Scanner::open`], then [`Scanner::next_key`] or
/// [`Scanner::next_element`] until it returns `None`; [`Scanner::value`] skips and validates a value.
#[derive(Debug, Clone)]
pub(crate) struct Scanner<'a> {
    text: &'a str,
    position: usize,
    /// The offset of `text` in the document.
    offset: usize,
    /// The number of containers open at the position.
    depth: usize,
    /// Whether a container was just opened, so that no comma is expected.
    is_first: bool,
    /// Whether the text was validated before, so that values only need to be skipped.
    is_valid: bool,
    /// Values that may still be validated.
    values_left: usize,
    /// Whether a key, with its quotes, is one to look out for.
    is_watched: Option<fn(&str) -> bool>,
    /// Whether such a key was read.
    has_watched_key: bool,
}

/// The containers that are open while a value is skipped, one bit each: 1 for an object, 0 for an array.
struct Nesting {
    bits: [u64; MAX_DEPTH / 64],
    depth: usize,
}

impl<'a> Scanner<'a> {
    /// Starts at the beginning of a document.
    pub(crate) fn document(source: &'a [u8]) -> Result<Self, JsonError> {
        let Ok(text) = simdutf8::basic::from_utf8(source) else {
            let offset = std::str::from_utf8(source).err().map_or(0, |error| error.valid_up_to());
            return Err(JsonError::InvalidUtf8 { offset });
        };
        let mut scanner = Self {
            text,
            position: 0,
            offset: 0,
            depth: 0,
            is_first: false,
            is_valid: false,
            values_left: usize::MAX,
            is_watched: None,
            has_watched_key: false,
        };
        scanner.skip_space();
        if scanner.peek().is_none() { Err(JsonError::Empty) } else { Ok(scanner) }
    }

    /// Starts at a value that is known to be valid.
    pub(crate) fn inside(value: Value<'a>) -> Self {
        Self {
            text: value.raw,
            position: 0,
            offset: value.start,
            depth: 0,
            is_first: false,
            is_valid: true,
            values_left: usize::MAX,
            is_watched: None,
            has_watched_key: false,
        }
    }

    /// Rejects a document with more than `max` values, nested ones included.
    pub(crate) const fn with_max_values(mut self, max: usize) -> Self {
        self.values_left = max;
        self
    }

    /// Looks out for keys, nested ones included, which are given with their quotes, as written.
    pub(crate) const fn watching(mut self, is_watched: fn(&str) -> bool) -> Self {
        self.is_watched = Some(is_watched);
        self
    }

    /// Whether any of the keys to look out for was read, or one with an escape, which may be any.
    pub(crate) const fn has_watched_key(&self) -> bool {
        self.has_watched_key
    }

    /// Whether the next value begins with this byte.
    pub(crate) fn starts_with_byte(&mut self, byte: u8) -> bool {
        self.skip_space();
        self.peek() == Some(byte)
    }

    /// Enters the object or array that begins here; returns its position.
    pub(crate) fn open(&mut self) -> usize {
        let start = self.position;
        self.position += 1;
        self.depth += 1;
        self.is_first = true;
        start
    }

    /// Returns the next key of the open object and stops at its value; at the end, leaves the object.
    pub(crate) fn next_key(&mut self) -> Result<Option<Value<'a>>, JsonError> {
        if !self.advance(b'}')? {
            return Ok(None);
        }
        self.key().map(Some)
    }

    /// Returns the next element of the open array; at the end, leaves the array.
    pub(crate) fn next_element(&mut self) -> Result<Option<Value<'a>>, JsonError> {
        if self.has_element()? { self.value().map(Some) } else { Ok(None) }
    }

    /// Whether the open array has a next element, which the caller must then read; at the end, leaves
    /// the array.
    pub(crate) fn has_element(&mut self) -> Result<bool, JsonError> {
        self.advance(b']')
    }

    /// Finds members of the object that begins here and is known to be valid; of duplicate keys, the
    /// last one counts.
    pub(crate) fn members<const N: usize>(&mut self, keys: [&str; N]) -> [Option<Value<'a>>; N] {
        let mut found = [None; N];
        self.open();
        while let Ok(Some(name)) = self.next_key() {
            let Ok(value) = self.value() else { break };
            let name = string::decode_key(name.raw);
            for (found, key) in found.iter_mut().zip(keys) {
                if *name == *key {
                    *found = Some(value);
                }
            }
        }
        found
    }

    /// Skips one value.
    pub(crate) fn value(&mut self) -> Result<Value<'a>, JsonError> {
        self.skip_space();
        let start = self.position;
        if self.is_valid {
            self.skip();
            return Ok(self.slice_from(start));
        }
        let mut nesting = Nesting { bits: [0; MAX_DEPTH / 64], depth: self.depth };
        loop {
            self.values_left = self.values_left.checked_sub(1).ok_or(JsonError::TooManyValues)?;
            self.skip_space();
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    self.position += 1;
                    nesting.push(open == b'{')?;
                    if self.enter(open)? {
                        continue;
                    }
                    nesting.pop();
                }
                _ => self.scalar()?,
            }
            if !self.close(&mut nesting)? {
                return Ok(self.slice_from(start));
            }
        }
    }

    /// Skips a value that is known to be valid.
    fn skip(&mut self) {
        let bytes = self.text.as_bytes();
        match self.peek() {
            Some(b'"') => self.position = string_end(bytes, self.position),
            Some(b'{' | b'[') => self.position = container_end(bytes, self.position),
            _ => while self.skip_if(|byte| !matches!(byte, b',' | b'}' | b']' | 0..=b' ')) {},
        }
    }

    /// The text from an earlier position up to the current one.
    pub(crate) fn slice_from(&self, start: usize) -> Value<'a> {
        Value {
            raw: self.text.get(start..self.position).unwrap_or_default(),
            start: self.offset + start,
        }
    }

    /// Checks that only white space follows.
    pub(crate) fn expect_end(&mut self) -> Result<(), JsonError> {
        self.skip_space();
        if self.peek().is_some() { Err(self.expected("the end")) } else { Ok(()) }
    }

    /// Moves to the next entry of the open container; returns false at its end.
    fn advance(&mut self, end: u8) -> Result<bool, JsonError> {
        self.skip_space();
        let is_first = std::mem::replace(&mut self.is_first, false);
        match self.peek() {
            Some(byte) if byte == end => {
                self.position += 1;
                self.depth = self.depth.saturating_sub(1);
                Ok(false)
            }
            Some(_) if is_first => Ok(true),
            Some(b',') => {
                self.position += 1;
                Ok(true)
            }
            _ => Err(self.expected("`,` or the end of the object or array")),
        }
    }

    /// Enters the container after its opening bracket; returns false if it is empty, otherwise stops at its first value.
    fn enter(&mut self, open: u8) -> Result<bool, JsonError> {
        self.skip_space();
        match (open, self.peek()) {
            (b'{', Some(b'}')) | (b'[', Some(b']')) => {
                self.position += 1;
                Ok(false)
            }
            (b'{', _) => self.key().map(|_| true),
            _ => Ok(true),
        }
    }

    /// Leaves the containers that end after a value; returns true if another value follows.
    fn close(&mut self, nesting: &mut Nesting) -> Result<bool, JsonError> {
        while nesting.depth > self.depth {
            self.skip_space();
            match (self.peek(), nesting.is_in_object()) {
                (Some(b','), is_in_object) => {
                    self.position += 1;
                    if is_in_object {
                        self.key()?;
                    }
                    return Ok(true);
                }
                (Some(b'}'), true) | (Some(b']'), false) => {
                    self.position += 1;
                    nesting.pop();
                }
                _ => return Err(self.expected("`,` or the end of the object or array")),
            }
        }
        Ok(false)
    }

    /// Reads a key and its colon.
    fn key(&mut self) -> Result<Value<'a>, JsonError> {
        self.skip_space();
        let start = self.position;
        if self.peek() != Some(b'"') {
            return Err(self.expected("a key"));
        }
        let has_escape = self.string()?;
        let key = self.slice_from(start);
        if let Some(is_watched) = self.is_watched {
            self.has_watched_key |= has_escape || is_watched(key.raw);
        }
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.expected("`:`"));
        }
        self.position += 1;
        Ok(key)
    }

    fn scalar(&mut self) -> Result<(), JsonError> {
        match self.peek() {
            Some(b'"') => self.string().map(|_has_escape| ()),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            _ => Err(self.expected("a value")),
        }
    }

    /// Reads a string; whether it has an escape, where that is not known to be valid.
    fn string(&mut self) -> Result<bool, JsonError> {
        if self.is_valid {
            self.position = string_end(self.text.as_bytes(), self.position);
            return Ok(false);
        }
        let mut has_escape = false;
        let mut special_bytes = SpecialBytes::new(self.text.as_bytes(), self.position + 1);
        while let Some((at, byte)) = special_bytes.next() {
            self.position = at;
            match byte {
                b'"' => {
                    self.position += 1;
                    return Ok(has_escape);
                }
                b'\\' => {
                    has_escape = true;
                    self.escape()?;
                    special_bytes.seek(self.position);
                }
                _ => return Err(self.expected("an escape instead of a control character")),
            }
        }
        self.position = self.text.len();
        Err(self.expected("the end of the string"))
    }

    fn escape(&mut self) -> Result<(), JsonError> {
        let rest = self.text.as_bytes().get(self.position + 1..).unwrap_or_default();
        match rest {
            [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => self.position += 2,
            [b'u', a, b, c, d, ..]
                if [a, b, c, d].iter().all(|digit| digit.is_ascii_hexdigit()) =>
            {
                self.position += 6;
            }
            _ => return Err(self.expected("a valid escape")),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), JsonError> {
        self.skip_if(|byte| byte == b'-');
        if !self.skip_if(|byte| byte == b'0') {
            self.digits()?;
        }
        if self.skip_if(|byte| byte == b'.') {
            self.digits()?;
        }
        if self.skip_if(|byte| matches!(byte, b'e' | b'E')) {
            self.skip_if(|byte| matches!(byte, b'+' | b'-'));
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        if !self.skip_if(|byte| byte.is_ascii_digit()) {
            return Err(self.expected("a digit"));
        }
        while self.skip_if(|byte| byte.is_ascii_digit()) {}
        Ok(())
    }

    fn literal(&mut self, literal: &str) -> Result<(), JsonError> {
        if !self.text.get(self.position..).is_some_and(|rest| rest.starts_with(literal)) {
            return Err(self.expected("a value"));
        }
        self.position += literal.len();
        Ok(())
    }

    fn skip_if(&mut self, is_wanted: impl FnOnce(u8) -> bool) -> bool {
        let skips = self.peek().is_some_and(is_wanted);
        self.position += usize::from(skips);
        skips
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.position += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.position).copied()
    }

    fn expected(&self, expected: &'static str) -> JsonError {
        JsonError::Syntax { offset: self.offset + self.position, expected }
    }
}

impl Nesting {
    fn push(&mut self, is_object: bool) -> Result<(), JsonError> {
        let Some(word) = self.bits.get_mut(self.depth / 64) else {
            return Err(JsonError::TooDeep);
        };
        let bit = 1 << (self.depth % 64);
        *word = if is_object { *word | bit } else { *word & !bit };
        self.depth += 1;
        Ok(())
    }

    fn pop(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    fn is_in_object(&self) -> bool {
        let top = self.depth.saturating_sub(1);
        self.bits.get(top / 64).is_some_and(|word| word >> (top % 64) & 1 == 1)
    }
}

/// The end of the string that begins here and is known to be valid.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let inner = bytes.get(start + 1..).unwrap_or_default();
    string::closing_quote(inner).map_or(bytes.len(), |quote| start + quote + 2)
}

/// The end of the object or array that begins here and is known to be valid.
fn container_end(bytes: &[u8], mut at: usize) -> usize {
    let mut open = 0_usize;
    while let Some(byte) = bytes.get(at) {
        at = if *byte == b'"' { string_end(bytes, at) } else { at + 1 };
        match byte {
            b'{' | b'[' => open += 1,
            b'}' | b']' if open == 1 => break,
            b'}' | b']' => open -= 1,
            _ => {}
        }
    }
    at
}
