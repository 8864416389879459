//! The words of a text, by which prompts are found: the same in both stores, whatever the locale of the
//! database and the release of its tokenizer.
//!
//! `prompt_words` in `migrations/postgres` says the same in SQL; a test compares the two for every character.

use std::iter;

use crate::LedgerError;

/// How much of a text can be searched, in characters.
const MAX_SEARCHED_CHARS: usize = 65_536;
/// Longer words are known by their first characters.
const MAX_WORD_CHARS: usize = 64;
/// Shorter beginnings of words are not looked up in an index.
const MIN_PREFIX_CHARS: usize = 3;
/// Maximum number of words in a query.
const MAX_QUERY_WORDS: usize = 32;

/// Characters between words: ASCII except letters and digits, and the punctuation of other scripts.
const SEPARATORS: &[(char, char)] = &[
    ('\0', '/'),
    ('\u{3a}', '\u{40}'),
    ('\u{5b}', '\u{60}'),
    ('\u{7b}', '\u{a9}'),
    ('\u{ab}', '\u{b4}'),
    ('\u{b6}', '\u{b9}'),
    ('\u{bb}', '\u{bf}'),
    ('\u{d7}', '\u{d7}'),
    ('\u{f7}', '\u{f7}'),
    ('\u{2000}', '\u{206f}'),
    ('\u{2e00}', '\u{2e7f}'),
    ('\u{3000}', '\u{3004}'),
    ('\u{3008}', '\u{303f}'),
    ('\u{fe00}', '\u{fe1f}'),
    ('\u{fe30}', '\u{fe6f}'),
    ('\u{feff}', '\u{ff0f}'),
    ('\u{ff1a}', '\u{ff20}'),
    ('\u{ff3b}', '\u{ff40}'),
    ('\u{ff5b}', '\u{ff65}'),
    ('\u{fff0}', '\u{ffff}'),
];

/// Characters that are words of their own: those of scripts that are written without spaces, and symbols.
const SINGLE_WORDS: &[(char, char)] = &[
    ('\u{e00}', '\u{eff}'),
    ('\u{1000}', '\u{109f}'),
    ('\u{1780}', '\u{17ff}'),
    ('\u{2190}', '\u{2bff}'),
    ('\u{2e80}', '\u{2fff}'),
    ('\u{3005}', '\u{3007}'),
    ('\u{3040}', '\u{312f}'),
    ('\u{3190}', '\u{9fff}'),
    ('\u{f900}', '\u{faff}'),
    ('\u{ff66}', '\u{ff9f}'),
    ('\u{1b000}', '\u{1b16f}'),
    ('\u{1f000}', '\u{1faff}'),
    ('\u{20000}', '\u{3ffff}'),
];

/// Characters outside ASCII whose case is ignored, where both cases are one character.
const CASED: &[(char, char)] = &[
    ('\u{c0}', '\u{24f}'),
    ('\u{370}', '\u{52f}'),
    ('\u{531}', '\u{556}'),
    ('\u{1e00}', '\u{1eff}'),
    ('\u{1f08}', '\u{1f6f}'),
    ('\u{ff21}', '\u{ff3a}'),
];

fn is_in(ranges: &[(char, char)], character: char) -> bool {
    ranges.iter().any(|(first, last)| (*first..=*last).contains(&character))
}

/// A character in lower case.
fn folded(character: char) -> char {
    if character.is_ascii() || !is_in(CASED, character) {
        return character.to_ascii_lowercase();
    }
    let mut lower = character.to_lowercase();
    match (lower.next(), lower.next()) {
        (Some(only), None) => only,
        _ => character,
    }
}

/// The words of a text in order, in lower case.
pub(crate) fn words(text: &str) -> impl Iterator<Item = String> {
    let mut characters = text.chars().take(MAX_SEARCHED_CHARS).peekable();
    iter::from_fn(move || {
        let first = characters.find(|character| !is_in(SEPARATORS, *character))?;
        let mut word = String::from(folded(first));
        if is_in(SINGLE_WORDS, first) {
            return Some(word);
        }
        let mut length = 1;
        let continues = |next: &char| !is_in(SEPARATORS, *next) && !is_in(SINGLE_WORDS, *next);
        while let Some(next) = characters.next_if(continues) {
            if length < MAX_WORD_CHARS {
                word.push(folded(next));
                length += 1;
            }
        }
        Some(word)
    })
}

/// What is looked for in prompts: all of these words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Query {
    words: Vec<QueryWord>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct QueryWord {
    word: String,
    /// Whether it may be the beginning of a longer word.
    is_prefix: bool,
}

