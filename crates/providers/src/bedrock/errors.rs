//! Translates AWS's errors into the shape of the Messages API: same status, no part of the signature.

use std::time::Duration;

use aws_credential_types::Credentials;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, response};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use keybridge_net::encoding::{codings, decoded};
use keybridge_wire::{
    error::{self, ErrorShape},
    json::Value,
    mask::mask,
};

use crate::{body::AnswerBody, failure::kind_of};

/// Largest error response that is read, and its timeout.
const MAX_ERROR_BYTES: usize = 64 * 1024;
const ERROR_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_ID: &str = "x-amzn-requestid";

/// An error of AWS in the client's shape.
#[derive(Debug)]
pub(super) struct TranslatedError {
    pub(super) answer: Response<AnswerBody>,
    /// Whether AWS refuses the credentials of the signature.
    pub(super) refuses_credentials: bool,
}

/// Translates an error response.
pub(super) async fn translate(
    mut head: response::Parts,
    body: Incoming,
    credentials: &Credentials,
) -> TranslatedError {
    let reading = Limited::new(body, MAX_ERROR_BYTES).collect();
    let read = tokio::time::timeout(ERROR_TIMEOUT, reading).await;
    let bytes = read.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes);
    let bytes = bytes.unwrap_or_default();
    let plain = decoded(&codings(&head.headers), &bytes, MAX_ERROR_BYTES).unwrap_or_default();
    let name = error_name(&head.headers, &plain);
    let refuses_credentials = CREDENTIAL_ERRORS.contains(&name.as_str());
    name_request(&mut head.headers);
    let is_shaped = Value::parse(&plain).ok().and_then(|value| {
        Some(value.get("type")?.as_str()? == "error" && value.get("error").is_some())
    });
    let body = if is_shaped == Some(true) {
        without(&String::from_utf8_lossy(&plain), credentials).into_bytes()
    } else {
        let message = message(head.status, &name, &plain);
        let id = head.headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
        let message = without(&message, credentials);
        error::body(ErrorShape::Anthropic, kind_of(head.status), &message, id)
    };
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.remove(header::CONTENT_ENCODING);
    head.headers.remove(header::TRANSFER_ENCODING);
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let body = AnswerBody::whole(body);
    TranslatedError { answer: Response::from_parts(head, body), refuses_credentials }
}

/// AWS's request id under the name that clients of the Messages API know.
pub(super) fn name_request(headers: &mut HeaderMap) {
    if !headers.contains_key("request-id")
        && let Some(id) = headers.get(REQUEST_ID).cloned()
    {
        headers.insert("request-id", id);
    }
}

/// Errors after which other credentials are fetched.
const CREDENTIAL_ERRORS: [&str; 5] = [
    "ExpiredTokenException",
    "ExpiredToken",
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "InvalidClientTokenId",
];

/// `ValidationException` of `ValidationException:http://…` or of a body's `__type`.
fn error_name(headers: &HeaderMap, plain: &[u8]) -> String {
    let from_header = headers.get("x-amzn-errortype").and_then(|name| name.to_str().ok());
    let from_body = || {
        let name = Value::parse(plain).ok()?.get("__type")?.as_str()?.into_owned();
        Some(name.rsplit('#').next().unwrap_or_default().to_owned())
    };
    let name = from_header.map(str::to_owned).or_else(from_body).unwrap_or_default();
    name.split(':').next().unwrap_or_default().to_owned()
}

fn message(status: StatusCode, name: &str, plain: &[u8]) -> String {
    // AWS's own message quotes the signed headers, a session token among them.
    if name.contains("Signature") {
        return format!("AWS does not accept keybridge's signature ({name})");
    }
    let value = Value::parse(plain).ok();
    let text = value.and_then(|value| value.get("message").or_else(|| value.get("Message")));
    match (text.and_then(|text| text.as_str()), name) {
        (Some(text), "") => text.into_owned(),
        (Some(text), name) => format!("{name}: {text}"),
        (None, "") => format!("Amazon Bedrock answered {}", status.as_u16()),
        (None, name) => format!("Amazon Bedrock answered {} ({name})", status.as_u16()),
    }
}

/// A text without secrets, and with the id of the access key masked.
fn without(text: &str, credentials: &Credentials) -> String {
    let mut text = text.replace(credentials.access_key_id(), &mask(credentials.access_key_id()));
    for secret in credentials.session_token().into_iter().chain([credentials.secret_access_key()]) {
        if !secret.is_empty() {
            text = text.replace(secret, "***");
        }
    }
    text
}
