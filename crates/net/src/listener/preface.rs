//! Tells HTTP/2 from HTTP/1.1 by the first bytes of a connection.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

/// What an HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The protocol of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Reads until the protocol is known; returns it with the bytes read.
pub(super) async fn read(mut stream: impl AsyncRead + Unpin) -> io::Result<(Protocol, Bytes)> {
    let mut received = Vec::with_capacity(PREFACE.len());
    while received.len() < PREFACE.len() {
        let missing = u64::try_from(PREFACE.len() - received.len()).unwrap_or_default();
        let read = (&mut stream).take(missing).read_buf(&mut received).await?;
        if read == 0 || !PREFACE.starts_with(&received) {
            return Ok((Protocol::Http1, received.into()));
        }
    }
    Ok((Protocol::Http2, received.into()))
}
