//! Bridge tokens: how they are generated, parsed, hashed and found in header values.
//!
//! A token is `kb_`, 43 base64url characters of 256 random bits, and a checksum of 6 base62
//! characters: the CRC-32 (IEEE) of the preceding characters. The checksum lets a secret scanner tell
//! a token from a look-alike offline.

use std::{borrow::Cow, fmt, sync::LazyLock};

use aws_lc_rs::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use memchr::memmem::Finder;
use secrecy::{ExposeSecret, SecretString};

/// The prefix of every token.
pub const PREFIX: &str = "kb_";
const SECRET_CHARS: usize = 43;
const CHECKSUM_CHARS: usize = 6;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A bridge token; it cannot be printed or serialized.
#[derive(Clone)]
pub struct BridgeToken(SecretString);

/// Why a text is not a bridge token, or why a token cannot be generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not start with [`PREFIX`].
    #[error("it does not start with `{PREFIX}`")]
    Prefix,
    /// Its length or characters are not those of a token.
    #[error("it is not {} characters of letters, digits, `_` and `-`", PREFIX.len() + SECRET_CHARS + CHECKSUM_CHARS)]
    Form,
    /// The checksum does not match: the token was mistyped or truncated.
    #[error("its checksum does not match; the token was mistyped or truncated")]
    Checksum,
    /// The operating system provided no random bytes.
    #[error("cannot generate a token: no random bytes are available")]
    Random,
}

impl BridgeToken {
    /// A new random token.
    ///
    /// # Errors
    ///
    /// [`TokenError::Random`] when the operating system provides no random bytes.
    pub fn generate() -> Result<Self, TokenError> {
        let mut secret = [0_u8; 32];
        SystemRandom::new().fill(&mut secret).map_err(|_unspecified| TokenError::Random)?;
        let mut text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(secret));
        let checksum = checksum(text.as_bytes());
        text.push_str(&checksum);
        Ok(Self(text.into()))
    }

    /// Parses a token's text.
    ///
    /// # Errors
    ///
    /// When the prefix, the form or the checksum is wrong.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let body = text.strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        if body.len() != SECRET_CHARS + CHECKSUM_CHARS || !body.bytes().all(is_word) {
            return Err(TokenError::Form);
        }
        let (before, actual) =
            text.split_at_checked(PREFIX.len() + SECRET_CHARS).ok_or(TokenError::Form)?;
        if checksum(before.as_bytes()) != actual {
            return Err(TokenError::Checksum);
        }
        Ok(Self(text.into()))
    }

    /// The whole text, which is shown to its owner once.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// SHA-256 of the text: 256 random bits need no salt and no slow hash.
    pub fn hash(&self) -> [u8; 32] {
        let digest = digest::digest(&digest::SHA256, self.expose().as_bytes());
        let mut hash = [0; 32];
        for (to, from) in hash.iter_mut().zip(digest.as_ref()) {
            *to = *from;
        }
        hash
    }

    /// The first and last four characters.
    pub fn hint(&self) -> String {
        hint(self.expose())
    }
}

impl fmt::Debug for BridgeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BridgeToken(***)")
    }
}

/// Whether a value contains a bridge token, or what looks like one: its prefix at the start or after an
/// authentication scheme, a whole token anywhere, or a word as long as a token without its checksum.
pub fn contains_token(value: &[u8]) -> bool {
    if value.trim_ascii().starts_with(PREFIX.as_bytes()) {
        return true;
    }
    FINDER.find_iter(value).any(|at| follows_scheme(value, at) || token_length(value, at).is_some())
}

/// The same for a value that may be percent-encoded, such as a path or a query string: it is judged as it
/// is, and decoded once.
pub fn contains_encoded_token(value: &[u8]) -> bool {
    if contains_token(value) {
        return true;
    }
    memchr::memchr(b'%', value).is_some()
        && contains_token(&Cow::from(percent_encoding::percent_decode(value)))
}

