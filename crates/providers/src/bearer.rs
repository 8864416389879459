//! The scheme `Bearer` of `Authorization`.

use http::HeaderValue;

/// The credential of `Bearer <credential>`: the scheme in any case, exactly two words.
pub fn bearer(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok().and_then(bearer_of)
}

/// The same of a text.
pub fn bearer_of(value: &str) -> Option<&str> {
    let mut words = value.split_ascii_whitespace();
    let scheme = words.next()?;
    let credential = words.next()?;
    (scheme.eq_ignore_ascii_case("bearer") && words.next().is_none()).then_some(credential)
}
