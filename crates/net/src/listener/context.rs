//! What serves a connection: its settings, the data path, and the signal to drain.

use std::{net::SocketAddr, time::Duration};

use http::Request;
use http_body::Body as HttpBody;
use tokio::{sync::Notify, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    connections::ConnectionSlot,
    site::{ResponseFuture, Site},
};
use crate::BoxError;

/// How long a connection that has not sent a request yet may still send its first one when the
/// listener shuts down: its client does not know of the shutdown.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Settings of client connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionSettings {
    /// How long a connection may stay open without a request.
    pub keep_alive: Duration,
    /// Whether a streaming HTTP/1.1 response that pauses gives up its buffers; see `handoff.rs`.
    pub idle_stream_handoff: bool,
}

impl Default for ConnectionSettings {
    /// As long as nginx, and longer than most clients and load balancers keep idle connections, so that
    /// these close first and no request crosses a close.
    fn default() -> Self {
        Self { keep_alive: Duration::from_secs(75), idle_stream_handoff: true }
    }
}

/// What one connection is served with.
pub(super) struct ConnectionContext {
    pub(super) peer: SocketAddr,
    /// Boxed: the future of a connection holds it more than once.
    pub(super) slot: Box<ConnectionSlot>,
    pub(super) site: Site,
    pub(super) settings: ConnectionSettings,
    pub(super) shutdown: CancellationToken,
    /// Runs what a connection spawns, so that the shutdown waits for it.
    pub(super) tasks: TaskTracker,
    /// Notified of each request.
    pub(super) request_received: Notify,
}

impl ConnectionContext {
    /// Answers a request of the connection.
    pub(super) fn respond<B>(&self, mut request: Request<B>) -> ResponseFuture
    where
        B: HttpBody<Data = bytes::Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        self.request_received.notify_one();
        if let Some(client) = self.slot.forwarded_client(request.headers()) {
            request.extensions_mut().insert(client);
        }
        self.site.respond(request, self.peer)
    }

    /// Waits until the connection has to be drained: at the shutdown, but not before the first request
    /// had its time.
    pub(super) async fn wait_for_drain(&self) {
        self.shutdown.cancelled().await;
        let _received = timeout(FIRST_REQUEST_TIMEOUT, self.request_received.notified()).await;
    }
}
