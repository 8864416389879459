//! Vendor profiles: what a vendor's API does differently from others of its type, as data.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::LazyLock};

use http::{
    HeaderName, HeaderValue, Uri,
    header::{self, InvalidHeaderValue},
};
use serde::Deserialize;

use crate::{bearer::bearer_of, kind::ProviderType};

/// The profiles of this release; a test reads them.
static PROFILES: LazyLock<BTreeMap<String, Profile>> =
    LazyLock::new(|| profiles(BUILT_IN).unwrap_or_default());
static AUTHORIZATION: HeaderName = header::AUTHORIZATION;
const BUILT_IN: &str = include_str!("vendors.toml");
/// The profile of servers of the type `openai` at another address than OpenAI's.
const COMPATIBLE: &str = "compatible";
/// What stands for the model in [`Profile::paths`].
const MODEL: &str = "{model}";

/// What a vendor's API does differently; an instance may override each field.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The types of provider that the vendor's API fits.
    pub types: Vec<ProviderType>,
    base_url: Option<String>,
    messages_base_url: Option<String>,
    /// How a key is sent.
    pub credential: CredentialForm,
    #[serde(default)]
    accepts: Option<Vec<CredentialForm>>,
    /// Whether centralized requests are sent without a credential if there are no keys.
    #[serde(default)]
    pub key_optional: bool,
    /// Whether streams of Chat Completions are made to include usage.
    #[serde(default)]
    pub ask_usage: AskUsage,
    /// Query parameters that are added where the client sends none of that name.
    #[serde(default)]
    pub query: BTreeMap<String, String>,
    /// By endpoint, the path below the base URL if the model is part of it, in the place of `{model}`.
    #[serde(default)]
    pub paths: BTreeMap<String, String>,
}

/// How a credential is sent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum CredentialForm {
    /// `Authorization: Bearer …`.
    Bearer,
    /// The bare credential in a header.
    Header(HeaderName),
    /// The provider takes no credential.
    None,
    /// A signature with AWS credentials.
    Aws,
}

/// What is done about streams of Chat Completions whose client did not ask for usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AskUsage {
    /// `stream_options.include_usage` is added, and the usage chunk is not relayed.
    #[default]
    Yes,
    /// Nothing, because the vendor refuses the field.
    Never,
    /// Nothing, because the vendor sends usage in any case; it is relayed.
    Sent,
}

/// Why a text does not name a [`CredentialForm`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not `bearer`, `none` or `header:NAME`")]
pub struct CredentialFormError(String);

impl Profile {
    /// The profile of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        PROFILES.get(name)
    }

    /// The names of all profiles.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PROFILES.keys().map(String::as_str)
    }

    /// The profile of a provider that names none.
    pub fn of_type(kind: ProviderType) -> Self {
        Self::named(kind.as_str()).cloned().unwrap_or_default()
    }

    /// The same for a provider with this base URL: one of the type `openai` at another host than OpenAI's, or
    /// one of its regions, is a compatible server.
    pub fn of_address(kind: ProviderType, base_url: &Uri) -> Self {
        let own = Self::of_type(kind);
        let public: Option<Uri> = own.base_url(kind).and_then(|url| url.parse().ok());
        let host = public.as_ref().and_then(Uri::host).unwrap_or_default();
        let given = base_url.host().unwrap_or_default();
        let is_own =
            given.strip_suffix(host).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        if kind != ProviderType::OpenAi || is_own {
            return own;
        }
        Self::named(COMPATIBLE).cloned().unwrap_or_default()
    }

    /// The vendor's public address for providers of a type, if all customers have the same.
    pub fn base_url(&self, kind: ProviderType) -> Option<&str> {
        let url = match kind {
            ProviderType::Anthropic => &self.messages_base_url,
            ProviderType::OpenAi | ProviderType::Copilot | ProviderType::Bedrock => &self.base_url,
        };
        url.as_deref()
    }

    /// How a request may carry the caller's own credential, in order.
    pub fn accepts(&self) -> &[CredentialForm] {
        self.accepts.as_deref().unwrap_or(std::slice::from_ref(&self.credential))
    }

    /// Sets how a request may carry the caller's own credential.
    pub fn set_accepts(&mut self, forms: Vec<CredentialForm>) {
        self.accepts = Some(forms);
    }

    /// The headers that may carry a credential for this vendor.
    pub fn headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.accepts().iter().chain([&self.credential]).filter_map(CredentialForm::header)
    }

    /// The path of an endpoint below a base URL, for a model, if the model is part of it.
    ///
    /// A base URL whose own path names the model already is followed by the rest of the path.
    pub fn path(&self, endpoint: &str, base_path: &str) -> Option<ModelPath<'_>> {
        let (before, after) = self.paths.get(endpoint)?.split_once(MODEL)?;
        let before = (!base_path.contains(before)).then_some(before);
        Some(ModelPath { before, after })
    }
}

/// The path of an endpoint around the name of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelPath<'a> {
    /// `None` if the base URL names the model.
    pub before: Option<&'a str>,
    /// What follows the model's name.
    pub after: &'a str,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            types: Vec::new(),
            base_url: None,
            messages_base_url: None,
            credential: CredentialForm::Bearer,
            accepts: None,
            key_optional: false,
            ask_usage: AskUsage::default(),
            query: BTreeMap::new(),
            paths: BTreeMap::new(),
        }
    }
}

impl CredentialForm {
    /// The header in which the credential is sent.
    pub fn header(&self) -> Option<&HeaderName> {
        match self {
            Self::Bearer => Some(&AUTHORIZATION),
            Self::Header(name) => Some(name),
            Self::None | Self::Aws => None,
        }
    }

