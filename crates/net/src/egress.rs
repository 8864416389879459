//! Connections out of the process: to configured addresses only, through the company's proxy where
//! there is one, and into private networks only where the configuration says so.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Uri};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

use self::{
    connector::{Dialer, Punctual},
    resolver::Resolver,
};

mod chunk_joiner;
mod connector;
mod private;
mod resolver;

pub use connector::{ConnectFailure, is_untrusted};

/// An HTTP client with a pool of connections.
pub type PooledClient = Client<Punctual<HttpsConnector<Dialer>>, Full<Bytes>>;

/// How connections to one address are made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Egress {
    /// The authorities that certificates are checked against.
    pub roots: Roots,
    /// The proxy for https addresses.
    pub proxy: Option<Proxy>,
    /// Whether a name may stand for an address of a private network. Addresses that are configured
    /// as such, and `localhost`, may always.
    pub allow_private: bool,
}

/// Certificate authorities.
#[derive(Clone)]
pub struct Roots(Arc<rustls::RootCertStore>);

/// A proxy that https addresses are reached through, by `CONNECT`.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Its own address, http or https, without user information.
    pub address: Uri,
    /// The value of `Proxy-Authorization`.
    pub authorization: Option<HeaderValue>,
    /// The hosts that are reached without it: names with all below them, addresses, networks such as
    /// `10.0.0.0/8`, or `*` for all.
    pub except: Vec<String>,
}

impl Roots {
    /// These and others.
    ///
    /// # Errors
    ///
    /// When a certificate is malformed.
    pub fn with(
        &self,
        certificates: Vec<rustls::pki_types::CertificateDer<'_>>,
    ) -> Result<Self, rustls::Error> {
        let mut store = rustls::RootCertStore::clone(&self.0);
        for certificate in certificates {
            store.add(certificate)?;
        }
        Ok(store.into())
    }
}

impl From<rustls::RootCertStore> for Roots {
    fn from(store: rustls::RootCertStore) -> Self {
        Self(Arc::new(store))
    }
}

impl Default for Roots {
    /// None: no certificate is accepted.
    fn default() -> Self {
        rustls::RootCertStore::empty().into()
    }
}

impl PartialEq for Roots {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.roots == other.0.roots
    }
}

impl Eq for Roots {}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} authorities", self.0.len())
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("address", &self.address)
            .field("except", &self.except)
            .finish_non_exhaustive()
    }
}

/// Fixed windows: an adaptive one starts small, and small frames then exhaust the peer's budget.
const HTTP2_STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const HTTP2_CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
/// Idle connections are given up before usual load balancers do so (60 s and more).
const POOL_IDLE: Duration = Duration::from_secs(50);
/// Idle connections kept per provider.
const POOL_SIZE: usize = 256;
/// Largest read buffer of a connection, so that one long answer does not hold memory for its life.
const READ_BUFFER: usize = 64 * 1024;

/// A client whose connections, TLS and proxy included, are made within a limit. A default rustls
/// provider must be installed.
pub fn client(egress: &Egress, connect: Duration, http2: bool) -> PooledClient {
    let proxy = egress.proxy.as_ref().map(|proxy| {
        // The proxy is the operator's own and mostly in a private network.
        let tcp = tcp(Resolver::new(true), connect);
        (proxy, https(egress, false, tcp))
    });
    let dialer = Dialer::new(tcp(Resolver::new(egress.allow_private), connect), proxy);
    let connector = Punctual::new(https(egress, http2, dialer), connect, !http2);
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

fn tcp(resolver: Resolver, connect: Duration) -> HttpConnector<Resolver> {
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(connect));
    tcp.set_keepalive(Some(POOL_IDLE));
    tcp
}

fn https<C>(egress: &Egress, http2: bool, connector: C) -> HttpsConnector<C> {
    let tls = rustls::ClientConfig::builder()
        .with_root_certificates(Arc::clone(&egress.roots.0))
        .with_no_client_auth();
    let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    if http2 {
        https.enable_http2().wrap_connector(connector)
    } else {
        https.enable_http1().wrap_connector(connector)
    }
}
