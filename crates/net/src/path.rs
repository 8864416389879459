//! Normalises the path of a request below the name of its provider; pure, no I/O.
//!
//! Servers disagree on what `/a//b`, `/a/..;/b`, `/a%2Fb` or `/a/%252e%252e/b` means. A path that a server
//! may resolve to another endpoint than the one that was judged is therefore refused, and what is sent is
//! the path that was judged.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What is escaped in a normalised path: everything that is neither a `pchar` nor a slash (RFC 3986,
/// section 3.3), and the semicolon, which does not occur.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A `%` without two hexadecimal digits.
    #[error("an incomplete percent-encoding")]
    Escape,
    /// Bytes that are not UTF-8, such as an overlong form.
    #[error("bytes that are not UTF-8")]
    Utf8,
    /// A control character, such as NUL.
    #[error("a control character")]
    Control,
    /// What is left after decoding once can be decoded again.
    #[error("a doubled percent-encoding")]
    DoubleEncoding,
    /// A backslash, or a separator that was encoded.
    #[error("a backslash or an encoded slash")]
    Separator,
    /// A segment with parameters.
    #[error("a semicolon")]
    Parameters,
    /// A segment without characters, also at the end.
    #[error("an empty segment")]
    EmptySegment,
    /// A segment of dots, or of dots and spaces, which some servers trim.
    #[error("a segment of dots")]
    DotSegment,
}

impl PathError {
    /// Whether the path has no meaning at all, rather than an ambiguous one.
    pub const fn is_malformed(self) -> bool {
        matches!(self, Self::Escape | Self::Utf8 | Self::Control)
    }
}

/// Returns the normalised form of a path without its first slash.
///
/// It is percent-decoded once, and only those characters are encoded that a path cannot contain. So it is
/// ASCII, and normalising it again changes nothing.
///
/// # Errors
///
/// When the path is malformed, or spelled in a way that no client needs and that a server may take for
/// another path.
pub fn normalize(path: &str) -> Result<Cow<'_, str>, PathError> {
    if !has_whole_escapes(path.as_bytes()) {
        return Err(PathError::Escape);
    }
    let decoded = percent_decode_str(path).decode_utf8().map_err(|_invalid| PathError::Utf8)?;
    check(path, &decoded)?;
    Ok(match decoded {
        Cow::Borrowed(plain) => utf8_percent_encode(plain, ESCAPED).into(),
        Cow::Owned(decoded) => utf8_percent_encode(&decoded, ESCAPED).to_string().into(),
    })
}

fn check(path: &str, decoded: &str) -> Result<(), PathError> {
    if decoded.chars().any(char::is_control) {
        return Err(PathError::Control);
    }
    if path != decoded && has_escape(decoded.as_bytes()) {
        return Err(PathError::DoubleEncoding);
    }
    let slashes = |text: &str| text.bytes().filter(|byte| *byte == b'/').count();
    if decoded.contains('\\') || slashes(decoded) != slashes(path) {
        return Err(PathError::Separator);
    }
    if decoded.contains(';') {
        return Err(PathError::Parameters);
    }
    if decoded.is_empty() {
        return Ok(());
    }
    for segment in decoded.split('/') {
        if segment.is_empty() {
            return Err(PathError::EmptySegment);
        }
        if segment.bytes().all(|byte| matches!(byte, b'.' | b' ')) {
            return Err(PathError::DotSegment);
        }
    }
    Ok(())
}

/// Whether each `%` begins an escape.
fn has_whole_escapes(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'%').skip(1).all(begins_with_hex)
}

/// Whether any `%` begins an escape.
fn has_escape(text: &[u8]) -> bool {
    text.split(|byte| *byte == b'%').skip(1).any(begins_with_hex)
}

fn begins_with_hex(text: &[u8]) -> bool {
    matches!(text, [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests;