    /// The name of the form in records.
    pub const fn scheme(&self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::Header(_) => "api_key",
            Self::None => "",
            Self::Aws => "sigv4",
        }
    }

    /// The header and its value that carry a secret.
    ///
    /// # Errors
    ///
    /// When the secret is no valid header value.
    pub fn sent(
        &self,
        secret: &str,
    ) -> Result<Option<(HeaderName, HeaderValue)>, InvalidHeaderValue> {
        Ok(match self {
            Self::Bearer => {
                Some((header::AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {secret}"))?))
            }
            Self::Header(name) => Some((name.clone(), HeaderValue::from_str(secret)?)),
            Self::None | Self::Aws => None,
        })
    }

    /// The credential in a header's value, if it has this form: `Basic …` and the like have another one.
    pub fn secret_in<'a>(&self, value: &'a HeaderValue) -> Option<&'a str> {
        let text = value.to_str().ok()?.trim();
        match self {
            Self::Bearer => bearer_of(text),
            Self::Header(_) => {
                (!text.is_empty() && !text.contains(char::is_whitespace)).then_some(text)
            }
            Self::None | Self::Aws => None,
        }
    }
}

impl fmt::Display for CredentialForm {
    /// Writes how a client sends a credential of this form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bearer => f.write_str("`Authorization: Bearer …`"),
            Self::Header(name) => write!(f, "`{name}`"),
            Self::None | Self::Aws => f.write_str("no header"),
        }
    }
}

impl FromStr for CredentialForm {
    type Err = CredentialFormError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || CredentialFormError(text.to_owned());
        match text {
            "bearer" => Ok(Self::Bearer),
            "none" => Ok(Self::None),
            "aws" => Ok(Self::Aws),
            _ => {
                let name = text.strip_prefix("header:").ok_or_else(unknown)?;
                name.parse().map(Self::Header).map_err(|_invalid| unknown())
            }
        }
    }
}

impl TryFrom<String> for CredentialForm {
    type Error = CredentialFormError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

fn profiles(text: &str) -> Result<BTreeMap<String, Profile>, toml::de::Error> {
    toml::from_str(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_profiles_are_valid() {
        let profiles = profiles(BUILT_IN).unwrap();
        assert!(profiles.len() >= 20, "{}", profiles.len());
        for (name, profile) in &profiles {
            assert!(!profile.types.is_empty(), "{name}");
            for kind in [ProviderType::Anthropic, ProviderType::OpenAi] {
                if let Some(url) = profile.base_url(kind) {
                    let uri: Uri = url.parse().unwrap();
                    assert!(uri.host().is_some() && !url.ends_with('/'), "{name}: {url}");
                    assert!(
                        profile.types.contains(&kind) || kind == ProviderType::OpenAi,
                        "{name}"
                    );
                }
            }
            for (endpoint, path) in &profile.paths {
                assert!(
                    endpoint.starts_with("/v1/") && path.starts_with('/'),
                    "{name}: {endpoint}"
                );
                assert_eq!(path.matches(MODEL).count(), 1, "{name}: {path}");
            }
        }
        for kind in ["anthropic", "openai", "copilot", "bedrock", COMPATIBLE] {
            assert!(profiles.contains_key(kind), "{kind}");
        }
    }

    #[test]
    fn a_provider_without_a_profile_gets_the_one_of_its_type_and_address() {
        let of = |kind, url: &'static str| Profile::of_address(kind, &Uri::from_static(url));
        let compatible = Profile::named(COMPATIBLE).unwrap();
        let openai = Profile::named("openai").unwrap();
        assert_eq!(of(ProviderType::OpenAi, "https://api.openai.com/v1"), *openai);
        assert_eq!(of(ProviderType::OpenAi, "https://eu.api.openai.com/v1"), *openai);
        assert_eq!(of(ProviderType::OpenAi, "https://llm.example.org/v1"), *compatible);
        assert_eq!(of(ProviderType::OpenAi, "https://not-api.openai.com.example.org"), *compatible);
        let anthropic = Profile::named("anthropic").unwrap();
        assert_eq!(of(ProviderType::Anthropic, "https://gateway.example.org"), *anthropic);
    }

    #[test]
    fn credential_forms_are_read_and_recognised() {
        let form = |text: &str| text.parse::<CredentialForm>();
        let value = HeaderValue::from_static;
        assert_eq!(form("bearer").unwrap().secret_in(&value("bEaReR sk-1")), Some("sk-1"));
        assert_eq!(form("bearer").unwrap().secret_in(&value("Basic sk-1")), None);
        let api_key = form("header:Api-Key").unwrap();
        assert_eq!(api_key.header().map(HeaderName::as_str), Some("api-key"));
        assert_eq!(api_key.secret_in(&value(" sk-1 ")), Some("sk-1"));
        assert_eq!(api_key.secret_in(&value("Bearer sk-1")), None);
        assert_eq!(form("none").unwrap().secret_in(&value("sk-1")), None);
        for wrong in ["", "Bearer", "header:", "header:a b", "basic"] {
            assert_eq!(
                form(wrong).unwrap_err().to_string(),
                format!("`{wrong}` is not `bearer`, `none` or `header:NAME`")
            );
        }
    }

    #[test]
    fn the_model_is_left_out_of_the_path_if_the_base_url_names_it() {
        let profile = Profile::named("azure-openai-deployments").unwrap();
        let whole = profile.path("/v1/chat/completions", "/openai").unwrap();
        assert_eq!((whole.before, whole.after), (Some("/deployments/"), "/chat/completions"));
        let rest = profile.path("/v1/chat/completions", "/openai/deployments/gpt-x").unwrap();
        assert_eq!((rest.before, rest.after), (None, "/chat/completions"));
        assert_eq!(profile.path("/v1/responses", "/openai"), None);
    }
}
