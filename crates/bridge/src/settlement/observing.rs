//! An answer read as it passes, or at its end where it is encoded.

use bytes::Bytes;
use keybridge_net::encoding::decoded;
use keybridge_wire::observe::Observer;

/// Largest encoded answer held for reading.
const HELD_BYTES: usize = 16 * 1024 * 1024;

/// An answer being read as it passes.
#[derive(Debug)]
pub(crate) struct Observing {
    pub(super) observer: Observer,
    /// Set when the answer is encoded: it is held, and read at its end.
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    codings: Vec<String>,
    bytes: Vec<u8>,
    overflowed: bool,
}

impl Observing {
    pub(crate) fn new(observer: Observer, codings: Vec<String>) -> Self {
        let held =
            (!codings.is_empty()).then(|| Held { codings, bytes: Vec::new(), overflowed: false });
        Self { observer, held }
    }

    pub(super) fn observe(&mut self, chunk: &Bytes) {
        match &mut self.held {
            None => self.observer.observe(chunk),
            Some(held) if held.bytes.len() + chunk.len() > HELD_BYTES => held.overflowed = true,
            Some(held) => held.bytes.extend_from_slice(chunk),
        }
    }

    pub(super) fn finish(&mut self) {
        if let Some(held) = self.held.take()
            && !held.overflowed
        {
            match decoded(&held.codings, &held.bytes, HELD_BYTES) {
                Ok(plain) => self.observer.observe(&plain),
                Err(error) => tracing::warn!(%error, "an encoded answer could not be read"),
            }
        }
        self.observer.finish();
    }
}
