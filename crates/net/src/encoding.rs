//! Decodes content codings for reading only: what is relayed keeps its original bytes.

use std::{borrow::Cow, io::Read};

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

fn decode_one(
    coding: &str,
    body: &[u8],
    limit: usize,
    reserve: &mut dyn FnMut(usize) -> bool,
) -> Result<Vec<u8>, DecodeError> {
    match coding {
        "gzip" | "x-gzip" => {
            read_bounded("gzip", flate2::read::MultiGzDecoder::new(body), limit, reserve)
        }
        // By its definition the zlib format; some senders leave out the zlib header.
        "deflate" => {
            match read_bounded("deflate", flate2::read::ZlibDecoder::new(body), limit, reserve) {
                Err(DecodeError::Corrupt(_)) => {
                    read_bounded("deflate", flate2::read::DeflateDecoder::new(body), limit, reserve)
                }
                decoded => decoded,
            }
        }
        "br" => read_bounded(
            "br",
            brotli_decompressor::Decompressor::new(body, 16 * 1024),
            limit,
            reserve,
        ),
        "zstd" => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(body)
                .map_err(|_error| DecodeError::Corrupt("zstd"))?;
            read_bounded("zstd", decoder, limit, reserve)
        }
        other => Err(DecodeError::Unknown(other.chars().take(32).collect())),
    }
}

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
