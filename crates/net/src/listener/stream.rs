//! A client's connection as HTTP is read from and written to it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::handoff::Handover;

/// Most that is read while an answer is on its way: where there is anything, the client is there.
const AHEAD: usize = 256;

/// A connection, some of which may have been read before.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: Pin<Box<S>>,
    /// Was read, and is read again first.
    begun: Bytes,
    handover: Arc<Handover>,
}

impl<S> Wire<S> {
    pub(super) const fn new(stream: Pin<Box<S>>, begun: Bytes, handover: Arc<Handover>) -> Self {
        Self { stream, begun, handover }
    }

    /// Takes back what was read last and not used.
    pub(super) fn rewind(&mut self, unused: &[u8]) {
        if !unused.is_empty() {
            // Copied, because it would hold the whole of a read buffer.
            self.begun = [unused, &self.begun].concat().into();
        }
    }
}

impl<S: AsyncRead> Wire<S> {
    /// Waits until the client closes its side; what it sends meanwhile is kept.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if !self.begun.is_empty() {
            return Poll::Pending;
        }
        let mut space = [0; AHEAD];
        let mut ahead = ReadBuf::new(&mut space);
        match ready!(self.stream.as_mut().poll_read(cx, &mut ahead)) {
            Err(error) => Poll::Ready(error),
            Ok(()) if ahead.filled().is_empty() => Poll::Ready(io::ErrorKind::UnexpectedEof.into()),
            Ok(()) => {
                self.begun = Bytes::copy_from_slice(ahead.filled());
                Poll::Pending
            }
        }
    }
}

impl<S: AsyncRead> AsyncRead for Wire<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.begun.is_empty() {
            return self.stream.as_mut().poll_read(cx, buf);
        }
        let now = self.begun.len().min(buf.remaining());
        buf.put_slice(self.begun.get(..now).unwrap_or_default());
        self.begun.advance(now);
        // With what comes after it: hyper's buffer would double for a second read.
        if self.begun.is_empty()
            && buf.remaining() > 0
            && let Poll::Ready(read) = self.stream.as_mut().poll_read(cx, buf)
        {
            read?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite> AsyncWrite for Wire<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.handover.writing();
        self.stream.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.stream.as_mut().poll_flush(cx))?;
        self.handover.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.handover.writing();
        self.stream.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
