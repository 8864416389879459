//! Chooses the credential of a request: BYOK, or one of the provider's keys.

use std::sync::Arc;

use aws_lc_rs::hmac;
use http::{HeaderMap, StatusCode};
use keybridge_identity::token::contains_encoded_token;
use keybridge_wire::error::ErrorKind;

use crate::{
    config::{ProviderConfig, ProviderType},
    credential::{Credential, CredentialKind, Trace},
    failure::Failure,
    provider::Provider,
    target::Target,
    vendors::{CredentialForm, Profile},
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
                wanted(&config.profile)
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
    if let Some(own) = own(&config.profile, headers, fingerprint_key) {
        return Ok(Arc::new(own));
    }
    let may_fall_back = config.byok_fallback && config.allow_central;
    if !may_fall_back || (config.keys.is_empty() && !config.is_keyless()) {
        return Err(Denied::Refused(authentication(&missing(config))));
    }
    pool_key(provider, request)
}

/// The request's own credential, in the header in which it was sent.
fn own(profile: &Profile, headers: &HeaderMap, key: &hmac::Key) -> Option<Credential> {
    profile.accepts().iter().find_map(|form| {
        let header = form.header()?;
        headers.get_all(header).iter().find_map(|value| {
            let secret =
                form.secret_in(value).filter(|_| !contains_encoded_token(value.as_bytes()))?;
            let (kind, source) = (CredentialKind::Byok, "request".into());
            let trace = Trace::of(secret, kind, source, form.scheme(), key);
            let sent = Some((header.clone(), value.clone()));
            Some(Credential::new(sent, None, secret.into(), trace))
        })
    })
}

/// A key of the provider's pool, or what stands in its place if the provider needs none.
fn pool_key(
    provider: &Provider,
    request: &CredentialRequest<'_>,
) -> Result<Arc<Credential>, Denied> {
    if let Some(none) = &provider.no_credential {
        return Ok(Arc::clone(none));
    }
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
fn wanted(profile: &Profile) -> String {
    let forms: Vec<String> = profile.accepts().iter().map(CredentialForm::to_string).collect();
    forms.join(" or ")
}

fn missing(config: &ProviderConfig) -> String {
    if config.profile.headers().next().is_none() {
        return format!(
            "the provider `{}` takes no credential of your own: send the bridge token in \
             `Authorization: Bearer …`",
            config.name
        );
    }
    let wanted = wanted(&config.profile);
    format!("a governance header was sent without a provider credential: send it in {wanted}")
}

fn authentication(detail: &str) -> Failure {
    Failure::refusal(StatusCode::UNAUTHORIZED, ErrorKind::Authentication, detail)
}
