//! Bridge tokens in text that comes from outside.

/// Whether a value holds something that looks like a bridge token: at its start, also after an
/// authentication scheme, or a whole one anywhere.
pub fn carries_token(value: &[u8]) -> bool {
    const PREFIX: &[u8] = keybridge_ledger::token::PREFIX.as_bytes();
    const SECRET_LENGTH: usize = 43;
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if value.trim_ascii().starts_with(PREFIX) {
        return true;
    }
    value.windows(PREFIX.len()).enumerate().any(|(at, window)| {
        let before = at.checked_sub(1).and_then(|before| value.get(before)).copied();
        if window != PREFIX || before.is_some_and(is_word) {
            return false;
        }
        let after_scheme = before.is_some_and(|byte| byte.is_ascii_whitespace())
            && value
                .get(..at)
                .is_some_and(|scheme| scheme.trim_ascii().iter().all(u8::is_ascii_alphabetic));
        let length = value
            .get(at + PREFIX.len()..)
            .unwrap_or_default()
            .iter()
            .take_while(|byte| is_word(**byte))
            .count();
        after_scheme || length >= SECRET_LENGTH
    })
}
