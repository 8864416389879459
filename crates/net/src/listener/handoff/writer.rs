//! The rest of an answer in chunks (RFC 9112, section 7.1), with no more memory than its next chunk.

use std::{
    error::Error,
    future::poll_fn,
    io::{self, IoSlice, Write as _},
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::listener::stream::Wire;

/// What is ready at once goes out as one chunk, up to this size.
const MOST_JOINED: usize = 16 * 1024;

/// Relays a body to its end.
///
/// # Errors
///
/// When the client leaves or takes nothing for too long, and when the body breaks off: the
/// connection is then of no further use.
pub(in crate::listener) async fn relay<S: AsyncRead + AsyncWrite>(
    wire: &mut Wire<S>,
    body: Body,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut rest = Rest { body, chunk: Chunk::default(), ending: None };
    poll_fn(|cx| match rest.poll(wire, cx) {
        Poll::Ready(ended) => Poll::Ready(ended),
        Poll::Pending => wire.poll_gone(cx).map(|gone| Err(gone.into())),
    })
    .await
}

struct Rest {
    body: Body,
    chunk: Chunk,
    /// Set when nothing comes after the chunk.
    ending: Option<Result<(), axum::Error>>,
}

/// A chunk on its way.
#[derive(Default)]
struct Chunk {
    size: Vec<u8>,
    data: Bytes,
    end: &'static [u8],
    written: usize,
}

impl Rest {
    fn poll<S: AsyncRead + AsyncWrite>(
        &mut self,
        wire: &mut Wire<S>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Box<dyn Error + Send + Sync>>> {
        loop {
            ready!(self.chunk.poll_send(wire, cx))?;
            if let Some(ended) = self.ending.take() {
                return Poll::Ready(ended.map_err(Into::into));
            }
            ready!(self.poll_chunk(cx));
        }
    }

    /// The next chunk, of all that is ready.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut data = Bytes::new();
        while data.len() < MOST_JOINED && self.ending.is_none() {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers were not announced, so nobody waits for them.
                    let Ok(more) = frame.into_data() else { continue };
                    data = joined(data, more);
                }
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
        self.size.clear();
        let has_data = !data.is_empty();
        if has_data {
            // Writing to memory does not fail.
            let _written = write!(self.size, "{:x}\r\n", data.len());
        }
        self.data = data;
        self.end = match (has_data, is_last) {
            (true, true) => b"\r\n0\r\n\r\n",
            (true, false) => b"\r\n",
            (false, true) => b"0\r\n\r\n",
            (false, false) => b"",
        };
    }

    fn poll_send<S: AsyncWrite>(
        &mut self,
        wire: &mut Wire<S>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let size = self.size.len() + self.data.len() + self.end.len();
        if size == 0 {
            return Poll::Ready(Ok(()));
        }
        while self.written < size {
            let mut skipped = self.written;
            let parts = [self.size.as_slice(), &self.data, self.end].map(|part| {
                let at = skipped.min(part.len());
                skipped -= at;
                IoSlice::new(part.get(at..).unwrap_or_default())
            });
            match ready!(Pin::new(&mut *wire).poll_write_vectored(cx, &parts))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        ready!(Pin::new(wire).poll_flush(cx))?;
        self.fill(Bytes::new(), false);
        Poll::Ready(Ok(()))
    }
}

fn joined(data: Bytes, more: Bytes) -> Bytes {
    if data.is_empty() {
        return more;
    }
    let mut joined = BytesMut::from(data);
    joined.extend_from_slice(&more);
    joined.freeze()
}
