//! The one place where texts and lists from outside are masked and bounded, before they are recorded or
//! logged.
//!
//! Every text column of every table passes here: the lists of columns call it for each of their fields.
//! Secrets are masked before anything is cut, so that no part of one is left at the end of a text.

use std::{borrow::Cow, collections::BTreeMap};

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use serde_json::Number;
use uuid::Uuid;

use super::{Outcome, Quality, UsageKind};

/// Maximum length of a name, in bytes.
pub const MAX_NAME_BYTES: usize = 16 * 1_024;
/// Maximum length of an id, and of the name of a further count, in bytes.
pub const MAX_ID_BYTES: usize = 1_024;
/// Maximum length of an error message or a URL, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 8 * 1_024;
/// Maximum of all prompts, arguments, results and thoughts of one record together, in bytes.
pub const MAX_CONTENT_BYTES: usize = 16 << 20;
/// Maximum number of rows of one kind that are recorded for one request.
pub const MAX_ROWS: usize = 1_000;
/// Maximum length of a provider's usage object, in bytes.
pub const MAX_RAW_USAGE_BYTES: usize = 16 * 1_024;
/// Maximum number of further figures of one answer, and of edits of one request.
const MAX_ENTRIES: usize = 100;
/// The text beyond the part to keep that is searched for secrets which begin within it.
const MASK_MARGIN: usize = 4 * 1_024;
/// A text up to this length is never cut: it may be the mark of a cut itself.
const MIN_CUT_BYTES: usize = 128;

/// Maximum length of each prompt, each tool call's arguments and result, each thought and each answer, in bytes. By default all of
/// what providers accept is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentLimits {
    /// Of a prompt.
    pub prompt: usize,
    /// Of the arguments of a tool call.
    pub arguments: usize,
    /// Of a thought.
    pub thought: usize,
    /// Of a tool's result.
    pub result: usize,
    /// Of an answer.
    pub answer: usize,
}

impl ContentLimits {
    /// The highest limits that can be set.
    pub const MAX: Self = Self {
        prompt: MAX_CONTENT_BYTES,
        arguments: MAX_CONTENT_BYTES,
        thought: MAX_CONTENT_BYTES,
        result: MAX_CONTENT_BYTES,
        answer: MAX_CONTENT_BYTES,
    };
}

impl Default for ContentLimits {
    fn default() -> Self {
        Self::MAX
    }
}

/// Masks the secrets in a text.
pub trait Mask {
    /// The text without secrets; borrowed if it has none.
    fn mask<'t>(&self, text: &'t str) -> Cow<'t, str>;
}

/// Masks nothing: for texts that are masked already.
#[derive(Debug, Clone, Copy)]
pub struct Unmasked;

impl Mask for Unmasked {
    fn mask<'t>(&self, text: &'t str) -> Cow<'t, str> {
        Cow::Borrowed(text)
    }
}

/// What a text is, which decides how long it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextKind {
    Name,
    /// A cut id keeps a hash of the whole, so that different ids stay different.
    Id,
    Message,
    RawUsage,
    Prompt,
    Arguments,
    Thought,
    Result,
}

impl TextKind {
    /// The kind of the texts in a column.
    pub(crate) const fn of_column(column: &str) -> Self {
        match column.as_bytes() {
            b"prompt" => Self::Prompt,
            b"arguments" => Self::Arguments,
            b"content" => Self::Thought,
            b"result" => Self::Result,
            b"raw" => Self::RawUsage,
            b"error_message"
            | b"invocation_error"
            | b"server_url"
            | b"url"
            | b"refusal_explanation" => Self::Message,
            b"provider_response_id"
            | b"tool_call_id"
            | b"caller_tool_call_id"
            | b"container_id"
            | b"file_id"
            | b"correlating_tool_call_id"
            | b"client_session_id"
            | b"session_id"
            | b"agent_id"
            | b"parent_agent_id"
            | b"upstream_request_id"
            | b"provider_request_id" => Self::Id,
            _ => Self::Name,
        }
    }
}

/// Masks and bounds the texts and lists of one record.
#[derive(Debug)]
pub(crate) struct Cleaner<'a, M> {
    limits: &'a ContentLimits,
    mask: &'a M,
    /// Bytes of contents that may still be kept.
    contents_left: usize,
    omitted_rows: usize,
}

impl<'a, M: Mask> Cleaner<'a, M> {
    pub(crate) const fn new(limits: &'a ContentLimits, mask: &'a M) -> Self {
        Self { limits, mask, contents_left: MAX_CONTENT_BYTES, omitted_rows: 0 }
    }

