//! JSON strings: finding their end, decoding their escapes, and measuring them without decoding.

use std::borrow::Cow;

use wide::u8x32;

/// An iterator over the bytes with a special meaning in a string: quotes, backslashes and control
/// characters.
///
/// Code in prompts has an escape on every line, so the search works on blocks rather than runs: all
/// special bytes of a block are found at once and then returned one by one.
#[derive(Debug)]
pub(super) struct SpecialBytes<'a> {
    bytes: &'a [u8],
    /// The start of the current block.
    block: usize,
    /// The special bytes of the block not yet returned, one bit per byte.
    pending: u32,
}

const BLOCK: usize = 32;

impl<'a> SpecialBytes<'a> {
    pub(super) fn new(bytes: &'a [u8], from: usize) -> Self {
        let mut special_bytes = Self { bytes, block: from, pending: 0 };
        special_bytes.load_block();
        special_bytes
    }

    /// Returns the next special byte and its position.
    #[inline]
    pub(super) fn next(&mut self) -> Option<(usize, u8)> {
        while self.pending == 0 {
            self.block += BLOCK;
            if self.block >= self.bytes.len() {
                return None;
            }
            self.load_block();
        }
        let at = self.block + usize::try_from(self.pending.trailing_zeros()).unwrap_or_default();
        self.pending &= self.pending - 1;
        Some((at, *self.bytes.get(at)?))
    }

    /// Continues at a position after the last one returned.
    #[inline]
    pub(super) fn seek(&mut self, place: usize) {
        let passed = place - self.block;
        if passed < BLOCK {
            self.pending &= u32::MAX << passed;
        } else {
            self.block = place;
            self.load_block();
        }
    }

    #[inline]
    fn load_block(&mut self) {
        let rest = self.bytes.get(self.block..).unwrap_or_default();
        let block = match rest.first_chunk() {
            Some(block) => *block,
            None => {
                // The last block is padded with ordinary bytes.
                let mut block = [b' '; BLOCK];
                if let Some(begin) = block.get_mut(..rest.len()) {
                    begin.copy_from_slice(rest);
                }
                block
            }
        };
        let block = u8x32::new(block);
        let last_control = u8x32::new([0x1f; BLOCK]);
        let quotes = block.simd_eq(u8x32::new([b'"'; BLOCK]));
        let backslashes = block.simd_eq(u8x32::new([b'\\'; BLOCK]));
        let controls = block.min(last_control).simd_eq(block);
        self.pending = (quotes | backslashes | controls).to_bitmask();
    }
}

/// Decodes a string literal, quotes included; borrows if it has no escapes.
pub(crate) fn decode(literal: &str) -> Cow<'_, str> {
    let inner = unquote(literal);
    let mut escapes = Escapes::new(inner.as_bytes());
    let Some(first) = escapes.next() else { return Cow::Borrowed(inner) };
    let mut decoded = String::with_capacity(inner.len());
    let mut from = 0;
    for Escape { at, character, length } in std::iter::once(first).chain(escapes) {
        decoded.push_str(inner.get(from..at).unwrap_or_default());
        decoded.push(character);
        from = at + length;
    }
    decoded.push_str(inner.get(from..).unwrap_or_default());
    Cow::Owned(decoded)
}

/// Decodes a string literal, quotes included, piece by piece and without a buffer.
pub(crate) fn decode_in_pieces(literal: &[u8], piece: &mut impl FnMut(&[u8])) {
    decode_inner(literal.get(1..literal.len().saturating_sub(1)).unwrap_or_default(), piece);
}

/// Decodes a string literal without its quotes, piece by piece.
pub(crate) fn decode_inner(inner: &[u8], piece: &mut impl FnMut(&[u8])) {
    let mut from = 0;
    for Escape { at, character, length } in Escapes::new(inner) {
        piece(inner.get(from..at).unwrap_or_default());
        piece(character.encode_utf8(&mut [0; 4]).as_bytes());
        from = at + length;
    }
    piece(inner.get(from..).unwrap_or_default());
}

/// Decodes the literal of a key as [`decode`] does: keys are short, and hardly any has an escape.
pub(crate) fn decode_key(literal: &str) -> Cow<'_, str> {
    match memchr::memchr(b'\\', literal.as_bytes()) {
        None => Cow::Borrowed(unquote(literal)),
        Some(_escape) => decode(literal),
    }
}

/// An escape: the position of its backslash, the character it stands for, and its length in bytes.
struct Escape {
    at: usize,
    character: char,
    length: usize,
}

/// An iterator over the escapes in a string.
struct Escapes<'a>(SpecialBytes<'a>);

impl<'a> Escapes<'a> {
    fn new(inner: &'a [u8]) -> Self {
        Self(SpecialBytes::new(inner, 0))
    }
}

impl Iterator for Escapes<'_> {
    type Item = Escape;

    fn next(&mut self) -> Option<Escape> {
        let at = loop {
            if let (at, b'\\') = self.0.next()? {
                break at;
            }
        };
        let (character, used) = unescape(self.0.bytes.get(at + 1..).unwrap_or_default());
        self.0.seek(at + 1 + used);
        Some(Escape { at, character, length: 1 + used })
    }
}

/// Whether a string literal decodes to this text.
pub(crate) fn equals(literal: &str, text: &str) -> bool {
    let inner = unquote(literal);
    let same = inner.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
    match inner.as_bytes().get(same) {
        None => same == text.len(),
        // Only an escape can spell the text differently.
        Some(b'\\') => decode(literal) == text,
        Some(_) => false,
    }
}

/// The decoded length in bytes of a string literal without its quotes.
///
/// Accepts bytes that have not been validated.
pub(crate) fn decoded_length(inner: &[u8]) -> u64 {
    let length = Escapes::new(inner).fold(inner.len(), |length, escape| {
        (length + escape.character.len_utf8()).saturating_sub(escape.length)
    });
    crate::count(length)
}

/// The decoded length in bytes of a string literal, quotes included.
pub(crate) fn literal_length(literal: &str) -> u64 {
    decoded_length(unquote(literal).as_bytes())
}

/// The position of the quote that ends a string; the bytes start inside that string.
pub(crate) fn closing_quote(bytes: &[u8]) -> Option<usize> {
    let mut special_bytes = SpecialBytes::new(bytes, 0);
    loop {
        match special_bytes.next()? {
            (at, b'"') => return Some(at),
            (at, b'\\') => special_bytes.seek(at + 2),
            _ => {}
        }
    }
}

pub(crate) fn unquote(literal: &str) -> &str {
    literal.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(literal)
}

/// Decodes what follows a backslash: the character, and the number of bytes used.
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
