//! Text deltas, the bulk of every stream, recognised by the bytes around the text.
//!
//! Nothing here parses JSON, and a recognised delta needs no allocation.

use memchr::memmem;

use super::non_null;
use crate::json::{Kind, Value, string};

/// The bytes around the text of the last text delta.
///
/// The chunks of a stream differ only in their text and, in newer APIs, in random padding, so the next
/// delta is recognised by these bytes without being parsed.
#[derive(Debug, Default)]
pub(super) struct Template {
    head: Vec<u8>,
    /// From the text to the end, or to the padding.
    tail: Vec<u8>,
    /// From the padding to the end; empty if there is no padding.
    after_padding: Vec<u8>,
}

/// A text delta of the Responses API.
pub(super) struct TextDelta<'a> {
    /// Still escaped.
    pub(super) text: &'a [u8],
    pub(super) sequence_number: Option<u64>,
}

impl Template {
    /// The text, still escaped, of a chunk that has the same form as the last one.
    pub(super) fn text<'a>(&self, data: &'a [u8]) -> Option<&'a [u8]> {
        if self.head.is_empty() {
            return None;
        }
        let rest = data.strip_prefix(self.head.as_slice())?;
        let (text, rest) = rest.split_at_checked(string::closing_quote(rest)?)?;
        let rest = rest.strip_prefix(self.tail.as_slice())?;
        let padding = if self.after_padding.is_empty() {
            0
        } else {
            rest.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count()
        };
        (rest.get(padding..)? == self.after_padding.as_slice()).then_some(text)
    }

    /// Remembers the form of a chunk that holds one text and nothing else.
    pub(super) fn learn(&mut self, data: &[u8], chunk: &Value<'_>) {
        self.head.clear();
        let Some(text) = sole_text(chunk) else {
            return;
        };
        let text = text.range();
        let padding = chunk.get("obfuscation").filter(|value| value.kind() == Kind::String);
        let padding = padding.map(|padding| padding.range()).filter(|range| range.start > text.end);
        // From after the opening quote to before the closing one.
        let tail_end = padding.as_ref().map_or(data.len(), |padding| padding.start + 1);
        let after = padding.map_or(data.len(), |padding| padding.end - 1);
        let around =
            (data.get(..text.start + 1), data.get(text.end - 1..tail_end), data.get(after..));
        let (Some(head), Some(tail), Some(after)) = around else {
            return;
        };
        if head.len() + tail.len() + after.len() > MAX_TEMPLATE_BYTES {
            return;
        }
        self.head.extend_from_slice(head);
        replace(&mut self.tail, tail);
        replace(&mut self.after_padding, after);
    }
}

