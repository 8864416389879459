//! What one commit has room for: writes, rows and bytes.

use crate::store::Write;

/// Maximum number of writes in one commit.
pub(crate) const MAX_WRITES: usize = 1_000;
/// Maximum number of rows in one commit. A write with more is committed alone.
const MAX_ROWS: usize = 10_000;
/// Maximum number of bytes of text in one commit. A write with more is committed alone.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// What a batch has room for.
#[derive(Debug)]
pub(crate) struct Room {
    writes: usize,
    rows: usize,
    bytes: usize,
    is_empty: bool,
}

impl Room {
    /// Room for at most this many writes.
    pub(crate) const fn new(writes: usize) -> Self {
        Self { writes, rows: MAX_ROWS, bytes: MAX_BYTES, is_empty: true }
    }

    pub(crate) const fn is_full(&self) -> bool {
        self.writes == 0 || self.rows == 0 || self.bytes == 0
    }

    /// Whether a write fits, which is then taken in. The first one always does.
    pub(crate) fn admit(&mut self, write: &Write) -> bool {
        let (rows, bytes) = (write.rows(), write.weight());
        if !self.is_empty && (self.writes == 0 || rows > self.rows || bytes > self.bytes) {
            return false;
        }
        self.is_empty = false;
        self.writes = self.writes.saturating_sub(1);
        self.rows = self.rows.saturating_sub(rows);
        self.bytes = self.bytes.saturating_sub(bytes);
        true
    }
}

/// Whether a write is too large to share a commit with others.
pub(crate) fn is_oversized(write: &Write) -> bool {
    write.rows() > MAX_ROWS || write.weight() > MAX_BYTES
}
