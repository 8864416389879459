//! Makes one connection: directly or through the proxy, and within a time limit.

use std::{
    error::Error as _,
    fmt,
    future::Future,
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

use super::{
    chunk_joiner::ChunkJoiner, failure::ConnectFailure, resolver::Resolver, settings::Proxy,
};
use crate::{BoxError, error_chain};

type TcpConnector = HttpConnector<Resolver>;
/// A connection before TLS with its destination; the connection to a proxy may have TLS of its own.
type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;
type ConnectFuture<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// Connects directly, or through the proxy where there is one for the address.
#[derive(Clone)]
pub struct ProxyConnector {
    direct: TcpConnector,
    proxy: Option<Arc<ProxySettings>>,
}

struct ProxySettings {
    matcher: Matcher,
    authorization: Option<HeaderValue>,
    connector: HttpsConnector<TcpConnector>,
}

/// Limits the time that a connection takes in all, including TLS and the proxy's tunnel.
#[derive(Debug, Clone)]
pub struct TimeoutConnector<C> {
    inner: C,
    connect_timeout: Duration,
    is_http1: bool,
}

impl ProxyConnector {
    pub(super) fn new(
        direct: TcpConnector,
        proxy: Option<(&Proxy, HttpsConnector<TcpConnector>)>,
    ) -> Self {
        let proxy = proxy.map(|(proxy, connector)| {
            let matcher =
                Matcher::builder().https(proxy.address.to_string()).no(proxy.except.join(","));
            let authorization = proxy.authorization.clone();
            Arc::new(ProxySettings { matcher: matcher.build(), authorization, connector })
        });
        Self { direct, proxy }
    }
}

impl fmt::Debug for ProxyConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyConnector").field("has_proxy", &self.proxy.is_some()).finish()
    }
}

impl Service<Uri> for ProxyConnector {
    type Response = Stream;
    type Error = BoxError;
    type Future = ConnectFuture<Stream>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.direct.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, destination: Uri) -> Self::Future {
        let matched = self.proxy.as_ref().and_then(|proxy| {
            let intercept = proxy.matcher.intercept(&destination)?;
            Some((Arc::clone(proxy), intercept.uri().clone()))
        });
        let Some((proxy, address)) = matched else {
            let connecting = self.direct.call(destination);
            return Box::pin(async move { Ok(MaybeHttpsStream::Http(connecting.await?)) });
        };
        let tunnel = Tunnel::new(address.clone(), proxy.connector.clone());
        let mut tunnel = match &proxy.authorization {
            Some(authorization) => tunnel.with_auth(authorization.clone()),
            None => tunnel,
        };
        let connecting = tunnel.call(destination);
        Box::pin(async move {
            connecting.await.map_err(|error| {
                let reason = error_chain(&error);
                // A failure on the way to the proxy has a cause; the proxy's own answer has none.
                let is_refusal = error.source().is_none();
                ConnectFailure::Proxy { address, reason, is_refusal }.into()
            })
        })
    }
}

impl<C> TimeoutConnector<C> {
    pub(super) const fn new(inner: C, connect_timeout: Duration, is_http1: bool) -> Self {
        Self { inner, connect_timeout, is_http1 }
    }
}

impl<C> Service<Uri> for TimeoutConnector<C>
where
    C: Service<Uri>,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
    C::Response: 'static,
{
    type Response = ChunkJoiner<C::Response>;
    type Error = BoxError;
    type Future = ConnectFuture<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (limit, is_http1) = (self.connect_timeout, self.is_http1);
        let connecting = tokio::time::timeout(limit, self.inner.call(uri));
        Box::pin(async move {
            match connecting.await {
                Ok(connected) => {
                    connected.map(|stream| ChunkJoiner::new(stream, is_http1)).map_err(Into::into)
                }
                Err(_elapsed) => Err(ConnectFailure::Timeout(limit).into()),
            }
        })
    }
}
