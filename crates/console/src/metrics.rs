//! `/metrics`: for administrators, and for whoever asks from this machine.

use std::net::SocketAddr;

use axum::{
    extract::{ConnectInfo, FromRequestParts, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use keybridge_identity::Role;
use prometheus_client::{encoding::text, registry::Registry};

use crate::{Console, Failure, Reader};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers on the main listener.
pub(crate) async fn guarded(State(console): State<Console>, request: Request) -> Response {
    let (mut parts, _body) = request.into_parts();
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|peer| peer.0);
    if !is_from_here(peer, &parts.headers) {
        match Reader::from_request_parts(&mut parts, &console).await {
            Err(failure) => return failure.into_response(),
            Ok(reader) if reader.identity.user.role != Role::Admin => {
                return Failure {
                    status: StatusCode::FORBIDDEN,
                    kind: "permission",
                    message: "metrics are for administrators".into(),
                }
                .into_response();
            }
            Ok(_admin) => {}
        }
    }
    encoded(&console.registry)
}

/// What a proxy on this machine passes on does not come from this machine.
fn is_from_here(peer: Option<SocketAddr>, headers: &HeaderMap) -> bool {
    let is_passed_on = ["forwarded", "x-forwarded-for", "x-real-ip", "via"]
        .iter()
        .any(|name| headers.contains_key(*name));
    peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback()) && !is_passed_on
}

/// All metrics as text.
pub(crate) fn encoded(registry: &Registry) -> Response {
    let mut page = String::new();
    match text::encode(&mut page, registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(error) => Failure::unavailable(&error.to_string()).into_response(),
    }
}
