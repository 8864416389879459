//! Writes the rest of a chunked body to a client, and notices when it disconnects.

use std::{future::poll_fn, task::Poll};

use axum::body::Body;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{BoxError, chunked::ChunkedWriter, listener::stream::ClientStream};

/// Writes a body from its next frame to its end.
///
/// # Errors
///
/// When the client disconnects or takes nothing for too long, and when the body fails: the connection
/// is then of no further use.
pub(in crate::listener) async fn write_rest<S: AsyncRead + AsyncWrite>(
    stream: &mut ClientStream<S>,
    body: Body,
) -> Result<(), BoxError> {
    let mut writer = ChunkedWriter::new(body);
    poll_fn(|cx| match writer.poll(stream, cx) {
        Poll::Ready(ended) => Poll::Ready(ended),
        Poll::Pending => stream.poll_closed(cx).map(|error| Err(error.into())),
    })
    .await
}
