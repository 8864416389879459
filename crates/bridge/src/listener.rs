//! The accept loop: connections with every wait bounded, and an orderly end.

use std::{io, net::SocketAddr, time::Duration};

use axum::{Router, extract::ConnectInfo};
use http::Request;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_io_timeout::TimeoutWriter;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use self::preface::Preface;

mod preface;

/// Longest wait for a request head.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// Longest that a client may leave an answer unread.
const WRITE_STALL: Duration = Duration::from_secs(300);
/// Read buffer per connection, and thereby the largest request head: Node.js's default.
/// A buffer grown by a long prompt stays for the life of its stream, hence not more.
const READ_BUFFER: usize = 16 * 1024;
/// Ping of an HTTP/2 connection without traffic, and how long it may stay unanswered.
const HTTP2_PING: Duration = Duration::from_secs(30);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests at once on one HTTP/2 connection.
const HTTP2_STREAMS: u32 = 1024;
/// Pause after an accept error such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// After streams were told to end: time for their last bytes.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves connections until `shutdown`, then lets those in use end within `grace`; when that is
/// over, `on_grace_over` is called, and what remains is closed shortly after.
///
/// # Errors
///
/// When the listener's own address cannot be read; a failing connection is no error.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
    grace: Duration,
    on_grace_over: impl FnOnce(),
) -> io::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(%address, "listening");
    let graceful = GracefulShutdown::new();
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => connect(stream, peer, &router, &graceful, &connections),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    let ending = graceful.shutdown();
    tokio::pin!(ending);
    if tokio::time::timeout(grace, &mut ending).await.is_err() {
        tracing::warn!("streams are still open after the grace period and are ended");
        on_grace_over();
        if tokio::time::timeout(FAREWELL, &mut ending).await.is_err() {
            tracing::warn!(open = connections.len(), "connections were closed unfinished");
        }
    }
    Ok(())
}

fn connect(
    stream: TcpStream,
    peer: SocketAddr,
    router: &Router,
    graceful: &GracefulShutdown,
    connections: &TaskTracker,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection was gone before it was served");
        return;
    }
    let mut stream = TimeoutWriter::new(Preface::new(stream, HEADER_TIME));
    stream.set_timeout(Some(WRITE_STALL));
    let routed = router.clone().map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    });
    let service = TowerToHyperService::new(routed);
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(READ_BUFFER);
    server
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HTTP2_PING)
        .keep_alive_timeout(HTTP2_PING_TIMEOUT)
        .max_concurrent_streams(HTTP2_STREAMS);
    let connection = server.serve_connection(TokioIo::new(Box::pin(stream)), service).into_owned();
    let connection = graceful.watch(connection);
    connections.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(error = %error, "a connection ended early");
        }
    });
}
