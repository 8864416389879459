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
    target::Target,
};

/// Why a request is not sent to its provider.
#[derive(Debug)]
pub enum Denied {
    /// It is refused, whatever the provider.
    Refused(Failure),
    /// This provider is not available now; a fallback may serve it.
    Unavailable(Failure),
    /// None of the provider's keys is ready; a fallback may serve it, otherwise any key may be tried.
    NoReadyKey,
}

/// Which keys of a pool may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChoice {
    /// Those that are ready.
    Ready,
    /// Those that are ready, or else the one that is the most likely to serve the request.
    Any,
}

/// A request for which a credential is chosen.
#[derive(Debug, Clone, Copy)]
pub struct CredentialRequest<'a> {
    /// Whose credential is asked for.
    pub kind: CredentialKind,
    /// The client's headers.
    pub headers: &'a HeaderMap,
    /// What is asked for.
    pub target: Target<'a>,
    /// Which keys may be chosen.
    pub keys: KeyChoice,
}

/// Chooses the credential of a request.
pub fn choose(
    provider: &Provider,
    request: &CredentialRequest<'_>,
    fingerprint_key: &hmac::Key,
) -> Result<Arc<Credential>, Denied> {
    let config = &provider.config;
    let CredentialRequest { kind: requested, headers, .. } = *request;
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
        return pool_key(provider, request);
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
    pool_key(provider, request)
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

/// A key of the provider's pool.
fn pool_key(
    provider: &Provider,
    request: &CredentialRequest<'_>,
) -> Result<Arc<Credential>, Denied> {
    let (pool, target) = (&provider.pool, &request.target);
    let picked = pool.pick(target, &[]);
    let any = || (request.keys == KeyChoice::Any).then(|| pool.pick_any(target)).flatten();
    picked.or_else(any).ok_or_else(|| {
        if !provider.config.keys.is_empty() {
            return Denied::NoReadyKey;
        }
        let name = &provider.config.name;
        Denied::Refused(Failure::refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Api,
            &format!("no key is configured for the provider `{name}`"),
        ))
    })
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