/// A text with its bridge tokens masked: of each, the first and last four characters remain, as in
/// [`BridgeToken::hint`].
///
/// Whole tokens are found by their checksum wherever they stand. A word that begins like a token and is as
/// long as one without its checksum is masked too, because the checksum can be computed.
pub fn mask_tokens(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    if bytes.len() < PREFIX.len() + SECRET_CHARS {
        return Cow::Borrowed(text);
    }
    let mut masked = String::new();
    let mut copied = 0;
    for start in FINDER.find_iter(bytes) {
        let Some(length) = (start >= copied).then(|| token_length(bytes, start)).flatten() else {
            continue;
        };
        let end = start + length;
        masked.push_str(text.get(copied..start).unwrap_or_default());
        masked.push_str(&hint(text.get(start..end).unwrap_or_default()));
        copied = end;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    masked.push_str(text.get(copied..).unwrap_or_default());
    Cow::Owned(masked)
}

/// Masks the bridge tokens in a text in place, as [`mask_tokens`] does.
pub fn mask_tokens_in(text: &mut String) {
    if let Cow::Owned(masked) = mask_tokens(text) {
        *text = masked;
    }
}

/// Finds [`PREFIX`].
static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(PREFIX));

/// The length of the token whose prefix is at `start`; `None` if it is no token.
fn token_length(value: &[u8], start: usize) -> Option<usize> {
    const CHECKED: usize = PREFIX.len() + SECRET_CHARS;
    const WHOLE: usize = CHECKED + CHECKSUM_CHARS;
    let rest = value.get(start..)?;
    let word = rest.iter().take(WHOLE).take_while(|byte| is_word(**byte)).count();
    if word < CHECKED {
        return None;
    }
    if word == WHOLE
        && let Some((checked, sum)) = rest.get(..WHOLE)?.split_at_checked(CHECKED)
        && checksum(checked).as_bytes() == sum
    {
        return Some(WHOLE);
    }
    let before = start.checked_sub(1).and_then(|before| value.get(before));
    let is_own_word = before.is_none_or(|byte| !is_word(*byte));
    is_own_word.then(|| rest.iter().take_while(|byte| is_word(**byte)).count())
}

