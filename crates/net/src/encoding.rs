//! Content encodings, undone for reading only: what passes keeps the bytes it came with.

use std::{borrow::Cow, io::Read};

use http::{HeaderMap, header};

/// Why an encoded body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// An encoding that the bridge does not know.
    #[error("the content encoding `{0}` is not supported: use gzip, deflate, br or zstd")]
    Unknown(String),
    /// The bytes are not in the encoding they claim.
    #[error("the body is not valid {0}")]
    Corrupt(&'static str),
    /// The decoded body is larger than allowed.
    #[error("the decoded body is larger than {0} bytes")]
    TooLarge(usize),
    /// There is no memory for the decoded body.
    #[error("there is no memory for the decoded body")]
    NoMemory,
}

/// The codings of a message, outermost last, as `Content-Encoding` lists them.
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

/// The body as it was before encoding; `limit` bounds every step.
///
/// # Errors
///
/// When a coding is unknown, the bytes are not in it, or they are more than `limit`.
pub fn decoded<'a>(
    codings: &[String],
    body: &'a [u8],
    limit: usize,
) -> Result<Cow<'a, [u8]>, DecodeError> {
    decoded_within(codings, body, limit, &mut |_bytes| true)
}

/// The same with memory that is asked for as the decoded body grows: `reserve` gets its size so far,
/// and says whether there is room for it.
///
/// # Errors
///
/// As [`decoded`], and [`DecodeError::NoMemory`] when `reserve` says no.
pub fn decoded_within<'a>(
    codings: &[String],
    body: &'a [u8],
    limit: usize,
    reserve: &mut dyn FnMut(usize) -> bool,
) -> Result<Cow<'a, [u8]>, DecodeError> {
    let mut current = Cow::Borrowed(body);
    for coding in codings.iter().rev() {
        current = Cow::Owned(decode_one(coding, &current, limit, reserve)?);
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
        "gzip" | "x-gzip" => read("gzip", flate2::read::MultiGzDecoder::new(body), limit, reserve),
        // Named for zlib's format; some senders leave its frame away.
        "deflate" => match read("deflate", flate2::read::ZlibDecoder::new(body), limit, reserve) {
            Err(DecodeError::Corrupt(_)) => {
                read("deflate", flate2::read::DeflateDecoder::new(body), limit, reserve)
            }
            decoded => decoded,
        },
        "br" => read("br", brotli_decompressor::Decompressor::new(body, 16 * 1024), limit, reserve),
        "zstd" => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(body)
                .map_err(|_error| DecodeError::Corrupt("zstd"))?;
            read("zstd", decoder, limit, reserve)
        }
        other => Err(DecodeError::Unknown(other.chars().take(32).collect())),
    }
}

/// Bytes that are decoded before more memory is asked for; doubled each time.
const FIRST_STEP: u64 = 64 * 1024;

fn read(
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
