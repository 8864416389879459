//! The first bytes of a connection, which tell HTTP/2 from HTTP/1.1.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

/// What an HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// Reads until the protocol is decided; gives what was read, too.
pub(super) async fn read(mut stream: impl AsyncRead + Unpin) -> io::Result<(Protocol, Bytes)> {
    let mut begun = Vec::with_capacity(PREFACE.len());
    while begun.len() < PREFACE.len() {
        let missing = u64::try_from(PREFACE.len() - begun.len()).unwrap_or_default();
        let read = (&mut stream).take(missing).read_buf(&mut begun).await?;
        if read == 0 || !PREFACE.starts_with(&begun) {
            return Ok((Protocol::Http1, begun.into()));
        }
    }
    Ok((Protocol::Http2, begun.into()))
}