    /// The number of rows that were left out.
    pub(crate) const fn omitted_rows(&self) -> usize {
        self.omitted_rows
    }

    /// Masks a text and cuts it to the maximum length of its kind.
    pub(crate) fn text(&mut self, text: &mut String, kind: TextKind) {
        let max = self.max_bytes(kind);
        if text.len() > max {
            *text = cut(text, max, kind, self.mask);
        } else if let Cow::Owned(masked) = self.mask.mask(text) {
            *text = masked;
        }
        if is_content(kind) {
            self.contents_left = self.contents_left.saturating_sub(text.len());
        }
    }

    /// Cuts a list to the maximum number of rows and cleans those that are left.
    pub(crate) fn rows<T>(&mut self, rows: &mut Vec<T>, clean: impl Fn(&mut T, &mut Self)) {
        self.omitted_rows += rows.len().saturating_sub(MAX_ROWS);
        rows.truncate(MAX_ROWS);
        for row in rows {
            clean(row, self);
        }
    }

    fn max_bytes(&self, kind: TextKind) -> usize {
        let limit = match kind {
            TextKind::Name => MAX_NAME_BYTES,
            TextKind::Id => MAX_ID_BYTES,
            TextKind::Message => MAX_MESSAGE_BYTES,
            TextKind::RawUsage => MAX_RAW_USAGE_BYTES,
            TextKind::Prompt => self.limits.prompt.min(self.contents_left),
            TextKind::Arguments => self.limits.arguments.min(self.contents_left),
            TextKind::Thought => self.limits.thought.min(self.contents_left),
            TextKind::Result => self.limits.result.min(self.contents_left),
        };
        limit.max(MIN_CUT_BYTES)
    }
}

const fn is_content(kind: TextKind) -> bool {
    matches!(kind, TextKind::Prompt | TextKind::Arguments | TextKind::Thought | TextKind::Result)
}

/// A text that is too long: masked, cut, and marked as cut.
#[cold]
fn cut(text: &str, max: usize, kind: TextKind, mask: &impl Mask) -> String {
    let end = text.floor_char_boundary(max.saturating_add(MASK_MARGIN));
    let (head, rest) = text.split_at_checked(end).unwrap_or((text, ""));
    let masked = mask.mask(head);
    // A secret may begin in the margin and end beyond it.
    let safe =
        if rest.is_empty() { masked.len() } else { masked.len().saturating_sub(MASK_MARGIN) };
    if rest.is_empty() && masked.len() <= max {
        return masked.into_owned();
    }
    let mark = match kind {
        TextKind::Id => {
            let hash = digest(&SHA256, text.as_bytes());
            let hash = hex::encode(hash.as_ref().get(..8).unwrap_or_default());
            format!("…[cut: {} bytes, sha256 {hash}]", text.len())
        }
        _ => format!("…[cut: {} bytes]", text.len()),
    };
    let kept = masked.floor_char_boundary(safe.min(max.saturating_sub(mark.len())));
    let mut cut = masked.get(..kept).unwrap_or_default().to_owned();
    cut.push_str(&mark);
    cut
}

