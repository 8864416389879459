//! Answers the requests of a connection: by the data path, or by a router for all other paths.
//!
//! The data path has no router above it: each layer of a router clones, boxes and moves the request.

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

use crate::BoxError;

/// What a listener serves. Clones share it.
#[derive(Clone)]
pub struct Site {
    routes: Option<Routes>,
    router: Router,
}

/// The data path, which answers most requests.
pub trait DataPath: Send + Sync {
    /// Answers a request.
    fn answer(&self, request: Request<Body>) -> BoxFuture<'static, Response<Body>>;
}

#[derive(Clone)]
struct Routes {
    data_path: Arc<dyn DataPath>,
    /// Whether a path belongs to the router.
    is_routed: fn(&str) -> bool,
}

impl Site {
    /// Serves the data path, except for the paths that `is_routed` selects, which `router` serves.
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
    pub(super) fn respond<B>(&self, request: Request<B>, peer: SocketAddr) -> ResponseFuture
    where
        B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        let mut request = request.map(Body::new);
        ResponseFuture(match &self.routes {
            Some(Routes { data_path, is_routed }) if !is_routed(request.uri().path()) => {
                data_path.answer(request)
            }
            _ => {
                request.extensions_mut().insert(ConnectInfo(peer));
                let responding = self.router.clone().oneshot(request);
                Box::pin(responding.map(|Ok(response)| response))
            }
        })
    }
}

/// Waits for the response to a request; a panic becomes a response, too.
pub(super) struct ResponseFuture(BoxFuture<'static, Response<Body>>);

impl Future for ResponseFuture {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // After a panic the future is not polled again.
        let polled = panic::catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx)));
        polled.unwrap_or_else(|_panic| Poll::Ready(internal_error())).map(Ok)
    }
}

/// The response after a panic, which the panic hook has logged.
fn internal_error() -> Response<Body> {
    let mut response = Response::new(Body::from("internal error"));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}
