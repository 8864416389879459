//! Serves HTTP/2 by hyper, and limits what hyper does not: idle connections and unread responses.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, sleep_until},
};

use self::streams::{LiveStreams, StreamExecutor, WatchedBody};
use super::{context::ConnectionContext, limits::WRITE_STALL_TIMEOUT, stream::ClientStream};
use crate::BoxError;

mod streams;

/// A connection without traffic is pinged at this interval, and closed if the ping is not answered in
/// time.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Concurrent requests on one connection.
const MAX_CONCURRENT_STREAMS: u32 = 1024;
/// Bytes of request bodies that a client may send before they are read, on a connection and on each of
/// its streams: one stream that is not read leaves room for the others.
const CONNECTION_WINDOW: u32 = 1 << 20;
const STREAM_WINDOW: u32 = 256 << 10;
/// The head of a request, as RFC 9113 counts it (section 6.5.2).
const MAX_HEADER_LIST: u32 = 16 * 1024;
/// How often unread responses are looked for; a stalled one is reset this much late at most.
const STALL_CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Serves requests until the connection ends. `received` was read from it before.
pub(super) async fn serve<S>(
    context: &ConnectionContext,
    stream: Pin<Box<S>>,
    received: Bytes,
    mut drain: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let stream = ClientStream::new(stream, received, Arc::default());
    let keep_alive = context.settings.keep_alive;
    let streams = Arc::new(LiveStreams::new(context.tasks.clone()));
    let service = service_fn(|request: Request<Incoming>| {
        let progress = streams.begin();
        let responding = context.respond(request);
        async move {
            responding.await.map(|response| response.map(|body| WatchedBody::new(body, progress)))
        }
    });
    let builder = builder(StreamExecutor::new(&streams));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut next_check = pin!(sleep_until(Instant::now() + keep_alive));
    let mut is_closing = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return Ok(ended?),
            () = &mut drain, if !is_closing => {
                is_closing = true;
                connection.as_mut().graceful_shutdown();
            }
            () = streams.wait_for_change() => {
                let limit = match (streams.is_empty(), is_closing) {
                    (true, false) => keep_alive,
                    (true, true) => WRITE_STALL_TIMEOUT,
                    (false, _) => STALL_CHECK_INTERVAL,
                };
                next_check.as_mut().reset(Instant::now() + limit);
            }
            () = &mut next_check => {
                let limit = match (streams.is_empty(), is_closing) {
                    (true, false) => {
                        is_closing = true;
                        connection.as_mut().graceful_shutdown();
                        WRITE_STALL_TIMEOUT
                    }
                    // The last frames of a response are with hyper, and the client does not read them.
                    (true, true) => return Err("the connection could not be closed in time".into()),
                    (false, _) => {
                        streams.reset_stalled(WRITE_STALL_TIMEOUT);
                        STALL_CHECK_INTERVAL
                    }
                };
                next_check.as_mut().reset(Instant::now() + limit);
            }
        }
    }
}

fn builder(executor: StreamExecutor) -> http2::Builder<StreamExecutor> {
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_stream_window_size(STREAM_WINDOW)
        .max_header_list_size(MAX_HEADER_LIST);
    builder
}
