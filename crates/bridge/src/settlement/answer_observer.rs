//! Observes an answer while it is relayed, or at its end if it is encoded.

use bytes::Bytes;
use keybridge_net::encoding::{DecodeError, decode_in_pieces};
use keybridge_wire::observe::Observer;

/// Maximum size of an encoded answer that is held to be decoded.
const MAX_HELD_BYTES: usize = 16 * 1024 * 1024;
/// Maximum size of an encoded answer once it is decoded.
const MAX_DECODED_BYTES: usize = 64 * 1024 * 1024;

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
        if let Some(held) = self.held.take() {
            self.decode(&held);
        }
        self.observer.finish();
    }

    fn decode(&mut self, held: &Held) {
        if held.overflowed {
            self.observer.give_up();
            return;
        }
        let observer = &mut self.observer;
        let observe = &mut |piece: &[u8]| observer.observe(piece);
        match decode_in_pieces(&held.codings, &held.bytes, MAX_DECODED_BYTES, observe) {
            Ok(()) => {}
            Err(DecodeError::TooLarge(_)) => self.observer.give_up(),
            Err(error) => {
                tracing::warn!(%error, "cannot decode an answer; its usage is not recorded");
            }
        }
    }
}
