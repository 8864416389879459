//! Identifies the caller by the bridge token in the request's headers or query.

use http::{HeaderMap, HeaderName, StatusCode, request};
use keybridge_identity::{BridgeToken, Caller, CallerError, Directory, token::PREFIX};
use keybridge_providers::{
    bearer::{bearer, bearer_of},
    credential::{CREDENTIAL_HEADERS, CredentialKind},
    failure::Failure,
};
use keybridge_wire::error::ErrorKind;

/// Finds the caller of a request.
pub(crate) async fn identify(
    directory: &Directory,
    governance_headers: &[HeaderName],
    head: &request::Parts,
) -> Result<(Caller, CredentialKind), Failure> {
    let (kind, text) = presented_token(governance_headers, &head.headers, head.uri.query());
    let Some(text) = text else {
        return Err(missing_token(governance_headers));
    };
    let token = BridgeToken::parse(text)
        .map_err(|error| unauthorized(&format!("invalid bridge token: {error}")))?;
    match directory.open_request(&token).await {
        Ok(caller) => Ok((caller, kind)),
        Err(CallerError::Unavailable(reason)) => Err(Failure::store_unavailable(&reason)),
        Err(error) => Err(unauthorized(&format!("invalid bridge token: {error}"))),
    }
}

/// The kind of credential to send the request with, and the text of the bridge token, if any.
pub(crate) fn presented_token<'a>(
    governance_headers: &[HeaderName],
    headers: &'a HeaderMap,
    query: Option<&'a str>,
) -> (CredentialKind, Option<&'a str>) {
    let mut governed = governance_headers.iter().filter_map(|name| headers.get(name)).peekable();
    if governed.peek().is_some() {
        let token = governed
            .filter_map(|value| value.to_str().ok())
            .map(|value| bearer_of(value).unwrap_or_else(|| value.trim()))
            .find(|value| !value.is_empty());
        return (CredentialKind::Byok, token);
    }
    let [authorization, api_keys @ ..] = &CREDENTIAL_HEADERS;
    let bearers = || headers.get_all(authorization).iter().filter_map(bearer);
    let api_keys = || {
        let values = api_keys.iter().flat_map(|name| headers.get_all(name));
        values.filter_map(|value| value.to_str().ok())
    };
    let in_query = query.into_iter().flat_map(|query| query.split('&'));
    let mut in_query = in_query.filter_map(|pair| pair.strip_prefix("key="));
    let token = bearers()
        .chain(api_keys())
        .find(|value| value.starts_with(PREFIX))
        .or_else(|| in_query.find(|value| value.starts_with(PREFIX)))
        .or_else(|| bearers().chain(api_keys()).find(|value| !value.trim().is_empty()));
    (CredentialKind::Centralized, token)
}

fn missing_token(governance_headers: &[HeaderName]) -> Failure {
    let names: Vec<&str> = governance_headers.iter().map(HeaderName::as_str).collect();
    unauthorized(&format!(
        "missing bridge token: send it as `Authorization: Bearer {PREFIX}…`, or in `X-Api-Key`, `api-key` or \
         `x-goog-api-key`; to use your own provider credential, send the bridge token in one of these headers: {}",
        names.join(", ")
    ))
}

fn unauthorized(detail: &str) -> Failure {
    Failure::refusal(StatusCode::UNAUTHORIZED, ErrorKind::Authentication, detail)
}

#[cfg(test)]
mod tests;
