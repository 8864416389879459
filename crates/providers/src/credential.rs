//! The credential that is sent to the provider, and its description in the record.

use aws_lc_rs::hmac;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{self, InvalidHeaderValue},
};
use keybridge_wire::mask::mask;
use secrecy::{ExposeSecret, SecretString};

use crate::{
    config::{Key, ProviderConfig},
    secrets::{Secret, is_secret},
};

/// The headers in which clients of providers send a credential: bearer tokens, and the keys of Anthropic, Azure
/// OpenAI and Google. None of them is passed on, except for the one that is chosen.
pub static CREDENTIAL_HEADERS: [HeaderName; 4] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

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
    /// The header it is sent in and that header's value, marked sensitive; `None` if nothing is sent.
    pub sent: Option<(HeaderName, HeaderValue)>,
    /// The bare secret, to mask it in recorded texts.
    secret: SecretString,
    /// Its index in the provider's pool; `None` for BYOK and without a credential.
    pub key: Option<usize>,
    pub trace: Trace,
}

/// The description of a credential in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// `centralized` or `byok`.
    pub kind: &'static str,
    /// `pool:<key name>`, `request`, or `none` if the provider needs no credential; all that follows is empty then.
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
        let scheme = config.profile.credential.scheme();
        let trace = Trace::of(secret, CredentialKind::Centralized, source, scheme, fingerprint_key);
        let sent = config.profile.credential.sent(secret)?;
        Ok(Credential::new(sent, Some(index), secret.into(), trace))
    };
    config.keys.iter().enumerate().map(credential).collect()
}

impl Credential {
    pub fn new(
        sent: Option<(HeaderName, HeaderValue)>,
        key: Option<usize>,
        secret: SecretString,
        trace: Trace,
    ) -> Self {
        let sent = sent.map(|(header, mut value)| {
            value.set_sensitive(true);
            (header, value)
        });
        Self { sent, secret, key, trace }
    }

    /// What stands in the place of a credential for a provider that needs none.
    pub fn none() -> Self {
        let trace = Trace {
            kind: CredentialKind::Centralized.as_str(),
            source: "none".into(),
            scheme: "",
            hint: String::new(),
            length: 0,
            fingerprint: String::new(),
        };
        Self::new(None, None, SecretString::default(), trace)
    }

    /// Whether it is a key of the provider's pool, or stands in the place of one.
    pub fn is_of_pool(&self) -> bool {
        self.key.is_some() || self.sent.is_none()
    }

    /// Puts the credential into the headers of a request.
    pub fn insert_into(&self, headers: &mut HeaderMap) {
        if let Some((header, value)) = &self.sent {
            headers.insert(header.clone(), value.clone());
        }
    }
}

#[cfg(test)]
impl Credential {
    /// A credential with a source.
    pub(crate) fn for_tests(source: &str) -> Self {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[0; 32]);
        let kind = CredentialKind::Centralized;
        let trace = Trace::of("secret", kind, source.into(), "api_key", &key);
        let sent = (HeaderName::from_static("x-api-key"), HeaderValue::from_static("secret"));
        Self::new(Some(sent), None, "secret".into(), trace)
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
