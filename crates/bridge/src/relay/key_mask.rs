//! Masks the company's keys in what a provider says to the client.

use bytes::Bytes;
use keybridge_providers::secrets::Secrets;

/// The name of the edit, as recorded.
pub(super) const MASK_KEY: &str = "mask_key";

/// Masks keys in place, also where one is cut between two chunks. The length of the answer stays the same.
#[derive(Debug, Default)]
pub(super) struct KeyMask {
    /// The end of the last chunk, if a key may begin there.
    held: Bytes,
    has_masked: bool,
}

impl KeyMask {
    /// Whether nothing is held back.
    pub(super) fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// Whether a key was masked so far.
    pub(super) fn has_masked(&self) -> bool {
        self.has_masked
    }

    /// Takes a chunk and returns what may go to the client; `continues`: a key may be cut at its end.
    pub(super) fn push(&mut self, secrets: &Secrets, chunk: Bytes, continues: bool) -> Bytes {
        let held = std::mem::take(&mut self.held);
        let mut bytes = if held.is_empty() { chunk } else { [held, chunk].concat().into() };
        if let Some(masked) = secrets.overwrite_in(&bytes) {
            self.has_masked = true;
            bytes = masked.into();
        }
        if continues {
            let kept = bytes.len().saturating_sub(secrets.beginning_at_end_of(&bytes));
            self.held = bytes.split_off(kept);
        }
        bytes
    }

    /// Takes what is held back, which is no key because the answer ends there.
    pub(super) fn take_held(&mut self) -> Bytes {
        std::mem::take(&mut self.held)
    }
}
