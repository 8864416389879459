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
    sync::Arc,
    task::{Context, Poll},
};

use axum::{Router, body::Body, extract::ConnectInfo};
use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use http::{Request, Response, StatusCode};
use http_body::Body as HttpBody;
use tower::ServiceExt;

use super::BoxError;

/// What a listener serves; clones share it.
#[derive(Clone)]
pub struct Site {
    routes: Option<Routes>,
    router: Router,
}

/// What answers most requests, without a router above it.
pub trait DataPath: Send + Sync {
    /// Answers a request.
    fn answer(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>>;
}

#[derive(Clone)]
struct Routes {
    data_path: Arc<dyn DataPath>,
    /// Whether a path is the router's.
    is_routed: fn(&str) -> bool,
}

impl Site {
    /// The data path, but for the paths that belong to `router`, as `is_routed` says.
    pub fn new(
        data_path: impl DataPath + 'static,
        router: Router,
        is_routed: fn(&str) -> bool,
    ) -> Self {
        let data_path = Arc::new(data_path);
        Self { routes: Some(Routes { data_path, is_routed }), router }
    }
}

impl From<Router> for Site {
    fn from(router: Router) -> Self {
        Self { routes: None, router }
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site")
            .field("has_data_path", &self.routes.is_some())
            .finish_non_exhaustive()
    }
}

impl Site {
    /// Answers a request of a client.
    pub(super) fn answer<B>(&self, request: Request<B>, peer: SocketAddr) -> Answering
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let mut request = request.map(Body::new);
        Answering(match &self.routes {
            Some(Routes { data_path, is_routed }) if !is_routed(request.uri().path()) => {
                data_path.answer(request)
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
pub(super) struct Answering(BoxFuture<'static, Response<Body>>);

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
