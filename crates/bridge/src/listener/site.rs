//! What answers the requests of a connection: the data path, and a router for what is not its business.
//!
//! The data path has no router above it: each layer of one is a clone, a box and a move of the request.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    net::SocketAddr,
    panic::{self, AssertUnwindSafe},
    pin::Pin,
    task::{Context, Poll},
};

use axum::{Router, body::Body, extract::ConnectInfo};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use http_body::Body as HttpBody;
use tower::ServiceExt;

use super::BoxError;
use crate::Bridge;

/// What a listener serves; clones share it.
#[derive(Clone)]
pub struct Site {
    data_path: Option<DataPath>,
    router: Router,
}

#[derive(Clone)]
struct DataPath {
    bridge: Bridge,
    /// Whether a path is the router's.
    is_routed: fn(&str) -> bool,
}

impl Site {
    /// The data path, but for the paths that belong to `router`, as `is_routed` says.
    pub const fn new(bridge: Bridge, router: Router, is_routed: fn(&str) -> bool) -> Self {
        Self { data_path: Some(DataPath { bridge, is_routed }), router }
    }
}

impl From<Router> for Site {
    fn from(router: Router) -> Self {
        Self { data_path: None, router }
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").field("data_path", &self.data_path.is_some()).finish_non_exhaustive()
    }
}

impl Site {
    /// Answers a request of a client.
    pub(super) fn answer<B>(&self, request: Request<B>, peer: SocketAddr) -> Answering
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let mut request = request.map(Body::new);
        Answering(match &self.data_path {
            Some(DataPath { bridge, is_routed }) if !is_routed(request.uri().path()) => {
                Box::pin(bridge.answer(request))
            }
            _ => {
                request.extensions_mut().insert(ConnectInfo(peer));
                let answering = self.router.clone().oneshot(request);
                Box::pin(answering.map(|Ok(response)| response))
            }
        })
    }
}

/// A request that is being answered.
pub(super) struct Answering(Pin<Box<dyn Future<Output = Response<Body>> + Send>>);

impl Future for Answering {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // After a panic it is not polled again.
        let polled = panic::catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx)));
        polled.unwrap_or_else(|_told| Poll::Ready(panicked())).map(Ok)
    }
}

/// A fault of the bridge; the panic's hook has told of it.
fn panicked() -> Response<Body> {
    let mut response = Response::new(Body::from("the bridge failed"));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}
