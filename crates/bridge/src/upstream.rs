//! Connections to one provider and the stages of an exchange, each with its own time limit.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use keybridge_wire::error::ErrorKind;
use tower::Service;

use crate::{
    config::{ProviderConfig, Timeouts},
    failure::Failure,
};

/// A client with a pool of connections.
pub(crate) type PooledClient = Client<Punctual<HttpsConnector<HttpConnector>>, Full<Bytes>>;

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
/// Fixed windows: an adaptive one starts small, and small frames then exhaust the peer's budget.
const HTTP2_STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const HTTP2_CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
/// Idle connections are given up before usual load balancers do so (60 s and more).
const POOL_IDLE: Duration = Duration::from_secs(50);
/// Idle connections kept per provider.
const POOL_SIZE: usize = 256;
/// Largest read buffer of a connection, so that one long answer does not hold memory for its life.
const READ_BUFFER: usize = 64 * 1024;

impl Upstream {
    pub(crate) fn new(config: &ProviderConfig, roots: &Arc<rustls::RootCertStore>) -> Self {
        let shards = if config.http2 { HTTP2_SHARDS } else { 1 };
        let pool = |_| pooled(roots, config.timeouts.connect, config.http2);
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
            Ok(Err(error)) => Err(classified(&error, self.timeouts.connect)),
            Ok(Ok(response)) => Ok(response),
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("shards", &self.clients.len()).finish_non_exhaustive()
    }
}

/// A client whose connections, TLS included, are made within a limit.
pub(crate) fn pooled(
    roots: &Arc<rustls::RootCertStore>,
    connect: Duration,
    http2: bool,
) -> PooledClient {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(connect));
    tcp.set_keepalive(Some(POOL_IDLE));
    let tls = rustls::ClientConfig::builder()
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let https = if http2 {
        https.enable_http2().wrap_connector(tcp)
    } else {
        https.enable_http1().wrap_connector(tcp)
    };
    let connector = Punctual { inner: https, limit: connect };
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE)
        .pool_max_idle_per_host(POOL_SIZE)
        .http1_max_buf_size(READ_BUFFER)
        // Else a prompt is copied into a buffer that the connection keeps for the stream's life.
        .http1_writev(true)
        .http2_only(http2)
        .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .build(connector)
}

fn classified(error: &hyper_util::client::legacy::Error, connect: Duration) -> Failure {
    let chain = chain(error);
    tracing::warn!(error = %chain, "the provider could not be asked");
    if error.is_connect() && chain.contains(ConnectTimeout::TEXT) {
        return Failure::upstream(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Timeout,
            format!("no connection to the provider within {} s", connect.as_secs()),
        );
    }
    unreachable(if error.is_connect() {
        "no connection to the provider"
    } else {
        "the provider closed the connection without an answer"
    })
}

fn unreachable(detail: &str) -> Failure {
    Failure::upstream(StatusCode::BAD_GATEWAY, ErrorKind::Api, detail.into())
}

/// An error and its causes on one line, for the log only.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// A connector whose every stage, TLS included, is done within a limit.
#[derive(Debug, Clone)]
pub(crate) struct Punctual<C> {
    inner: C,
    limit: Duration,
}

/// A connection was not ready in time.
#[derive(Debug)]
struct ConnectTimeout;

impl ConnectTimeout {
    const TEXT: &'static str = "connect timeout";
}

impl fmt::Display for ConnectTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::TEXT)
    }
}

impl std::error::Error for ConnectTimeout {}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl<C> Service<Uri> for Punctual<C>
where
    C: Service<Uri>,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
    C::Response: 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = tokio::time::timeout(self.limit, self.inner.call(uri));
        Box::pin(async move {
            match connecting.await {
                Ok(connected) => connected.map_err(Into::into),
                Err(_elapsed) => Err(ConnectTimeout.into()),
            }
        })
    }
}
