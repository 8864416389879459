//! Renders an error of the request path as a response.

use axum::body::Body;
use http::{HeaderValue, Response, header};
use keybridge_providers::failure::{Failure, Retry};
use keybridge_wire::error::{self, ErrorShape};
use uuid::Uuid;

use crate::headers::X_KEYBRIDGE_INTERCEPTION_ID;

/// Renders an error in the client's dialect and logs it; the only place that does so.
pub(crate) fn render(
    failure: &Failure,
    shape: ErrorShape,
    interception: Option<Uuid>,
) -> Response<Body> {
    tracing::info!(
        status = failure.status.as_u16(),
        kind = failure.kind.as_str(),
        detail = %failure.detail,
        interception_id = interception.map(tracing::field::display),
        "responded with an error"
    );
    let id = interception.map(|id| id.to_string());
    let body = error::body(shape, failure.kind, &failure.detail, id.as_deref());
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = failure.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("x-keybridge-error", HeaderValue::from_static(failure.kind.as_str()));
    if failure.retry == Retry::Useless {
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
    }
    if let Some(seconds) = failure.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(id) = id.and_then(|id| HeaderValue::from_str(&id).ok()) {
        headers.insert(X_KEYBRIDGE_INTERCEPTION_ID, id);
    }
    response
}
