//! Sizes and hashes of the files in a request body, for its record.

use std::{borrow::Cow, ops::Range};

use aws_lc_rs::digest::{Context, SHA256, digest};
use base64::{
    Engine,
    alphabet::{self, Alphabet},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use keybridge_ledger::NewAttachment;
use keybridge_providers::failure::Failure;
use keybridge_wire::request::{Attachment, AttachmentContent};

use super::limits::Limits;

/// Maximum size of the contents that are hashed on the async thread; larger ones are hashed on a blocking
/// thread, because they would delay other requests.
const MAX_INLINE_HASH: usize = 64 * 1024;
/// Bytes of base64 that are decoded at once.
const CHUNK: usize = 4 * 1024;

const STANDARD: GeneralPurpose = lenient(&alphabet::STANDARD);
const URL_SAFE: GeneralPurpose = lenient(&alphabet::URL_SAFE);

/// Decodes with or without padding.
const fn lenient(alphabet: &Alphabet) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(alphabet, config)
}

/// The rows of the attachments of a body, in order.
pub(crate) async fn describe(
    attachments: Vec<Attachment>,
    body: Bytes,
    limits: &Limits,
) -> Result<Vec<NewAttachment>, Failure> {
    let inline: usize = attachments.iter().map(carried_bytes).sum();
    let rows = move || attachments.into_iter().map(|one| row(one, &body)).collect();
    if inline <= MAX_INLINE_HASH {
        return Ok(rows());
    }
    let _permit = limits.decode_permit().await?;
    let hashed = tokio::task::spawn_blocking(rows).await;
    hashed.map_err(|error| Failure::internal(&error.to_string()))
}

fn carried_bytes(attachment: &Attachment) -> usize {
    match &attachment.content {
        AttachmentContent::Base64(range) | AttachmentContent::Text(range) => range.len(),
        AttachmentContent::Url(_) | AttachmentContent::File(_) => 0,
    }
}

fn row(attachment: Attachment, body: &[u8]) -> NewAttachment {
    let Attachment { kind, media_type, content } = attachment;
    let mut row = NewAttachment { kind: kind.into(), media_type, ..NewAttachment::default() };
    match content {
        AttachmentContent::Url(url) => row.url = Some(url),
        AttachmentContent::File(id) => row.file_id = Some(id),
        AttachmentContent::Text(range) => {
            let text = unescaped(body, range);
            row.size_bytes = Some(count(text.len()));
            row.sha256 = Some(hex::encode(digest(&SHA256, &text)));
        }
        AttachmentContent::Base64(range) => {
            let text = unescaped(body, range);
            let hashed = hash_decoded(&text, &STANDARD).or_else(|| hash_decoded(&text, &URL_SAFE));
            // What is no base64 is not known to be what its sender meant.
            row.size_bytes = Some(hashed.as_ref().map_or(count(text.len()), |(size, _)| *size));
            row.sha256 = hashed.map(|(_, hash)| hash);
        }
    }
    row
}

/// The bytes of a string in a body, between its quotes; copied only if it has escapes.
fn unescaped(body: &[u8], range: Range<usize>) -> Cow<'_, [u8]> {
    let inside = body.get(range).unwrap_or_default();
    if !inside.contains(&b'\\') {
        return Cow::Borrowed(inside);
    }
    let literal = [b"\"", inside, b"\""].concat();
    match serde_json::from_slice::<String>(&literal) {
        Ok(text) => Cow::Owned(text.into_bytes()),
        Err(_lone_surrogate) => Cow::Borrowed(inside),
    }
}

/// Size and hash of what base64 stands for, decoded piece by piece.
fn hash_decoded(text: &[u8], engine: &GeneralPurpose) -> Option<(u64, String)> {
    let is_space = |byte: &u8| byte.is_ascii_whitespace();
    let compact: Cow<'_, [u8]> = if text.iter().any(is_space) {
        text.iter().copied().filter(|byte| !is_space(byte)).collect()
    } else {
        Cow::Borrowed(text)
    };
    let (mut context, mut size, mut buffer) = (Context::new(&SHA256), 0, [0; CHUNK]);
    for chunk in compact.chunks(CHUNK) {
        let decoded = engine.decode_slice(chunk, &mut buffer).ok()?;
        context.update(buffer.get(..decoded)?);
        size += count(decoded);
    }
    Some((size, hex::encode(context.finish())))
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};

    use super::*;
    use keybridge_policy::LimitsConfig;

    async fn described(content: &str) -> NewAttachment {
        let attachment = Attachment {
            kind: "image",
            media_type: None,
            content: AttachmentContent::Base64(1..content.len() + 1),
        };
        let body = Bytes::from(format!("\"{content}\""));
        let limits = Limits::new(LimitsConfig::default());
        describe(vec![attachment], body, &limits).await.unwrap().remove(0)
    }

    #[tokio::test]
    async fn the_decoded_content_is_measured_and_hashed_however_it_is_encoded() {
        for size in [0, 1, 2, 3, 5_000, 400_000] {
            let content: Vec<u8> = (0..size).map(|n: u32| n.to_le_bytes()[0] ^ 0xfb).collect();
            let standard = BASE64_STANDARD.encode(&content);
            for encoded in [
                standard.replace('/', "\\/"),
                standard.replace('A', "A\\n"),
                BASE64_URL_SAFE_NO_PAD.encode(&content),
                standard,
            ] {
                let row = described(&encoded).await;
                assert_eq!(row.size_bytes, Some(size.into()));
                assert_eq!(row.sha256, Some(hex::encode(digest(&SHA256, &content))), "{size}");
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_base64_has_a_size_and_no_hash() {
        let row = described("no base64!").await;
        assert_eq!((row.size_bytes, row.sha256), (Some(10), None));
    }
}
