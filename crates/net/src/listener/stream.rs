//! A client's connection as HTTP is read from it and written to it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::exchange::Exchange;

/// Bytes read ahead while a response is written without hyper. Reading them is how a client that
/// disconnects is noticed.
const MAX_READ_AHEAD: usize = 256;

/// A connection whose first bytes may have been read already.
#[derive(Debug)]
pub(super) struct ClientStream<S> {
    inner: Pin<Box<S>>,
    /// Bytes that were received already, and are read again first.
    replay: Bytes,
    exchange: Arc<Exchange>,
}

impl<S> ClientStream<S> {
    pub(super) const fn new(inner: Pin<Box<S>>, replay: Bytes, exchange: Arc<Exchange>) -> Self {
        Self { inner, replay, exchange }
    }

    /// Puts back bytes that were read last and not used.
    pub(super) fn unread(&mut self, unused: &[u8]) {
        if !unused.is_empty() {
            // Copied, because a slice would keep the whole read buffer allocated.
            self.replay = [unused, &self.replay].concat().into();
        }
    }
}

impl<S: AsyncRead> ClientStream<S> {
    /// Waits until the client closes its side; what it sends meanwhile is kept. After bytes were
    /// kept, nothing more is read, and the end is not noticed.
    pub(super) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        if !self.replay.is_empty() {
            return Poll::Pending;
        }
        let mut space = [0; MAX_READ_AHEAD];
        let mut read = ReadBuf::new(&mut space);
        match ready!(self.inner.as_mut().poll_read(cx, &mut read)) {
            Err(error) => Poll::Ready(error),
            Ok(()) if read.filled().is_empty() => Poll::Ready(io::ErrorKind::UnexpectedEof.into()),
            Ok(()) => {
                self.replay = Bytes::copy_from_slice(read.filled());
                Poll::Pending
            }
        }
    }
}

impl<S: AsyncRead> AsyncRead for ClientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.remaining();
        if self.replay.is_empty() {
            ready!(self.inner.as_mut().poll_read(cx, buf))?;
        } else {
            let now = self.replay.len().min(buf.remaining());
            buf.put_slice(self.replay.get(..now).unwrap_or_default());
            self.replay.advance(now);
            // Together with the bytes after them: hyper doubles its buffer for a second read.
            if self.replay.is_empty()
                && buf.remaining() > 0
                && let Poll::Ready(read) = self.inner.as_mut().poll_read(cx, buf)
            {
                read?;
            }
        }
        if buf.remaining() < before {
            self.exchange.note_receive();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite> AsyncWrite for ClientStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.exchange.note_write();
        self.inner.as_mut().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.inner.as_mut().poll_flush(cx))?;
        self.exchange.note_flush();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner.as_mut().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.exchange.note_write();
        self.inner.as_mut().poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
