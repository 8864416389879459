//! Signatures of thinking blocks, which reveal a client that changes a block.

use aws_lc_rs::hmac;

/// The number of digits of a hash.
const HASH_DIGITS: usize = 64;
/// Not a secret: it only identifies what the simulator wrote.
const KEY: &[u8] = b"keybridge simulator";

/// Signs the text of a thinking block.
pub(crate) fn sign_thinking(thinking: &str) -> String {
    sign("thinking", thinking)
}

/// Creates the data of a redacted block, which contains its own signature.
pub(crate) fn redacted_data(nonce: &str) -> String {
    format!("{nonce}{}", sign("redacted", nonce))
}

/// Whether the data of a redacted block was created here.
pub(crate) fn is_redacted_data(data: &str) -> bool {
    let nonce = data.len().checked_sub(HASH_DIGITS).and_then(|end| data.split_at_checked(end));
    nonce.is_some_and(|(nonce, hash)| sign("redacted", nonce) == hash)
}

fn sign(kind: &str, text: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, KEY);
    let tag = hmac::sign(&key, format!("{kind}:{text}").as_bytes());
    tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
