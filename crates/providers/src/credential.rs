//! The credential that is sent to the provider, and its description in the record.

use aws_lc_rs::hmac;
use http::{
    HeaderName, HeaderValue,
    header::{self, InvalidHeaderValue},
};
use keybridge_wire::mask::mask;
use secrecy::{ExposeSecret, SecretString};

use crate::{
    config::{Key, ProviderConfig, ProviderType},
    secrets::{Secret, is_secret},
};

/// The header in which Anthropic's clients send an API key.
pub const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Whose credential a request is sent with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialKind {
    /// The company's key: the client sends its bridge token in place of a provider's credential.
    Centralized,
    /// Bring your own key: the client sends its bridge token in a governance header, and its own
    /// credential in the usual header.
    Byok,
}

impl CredentialKind {
    /// The name used in records, metrics and the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Centralized => "centralized",
            Self::Byok => "byok",
        }
    }
}

/// A credential chosen for one request; it cannot be printed.
#[derive(Debug, Clone)]
pub struct Credential {
    /// The header it is sent in.
    pub header: HeaderName,
    /// That header's value, marked sensitive.
    pub value: HeaderValue,
    /// The bare secret, to mask it in recorded texts.
    secret: SecretString,
    /// Its index in the provider's pool; `None` for BYOK.
    pub key: Option<usize>,
    pub trace: Trace,
}

/// The description of a credential in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// `centralized` or `byok`.
    pub kind: &'static str,
    /// `pool:<key name>` or `request`.
    pub source: String,
    /// `api_key` or `bearer`: how it is sent.
    pub scheme: &'static str,
    /// The masked value.
    pub hint: String,
    /// Length in Unicode scalar values.
    pub length: u32,
    /// First 8 bytes of the HMAC-SHA-256 under the server's secret, in hex.
    pub fingerprint: String,
}

impl Credential {
    /// Whether it is the company's.
    pub fn is_centralized(&self) -> bool {
        self.trace.kind == CredentialKind::Centralized.as_str()
    }

    /// What masks this credential if it is the caller's own: those of a provider's pool are among
    /// [`crate::secrets::Secrets`].
    pub fn own_secret(&self) -> Option<Secret> {
        let secret = self.secret.expose_secret();
        (self.key.is_none() && is_secret(secret)).then(|| Secret::new(secret))
    }
}

/// The credentials of a provider's keys, in the order of the configuration.
pub fn centralized_credentials(
    config: &ProviderConfig,
    fingerprint_key: &hmac::Key,
) -> Result<Vec<Credential>, InvalidHeaderValue> {
    let credential = |(index, key): (usize, &Key)| {
        let secret = key.value.expose_secret();
        let source = format!("pool:{}", key.name);
        let (header, scheme, text) = match config.kind {
            ProviderType::Anthropic | ProviderType::Bedrock => {
                (X_API_KEY, "api_key", secret.to_owned())
            }
            ProviderType::OpenAi | ProviderType::Copilot => {
                (header::AUTHORIZATION, "bearer", format!("Bearer {secret}"))
            }
        };
        let value = HeaderValue::from_str(&text)?;
        let trace = Trace::of(secret, CredentialKind::Centralized, source, scheme, fingerprint_key);
        Ok(Credential::new(header, value, Some(index), secret.into(), trace))
    };
    config.keys.iter().enumerate().map(credential).collect()
}

impl Credential {
    pub fn new(
        header: HeaderName,
        mut value: HeaderValue,
        key: Option<usize>,
        secret: SecretString,
        trace: Trace,
    ) -> Self {
        value.set_sensitive(true);
        Self { header, value, secret, key, trace }
    }
}

#[cfg(test)]
impl Credential {
    /// A credential with a source.
    pub(crate) fn for_tests(source: &str) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[0; 32]);
        let kind = CredentialKind::Centralized;
        let trace = Trace::of("secret", kind, source.into(), "api_key", &key);
        Self::new(X_API_KEY, HeaderValue::from_static("secret"), None, "secret".into(), trace)
    }
}

impl Trace {
    pub fn of(
        secret: &str,
        kind: CredentialKind,
        source: String,
        scheme: &'static str,
        fingerprint_key: &hmac::Key,
    ) -> Self {
        let tag = hmac::sign(fingerprint_key, secret.as_bytes());
        let fingerprint = hex::encode(tag.as_ref().get(..8).unwrap_or_default());
        let length = u32::try_from(secret.chars().count()).unwrap_or(u32::MAX);
        Self { kind: kind.as_str(), source, scheme, hint: mask(secret), length, fingerprint }
    }
}

/// The credential of `Bearer <credential>`: the scheme in any case, exactly two words.
pub fn bearer(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok().and_then(bearer_of)
}

pub fn bearer_of(value: &str) -> Option<&str> {
    let mut words = value.split_ascii_whitespace();
    let scheme = words.next()?;
    let credential = words.next()?;
    (scheme.eq_ignore_ascii_case("bearer") && words.next().is_none()).then_some(credential)
}
