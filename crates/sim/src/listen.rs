//! Serves a router on a socket until it is stopped.

use std::{io, net::SocketAddr, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The delay after a connection could not be accepted.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(20);

/// Serves over HTTP/1.1 and HTTP/2 without TLS; the token stops it and closes its connections.
pub(crate) async fn listen(
    router: Router,
    address: SocketAddr,
) -> io::Result<(SocketAddr, CancellationToken)> {
    let listener = TcpListener::bind(address).await?;
    let addr = listener.local_addr()?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let tasks = TaskTracker::new();
    let connections = tasks.clone();
    let accepting = async move {
        while let Some(accepted) = stopped.run_until_cancelled(listener.accept()).await {
            let Ok((stream, _peer)) = accepted else {
                // Out of file descriptors: some will soon be free again.
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            };
            // A connection that is already closed needs no option.
            let _gone = stream.set_nodelay(true);
            let (service, stopped) = (TowerToHyperService::new(router.clone()), stopped.clone());
            connections.spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let connection = server.serve_connection(TokioIo::new(stream), service);
                // Aborted connections are part of the scenarios.
                let _ended = stopped.run_until_cancelled(connection).await;
            });
        }
    };
    drop(tasks.spawn(accepting));
    Ok((addr, stop))
}
