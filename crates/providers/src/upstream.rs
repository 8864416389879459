//! The HTTP client of one provider: each stage of an exchange has its own timeout.

use std::{
    fmt,
    future::Future,
    pin::pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use keybridge_net::{
    egress::{
        self, ConnectFailure, PooledClient, RequestBody, has_too_many_interim_responses,
        is_untrusted,
    },
    error_chain,
};
use keybridge_wire::error::ErrorKind;
use tokio::time::{error::Elapsed, timeout};

use crate::{
    attempt::AttemptLog,
    config::{ProviderConfig, Timeouts},
    failure::Failure,
    upload::Upload,
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

    /// Sends a request and waits for the head of the answer; the timeout is extended as long as an upload
    /// advances.
    pub(crate) async fn send(
        &self,
        mut request: Request<RequestBody>,
        upload: Option<&Upload>,
        attempts: &AttemptLog,
    ) -> Result<Response<Incoming>, Failure> {
        request.body_mut().set_observer(attempts.send_observer());
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let Some(client) = self.clients.get(next % self.clients.len().max(1)) else {
            return Err(unreachable("no connection to the provider"));
        };
        let answered = match upload {
            None => timeout(self.timeouts.head, client.request(request)).await,
            // Boxed: few requests are uploads.
            Some(upload) => {
                Box::pin(answer_to_upload(client.request(request), upload, self.timeouts.head))
                    .await
            }
        };
        match answered {
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

/// Waits for the head of the answer to an upload, for as long as the upload advances and `limit` more.
async fn answer_to_upload<T>(
    answer: impl Future<Output = T>,
    upload: &Upload,
    limit: Duration,
) -> Result<T, Elapsed> {
    let mut answer = pin!(answer);
    let mut before = upload.progress().bytes;
    loop {
        match timeout(limit, &mut answer).await {
            Ok(answered) => return Ok(answered),
            Err(elapsed) => {
                let bytes = upload.progress().bytes;
                if bytes == before {
                    return Err(elapsed);
                }
                before = bytes;
            }
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
