//! Signatures of thinking blocks: a client that changes a block is found out.

use aws_lc_rs::hmac;

/// Digits of a hash.
const DIGITS: usize = 64;
/// No secret: it only tells what the simulator wrote.
const KEY: &[u8] = b"keybridge simulator";

/// The signature of a thinking block's text.
pub(crate) fn of(thinking: &str) -> String {
    sign("thinking", thinking)
}

/// The data of a redacted block, which checks itself.
pub(crate) fn data(nonce: &str) -> String {
    format!("{nonce}{}", sign("redacted", nonce))
}

/// Whether the data of a redacted block came from here.
pub(crate) fn is_data(data: &str) -> bool {
    let nonce = data.len().checked_sub(DIGITS).and_then(|end| data.split_at_checked(end));
    nonce.is_some_and(|(nonce, hash)| sign("redacted", nonce) == hash)
}

fn sign(kind: &str, text: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY);
    let tag = hmac::sign(&key, format!("{kind}:{text}").as_bytes());
    tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
