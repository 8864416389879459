//! Masking of credentials: enough stays visible to recognise one, too little to use it.

/// Masks a credential, revealing at most four characters at each end.
///
/// Characters are Unicode scalar values. Short credentials reveal less, very short ones nothing; an
/// empty one stays empty.
#[must_use]
pub fn mask(credential: &str) -> String {
    masked(credential, |_hidden| ELLIPSIS.to_owned())
}

/// Masks a credential like [`mask`], with a text of the same length in bytes, so that it can be replaced
/// in place.
#[must_use]
pub fn mask_in_place(credential: &str) -> String {
    masked(credential, |hidden| "*".repeat(hidden))
}

/// Masks a credential; `filler` makes the text that replaces this many bytes.
fn masked(credential: &str, filler: impl FnOnce(usize) -> String) -> String {
    let length = credential.chars().count();
    if length == 0 {
        return String::new();
    }
    let revealed = match length {
        20.. => 4,
        10.. => 2,
        5.. => 1,
        _ => return filler(credential.len()),
    };
    let head: String = credential.chars().take(revealed).collect();
    let tail: String = credential.chars().skip(length - revealed).collect();
    let hidden = credential.len().saturating_sub(head.len() + tail.len());
    format!("{head}{}{tail}", filler(hidden))
}

const ELLIPSIS: &str = "...";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{ELLIPSIS, mask, mask_in_place};

    #[test]
    fn longer_credentials_reveal_more_characters() {
        for (credential, masked) in [
            ("", ""),
            ("a", "..."),
            ("ab", "..."),
            ("abcd", "..."),
            ("abcde", "a...e"),
            ("short", "s...t"),
            ("123456789", "1...9"),
            ("1234567890", "12...90"),
            ("1234567890123456789", "12...89"),
            ("12345678901234567890", "1234...7890"),
            ("sk-ant-api03-abcdefgh", "sk-a...efgh"),
        ] {
            assert_eq!(mask(credential), masked, "{credential}");
        }
    }

    #[test]
    fn masking_counts_characters_not_bytes() {
        assert_eq!(mask("éééé"), "...");
        assert_eq!(mask("ééééé"), "é...é");
        assert_eq!(mask(&"🔑".repeat(10)), "🔑🔑...🔑🔑");
    }

    proptest! {
        #[test]
        fn a_credential_is_masked_in_place_with_the_same_characters(credential in "[a-z0-9é🔑_-]{0,60}") {
            let masked = mask_in_place(&credential);
            prop_assert_eq!(masked.len(), credential.len());
            let hinted = mask(&credential);
            if let Some((head, tail)) = hinted.split_once(ELLIPSIS) {
                prop_assert!(masked.starts_with(head) && masked.ends_with(tail));
            }
        }

        #[test]
        fn at_most_eight_characters_and_less_than_half_are_shown(credential in "\\PC{0,60}") {
            let shown = mask(&credential).replacen("...", "", 1).chars().count();
            prop_assert!(shown <= 8);
            prop_assert!(shown * 2 < credential.chars().count().max(1));
        }
    }
}
