//! Shows text from outside without letting it control a terminal or forge lines.

use std::borrow::Cow;

/// A text on one line: control characters, line separators, and characters that are invisible or change
/// the direction of others are shown as escapes, such as `\n` and `\u{202e}`.
pub fn escape_controls(text: &str) -> Cow<'_, str> {
    // Without an early end, the compiler compares many bytes at once.
    let is_plain = text.bytes().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~'));
    if is_plain || !text.chars().any(is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_escaped(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// Whether a character is shown as an escape. The joiners of emoji (U+200C, U+200D) are not.
fn is_escaped(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{61c}'
                | '\u{200b}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::escape_controls;

    #[test]
    fn what_controls_a_terminal_or_its_lines_is_shown_as_an_escape() {
        for (text, escaped) in [
            ("\u{1b}[31mred", "\\u{1b}[31mred"),
            ("a\r\nb\tc", "a\\r\\nb\\tc"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\u{7f}"),
            ("\u{202e}gpj.exe\u{2066}", "\\u{202e}gpj.exe\\u{2066}"),
            ("line\u{2028}line", "line\\u{2028}line"),
        ] {
            assert_eq!(escape_controls(text), escaped);
        }
    }

    #[test]
    fn ordinary_text_is_not_changed() {
        for text in ["", "plain", "naïve 日本語", "👩\u{200d}💻"] {
            assert!(matches!(escape_controls(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }
}
