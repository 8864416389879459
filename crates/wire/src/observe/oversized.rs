//! Answers and events over the size limit: read without their long strings, in bounded memory.
//!
//! What makes an answer so large is an image or a file, whose text is one string. The rest has the usage,
//! the tool calls and the reason why the model stopped.

use memchr::memchr2;

use super::{Decoder, Observation};
use crate::sse::Frame;

/// Maximum length of a string that is read of such a document.
const MAX_STRING_BYTES: usize = 256 << 10;
/// The size from which on inner parts are left out.
const MAX_ABRIDGED_BYTES: usize = 8 << 20;
/// What each outer member may have even so.
const MAX_MEMBER_BYTES: usize = 64 << 10;
/// The size at which the document is given up.
const MAX_TOTAL_BYTES: usize = 16 << 20;
/// The length of the longest escape: `\u00e9`.
const MAX_ESCAPE_BYTES: usize = 6;

/// A JSON document that is abridged as it arrives: its structure is kept, long strings lose their ends, and
/// if it is still too large, the ends of inner objects and arrays are left out.
#[derive(Debug, Default)]
pub(super) struct Abridger {
    kept: Vec<u8>,
    string: Option<OpenString>,
    /// The number of open objects and arrays that are kept.
    depth: usize,
    /// The depth of the answer's members.
    outer_depth: usize,
    /// The size up to which the current member is kept.
    allowed: usize,
    /// The number of objects and arrays that are open within what is left out.
    omitted: Option<usize>,
}

/// A string that is being received.
#[derive(Debug, Default)]
struct OpenString {
    length: usize,
    escape: Escape,
    is_cut: bool,
}

/// The position in an escape.
#[derive(Debug, Default, Clone, Copy)]
enum Escape {
    #[default]
    None,
    AfterBackslash,
    /// Before the digits of a Unicode escape; so many are left.
    Digits(u8),
}

impl Abridger {
    /// Abridges an answer.
    pub(super) fn of_body() -> Self {
        Self { outer_depth: 1, ..Self::default() }
    }

    /// Abridges the data of an event, of which the answer may be a member.
    fn of_event() -> Self {
        Self { outer_depth: 2, ..Self::default() }
    }

    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        while let Some((byte, rest)) = bytes.split_first() {
            bytes = if let Some(string) = self.string.take() {
                self.push_string(string, bytes)
            } else {
                self.push_structure(*byte);
                rest
            };
        }
    }

    /// The abridged document, unless it was given up.
    pub(super) fn finish(self) -> Option<Vec<u8>> {
        (self.kept.len() < MAX_TOTAL_BYTES).then_some(self.kept)
    }

    fn push_structure(&mut self, byte: u8) {
        match byte {
            b'"' => self.string = Some(OpenString::default()),
            b'{' | b'[' => match &mut self.omitted {
                Some(open) => *open += 1,
                None => self.depth += 1,
            },
            b'}' | b']' => match &mut self.omitted {
                Some(open @ 1..) => *open -= 1,
                omitted => {
                    *omitted = None;
                    self.depth = self.depth.saturating_sub(1);
                }
            },
            b',' if self.omitted.is_none() => self.start_member(),
            _ => {}
        }
        self.keep(&[byte]);
    }

    fn start_member(&mut self) {
        let size = self.kept.len();
        if self.depth <= self.outer_depth {
            self.allowed = size + MAX_MEMBER_BYTES;
        } else if size > self.allowed.max(MAX_ABRIDGED_BYTES) {
            self.omitted = Some(0);
        }
    }

    /// Reads the next part of a string; returns what follows it.
    fn push_string<'a>(&mut self, mut string: OpenString, bytes: &'a [u8]) -> &'a [u8] {
        let text_length = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
        let length = match (string.escape, bytes.first()) {
            (Escape::None, Some(b'"')) => {
                self.keep(b"\"");
                return bytes.get(1..).unwrap_or_default();
            }
            (Escape::None, Some(b'\\')) => {
                string.is_cut |= string.length + MAX_ESCAPE_BYTES > MAX_STRING_BYTES;
                string.escape = Escape::AfterBackslash;
                1
            }
            (Escape::None, _) => text_length,
            (Escape::AfterBackslash, Some(b'u')) => {
                string.escape = Escape::Digits(4);
                1
            }
            (Escape::Digits(left @ 2..), _) => {
                string.escape = Escape::Digits(left - 1);
                1
            }
            (Escape::AfterBackslash | Escape::Digits(_), _) => {
                string.escape = Escape::None;
                1
            }
        };
        let (part, rest) = bytes.split_at_checked(length).unwrap_or((bytes, &[]));
        if !string.is_cut {
            let room = MAX_STRING_BYTES.saturating_sub(string.length).max(1);
            string.is_cut = part.len() > room;
            let part = if string.is_cut { whole_characters(part, room) } else { part };
            string.length += part.len();
            self.keep(part);
        }
        self.string = Some(string);
        rest
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.omitted.is_none() && self.kept.len() < MAX_TOTAL_BYTES {
            self.kept.extend_from_slice(bytes);
        }
    }
}

/// The beginning of a text of at most `length` bytes, without a part of a character at its end.
fn whole_characters(text: &[u8], length: usize) -> &[u8] {
    let is_boundary = |at: &usize| text.get(*at).is_none_or(|byte| byte & 0xc0 != 0x80);
    let end = (0..=length).rev().find(is_boundary).unwrap_or_default();
    text.get(..end).unwrap_or_default()
}

