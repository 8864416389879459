//! Masks a provider's secrets in texts: providers quote credentials in errors, and an answer may repeat
//! what a header held.

use std::{borrow::Cow, fmt};

use http::{HeaderName, HeaderValue};
use keybridge_wire::mask::{mask, mask_in_place};
use memchr::memmem::Finder;
use secrecy::ExposeSecret;

use crate::{bedrock::config::AwsSource, config::ProviderConfig};

/// A shorter text is no secret: it would be found in ordinary text.
const MIN_SECRET_BYTES: usize = 8;
/// The same for a word in letters of one case, such as the placeholders that servers without keys are given.
const MIN_WORD_BYTES: usize = 16;
/// Headers whose values are no secrets, and are useful in error messages.
const PUBLIC_HEADERS: [&str; 6] =
    ["accept", "anthropic-", "content-", "openai-beta", "user-agent", "x-stainless-"];

/// The secrets of one provider: its keys, those of its `set_headers` and `set_query`, and static AWS
/// credentials.
pub struct Secrets(Vec<Secret>);

/// A secret that is searched for, and what is put in its place.
pub struct Secret {
    finder: Finder<'static>,
    hint: String,
    /// A hint of the secret's own length.
    in_place: String,
}

impl Secrets {
    pub(crate) fn of(config: &ProviderConfig) -> Self {
        let keys = config.keys.iter().map(|key| key.value.expose_secret());
        let keys =
            keys.chain(config.bedrock.iter().flat_map(|bedrock| aws_secrets(&bedrock.source)));
        let headers = config.set_headers.iter().filter_map(header_secret);
        let query = config.set_query.iter().map(|parameter| parameter.value.expose_secret());
        let mut secrets: Vec<&str> =
            keys.chain(headers).chain(query).filter(|text| is_secret(text)).collect();
        // A secret may be part of a longer one, which is then replaced as a whole.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets.dedup();
        Self(secrets.into_iter().map(Secret::new).collect())
    }

    /// The bytes with the middle of each secret overwritten; `None` if there is none in them.
    pub fn overwrite_in(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut overwritten: Option<Vec<u8>> = None;
        for secret in &self.0 {
            let found: Vec<usize> =
                secret.finder.find_iter(overwritten.as_deref().unwrap_or(bytes)).collect();
            for start in found {
                let bytes = overwritten.get_or_insert_with(|| bytes.to_vec());
                let end = start + secret.in_place.len();
                if let Some(place) = bytes.get_mut(start..end) {
                    place.copy_from_slice(secret.in_place.as_bytes());
                }
            }
        }
        overwritten
    }

    /// How many bytes at the end may be the beginning of a secret that continues in the next bytes.
    pub fn beginning_at_end_of(&self, bytes: &[u8]) -> usize {
        let at_end = |secret: &Secret| {
            let needle = secret.finder.needle();
            let longest = needle.len().saturating_sub(1).min(bytes.len());
            let end = bytes.get(bytes.len() - longest..).unwrap_or_default();
            let starts = memchr::memchr_iter(*needle.first()?, end);
            let mut begun = starts.filter_map(|start| end.get(start..));
            begun.find(|begun| needle.starts_with(begun)).map(<[u8]>::len)
        };
        self.0.iter().filter_map(at_end).max().unwrap_or_default()
    }

    /// A text without the provider's secrets.
    pub fn mask_in<'t>(&self, text: Cow<'t, str>) -> Cow<'t, str> {
        self.0.iter().fold(text, |text, secret| secret.mask_in(text))
    }
}

impl Secret {
    pub(crate) fn new(secret: &str) -> Self {
        let finder = Finder::new(secret.as_bytes()).into_owned();
        Self { finder, hint: mask(secret), in_place: mask_in_place(secret) }
    }

    /// A text without the secret; borrowed if it is not in it.
    pub fn mask_in<'t>(&self, text: Cow<'t, str>) -> Cow<'t, str> {
        let length = self.finder.needle().len();
        if text.len() < length || self.finder.find(text.as_bytes()).is_none() {
            return text;
        }
        let mut masked = String::with_capacity(text.len());
        let mut copied = 0;
        for start in self.finder.find_iter(text.as_bytes()) {
            masked.push_str(text.get(copied..start).unwrap_or_default());
            masked.push_str(&self.hint);
            copied = start + length;
        }
        masked.push_str(text.get(copied..).unwrap_or_default());
        Cow::Owned(masked)
    }
}