/// The text, still escaped, of a Messages event that is a text delta in its usual form.
pub(super) fn messages_text_delta(data: &[u8]) -> Option<&[u8]> {
    let rest = data.strip_prefix(br#"{"type":"content_block_delta","index":"#)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let rest = rest.get(digits..)?.strip_prefix(br#","delta":{"type":"text_delta","text":""#)?;
    let (text, tail) = rest.split_at_checked(string::closing_quote(rest)?)?;
    // The provider pads with spaces before the last brace.
    let tail = tail.strip_prefix(br#""}"#)?.trim_ascii();
    (tail == b"}").then_some(text)
}

/// Reads a Responses event that is a text delta in its usual form.
pub(super) fn responses_text_delta(data: &[u8]) -> Option<TextDelta<'_>> {
    let rest = data.strip_prefix(br#"{"type":"response.output_text.delta","#)?;
    // A quote inside a string is escaped, so this can only be the key.
    let key = br#""delta":""#;
    let (before, rest) = rest.split_at_checked(memmem::find(rest, key)?)?;
    let rest = rest.get(key.len()..)?;
    let (text, after) = rest.split_at_checked(string::closing_quote(rest)?)?;
    let sequence_number = sequence_number(after).or_else(|| sequence_number(before));
    after.ends_with(b"}").then_some(TextDelta { text, sequence_number })
}

fn sequence_number(members: &[u8]) -> Option<u64> {
    let key = br#""sequence_number":"#;
    let digits = members.get(memmem::find(members, key)? + key.len()..)?;
    let digits = digits.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(None, |number: Option<u64>, digit| {
        let number = number.unwrap_or_default();
        Some(number.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
    })
}

/// The text of a chunk that adds text to one choice and carries nothing else.
fn sole_text<'a>(chunk: &Value<'a>) -> Option<Value<'a>> {
    let mut choices = chunk.get("choices")?.elements();
    let (choice, None) = (choices.next()?, choices.next()) else {
        return None;
    };
    let says_more = non_null(chunk, "usage").is_some()
        || non_null(chunk, "error").is_some()
        || non_null(&choice, "finish_reason").is_some();
    let delta = choice.get("delta").filter(|_| !says_more)?.as_object()?;
    let mut members = delta.members();
    match (members.next(), members.next()) {
        (Some((key, text)), None) if key == "content" && text.kind() == Kind::String => Some(text),
        _ => None,
    }
}

fn replace(bytes: &mut Vec<u8>, with: &[u8]) {
    bytes.clear();
    bytes.extend_from_slice(with);
}

/// The maximum size of the bytes remembered around a text.
const MAX_TEMPLATE_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::{Template, messages_text_delta, responses_text_delta};
    use crate::json::Value;

    #[test]
    fn a_messages_text_delta_is_recognised_by_its_bytes() {
        for (data, text) in [
            (
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}}"#,
                "Hi",
            ),
            (
                r#"{"type":"content_block_delta","index":12,"delta":{"type":"text_delta","text":"\"\\"}      }"#,
                r#"\"\\"#,
            ),
            (
                r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":""} }"#,
                "",
            ),
        ] {
            assert_eq!(messages_text_delta(data.as_bytes()), Some(text.as_bytes()), "{data}");
        }
        for data in [
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"Hi"}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi"},"type":"error"}"#,
        ] {
            assert_eq!(messages_text_delta(data.as_bytes()), None, "{data}");
        }
    }

    #[test]
    fn a_responses_text_delta_is_recognised_by_its_bytes() {
        for (data, text, number) in [
            (
                r#"{"type":"response.output_text.delta","item_id":"m","delta":"a\"b","sequence_number":12}"#,
                r#"a\"b"#,
                Some(12),
            ),
            (
                r#"{"type":"response.output_text.delta","sequence_number":3,"delta":""}"#,
                "",
                Some(3),
            ),
            (r#"{"type":"response.output_text.delta","delta":"x","obfuscation":"y"}"#, "x", None),
        ] {
            let delta = responses_text_delta(data.as_bytes()).unwrap();
            assert_eq!((delta.text, delta.sequence_number), (text.as_bytes(), number));
        }
        for data in [
            r#"{"type":"response.output_text.delta","delta":"x"#,
            r#"{"type":"response.output_text.done","delta":"x"}"#,
            r#"{"type":"response.output_text.delta","delta":{"x":1}}"#,
        ] {
            assert!(responses_text_delta(data.as_bytes()).is_none(), "{data}");
        }
    }

    #[test]
    fn a_chat_text_delta_is_recognised_by_the_bytes_of_the_previous_one() {
        let chunk = |delta: &str| {
            format!(
                r#"{{"id":"c","choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}"#
            )
        };
        let mut template = Template::default();
        let first = chunk(r#"{"content":"one"}"#);
        assert_eq!(template.text(first.as_bytes()), None);
        template.learn(first.as_bytes(), &Value::parse(first.as_bytes()).unwrap());
        for text in ["one", "", r#"\"}]\\"#, "😀"] {
            let next = chunk(&format!(r#"{{"content":"{text}"}}"#));
            assert_eq!(template.text(next.as_bytes()), Some(text.as_bytes()));
            assert_eq!(template.text(&next.as_bytes()[..next.len() - 1]), None);
            assert_eq!(template.text(format!("{next} ").as_bytes()), None);
        }
        let other = chunk(r#"{"content":"one","x":1}"#);
        assert_eq!(template.text(other.as_bytes()), None);
        template.learn(other.as_bytes(), &Value::parse(other.as_bytes()).unwrap());
        assert_eq!(template.text(first.as_bytes()), None, "only plain text is remembered");
    }
}
