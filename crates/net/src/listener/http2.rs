//! Serves HTTP/2 by hyper.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{context::ConnectionContext, stream::ClientStream};
use crate::BoxError;

/// A connection without traffic is pinged at this interval, and closed if the ping is not answered in
/// time.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Concurrent requests on one connection.
const MAX_CONCURRENT_STREAMS: u32 = 1024;

/// Serves requests until the connection ends. `received` was read from it before.
pub(super) async fn serve<S>(
    context: &ConnectionContext,
    stream: Pin<Box<S>>,
    received: Bytes,
    drain: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let stream = ClientStream::new(stream, received, Arc::default());
    let service = service_fn(|request| context.respond(request));
    let mut connection = pin!(builder().serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        biased;
        ended = connection.as_mut() => return Ok(ended?),
        () = drain => {}
    }
    connection.as_mut().graceful_shutdown();
    Ok(connection.await?)
}

fn builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS);
    builder
}