/// An event over the size limit while it is being received.
#[derive(Debug)]
pub(super) struct OversizedEvent {
    name: Option<Vec<u8>>,
    data: Abridger,
    line: Line,
}

/// The position in a line of the event.
#[derive(Debug)]
enum Line {
    /// In the name of its field.
    Field(Vec<u8>),
    /// In the value of `data`.
    Data,
    Other,
}

impl Default for OversizedEvent {
    fn default() -> Self {
        Self { name: None, data: Abridger::of_event(), line: Line::Field(Vec::new()) }
    }
}

impl OversizedEvent {
    pub(super) fn push(&mut self, fragment: &Frame<'_>) {
        if self.name.is_none() {
            self.name = fragment.event().map(<[u8]>::to_vec);
        }
        let mut rest = fragment.raw();
        while let Some((byte, after)) = rest.split_first() {
            if let Line::Field(name) = &mut self.line {
                rest = after;
                match byte {
                    b'\n' | b'\r' => name.clear(),
                    b':' => self.line = if name == b"data" { Line::Data } else { Line::Other },
                    _ if name.len() < b"data".len() => name.push(*byte),
                    _ => self.line = Line::Other,
                }
                continue;
            }
            let line_end = memchr2(b'\n', b'\r', rest);
            let (value, after) =
                rest.split_at_checked(line_end.unwrap_or(rest.len())).unwrap_or((rest, &[]));
            if matches!(self.line, Line::Data) {
                self.data.push(value);
            }
            if line_end.is_some() {
                self.line = Line::Field(Vec::new());
            }
            rest = after;
        }
    }

    /// Reads the event as far as it was kept; returns its name.
    pub(super) fn read(self, decoder: &mut Decoder, observed: &mut Observation) -> Option<Vec<u8>> {
        if let Some(data) = self.data.finish() {
            decoder.handle_event(self.name.as_deref(), &data, observed);
        }
        self.name
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{Abridger, MAX_STRING_BYTES, MAX_TOTAL_BYTES};

    fn abridged(document: &str, chunk: usize) -> serde_json::Value {
        let mut abridger = Abridger::of_event();
        document.as_bytes().chunks(chunk).for_each(|chunk| abridger.push(chunk));
        let kept = abridger.finish().unwrap();
        assert!(kept.len() < MAX_TOTAL_BYTES);
        serde_json::from_slice(&kept).unwrap()
    }

    #[test]
    fn long_strings_lose_their_ends_and_nothing_else() {
        for text in ["A", "é", "\\n", "\\u00e9", "😀", "a\\\\\\\"é"] {
            for shift in 0..3 {
                let long = format!(
                    "{}{}",
                    "x".repeat(shift),
                    text.repeat(MAX_STRING_BYTES / text.len() + 100)
                );
                let document = format!(
                    r#"{{"a,}}":"{long}","b":["short \" \\",{{"c":null}}],"usage":{{"input":12}}}}"#
                );
                let kept = abridged(&document, 4_099);
                let cut = kept["a,}"].as_str().unwrap();
                let whole: String = serde_json::from_str(&format!("\"{long}\"")).unwrap();
                assert!(cut.len() <= MAX_STRING_BYTES && cut.len() > MAX_STRING_BYTES / 8);
                assert!(whole.starts_with(cut.trim_end_matches('\u{fffd}')), "{text} {shift}");
                assert_eq!(kept["b"], json!(["short \" \\", {"c": null}]));
                assert_eq!(kept["usage"]["input"], 12);
            }
        }
    }

    #[test]
    fn of_many_parts_the_first_ones_and_all_outer_members_are_kept() {
        let part =
            json!({"type": "text", "list": [1, 2, [3, {"a": []}]], "text": "y".repeat(9_000)});
        let parts = vec![json!({"content": vec![part; 1_000]}); 2];
        let document = json!({
            "type": "done",
            "response": {"id": "r", "output": parts,
                "usage": {"input": 1, "details": {"a": 2, "b": [3, 4]}, "output": 5}},
            "last": {"x": [1, 2]},
        });
        let kept = abridged(&document.to_string(), 8_192);
        assert_eq!(kept["response"]["usage"], document["response"]["usage"]);
        assert_eq!(kept["last"], document["last"]);
        let content = |output: usize| {
            kept["response"]["output"][output]["content"].as_array().map_or(0, Vec::len)
        };
        assert!((800..1_000).contains(&content(0)), "{}", content(0));
    }

    #[test]
    fn a_document_that_stays_too_large_is_given_up() {
        let mut abridger = Abridger::of_body();
        abridger.push(&vec![b'['; MAX_TOTAL_BYTES + 1]);
        assert_eq!(abridger.finish(), None);
    }

    proptest! {
        #[test]
        fn a_small_document_is_kept_byte_for_byte(
            text in r#"[\[\]{}",:\\u0-9a-fé ]{0,200}"#,
            chunk in 1_usize..9,
        ) {
            let mut abridger = Abridger::of_body();
            text.as_bytes().chunks(chunk).for_each(|chunk| abridger.push(chunk));
            prop_assert_eq!(abridger.finish().unwrap(), text.as_bytes());
        }
    }
}
