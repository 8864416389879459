//! Bridge tokens: how they are generated, parsed, hashed and found in header values.
//!
//! A token is `kb_`, 43 base64url characters of 256 random bits, and a checksum of 6 base62
//! characters: the CRC-32 (IEEE) of the preceding characters. The checksum lets a secret scanner tell
//! a token from a look-alike offline.

use std::fmt;

use aws_lc_rs::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
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
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        if body.len() != SECRET_CHARS + CHECKSUM_CHARS || !body.chars().all(is_word) {
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
        let text = self.expose();
        let first = text.get(..4).unwrap_or_default();
        let last = text.get(text.len().saturating_sub(4)..).unwrap_or_default();
        format!("{first}...{last}")
    }
}

impl fmt::Debug for BridgeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BridgeToken(***)")
    }
}

/// Whether a value contains what looks like a bridge token: its prefix at the start or after an
/// authentication scheme, or a whole token anywhere.
pub fn contains_token(value: &[u8]) -> bool {
    const PREFIX_BYTES: &[u8] = PREFIX.as_bytes();
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if value.trim_ascii().starts_with(PREFIX_BYTES) {
        return true;
    }
    value.windows(PREFIX_BYTES.len()).enumerate().any(|(at, window)| {
        let before = at.checked_sub(1).and_then(|before| value.get(before)).copied();
        if window != PREFIX_BYTES || before.is_some_and(is_word) {
            return false;
        }
        let after_scheme = before.is_some_and(|byte| byte.is_ascii_whitespace())
            && value
                .get(..at)
                .is_some_and(|scheme| scheme.trim_ascii().iter().all(u8::is_ascii_alphabetic));
        let length = value
            .get(at + PREFIX_BYTES.len()..)
            .unwrap_or_default()
            .iter()
            .take_while(|byte| is_word(**byte))
            .count();
        after_scheme || length >= SECRET_CHARS
    })
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
    use super::{BridgeToken, PREFIX, TokenError, contains_token};

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
        assert_eq!(super::checksum(b"123456789"), "3jZRME");
    }

    #[test]
    fn tokens_are_found_at_the_start_of_a_value_and_whole_ones_anywhere() {
        let whole = "kb_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGx";
        for value in ["kb_x", " kb_x", "Bearer kb_x", whole, &format!("a={whole}; b")] {
            assert!(contains_token(value.as_bytes()), "{value}");
        }
        for value in ["", "mykb_x", "max_kb_size", "see the kb_file", "sk-ant-kb_x", "k", "kb-"] {
            assert!(!contains_token(value.as_bytes()), "{value}");
        }
    }
}
