//! Counts the heads that arrive on an HTTP/2 connection, below hyper, which reads any number of interim
//! responses (1xx).
//!
//! The status of a head is compressed with the state of the whole connection. But each response has one
//! head and perhaps trailers, so that what exceeds two `HEADERS` frames for each stream is interim.

use super::chunk_joiner::{MAX_INTERIM_RESPONSES, TooManyInterimResponses};

const FRAME_HEADER_SIZE: usize = 9;
/// The type of a frame with a head or trailers (RFC 9113, section 6.2).
const HEADERS: u8 = 0x1;
/// A head and trailers.
const HEADERS_PER_RESPONSE: u32 = 2;

/// The position on a connection, and what was counted so far.
#[derive(Debug, Default)]
pub(super) struct HeadCounter {
    /// The header of the next frame, as far as it was read.
    frame_header: Vec<u8>,
    /// Bytes left of the current frame's payload.
    payload: usize,
    heads: u32,
    /// Streams of which a head was received.
    streams: u32,
}

impl HeadCounter {
    /// Reads the next bytes of the connection.
    ///
    /// # Errors
    ///
    /// When there were more interim responses than [`MAX_INTERIM_RESPONSES`] for each stream.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), TooManyInterimResponses> {
        while !bytes.is_empty() {
            let skipped = self.payload.min(bytes.len());
            self.payload -= skipped;
            let (_payload, rest) = bytes.split_at(skipped);
            let missing = FRAME_HEADER_SIZE - self.frame_header.len();
            let (header, rest) = rest.split_at(missing.min(rest.len()));
            self.frame_header.extend_from_slice(header);
            bytes = rest;
            let whole = <[u8; FRAME_HEADER_SIZE]>::try_from(self.frame_header.as_slice());
            if let Ok([a, b, c, kind, _flags, stream @ ..]) = whole {
                self.frame_header.clear();
                self.payload =
                    usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
                if kind == HEADERS {
                    self.count_head(u32::from_be_bytes(stream))?;
                }
            }
        }
        Ok(())
    }

    /// Counts a head on a stream; clients' streams have the odd numbers, in order.
    fn count_head(&mut self, stream: u32) -> Result<(), TooManyInterimResponses> {
        self.heads = self.heads.saturating_add(1);
        self.streams = self.streams.max((stream & !(1 << 31)).div_ceil(2));
        let most = HEADERS_PER_RESPONSE + u32::from(MAX_INTERIM_RESPONSES);
        if self.heads > self.streams.saturating_mul(most) {
            return Err(TooManyInterimResponses);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::HeadCounter;

    fn frame(kind: u8, stream: u32, payload: usize) -> Vec<u8> {
        let [_, length @ ..] = u32::try_from(payload).unwrap().to_be_bytes();
        let header = [&length[..], &[kind, 4], &stream.to_be_bytes()].concat();
        [header, vec![1; payload]].concat()
    }

    #[test]
    fn as_many_heads_are_read_as_the_streams_may_have() {
        let mut counter = HeadCounter::default();
        for stream in [1, 3, 5] {
            for _head in 0..18 {
                counter.read(&frame(1, stream, 40)).unwrap();
                counter.read(&frame(0, stream, 1_000)).unwrap();
            }
        }
        assert!(counter.read(&frame(1, 5, 40)).is_err());
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let connection: Vec<u8> = (0..19)
            .flat_map(|_| [frame(4, 0, 6), frame(1, 1, 20), frame(8, 0, 4)].concat())
            .collect();
        for size in [1, 2, 8, 9, 10, 17, 1_000] {
            let mut counter = HeadCounter::default();
            let refused = connection.chunks(size).find_map(|piece| counter.read(piece).err());
            assert!(refused.is_some(), "{size}");
            assert_eq!(counter.heads, 19, "{size}");
        }
    }
}