/// The value of a column; those without text are left as they are.
pub(crate) trait CleanField {
    fn clean<M: Mask>(&mut self, kind: TextKind, cleaner: &mut Cleaner<'_, M>);
}

impl CleanField for String {
    fn clean<M: Mask>(&mut self, kind: TextKind, cleaner: &mut Cleaner<'_, M>) {
        cleaner.text(self, kind);
    }
}

impl<T: CleanField> CleanField for Option<T> {
    fn clean<M: Mask>(&mut self, kind: TextKind, cleaner: &mut Cleaner<'_, M>) {
        if let Some(value) = self {
            value.clean(kind, cleaner);
        }
    }
}

impl CleanField for Vec<String> {
    fn clean<M: Mask>(&mut self, kind: TextKind, cleaner: &mut Cleaner<'_, M>) {
        self.truncate(MAX_ENTRIES);
        for text in self {
            cleaner.text(text, kind);
        }
    }
}

impl CleanField for BTreeMap<String, Number> {
    fn clean<M: Mask>(&mut self, _kind: TextKind, cleaner: &mut Cleaner<'_, M>) {
        while self.len() > MAX_ENTRIES {
            self.pop_last();
        }
        let is_clean = |name: &String| {
            name.len() <= MAX_ID_BYTES && matches!(cleaner.mask.mask(name), Cow::Borrowed(_))
        };
        if self.keys().all(is_clean) {
            return;
        }
        let counts = std::mem::take(self).into_iter().map(|(mut name, count)| {
            cleaner.text(&mut name, TextKind::Id);
            (name, count)
        });
        self.extend(counts);
    }
}

/// Types without text.
macro_rules! without_text {
    ($($type:ty),+) => {$(
        impl CleanField for $type {
            fn clean<M: Mask>(&mut self, _kind: TextKind, _cleaner: &mut Cleaner<'_, M>) {}
        }
    )+};
}

without_text!(Uuid, Timestamp, bool, u64, u32, u16, Outcome, Quality, UsageKind);

/// Cleans fields of a row, each by the kind of its column.
macro_rules! clean_fields {
    ($row:expr, $cleaner:expr, $($field:ident),+) => {
        $({
            const KIND: $crate::record::text::TextKind =
                $crate::record::text::TextKind::of_column(stringify!($field));
            $crate::record::text::CleanField::clean(&mut $row.$field, KIND, $cleaner);
        })+
    };
}
pub(crate) use clean_fields;

#[cfg(test)]
mod tests {
    use super::*;

    /// Masks every `secret-key`.
    struct KeyMask;

    impl Mask for KeyMask {
        fn mask<'t>(&self, text: &'t str) -> Cow<'t, str> {
            if text.contains("secret-key") {
                Cow::Owned(text.replace("secret-key", "***"))
            } else {
                Cow::Borrowed(text)
            }
        }
    }

    fn cleaned(text: &str, kind: TextKind) -> String {
        let limits = ContentLimits { prompt: 2_000, ..ContentLimits::default() };
        let mut text = text.to_owned();
        Cleaner::new(&limits, &KeyMask).text(&mut text, kind);
        let mut again = text.clone();
        Cleaner::new(&limits, &KeyMask).text(&mut again, kind);
        assert_eq!(again, text, "cleaning twice changes nothing");
        text
    }

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_how_long_it_was() {
        assert_eq!(cleaned("gpt", TextKind::Name), "gpt");
        let long = cleaned(&"é".repeat(10_000), TextKind::Name);
        assert!(long.len() <= MAX_NAME_BYTES && long.starts_with('é'), "{long}");
        assert!(long.ends_with("…[cut: 20000 bytes]"), "{long}");
    }

    #[test]
    fn cut_ids_that_differ_at_their_end_stay_different() {
        let id = |end: &str| cleaned(&format!("{}{end}", "x".repeat(5_000)), TextKind::Id);
        assert_ne!(id("a"), id("b"));
        assert_eq!(id("a"), id("a"));
    }

    #[test]
    fn no_part_of_a_secret_is_left_where_a_text_is_cut() {
        for start in 1_900..2_010 {
            let text = format!("{}secret-key{}", "x".repeat(start), "y".repeat(10_000));
            let cut = cleaned(&text, TextKind::Prompt);
            assert!(!cut.contains("se"), "{start}: {cut}");
        }
        // Masking shortens the text, but nothing that was not searched moves into it.
        let text = "secret-key".repeat(2_000);
        assert!(!cleaned(&text, TextKind::Prompt).contains("se"));
    }

    #[test]
    fn the_contents_of_a_record_are_bounded_together() {
        let mut cleaner = Cleaner::new(&ContentLimits::MAX, &Unmasked);
        let mut texts = vec!["x".repeat(MAX_CONTENT_BYTES / 3); 10];
        for text in &mut texts {
            cleaner.text(text, TextKind::Arguments);
        }
        let total: usize = texts.iter().map(String::len).sum();
        assert!(total <= MAX_CONTENT_BYTES + 10 * MIN_CUT_BYTES, "{total}");
        assert!(texts[9].len() <= MIN_CUT_BYTES && texts[9].ends_with("…[cut: 5592405 bytes]"));
    }

    #[test]
    fn further_counts_are_bounded_in_number_and_name() {
        let name = |number: u64| format!("{number:04}{}", "n".repeat(5_000));
        let mut counts: BTreeMap<String, Number> =
            (0..500).map(|number| (name(number), number.into())).collect();
        let mut cleaner = Cleaner::new(&ContentLimits::MAX, &Unmasked);
        counts.clean(TextKind::Name, &mut cleaner);
        assert_eq!(counts.len(), MAX_ENTRIES);
        assert!(counts.keys().all(|name| name.len() <= MAX_ID_BYTES));
    }
}
