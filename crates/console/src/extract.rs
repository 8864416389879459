//! What requests carry in their path and body; whatever is malformed gets an error of the API.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
};
use serde::de::DeserializeOwned;

use crate::{failure::Failure, views::ErrorKind};

/// The one parameter of a path.
pub(crate) struct PathText(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathText {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Path(text) =
            Path::<String>::from_request_parts(parts, state).await.map_err(|_error| {
                Failure::invalid("the path is not valid: it is not UTF-8 when it is decoded".into())
            })?;
        // No store keeps a text with NUL, and PostgreSQL refuses to compare with one.
        if text.contains('\0') {
            return Err(Failure::invalid("the path is not valid: it contains NUL (%00)".into()));
        }
        Ok(Self(text))
    }
}

/// A body, or why it cannot be read. It is an error only once it is used, so that a caller who may not make
/// the request hears that first.
pub(crate) struct Body(Result<Bytes, Failure>);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = std::convert::Infallible;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        let is_json = is_json(request.headers());
        let body = match Bytes::from_request(request, state).await {
            Ok(body) if is_json || body.is_empty() => Ok(body),
            Ok(_other) => Err(Failure::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                ErrorKind::InvalidRequest,
                "the body is not sent as JSON",
            )
            .with_hint("send the header `Content-Type: application/json`")),
            Err(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(Failure::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                ErrorKind::InvalidRequest,
                format!("the body has more than {} KiB", crate::MAX_BODY_BYTES >> 10),
            )),
            Err(error) => Err(Failure::invalid(format!("the body cannot be read: {error}"))),
        };
        Ok(Self(body))
    }
}

impl Body {
    /// The body as JSON.
    pub(crate) fn json<T: DeserializeOwned>(self) -> Result<T, Failure> {
        parse(&self.0?)
    }

    /// The body as JSON; the default where it is empty or null.
    pub(crate) fn json_or_default<T: DeserializeOwned + Default>(self) -> Result<T, Failure> {
        let body = self.0?;
        match body.trim_ascii() {
            b"" | b"null" => Ok(T::default()),
            body => parse(body),
        }
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    let invalid = |reason: &dyn std::fmt::Display| {
        Failure::invalid(format!("the body is not what this call takes: {reason}"))
            .with_hint("send a JSON object")
    };
    // A struct may also be written as an array, which no description of the API says.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(invalid(&"it is not a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| invalid(&error))
}

/// Whether the headers declare JSON, or nothing.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return true };
    let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}
