//! Connections out of the process: to configured addresses only, through the company's proxy where
//! there is one, and into private networks only where the configuration allows it.

use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

use self::{
    connector::{ProxyConnector, TimeoutConnector},
    resolver::Resolver,
};
pub use self::{
    failure::{ConnectFailure, has_too_many_interim_responses, is_untrusted},
    request_body::{RequestBody, SendObserver},
    settings::{Egress, Proxy, Roots},
};

mod chunk_joiner;
mod connector;
mod failure;
mod head_counter;
mod private;
mod request_body;
mod resolver;
mod settings;

/// An HTTP client with a pool of connections.
pub type PooledClient = Client<TimeoutConnector<HttpsConnector<ProxyConnector>>, RequestBody>;

/// The receive windows are fixed: an adaptive one starts small, and a peer that sends small frames
/// exhausts it.
const HTTP2_STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const HTTP2_CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
/// Shorter than the idle timeout of common load balancers (60 s and more), so that a request is not
/// sent on a connection that the other side is closing.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Idle connections kept per host.
const MAX_IDLE_CONNECTIONS: usize = 256;
/// Bounds the memory that a long answer takes for as long as its connection lives, and the head of an
/// HTTP/1.1 answer; hyper accepts 100 headers in it.
const MAX_READ_BUFFER: usize = 64 * 1024;
/// Bounds the head of an HTTP/2 answer, as RFC 9113 counts it (section 6.5.2).
const MAX_HTTP2_HEADER_LIST: u32 = 64 * 1024;
/// An HTTP/2 connection on which nothing arrives while requests wait is pinged at this interval, and
/// closed if the ping is not answered in time: a peer that is gone would hold them until they time out.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);
const HTTP2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Makes a client that establishes each connection, including TLS and the proxy's tunnel, within
/// `connect_timeout`. A default rustls provider must be installed.
pub fn client(egress: &Egress, connect_timeout: Duration, http2: bool) -> PooledClient {
    let proxy = egress.proxy.as_ref().map(|proxy| {
        // The proxy is configured by the operator and usually in a private network.
        let tcp = tcp_connector(Resolver::new(true), connect_timeout);
        (proxy, https_connector(egress, false, tcp))
    });
    let direct = tcp_connector(Resolver::new(egress.allow_private), connect_timeout);
    let https = https_connector(egress, http2, ProxyConnector::new(direct, proxy));
    let connector = TimeoutConnector::new(https, connect_timeout, !http2);
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
        .http1_max_buf_size(MAX_READ_BUFFER)
        // Otherwise a prompt is copied into a buffer that the connection keeps until the stream ends.
        .http1_writev(true)
        .http2_only(http2)
        .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .http2_max_header_list_size(MAX_HTTP2_HEADER_LIST)
        .http2_keep_alive_interval(HTTP2_PING_INTERVAL)
        .http2_keep_alive_timeout(HTTP2_PING_TIMEOUT)
        .build(connector)
}

fn tcp_connector(resolver: Resolver, connect_timeout: Duration) -> HttpConnector<Resolver> {
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(connect_timeout));
    tcp.set_keepalive(Some(POOL_IDLE_TIMEOUT));
    tcp
}

fn https_connector<C>(egress: &Egress, http2: bool, connector: C) -> HttpsConnector<C> {
    let tls = rustls::ClientConfig::builder()
        .with_root_certificates(egress.roots.store())
        .with_no_client_auth();
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    if http2 {
        https.enable_http2().wrap_connector(connector)
    } else {
        https.enable_http1().wrap_connector(connector)
    }
}
