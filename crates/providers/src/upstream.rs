//! The stages of an exchange with one provider, each with its own time limit.

use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use keybridge_net::{
    egress::{self, ConnectFailure, PooledClient, is_untrusted},
    error_chain,
};
use keybridge_wire::error::ErrorKind;

use crate::{
    config::{ProviderConfig, Timeouts},
    failure::Failure,
};

/// The HTTP client of one provider.
pub(crate) struct Upstream {
    /// One for HTTP/1.1, which opens a connection for each exchange; several for HTTP/2, because a
    /// client keeps a single connection and queues what exceeds the peer's stream limit.
    clients: Vec<PooledClient>,
    turn: AtomicUsize,
    timeouts: Timeouts,
}

/// Connections per provider with HTTP/2.
const HTTP2_SHARDS: usize = 8;
impl Upstream {
    pub(crate) fn new(config: &ProviderConfig) -> Self {
        let shards = if config.http2 { HTTP2_SHARDS } else { 1 };
        let pool = |_| egress::client(&config.egress, config.timeouts.connect, config.http2);
        let clients = (0..shards).map(pool).collect();
        Self { clients, turn: AtomicUsize::new(0), timeouts: config.timeouts }
    }

    /// Sends a request and waits for the head of the answer.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Failure> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let Some(client) = self.clients.get(turn % self.clients.len().max(1)) else {
            return Err(unreachable("no connection"));
        };
        match tokio::time::timeout(self.timeouts.head, client.request(request)).await {
            Err(_elapsed) => Err(Failure::upstream(
                StatusCode::GATEWAY_TIMEOUT,
                ErrorKind::Timeout,
                format!("the provider did not answer within {} s", self.timeouts.head.as_secs()),
            )),
            Ok(Err(error)) => Err(classified(&error)),
            Ok(Ok(response)) => Ok(response),
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("shards", &self.clients.len()).finish_non_exhaustive()
    }
}

fn classified(error: &hyper_util::client::legacy::Error) -> Failure {
    tracing::warn!(error = %error_chain(error), "the provider could not be asked");
    match ConnectFailure::of(error) {
        Some(ConnectFailure::Timeout(limit)) => Failure::upstream(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Timeout,
            format!("no connection to the provider within {} s", limit.as_secs()),
        ),
        Some(ConnectFailure::Private { host }) => unreachable(&format!(
            "the provider's name {host} stands for a private address, which its setting \
             `allow_private` does not permit"
        )),
        Some(ConnectFailure::Proxy { .. }) => {
            unreachable("the proxy does not connect to the provider")
        }
        None if is_untrusted(error) => {
            unreachable("the provider's certificate is not of an authority that is trusted")
        }
        None if error.is_connect() => unreachable("no connection to the provider"),
        None => unreachable("the provider closed the connection without an answer"),
    }
}

fn unreachable(detail: &str) -> Failure {
    Failure::upstream(StatusCode::BAD_GATEWAY, ErrorKind::Api, detail.into())
}
