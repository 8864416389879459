//! Identifies the caller by the bridge token in the request's headers.

use http::{HeaderMap, HeaderName, StatusCode, header};
use keybridge_identity::{BridgeToken, Caller, CallerError, Directory, token::PREFIX};
use keybridge_providers::{
    credential::{CredentialKind, X_API_KEY, bearer, bearer_of},
    failure::Failure,
};
use keybridge_wire::error::ErrorKind;

/// Finds the caller of a request.
pub(crate) async fn identify(
    directory: &Directory,
    governance_headers: &[HeaderName],
    headers: &HeaderMap,
) -> Result<(Caller, CredentialKind), Failure> {
    let (kind, text) = presented_token(governance_headers, headers);
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
) -> (CredentialKind, Option<&'a str>) {
    let mut governed = governance_headers.iter().filter_map(|name| headers.get(name)).peekable();
    if governed.peek().is_some() {
        let token = governed
            .filter_map(|value| value.to_str().ok())
            .map(|value| bearer_of(value).unwrap_or_else(|| value.trim()))
            .find(|value| !value.is_empty());
        return (CredentialKind::Byok, token);
    }
    let bearers = || headers.get_all(header::AUTHORIZATION).iter().filter_map(bearer);
    let api_keys = || headers.get_all(X_API_KEY).iter().filter_map(|value| value.to_str().ok());
    let token = bearers()
        .chain(api_keys())
        .find(|value| value.starts_with(PREFIX))
        .or_else(|| bearers().chain(api_keys()).find(|value| !value.trim().is_empty()));
    (CredentialKind::Centralized, token)
}

fn missing_token(governance_headers: &[HeaderName]) -> Failure {
    let names: Vec<&str> = governance_headers.iter().map(HeaderName::as_str).collect();
    unauthorized(&format!(
        "missing bridge token: send it as `Authorization: Bearer {PREFIX}…` or `X-Api-Key: {PREFIX}…`; \
         to use your own provider credential, send the bridge token in one of these headers: {}",
        names.join(", ")
    ))
}

fn unauthorized(detail: &str) -> Failure {
    Failure::refusal(StatusCode::UNAUTHORIZED, ErrorKind::Authentication, detail)
}

#[cfg(test)]
mod tests;
