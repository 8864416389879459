//! How much of an answer is held at most while its parts are put together.

use crate::sse::MAX_EVENT_BYTES;

/// Each part counts this much beside its text, so that many empty ones are bounded too.
const PART_BYTES: usize = 256;

/// The bytes that one stream may still hold.
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
    /// Whether one more part may begin.
    pub(super) fn reserve_part(&mut self, text_bytes: usize) -> bool {
        let admits = self.remaining >= PART_BYTES + text_bytes;
        if admits {
            self.remaining -= PART_BYTES + text_bytes;
        }
        admits
    }

    /// Adds a text as far as there is room.
    pub(super) fn append(&mut self, whole: &mut String, text: &str) {
        let kept = text.get(..text.floor_char_boundary(self.remaining)).unwrap_or_default();
        self.remaining -= kept.len();
        whole.push_str(kept);
    }

    /// Gives back what a part took that is held no longer.
    pub(super) fn release(&mut self, text_bytes: usize) {
        self.remaining = (self.remaining + text_bytes).min(MAX_EVENT_BYTES);
    }
}
