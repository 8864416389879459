//! `/metrics`, for auditors, administrators and, unless it is restricted, clients on this machine.

use std::net::SocketAddr;

use axum::{
    extract::{ConnectInfo, FromRequestParts, Request, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use prometheus_client::{encoding::text, registry::Registry};

use crate::{Console, MetricsAccess, caller::Caller, failure::Failure};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Responds on the main listener.
pub(crate) async fn guarded(State(console): State<Console>, request: Request) -> Response {
    let (mut parts, _body) = request.into_parts();
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0);
    let is_open = match console.metrics_access {
        MetricsAccess::Local => is_local(peer, &parts.headers),
        MetricsAccess::TokenOnly => false,
    };
    if !is_open {
        match Caller::from_request_parts(&mut parts, &console).await {
            Err(failure) => return failure.into_response(),
            Ok(caller) if caller.visible_user().is_some() => {
                let message = "only auditors and administrators can read metrics";
                return Failure::forbidden(message).into_response();
            }
            Ok(_allowed) => {}
        }
    }
    encoded(&console.registry)
}

/// Whether a request comes from this machine and not through a proxy on it.
fn is_local(peer: Option<SocketAddr>, headers: &HeaderMap) -> bool {
    let is_forwarded = ["forwarded", "x-forwarded-for", "x-real-ip", "via"]
        .iter()
        .any(|name| headers.contains_key(*name));
    peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback()) && !is_forwarded
}

/// All metrics as text.
pub(crate) fn encoded(registry: &Registry) -> Response {
    let mut page = String::new();
    match text::encode(&mut page, registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(error) => Failure::unavailable(&error.to_string()).into_response(),
    }
}
