//! AWS's signature, version 4, of an outgoing request.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign as compute_signature},
    sign::v4,
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, header};
use jiff::Timestamp;

/// What a signature is valid for.
#[derive(Debug)]
pub(super) struct Scope<'a> {
    pub(super) region: &'a str,
    pub(super) service: &'static str,
}

/// Why a request cannot be signed.
pub(super) type SignError = Box<dyn std::error::Error + Send + Sync>;

/// The current time as the type of AWS's libraries.
pub(super) fn now() -> SystemTime {
    let millis = u64::try_from(Timestamp::now().as_millisecond()).unwrap_or_default();
    UNIX_EPOCH + Duration::from_millis(millis)
}

/// Adds the headers of a signature. A path is signed as it is sent, encoded once more.
pub(super) fn sign(
    request: &mut Request<Bytes>,
    credentials: &Credentials,
    scope: &Scope<'_>,
) -> Result<(), SignError> {
    let identity = credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(scope.region)
        .name(scope.service)
        .time(now())
        .settings(SigningSettings::default())
        .build()?
        .into();
    let uri = request.uri().to_string();
    let signed_headers = request.headers().iter().filter_map(|(name, value)| {
        let is_signed = *name == header::CONTENT_TYPE || name.as_str().starts_with("x-amz");
        Some((name.as_str(), value.to_str().ok()?)).filter(|_| is_signed)
    });
    let body = SignableBody::Bytes(request.body());
    let signable = SignableRequest::new(request.method().as_str(), uri, signed_headers, body)?;
    let (instructions, _signature) = compute_signature(signable, &params)?.into_parts();
    let mut headers = Vec::new();
    for (name, value) in instructions.headers() {
        let mut value = HeaderValue::from_str(value)?;
        value.set_sensitive(true);
        headers.push((HeaderName::try_from(name)?, value));
    }
    request.headers_mut().extend(headers);
    Ok(())
}
