//! Observes an answer while it is relayed, or at its end if it is encoded.

use bytes::Bytes;
use keybridge_net::encoding::decoded;
use keybridge_wire::observe::Observer;

/// Maximum size of an encoded answer that is held to be decoded.
const MAX_HELD_BYTES: usize = 16 * 1024 * 1024;

/// Observes one answer.
#[derive(Debug)]
pub(crate) struct AnswerObserver {
    pub(super) observer: Observer,
    /// Set when the answer is encoded: its bytes are held and decoded at its end.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    codings: Vec<String>,
    bytes: Vec<u8>,
    overflowed: bool,
}

impl AnswerObserver {
    pub(crate) fn new(observer: Observer, codings: Vec<String>) -> Self {
        let held =
            (!codings.is_empty()).then(|| Held { codings, bytes: Vec::new(), overflowed: false });
        Self { observer, held }
    }

    pub(super) fn observe(&mut self, chunk: &Bytes) {
        match &mut self.held {
            None => self.observer.observe(chunk),
            Some(held) if held.bytes.len() + chunk.len() > MAX_HELD_BYTES => held.overflowed = true,
            Some(held) => held.bytes.extend_from_slice(chunk),
        }
    }

    pub(super) fn finish(&mut self) {
        if let Some(held) = self.held.take()
            && !held.overflowed
        {
            match decoded(&held.codings, &held.bytes, MAX_HELD_BYTES) {
                Ok(plain) => self.observer.observe(&plain),
                Err(error) => {
                    tracing::warn!(%error, "cannot decode an answer; its usage is not recorded");
                }
            }
        }
        self.observer.finish();
    }
}
