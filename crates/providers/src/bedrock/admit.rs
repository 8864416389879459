//! The credential of a request on Bedrock: always the provider's.

use aws_lc_rs::hmac;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use keybridge_wire::error::ErrorKind;

use super::Bedrock;
use crate::{
    config::ProviderConfig,
    credential::{CREDENTIAL_HEADERS, Credential, CredentialKind, Trace},
    failure::Failure,
};

/// Chooses the credential of a request, as [`crate::choice::choose`] does for the others.
pub async fn choose(
    config: &ProviderConfig,
    bedrock: &Bedrock,
    requested: CredentialKind,
    headers: &HeaderMap,
    fingerprint_key: &hmac::Key,
) -> Result<Credential, Failure> {
    let brings_own = CREDENTIAL_HEADERS
        .iter()
        .any(|name| headers.get(name).is_some_and(|value| !value.is_empty()));
    if requested == CredentialKind::Byok && (brings_own || !config.byok_fallback) {
        return Err(Failure::refusal(
            StatusCode::FORBIDDEN,
            ErrorKind::Permission,
            &format!(
                "the provider `{}` is Amazon Bedrock, which takes no credential of your own: send \
                 the bridge token in `Authorization: Bearer …` or `X-Api-Key`",
                config.name
            ),
        ));
    }
    let keys = bedrock.credentials.current().await?;
    let id = keys.access_key_id();
    let trace =
        Trace::of(id, CredentialKind::Centralized, "pool:aws".into(), "sigv4", fingerprint_key);
    // The signature replaces this value when the request is sent.
    let unsigned = HeaderValue::from_static("AWS4-HMAC-SHA256");
    Ok(Credential::new(Some((header::AUTHORIZATION, unsigned)), None, id.into(), trace))
}
