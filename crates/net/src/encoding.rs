//! Decodes content codings for reading only: what is relayed keeps its original bytes.

use std::{
    borrow::Cow,
    io::{self, Read},
};

use http::{HeaderMap, header};

/// Maximum number of codings of one body; each takes the time to decode a whole body.
pub const MAX_CODINGS: usize = 4;

/// Why an encoded body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A coding that keybridge does not support.
    #[error("the content encoding `{0}` is not supported: use gzip, deflate, br or zstd")]
    Unknown(String),
    /// The bytes are not valid in the declared coding.
    #[error("the body is not valid {0}")]
    Corrupt(&'static str),
    /// The decoded body is larger than allowed.
    #[error("the decoded body is larger than {0} bytes")]
    TooLarge(usize),
    /// More codings than [`MAX_CODINGS`].
    #[error("the body has {0} content encodings, more than {MAX_CODINGS}")]
    TooMany(usize),
    /// There is no memory for the decoded body.
    #[error("there is no memory for the decoded body")]
    NoMemory,
}

/// Returns the codings of a message, outermost last, as `Content-Encoding` lists them.
pub fn codings(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|coding| coding.trim().to_ascii_lowercase())
        .filter(|coding| !coding.is_empty() && coding != "identity")
        .collect()
}

/// Decodes a body; `limit` bounds the result of every coding.
///
/// # Errors
///
/// When a coding is not supported, the bytes are not valid in it, or the result exceeds `limit`.
pub fn decoded<'a>(
    codings: &[String],
    body: &'a [u8],
    limit: usize,
) -> Result<Cow<'a, [u8]>, DecodeError> {
    decoded_within(codings, body, limit, &mut |_bytes| true)
}

/// Decodes a body in memory that is reserved as the decoded body grows: `reserve` is called with the size
/// that it may grow to next, and returns whether there is memory for it.
///
/// # Errors
///
/// As [`decoded`], and [`DecodeError::NoMemory`] when `reserve` returns false.
pub fn decoded_within<'a>(
    codings: &[String],
    body: &'a [u8],
    limit: usize,
    reserve: &mut dyn FnMut(usize) -> bool,
) -> Result<Cow<'a, [u8]>, DecodeError> {
    if codings.len() > MAX_CODINGS {
        return Err(DecodeError::TooMany(codings.len()));
    }
    let mut current = Cow::Borrowed(body);
    for coding in codings.iter().rev() {
        // The result of the coding before is held meanwhile.
        let held = if matches!(current, Cow::Owned(_)) { current.len() } else { 0 };
        let mut reserve = |size: usize| reserve(held.saturating_add(size));
        current = Cow::Owned(decode_one(coding, &current, limit, &mut reserve)?);
    }
    Ok(current)
}

/// Decodes a body in pieces, so that the decoded body is never held; `limit` bounds its size.
///
/// # Errors
///
/// As [`decoded`]. What was decoded before the error has been passed on.
pub fn decode_in_pieces(
    codings: &[String],
    body: &[u8],
    limit: usize,
    on_piece: &mut dyn FnMut(&[u8]),
) -> Result<(), DecodeError> {
    if codings.len() > MAX_CODINGS {
        return Err(DecodeError::TooMany(codings.len()));
    }
    let mut innermost = "coded";
    let mut reader: Box<dyn Read + '_> = Box::new(body);
    for coding in codings.iter().rev() {
        (innermost, reader) = decoder(coding, reader)?;
    }
    let mut piece = vec![0; PIECE_BYTES];
    let mut size = 0_usize;
    loop {
        let read = reader.read(&mut piece).map_err(|_error| DecodeError::Corrupt(innermost))?;
        size = size.saturating_add(read);
        match piece.get(..read) {
            _ if size > limit => return Err(DecodeError::TooLarge(limit)),
            Some(piece @ [_, ..]) => on_piece(piece),
            _ => return Ok(()),
        }
    }
}

fn decode_one(
    coding: &str,
    body: &[u8],
    limit: usize,
    reserve: &mut dyn FnMut(usize) -> bool,
) -> Result<Vec<u8>, DecodeError> {
    let (name, decoder) = decoder(coding, Box::new(body))?;
    read_bounded(name, decoder, limit, reserve)
}

/// The name of a coding, and what decodes it.
fn decoder<'a>(
    coding: &str,
    mut body: Box<dyn Read + 'a>,
) -> Result<(&'static str, Box<dyn Read + 'a>), DecodeError> {
    Ok(match coding {
        "gzip" | "x-gzip" => ("gzip", Box::new(flate2::read::MultiGzDecoder::new(body))),
        // By its definition the zlib format; some senders leave out the zlib header.
        "deflate" => {
            let mut head = Vec::new();
            body.by_ref()
                .take(2)
                .read_to_end(&mut head)
                .map_err(|_error| DecodeError::Corrupt("deflate"))?;
            let has_header = is_zlib_header(&head);
            let whole = io::Cursor::new(head).chain(body);
            if has_header {
                ("deflate", Box::new(flate2::read::ZlibDecoder::new(whole)))
            } else {
                ("deflate", Box::new(flate2::read::DeflateDecoder::new(whole)))
            }
        }
        "br" => ("br", Box::new(brotli_decompressor::Decompressor::new(body, 16 * 1024))),
        "zstd" => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(body)
                .map_err(|_error| DecodeError::Corrupt("zstd"))?;
            ("zstd", Box::new(decoder))
        }
        other => return Err(DecodeError::Unknown(other.chars().take(32).collect())),
    })
}

/// Whether a body begins like the zlib format (RFC 1950, section 2.2): the method is 8, and the first two
/// bytes are a multiple of 31.
fn is_zlib_header(head: &[u8]) -> bool {
    match head {
        [method, flags] => {
            method & 0x0f == 8 && u16::from_be_bytes([*method, *flags]).is_multiple_of(31)
        }
        _ => false,
    }
}

/// The size of the pieces of [`decode_in_pieces`].
const PIECE_BYTES: usize = 64 * 1024;
/// Bytes that are decoded before memory is reserved; doubled each time.
const FIRST_STEP: u64 = 64 * 1024;

fn read_bounded(
    name: &'static str,
    mut decoder: impl Read,
    limit: usize,
    reserve: &mut dyn FnMut(usize) -> bool,
) -> Result<Vec<u8>, DecodeError> {
    let mut decoded = Vec::new();
    let mut step = FIRST_STEP;
    loop {
        let missing = limit.saturating_add(1).saturating_sub(decoded.len());
        let next = step.min(u64::try_from(missing).unwrap_or(u64::MAX));
        let read = decoder
            .by_ref()
            .take(next)
            .read_to_end(&mut decoded)
            .map_err(|_error| DecodeError::Corrupt(name))?;
        if decoded.len() > limit {
            return Err(DecodeError::TooLarge(limit));
        }
        if u64::try_from(read).unwrap_or(u64::MAX) < next {
            return Ok(decoded);
        }
        step = step.saturating_mul(2);
        let wanted = decoded.len().saturating_mul(2).min(limit);
        if !reserve(wanted) {
            return Err(DecodeError::NoMemory);
        }
    }
}

#[cfg(test)]
mod tests;
