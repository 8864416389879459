//! JSON strings: decoding their escapes, and measuring them without decoding.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

/// Decodes a string literal, which has its quotes; borrows if it has no escapes.
pub(crate) fn decode(literal: &str) -> Cow<'_, str> {
    let inner = unquoted(literal);
    if memchr(b'\\', inner.as_bytes()).is_none() {
        return Cow::Borrowed(inner);
    }
    let mut decoded = String::with_capacity(inner.len());
    let mut rest = inner;
    while let Some((plain, escape)) = rest.split_once('\\') {
        decoded.push_str(plain);
        let (character, length) = unescape(escape.as_bytes());
        decoded.push(character);
        rest = escape.get(length..).unwrap_or_default();
    }
    decoded.push_str(rest);
    Cow::Owned(decoded)
}

/// Whether a string literal decodes to this text.
pub(crate) fn equals(literal: &str, text: &str) -> bool {
    let inner = unquoted(literal);
    inner == text || (inner.len() > text.len() && inner.contains('\\') && decode(literal) == text)
}

/// How many bytes the inside of a string literal decodes to.
///
/// Works on bytes that nobody has validated yet.
pub(crate) fn decoded_length(inner: &[u8]) -> u64 {
    let mut length = inner.len();
    let mut rest = inner;
    while let Some(at) = memchr(b'\\', rest) {
        let escape = rest.get(at + 1..).unwrap_or_default();
        let (character, used) = unescape(escape);
        length = (length + character.len_utf8()).saturating_sub(1 + used);
        rest = escape.get(used..).unwrap_or_default();
    }
    crate::count(length)
}

/// How many bytes a string literal, which has its quotes, decodes to.
pub(crate) fn literal_length(literal: &str) -> u64 {
    decoded_length(unquoted(literal).as_bytes())
}

/// Where the quote is that ends the string in whose inside the bytes begin.
pub(crate) fn closing_quote(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr2(b'"', b'\\', bytes.get(at..)?)?;
        if bytes.get(at) == Some(&b'"') {
            return Some(at);
        }
        at += 2;
    }
}

fn unquoted(literal: &str) -> &str {
    literal.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(literal)
}

/// What stands after a backslash: the character, and how many bytes it took.
fn unescape(escape: &[u8]) -> (char, usize) {
    let character = match escape.first() {
        Some(b'n') => '\n',
        Some(b't') => '\t',
        Some(b'r') => '\r',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'u') => return unicode(escape),
        Some(byte) if byte.is_ascii() => char::from(*byte),
        _ => return (char::REPLACEMENT_CHARACTER, 0),
    };
    (character, 1)
}

fn unicode(escape: &[u8]) -> (char, usize) {
    let Some(first) = hex(escape.get(1..5)) else {
        return (char::REPLACEMENT_CHARACTER, 1);
    };
    if (0xd800..0xdc00).contains(&first)
        && escape.get(5..7) == Some(b"\\u")
        && let Some(second @ 0xdc00..0xe000) = hex(escape.get(7..11))
    {
        let scalar = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        return (char::from_u32(scalar).unwrap_or(char::REPLACEMENT_CHARACTER), 11);
    }
    (char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), 5)
}

fn hex(digits: Option<&[u8]>) -> Option<u32> {
    digits?.iter().try_fold(0, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
}