/// Whether a text is masked wherever it is found.
pub(crate) fn is_secret(text: &str) -> bool {
    let is_word = text.bytes().all(|byte| byte.is_ascii_lowercase())
        || text.bytes().all(|byte| byte.is_ascii_uppercase());
    text.len() >= if is_word { MIN_WORD_BYTES } else { MIN_SECRET_BYTES }
}

fn aws_secrets(source: &AwsSource) -> Vec<&str> {
    match source {
        AwsSource::Static { secret_access_key, session_token, .. } => {
            let token = session_token.as_ref().map(ExposeSecret::expose_secret);
            token.into_iter().chain([secret_access_key.expose_secret()]).collect()
        }
        AwsSource::Profile(_) | AwsSource::Chain => Vec::new(),
    }
}

/// The secret of a header, without an authentication scheme.
fn header_secret((name, value): &(HeaderName, HeaderValue)) -> Option<&str> {
    if PUBLIC_HEADERS.iter().any(|public| name.as_str().starts_with(public)) {
        return None;
    }
    let text = value.to_str().ok()?.trim();
    Some(match text.split_once(' ') {
        Some((scheme, secret)) if scheme.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
            secret.trim()
        }
        _ => text,
    })
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secrets({} ***)", self.0.len())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

#[cfg(test)]
mod tests {
    use http::Uri;

    use super::*;
    use crate::config::{Key, ProviderType};

    fn secrets(keys: &[&str], headers: &[(&'static str, &'static str)]) -> Secrets {
        let mut config =
            ProviderConfig::new(ProviderType::Anthropic, Uri::from_static("http://provider"));
        let key = |value: &&str| Key { name: "k".into(), value: (*value).into(), weight: 1 };
        config.keys = keys.iter().map(key).collect();
        let header = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        config.set_headers = headers.iter().map(header).collect();
        Secrets::of(&config)
    }

    fn masked(secrets: &Secrets, text: &str) -> String {
        secrets.mask_in(Cow::Borrowed(text)).into_owned()
    }

    #[test]
    fn every_key_of_the_pool_is_masked_and_the_longest_first() {
        let secrets = secrets(&["sk-company-1", "sk-company-1-and-more", "ollama", "abc-1"], &[]);
        let text = "é sk-company-1-and-more, sk-company-1sk-company-1, ollama and abc-1";
        assert_eq!(masked(&secrets, text), "é sk-c...more, sk...-1sk...-1, ollama and abc-1");
        let plain = secrets.mask_in(Cow::Borrowed("nothing of the kind"));
        assert!(matches!(plain, Cow::Borrowed(_)));
    }

    #[test]
    fn a_secret_is_overwritten_in_place_also_where_it_is_cut() {
        let secrets = secrets(&["sk-company-1", "sk-company-1-and-more"], &[]);
        let overwritten = secrets.overwrite_in(b"key sk-company-1, sk-company-1-and-more!");
        assert_eq!(overwritten.unwrap(), *b"key sk********-1, sk-c*************more!");
        assert_eq!(secrets.overwrite_in(b"sk-company-2"), None);
        for (text, length) in [("key sk-comp", 7), ("key s", 1), ("keys ", 0), ("", 0)] {
            assert_eq!(secrets.beginning_at_end_of(text.as_bytes()), length, "{text}");
        }
    }

    #[test]
    fn secrets_of_set_headers_are_masked_without_their_scheme() {
        let headers = [
            ("authorization", "Basic dXNlcjpwYXNz"),
            ("x-gateway", "gateway-pass"),
            ("anthropic-beta", "context-1m-2025-08-07"),
            ("x-team", "blue"),
        ];
        let secrets = secrets(&[], &headers);
        let text = "dXNlcjpwYXNz gateway-pass context-1m-2025-08-07 blue";
        assert_eq!(masked(&secrets, text), "dX...Nz ga...ss context-1m-2025-08-07 blue");
    }

    #[test]
    fn secrets_are_not_printed() {
        let secrets = secrets(&["sk-company-1"], &[]);
        assert_eq!(format!("{secrets:?} {:?}", secrets.0), "Secrets(1 ***) [Secret(***)]");
    }
}
