//! The limit on how much of a response is buffered while its parts are assembled.

use crate::sse::MAX_EVENT_BYTES;

/// The overhead counted for each part, so that many empty ones are bounded too.
const PART_BYTES: usize = 256;

/// The bytes that one stream may still buffer.
#[derive(Debug)]
pub(super) struct Budget {
    remaining: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { remaining: MAX_EVENT_BYTES }
    }
}

impl Budget {
    /// Reserves room for another part; returns false if there is none.
    pub(super) fn reserve_part(&mut self, text_bytes: usize) -> bool {
        let admits = self.remaining >= PART_BYTES + text_bytes;
        if admits {
            self.remaining -= PART_BYTES + text_bytes;
        }
        admits
    }

    /// Appends as much of a text as fits.
    pub(super) fn append(&mut self, whole: &mut String, text: &str) {
        let kept = text.get(..text.floor_char_boundary(self.remaining)).unwrap_or_default();
        self.remaining -= kept.len();
        whole.push_str(kept);
    }

    /// Releases the bytes of a part that is no longer buffered.
    pub(super) fn release(&mut self, text_bytes: usize) {
        self.remaining = (self.remaining + text_bytes).min(MAX_EVENT_BYTES);
    }
}