/// Whether nothing but an authentication scheme precedes the prefix at `at`.
fn follows_scheme(value: &[u8], at: usize) -> bool {
    let before = value.get(..at).unwrap_or_default();
    before.last().is_some_and(u8::is_ascii_whitespace)
        && before.trim_ascii().iter().all(u8::is_ascii_alphabetic)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

/// The first and last four characters of a token.
fn hint(token: &str) -> String {
    let first = token.get(..4).unwrap_or_default();
    let last = token.get(token.len().saturating_sub(4)..).unwrap_or_default();
    format!("{first}...{last}")
}

fn checksum(bytes: &[u8]) -> String {
    let mut rest = crc32fast::hash(bytes);
    let mut digits = [b'0'; CHECKSUM_CHARS];
    for digit in digits.iter_mut().rev() {
        let index = usize::try_from(rest % 62).unwrap_or(0);
        *digit = BASE62.get(index).copied().unwrap_or(b'0');
        rest /= 62;
    }
    digits.iter().map(|byte| char::from(*byte)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        BridgeToken, PREFIX, TokenError, checksum, contains_encoded_token, contains_token,
        mask_tokens,
    };

    /// A token with these secret characters.
    fn token(secret: &str) -> String {
        let checked = format!("{PREFIX}{secret}");
        format!("{checked}{}", checksum(checked.as_bytes()))
    }

    #[test]
    fn a_token_is_parsed_and_a_damaged_one_is_rejected() {
        let token = BridgeToken::generate().unwrap();
        let text = token.expose().to_owned();
        assert_eq!(text.len(), PREFIX.len() + 43 + 6);
        assert_eq!(BridgeToken::parse(&text).unwrap().hash(), token.hash());
        let other = if text.as_bytes()[10] == b'A' { "B" } else { "A" };
        let mut damaged = text.clone();
        damaged.replace_range(10..11, other);
        assert_eq!(BridgeToken::parse(&damaged).unwrap_err(), TokenError::Checksum);
        assert_eq!(BridgeToken::parse(text.get(..40).unwrap()).unwrap_err(), TokenError::Form);
        assert_eq!(BridgeToken::parse("sk-ant-x").unwrap_err(), TokenError::Prefix);
    }

    #[test]
    fn a_token_is_never_printed() {
        let token = BridgeToken::generate().unwrap();
        let shown = format!("{token:?} {}", token.hint());
        assert!(!shown.contains(token.expose().get(5..20).unwrap()), "{shown}");
    }

    #[test]
    fn the_checksum_is_the_crc_of_zip_and_png() {
        // The check value of CRC-32/ISO-HDLC in the catalogue of parametrised CRC algorithms is
        // 0xCBF43926, here in base 62.
        assert_eq!(checksum(b"123456789"), "3jZRME");
    }

    #[test]
    fn tokens_are_found_at_the_start_of_a_value_and_whole_ones_anywhere() {
        let whole = "kb_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGx";
        for value in ["kb_x", " kb_x", "Bearer kb_x", whole, &format!("a={whole}; b")] {
            assert!(contains_token(value.as_bytes()), "{value}");
        }
        for value in ["", "mykb_x", "max_kb_size", "see the kb_file", "sk-ant-kb_x", "k", "kb-"] {
            assert!(!contains_token(value.as_bytes()), "{value}");
            assert!(!contains_encoded_token(value.as_bytes()), "{value}");
        }
    }

    #[test]
    fn a_whole_token_is_found_behind_a_word_character() {
        let token = BridgeToken::generate().unwrap();
        let token = token.expose();
        for value in [format!("my{token}"), format!("x_{token}yz"), format!("kb_kb_{token}")] {
            assert!(contains_token(value.as_bytes()), "{value}");
        }
        let mistyped = format!("my{}", token.replace("kb_", "kb_x"));
        assert!(!contains_token(mistyped.as_bytes()));
    }

    #[test]
    fn a_percent_encoded_token_is_found_in_a_path_or_query_string() {
        let token = BridgeToken::generate().unwrap();
        let all: String = token.expose().bytes().map(|byte| format!("%{byte:02x}")).collect();
        let prefix = token.expose().replace("kb_", "%6Bb_");
        let inside = token.expose().replacen('_', "%5f", 1);
        for encoded in [&all, &prefix, &inside] {
            let value = format!("/v1/models/{encoded}?a=b");
            assert!(contains_encoded_token(value.as_bytes()), "{value}");
        }
        assert!(contains_encoded_token(format!("key={}", token.expose()).as_bytes()));
        assert!(!contains_encoded_token(b"/v1/models/%6bb_small?x=%"));
    }

    #[test]
    fn masking_keeps_the_hint_of_each_token_and_all_other_text() {
        let [one, two] = [(); 2].map(|()| BridgeToken::generate().unwrap());
        let text = format!("é {} and x{}y", one.expose(), two.expose());
        let masked = mask_tokens(&text);
        assert_eq!(masked, format!("é {} and x{}y", one.hint(), two.hint()));
        for unmasked in
            ["", "kb_", "kb_x is short", "a longer text that names the file kb_index.toml twice"]
        {
            assert!(matches!(mask_tokens(unmasked), std::borrow::Cow::Borrowed(_)), "{unmasked}");
        }
    }

    #[test]
    fn a_token_without_its_checksum_is_masked_because_the_checksum_can_be_computed() {
        let token = BridgeToken::generate().unwrap();
        let cut = token.expose().get(..PREFIX.len() + 43).unwrap();
        let [first, last] = [cut.get(..4).unwrap(), cut.get(42..).unwrap()];
        let text = format!("use {cut} please");
        assert_eq!(mask_tokens(&text), format!("use {first}...{last} please"));
    }

    proptest! {
        #[test]
        fn no_token_survives_masking_wherever_it_stands(
            before in "(\\PC|kb_){0,20}", secret in "[A-Za-z0-9_-]{43}", after in "(\\PC|kb_){0,20}",
        ) {
            let token = token(&secret);
            let text = format!("{before}{token}{after}");
            prop_assert!(contains_token(text.as_bytes()));
            let masked = mask_tokens(&text);
            prop_assert!(!masked.contains(&token), "{}", masked);
            prop_assert_eq!(mask_tokens(&masked), masked.as_ref());
        }

        #[test]
        fn a_token_is_found_however_it_is_percent_encoded(
            secret in "[A-Za-z0-9_-]{43}", encoded in prop::collection::vec(any::<bool>(), 52),
        ) {
            let value: String = token(&secret)
                .bytes()
                .zip(encoded)
                .map(|(byte, encodes)| {
                    if encodes { format!("%{byte:02X}") } else { char::from(byte).to_string() }
                })
                .collect();
            let path = format!("/a/{value}");
            prop_assert!(contains_encoded_token(path.as_bytes()));
        }
    }
}
