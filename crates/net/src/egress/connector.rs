//! One connection: directly or through the proxy, within a limit, with its failures told apart.

use std::{
    error::Error,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Uri};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::{
        legacy::connect::{HttpConnector, proxy::Tunnel},
        proxy::matcher::Matcher,
    },
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower::Service;

use super::{Proxy, chunk_joiner::Merging, resolver::Resolver};
use crate::error_chain;

pub(super) type BoxError = Box<dyn Error + Send + Sync>;
type Tcp = HttpConnector<Resolver>;
/// A connection before the TLS of its destination; to a proxy it may have TLS of its own.
type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;
type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// Why a connection was not made, where that is for the operator to know.
#[derive(Debug, thiserror::Error)]
pub enum ConnectFailure {
    /// It took too long.
    #[error("no connection within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    /// The name stands for addresses of private networks alone.
    #[error("`{host}` is in a private network, which `allow_private` must permit")]
    Private {
        /// The name.
        host: String,
    },
    /// The proxy cannot be reached or does not let the connection through.
    #[error("the proxy {address} does not connect: {reason}")]
    Proxy {
        /// The proxy's address.
        address: Uri,
        /// What it says, or what failed.
        reason: String,
    },
}

impl ConnectFailure {
    /// The failure among an error and its causes.
    pub fn of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        among_causes(error)
    }
}

/// Whether a connection was not made because of the peer's certificate.
pub fn is_untrusted(error: &(dyn Error + 'static)) -> bool {
    matches!(among_causes(error), Some(rustls::Error::InvalidCertificate(_)))
}

/// An error of a type among an error and its causes.
fn among_causes<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        cause = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// Connects, through the proxy where there is one for the address.
#[derive(Clone)]
pub struct Dialer {
    direct: Tcp,
    proxied: Option<Arc<Proxied>>,
}

struct Proxied {
    matcher: Matcher,
    authorization: Option<HeaderValue>,
    connector: HttpsConnector<Tcp>,
}

impl Dialer {
    pub(super) fn new(direct: Tcp, proxy: Option<(&Proxy, HttpsConnector<Tcp>)>) -> Self {
        let proxied = proxy.map(|(proxy, connector)| {
            let matcher =
                Matcher::builder().https(proxy.address.to_string()).no(proxy.except.join(","));
            let authorization = proxy.authorization.clone();
            Arc::new(Proxied { matcher: matcher.build(), authorization, connector })
        });
        Self { direct, proxied }
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("is_proxied", &self.proxied.is_some()).finish()
    }
}

impl Service<Uri> for Dialer {
    type Response = Stream;
    type Error = BoxError;
    type Future = Connecting<Stream>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.direct.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        let intercepted = self.proxied.as_ref().and_then(|proxied| {
            let proxy = proxied.matcher.intercept(&destination)?;
            Some((Arc::clone(proxied), proxy.uri().clone()))
        });
        let Some((proxied, address)) = intercepted else {
            let connecting = self.direct.call(destination);
            return Box::pin(async move { Ok(MaybeHttpsStream::Http(connecting.await?)) });
        };
        let tunnel = Tunnel::new(address.clone(), proxied.connector.clone());
        let mut tunnel = match &proxied.authorization {
            Some(authorization) => tunnel.with_auth(authorization.clone()),
            None => tunnel,
        };
        let connecting = tunnel.call(destination);
        Box::pin(async move {
            connecting.await.map_err(|error| {
                let reason = error_chain(&error);
                ConnectFailure::Proxy { address, reason }.into()
            })
        })
    }
}

/// A connector whose every stage, TLS and proxy included, is done within a limit.
#[derive(Debug, Clone)]
pub struct Punctual<C> {
    inner: C,
    limit: Duration,
    is_http1: bool,
}

impl<C> Punctual<C> {
    pub(super) const fn new(inner: C, limit: Duration, is_http1: bool) -> Self {
        Self { inner, limit, is_http1 }
    }
}

impl<C> Service<Uri> for Punctual<C>
where
    C: Service<Uri>,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
    C::Response: 'static,
{
    type Response = Merging<C::Response>;
    type Error = BoxError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (limit, is_http1) = (self.limit, self.is_http1);
        let connecting = tokio::time::timeout(limit, self.inner.call(uri));
        Box::pin(async move {
            match connecting.await {
                Ok(connected) => {
                    connected.map(|stream| Merging::new(stream, is_http1)).map_err(Into::into)
                }
                Err(_elapsed) => Err(ConnectFailure::Timeout(limit).into()),
            }
        })
    }
}
