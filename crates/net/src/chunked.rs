//! Writes a body in chunks (RFC 9112, section 7.1), with no more memory than its next chunk.

use std::{
    io::{self, IoSlice, Write as _},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::Body;
use tokio::io::AsyncWrite;

use crate::BoxError;

/// Frames that are ready at the same time are joined into one chunk until it has this size.
const MAX_JOINED_CHUNK: usize = 16 * 1024;

/// Writes a body from its next frame to its end. The last chunk is written if and only if the body ends
/// without an error.
#[derive(Debug)]
pub struct ChunkedWriter<B: Body> {
    body: B,
    chunk: Chunk,
    /// How the body ended; nothing comes after the chunk.
    ending: Option<Result<(), B::Error>>,
}

/// A chunk that is being written.
#[derive(Debug, Default)]
struct Chunk {
    size_line: Vec<u8>,
    data: Bytes,
    end: &'static [u8],
    written: usize,
}

impl<B> ChunkedWriter<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    /// Creates a writer that has written nothing of the body yet.
    pub fn new(body: B) -> Self {
        Self { body, chunk: Chunk::default(), ending: None }
    }

    /// Writes what is ready; ready itself when all of the body is written and flushed.
    ///
    /// # Errors
    ///
    /// When the stream cannot be written, and when the body fails: what came before is written then.
    pub fn poll<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BoxError>> {
        loop {
            ready!(self.chunk.poll_write(stream, cx))?;
            if let Some(ending) = self.ending.take() {
                return Poll::Ready(ending.map_err(Into::into));
            }
            ready!(self.poll_chunk(cx));
        }
    }

    /// Fills the next chunk with all frames that are ready.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut data = Bytes::new();
        while data.len() < MAX_JOINED_CHUNK && self.ending.is_none() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(more) => data = join(data, more),
                    // Trailers are last, and were not announced.
                    Err(frame) if frame.is_trailers() => self.ending = Some(Ok(())),
                    Err(_unknown) => {}
                },
                Poll::Ready(Some(Err(error))) => self.ending = Some(Err(error)),
                Poll::Ready(None) => self.ending = Some(Ok(())),
                Poll::Pending if data.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        self.chunk.fill(data, matches!(self.ending, Some(Ok(()))));
        Poll::Ready(())
    }
}

impl Chunk {
    fn fill(&mut self, data: Bytes, is_last: bool) {
        self.written = 0;
        self.size_line.clear();
        let has_data = !data.is_empty();
        if has_data {
            // Writing to memory cannot fail.
            let _written = write!(self.size_line, "{:x}\r\n", data.len());
        }
        self.data = data;
        self.end = match (has_data, is_last) {
            (true, true) => b"\r\n0\r\n\r\n",
            (true, false) => b"\r\n",
            (false, true) => b"0\r\n\r\n",
            (false, false) => b"",
        };
    }

    fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let size = self.size_line.len() + self.data.len() + self.end.len();
        if size == 0 {
            return Poll::Ready(Ok(()));
        }
        while self.written < size {
            let mut skipped = self.written;
            let parts = [self.size_line.as_slice(), &self.data, self.end].map(|part| {
                let at = skipped.min(part.len());
                skipped -= at;
                IoSlice::new(part.get(at..).unwrap_or_default())
            });
            match ready!(Pin::new(&mut *stream).poll_write_vectored(cx, &parts))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        ready!(Pin::new(stream).poll_flush(cx))?;
        self.fill(Bytes::new(), false);
        Poll::Ready(Ok(()))
    }
}

fn join(data: Bytes, more: Bytes) -> Bytes {
    if data.is_empty() {
        return more;
    }
    let mut joined = BytesMut::from(data);
    joined.extend_from_slice(&more);
    joined.freeze()
}
