//! The HTTP client of one provider: each stage of an exchange has its own timeout.

use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use keybridge_net::{
    egress::{self, ConnectFailure, PooledClient, has_too_many_interim_responses, is_untrusted},
    error_chain,
};
use keybridge_wire::error::ErrorKind;

use crate::{
    config::{ProviderConfig, Timeouts},
    failure::Failure,
};

/// The HTTP client of one provider.
pub(crate) struct Upstream {
    provider: String,
    /// One for HTTP/1.1, which opens a connection for each exchange; several for HTTP/2, because a
    /// client keeps a single connection and queues what exceeds the peer's stream limit.
    clients: Vec<PooledClient>,
    next: AtomicUsize,
    timeouts: Timeouts,
}

/// Connections per provider with HTTP/2.
const HTTP2_SHARDS: usize = 8;

impl Upstream {
    pub(crate) fn new(config: &ProviderConfig) -> Self {
        let shards = if config.http2 { HTTP2_SHARDS } else { 1 };
        let client = |_| egress::client(&config.egress, config.timeouts.connect, config.http2);
        let clients = (0..shards).map(client).collect();
        Self {
            provider: config.name.clone(),
            clients,
            next: AtomicUsize::new(0),
            timeouts: config.timeouts,
        }
    }

    /// Sends a request and waits for the head of the answer.
    pub(crate) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Failure> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let Some(client) = self.clients.get(next % self.clients.len().max(1)) else {
            return Err(unreachable("no connection to the provider"));
        };
        match tokio::time::timeout(self.timeouts.head, client.request(request)).await {
            Err(_elapsed) => Err(Failure::upstream(
                StatusCode::GATEWAY_TIMEOUT,
                ErrorKind::Timeout,
                format!("the provider did not answer within {} s", self.timeouts.head.as_secs()),
            )),
            Ok(Err(error)) => {
                tracing::warn!(
                    provider = self.provider,
                    error = %error_chain(&error),
                    "the exchange with the provider failed"
                );
                Err(classify(&error))
            }
            // Nothing was upgraded, and the client's connection must not be.
            Ok(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                Err(malformed("the provider switched the protocol without being asked to"))
            }
            Ok(Ok(response)) => match response.headers().get(header::LOCATION) {
                Some(location) if response.status().is_redirection() => {
                    Err(Failure::redirect(&self.provider, response.status(), location))
                }
                _ => Ok(response),
            },
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("provider", &self.provider)
            .field("shards", &self.clients.len())
            .finish_non_exhaustive()
    }
}

/// The failure of an exchange as the client sees it, and whether a retry may help.
fn classify(error: &hyper_util::client::legacy::Error) -> Failure {
    let failure = ConnectFailure::of(error);
    let detail = match failure {
        Some(ConnectFailure::Timeout(limit)) => {
            return Failure::upstream(
                StatusCode::GATEWAY_TIMEOUT,
                ErrorKind::Timeout,
                format!("no connection to the provider within {} s", limit.as_secs()),
            );
        }
        Some(ConnectFailure::Private { host }) => format!(
            "the provider's host name {host} resolves to a private address, which its setting \
             `allow_private` does not permit"
        ),
        Some(ConnectFailure::Proxy { .. }) => "the proxy does not connect to the provider".into(),
        None if has_too_many_interim_responses(error) => {
            return malformed("the provider sent too many interim responses (status 1xx)");
        }
        None if is_untrusted(error) => {
            "the provider's certificate is not signed by a trusted authority".into()
        }
        None if error.is_connect() => "no connection to the provider".into(),
        None => "the provider closed the connection without an answer".into(),
    };
    if failure.is_some_and(ConnectFailure::is_permanent) || is_untrusted(error) {
        return malformed(&detail);
    }
    unreachable(&detail)
}

/// An answer that no retry will change.
fn malformed(detail: &str) -> Failure {
    Failure::refusal(StatusCode::BAD_GATEWAY, ErrorKind::Api, detail)
}

/// A failure that a retry may cure.
fn unreachable(detail: &str) -> Failure {
    Failure::upstream(StatusCode::BAD_GATEWAY, ErrorKind::Api, detail.into())
}
