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
pub fn decoded<'a>(
    codings: &[String],
    body: &'a [u8],
    limit: usize,
) -> Result<Cow<'a, [u8]>, DecodeError> {
    let mut current = Cow::Borrowed(body);
    for coding in codings.iter().rev() {
        current = Cow::Owned(undone(coding, &current, limit)?);
    }
    Ok(current)
}

fn undone(coding: &str, body: &[u8], limit: usize) -> Result<Vec<u8>, DecodeError> {
    match coding {
        "gzip" | "x-gzip" => read("gzip", flate2::read::MultiGzDecoder::new(body), limit),
        // Named for zlib's format; some senders leave its frame away.
        "deflate" => read("deflate", flate2::read::ZlibDecoder::new(body), limit).or_else(
            |error| match error {
                DecodeError::Corrupt(_) => {
                    read("deflate", flate2::read::DeflateDecoder::new(body), limit)
                }
                other => Err(other),
            },
        ),
        "br" => read("br", brotli_decompressor::Decompressor::new(body, 16 * 1024), limit),
        "zstd" => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(body)
                .map_err(|_error| DecodeError::Corrupt("zstd"))?;
            read("zstd", decoder, limit)
        }
        other => Err(DecodeError::Unknown(other.chars().take(32).collect())),
    }
}

fn read(name: &'static str, decoder: impl Read, limit: usize) -> Result<Vec<u8>, DecodeError> {
    let mut decoded = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    decoder.take(most).read_to_end(&mut decoded).map_err(|_error| DecodeError::Corrupt(name))?;
    if decoded.len() > limit {
        return Err(DecodeError::TooLarge(limit));
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests;