impl Query {
    /// Parses what somebody typed. Nothing in it is syntax except a `*` at the end of a word.
    ///
    /// # Errors
    ///
    /// [`LedgerError::Query`] when it has no words, or too many.
    pub(crate) fn parse(text: &str) -> Result<Self, LedgerError> {
        let mut found: Vec<QueryWord> = Vec::new();
        for part in text.split_whitespace() {
            let first = found.len();
            found.extend(words(part).map(|word| QueryWord { word, is_prefix: false }));
            if let Some(last) = found.get_mut(first..).and_then(|added| added.last_mut()) {
                last.is_prefix = part.ends_with('*');
            }
        }
        found.sort_by(|one, other| {
            one.word.cmp(&other.word).then(one.is_prefix.cmp(&other.is_prefix))
        });
        found.dedup_by(|later, earlier| later.word == earlier.word);
        match found.len() {
            0 => Err(LedgerError::Query("there is no letter, digit or symbol in it".into())),
            1..=MAX_QUERY_WORDS => Ok(Self { words: found }),
            number => Err(LedgerError::Query(format!(
                "it has {number} words; use at most {MAX_QUERY_WORDS}"
            ))),
        }
    }

    /// Whether a text contains all words.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let mut missing: Vec<&QueryWord> = self.words.iter().collect();
        for found in words(text) {
            missing.retain(|wanted| {
                if wanted.is_prefix {
                    !found.starts_with(&wanted.word)
                } else {
                    found != wanted.word
                }
            });
            if missing.is_empty() {
                return true;
            }
        }
        false
    }

    /// Whether a word is the beginning of so many others that an index would read most of itself.
    pub(crate) fn has_short_prefix(&self) -> bool {
        self.words.iter().any(|QueryWord { word, is_prefix }| {
            *is_prefix && word.chars().count() < MIN_PREFIX_CHARS
        })
    }

    /// The words of ASCII only: a text that has them contains them as they are, apart from the case of ASCII.
    pub(crate) fn ascii_words(&self) -> impl Iterator<Item = &str> {
        self.words.iter().map(|word| word.word.as_str()).filter(|word| word.is_ascii())
    }

    /// The query for the index in SQLite. Words contain no quotation marks.
    pub(crate) fn fts5(&self, owner: Option<&str>) -> String {
        let words = self.words.iter().map(|QueryWord { word, is_prefix }| {
            format!("prompt : \"{word}\"{}", if *is_prefix { " *" } else { "" })
        });
        let owner = owner.map(|owner| format!("owner : \"{owner}\""));
        owner.into_iter().chain(words).collect::<Vec<_>>().join(" AND ")
    }

    /// The query for the index in PostgreSQL, a `tsquery`. Words contain neither quotation marks nor
    /// backslashes.
    pub(crate) fn tsquery(&self) -> String {
        let words = self.words.iter().map(|QueryWord { word, is_prefix }| {
            format!("'{word}'{}", if *is_prefix { ":*" } else { "" })
        });
        words.collect::<Vec<_>>().join(" & ")
    }
}

#[cfg(test)]
mod tests {
    use super::{Query, words};

    fn split(text: &str) -> Vec<String> {
        words(text).collect()
    }

    #[test]
    fn a_text_is_split_into_words() {
        for (text, expected) in [
            ("Hello, World! foo_bar don't 3.14", "hello world foo bar don t 3 14"),
            ("ÄRGER Straße ΑΘΗΝΑ Привет", "ärger straße αθηνα привет"),
            ("全文検索🚀x，ok。", "全 文 検 索 🚀 x ok"),
            ("\"NEAR(a b)\" -c owner:d e*", "near a b c owner d e"),
            (" .,;\n", ""),
        ] {
            assert_eq!(split(text).join(" "), expected, "{text}");
        }
    }

    #[test]
    fn what_is_indexed_is_bounded() {
        assert_eq!(split(&"x".repeat(1_000)), ["x".repeat(64)]);
        assert_eq!(split(&"é ".repeat(100_000)).len(), 32_768);
    }

    #[test]
    fn nothing_in_a_query_is_syntax_of_the_engine() {
        let query = Query::parse("\"NEAR(a* b)\" -Foo-Car* OR 'x':*").unwrap();
        assert_eq!(
            query.fts5(Some("u0")),
            "owner : \"u0\" AND prompt : \"a\" * AND prompt : \"b\" AND \
            prompt : \"car\" * AND prompt : \"foo\" AND prompt : \"near\" AND prompt : \"or\" AND prompt : \"x\" *"
        );
        assert_eq!(query.tsquery(), "'a':* & 'b' & 'car':* & 'foo' & 'near' & 'or' & 'x':*");
        assert!(
            query.matches("foo or near, b a x-ray CARD") && !query.matches("foo or near, b a card")
        );
    }

    #[test]
    fn a_query_needs_words_but_not_too_many() {
        for (text, expected) in [("", "no letter"), ("* - \"", "no letter")] {
            let error = Query::parse(text).unwrap_err().to_string();
            assert!(error.contains("`q`") && error.contains(expected), "{error}");
        }
        let many: String = (0..33).map(|number| format!("w{number} ")).collect();
        assert!(Query::parse(&many).unwrap_err().to_string().contains("33 words"));
        assert_eq!(Query::parse("a A a*").unwrap(), Query::parse("a").unwrap());
    }
}
