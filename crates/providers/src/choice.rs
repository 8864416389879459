//! Chooses the credential of a request: BYOK, or one of the provider's keys.

use std::sync::Arc;

use aws_lc_rs::hmac;
use http::{HeaderMap, StatusCode, header};
use keybridge_identity::token::contains_encoded_token;
use keybridge_wire::error::ErrorKind;

use crate::{
    config::ProviderType,
    credential::{Credential, CredentialKind, Trace, X_API_KEY, bearer},
    failure::Failure,
    provider::Provider,
};

/// Why a request is not sent to its provider.
#[derive(Debug)]
pub enum Denied {
    /// It is refused, whatever the provider.
    Refused(Failure),
    /// This provider is not available now; a fallback may serve it.
    Unavailable(Failure),
}

/// Chooses the credential of a request of the requested kind.
pub fn choose(
    provider: &Provider,
    requested: CredentialKind,
    headers: &HeaderMap,
    fingerprint_key: &hmac::Key,
) -> Result<Arc<Credential>, Denied> {
    let config = &provider.config;
    if requested == CredentialKind::Centralized {
        if config.kind == ProviderType::Copilot {
            return Err(Denied::Refused(authentication(
                "GitHub Copilot requires your own Copilot token: send it as `Authorization: Bearer …`, \
                 and the bridge token in the header `X-AI-Governance-Token`",
            )));
        }
        if !config.allow_central {
            return Err(Denied::Refused(authentication(&format!(
                "the provider `{}` accepts your own credential only: send it in {}, and the bridge \
                 token in the header `X-AI-Governance-Token`",
                config.name,
                wanted(config.kind)
            ))));
        }
        return provider.pool.pick(&[]).ok_or_else(|| no_usable_key(provider));
    }
    if !config.allow_byok {
        return Err(Denied::Refused(Failure::refusal(
            StatusCode::FORBIDDEN,
            ErrorKind::Permission,
            &format!(
                "the provider `{}` does not accept your own credential; an administrator can allow \
                 this with `allow_byok = true`",
                config.name
            ),
        )));
    }
    if let Some(own) = own(config.kind, headers, fingerprint_key) {
        return Ok(Arc::new(own));
    }
    let may_fall_back = config.byok_fallback && config.allow_central;
    if !may_fall_back || config.keys.is_empty() {
        return Err(Denied::Refused(authentication(&missing(config.kind))));
    }
    provider.pool.pick(&[]).ok_or_else(|| no_usable_key(provider))
}

/// The request's own credential, in the header in which it was sent.
fn own(kind: ProviderType, headers: &HeaderMap, key: &hmac::Key) -> Option<Credential> {
    let api_key = || {
        headers.get_all(X_API_KEY).iter().find_map(|value| {
            // A key is one word: `Basic …` and the like are credentials of another kind.
            let is_word = |text: &&str| !text.is_empty() && !text.contains(char::is_whitespace);
            let text = value.to_str().ok().map(str::trim).filter(is_word)?;
            (!contains_encoded_token(value.as_bytes()))
                .then_some((value, text, X_API_KEY, "api_key"))
        })
    };
    let bearer = || {
        headers.get_all(header::AUTHORIZATION).iter().find_map(|value| {
            let text = bearer(value)?;
            (!contains_encoded_token(value.as_bytes())).then_some((
                value,
                text,
                header::AUTHORIZATION,
                "bearer",
            ))
        })
    };
    let (value, secret, header, scheme) = match kind {
        ProviderType::Anthropic => api_key().or_else(bearer),
        // Chosen by `bedrock::choose`.
        ProviderType::Bedrock => None,
        ProviderType::OpenAi | ProviderType::Copilot => bearer(),
    }?;
    let trace = Trace::of(secret, CredentialKind::Byok, "request".into(), scheme, key);
    Some(Credential::new(header, value.clone(), None, secret.into(), trace))
}

/// Why the pool has no usable key.
fn no_usable_key(provider: &Provider) -> Denied {
    let name = &provider.config.name;
    match provider.pool.time_until_usable() {
        None => Denied::Refused(Failure::refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Api,
            &format!("no key is configured for the provider `{name}`"),
        )),
        Some(wait) => Denied::Unavailable(Failure::unavailable(
            &format!("all keys of the provider `{name}` are rate limited or were rejected"),
            wait,
        )),
    }
}

/// The headers in which a provider's credential may be sent.
const fn wanted(kind: ProviderType) -> &'static str {
    match kind {
        ProviderType::Anthropic | ProviderType::Bedrock => {
            "`X-Api-Key` or `Authorization: Bearer …`"
        }
        ProviderType::OpenAi | ProviderType::Copilot => "`Authorization: Bearer …`",
    }
}

fn missing(kind: ProviderType) -> String {
    let wanted = wanted(kind);
    format!("a governance header was sent without a provider credential: send it in {wanted}")
}

fn authentication(detail: &str) -> Failure {
    Failure::refusal(StatusCode::UNAUTHORIZED, ErrorKind::Authentication, detail)
}
