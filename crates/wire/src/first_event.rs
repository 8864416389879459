//! What the first event of a stream shows before anything is relayed: the answer has begun, or the provider
//! reports that it cannot answer now, as it otherwise does by a status.

use memchr::{memchr2, memmem};

use crate::{error::transient_status, json::Value};

/// What the beginning of a stream shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstEvent {
    /// The first event has not arrived completely, and may be an error.
    Incomplete,
    /// The answer has begun, or the stream has an error that a retry would meet again.
    Begun,
    /// The provider cannot answer now; this status says the same.
    Failed(u16),
}

/// Events that carry nothing of an answer: if they arrive alone, the stream has begun.
const EMPTY_EVENTS: [&[u8]; 4] =
    [b"ping", b"response.created", b"response.in_progress", b"response.queued"];
/// The events of the Messages and Responses APIs that report an error.
const ERROR_EVENTS: [&[u8]; 2] = [b"error", b"response.failed"];

/// Reads the beginning of a stream, as far as it has arrived.
#[must_use]
pub fn first_event(start: &[u8]) -> FirstEvent {
    let mut rest = start.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(start);
    let mut has_begun = false;
    loop {
        match Event::read(rest) {
            Event::Failed(status) => return FirstEvent::Failed(status),
            Event::Content => return FirstEvent::Begun,
            // What has arrived is not held back for what may follow.
            Event::Incomplete if has_begun => return FirstEvent::Begun,
            Event::Incomplete => return FirstEvent::Incomplete,
            Event::Empty(after) => {
                has_begun |= rest.len() - after.len() > 2;
                rest = after;
            }
        }
    }
}

/// One event at the beginning of a text.
enum Event<'a> {
    Incomplete,
    /// It carries nothing of an answer; what follows it.
    Empty(&'a [u8]),
    Content,
    Failed(u16),
}

impl<'a> Event<'a> {
    fn read(text: &'a [u8]) -> Self {
        let (mut rest, mut name, mut data) = (text, None, Data::None);
        while let Some((line, after)) = split_line(rest) {
            rest = after;
            match line {
                [] => return Self::complete(name, &data, rest),
                [b':', ..] => {}
                _ if let Some(value) = field(line, b"event:") => {
                    if !EMPTY_EVENTS.contains(&value) && !ERROR_EVENTS.contains(&value) {
                        return Self::Content;
                    }
                    name = Some(value);
                }
                _ if let Some(value) = field(line, b"data:") => data.push(value),
                _ if field(line, b"id:").is_some() || field(line, b"retry:").is_some() => {}
                _ => return Self::Content,
            }
        }
        // A comment passes at once, and so does an event of which the name says enough.
        let begins_empty = name.is_some_and(|name| EMPTY_EVENTS.contains(&name));
        // The last is the first byte of a byte order mark.
        let begins_like_event =
            matches!(rest.first(), None | Some(b'e' | b'd' | b'i' | b'r' | b'\xEF'));
        if text.first() == Some(&b':') || begins_empty || !begins_like_event {
            return Self::Content;
        }
        Self::Incomplete
    }

    fn complete(name: Option<&[u8]>, data: &Data<'_>, rest: &'a [u8]) -> Self {
        let data = data.bytes();
        if name.is_some_and(|name| EMPTY_EVENTS.contains(&name))
            || name.is_none() && data.is_empty()
        {
            return Self::Empty(rest);
        }
        let is_error = name.is_some_and(|name| ERROR_EVENTS.contains(&name));
        if !is_error && memmem::find(data, b"\"error\"").is_none() {
            return Self::Content;
        }
        failed_status(data, is_error).map_or(Self::Content, Self::Failed)
    }
}

/// The data of an event, in one line or in several.
enum Data<'a> {
    None,
    Line(&'a [u8]),
    Lines(Vec<u8>),
}

impl<'a> Data<'a> {
    fn push(&mut self, line: &'a [u8]) {
        match self {
            Self::None => *self = Self::Line(line),
            Self::Line(first) => *self = Self::Lines([*first, line].join(&b'\n')),
            Self::Lines(lines) => {
                lines.push(b'\n');
                lines.extend_from_slice(line);
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::None => &[],
            Self::Line(line) => line,
            Self::Lines(lines) => lines,
        }
    }
}

/// The first line of a text without its end, and what follows; `None` while the line has no end.
fn split_line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (line, rest) = text.split_at_checked(memchr2(b'\n', b'\r', text)?)?;
    let rest = rest.strip_prefix(b"\r\n").or_else(|| rest.get(1..))?;
    Some((line, rest))
}

/// The value of a line that has this field.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    line.strip_prefix(name).map(|value| value.strip_prefix(b" ").unwrap_or(value))
}

/// The status that says the same as an error event, if a retry may help.
fn failed_status(data: &[u8], is_error: bool) -> Option<u16> {
    let value = Value::parse(data).ok()?;
    let is_named = |key: &str| {
        value.get(key).and_then(|name| name.as_str()).is_some_and(|name| name == "error")
    };
    let error = error_of(&value)
        .or_else(|| error_of(&value.get("response")?))
        .or_else(|| (is_error || is_named("type") || is_named("object")).then_some(value))?;
    // The code says more than the type.
    ["code", "type", "status"].into_iter().find_map(|key| {
        let name = error.get(key)?;
        match name.as_u64() {
            Some(number) => transient_status(&number.to_string()),
            None => transient_status(&name.as_str()?),
        }
    })
}

fn error_of<'a>(value: &Value<'a>) -> Option<Value<'a>> {
    value.get("error").filter(|error| !error.is_null())
}

#[cfg(test)]
mod tests {
    use super::{FirstEvent, first_event};

    const OVERLOADED: &str =
        r#"{"type":"error","error":{"type":"overloaded_error","message":"busy"}}"#;

    fn judged(text: &str) -> FirstEvent {
        first_event(text.as_bytes())
    }

    #[test]
    fn an_error_that_a_retry_may_cure_is_found_in_every_dialect() {
        for (text, status) in [
            (format!("event: error\ndata: {OVERLOADED}\n\n"), 529),
            (format!("\u{feff}event:error\r\ndata:{OVERLOADED}\r\n\r\n"), 529),
            (format!("event: ping\ndata: {{}}\n\nevent: error\ndata: {OVERLOADED}\n\n"), 529),
            (format!(": connected\n\nid: 1\nretry: 5\nevent: error\ndata: {OVERLOADED}\n\n"), 529),
            (format!("event: error\ndata: {}\n\n", OVERLOADED.replace(",\"m", ",\ndata: \"m")), 529),
            (r#"data: {"error":{"message":"m","type":"requests","code":"rate_limit_exceeded"}}"#.to_owned() + "\n\n", 429),
            (r#"data: {"error":{"message":"m","code":502}}"#.to_owned() + "\n\n", 502),
            (r#"data: {"error":{"code":503,"status":"UNAVAILABLE"}}"#.to_owned() + "\n\n", 503),
            (r#"data: {"id":"c","choices":[],"error":{"code":"server_error"}}"#.to_owned() + "\n\ndata: [DONE]\n\n", 500),
            (r#"data: {"object":"error","type":"InternalServerError","code":null}"#.to_owned() + "\r\r", 500),
            ("event: error\ndata: {\"type\":\"error\",\"code\":\"server_is_overloaded\"}\n\n".to_owned(), 529),
            ("data: {\"type\":\"error\",\"error\":{\"code\":\"server_is_overloaded\"}}\n\n".to_owned(), 529),
            ("event: response.created\ndata: {\"error\":null}\n\nevent: response.failed\ndata: {\"response\":{\"error\":{\"code\":\"server_is_overloaded\"}}}\n\n".to_owned(), 529),
        ] {
            assert_eq!(judged(&text), FirstEvent::Failed(status), "{text}");
            // Wherever it is cut, it is waited for.
            let begins_empty = ["event: ping", ":", "event: response.created"]
                .iter()
                .any(|begin| text.starts_with(begin));
            let error_at = text.find("error").unwrap_or_default();
            for end in (0..error_at).filter(|_| !begins_empty) {
                let cut = first_event(&text.as_bytes()[..end]);
                assert_eq!(cut, FirstEvent::Incomplete, "{end} {text}");
            }
        }
    }

    #[test]
    fn everything_else_passes_at_once() {
        for text in [
            "event: message_start\n",
            "event: ping\n",
            "event: response.created\ndata: {\"type\":",
            ": waiting",
            ": OPENROUTER PROCESSING\n\n",
            "{\"error\":{\"code\":503}}",
            "<html>",
            "data: [DONE]\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"an \\\"error\\\"\"}}]}\n\n",
            "data: {\"choices\":[],\"error\":null}\n\n",
            "data: {\"error\":\"overloaded\"}\n\n",
            "data: not \"error\" json\n\n",
            "event: error\ndata: {\"error\":{\"type\":\"invalid_request_error\"}}\n\n",
            "data: {\"error\":{\"type\":\"insufficient_quota\",\"code\":\"insufficient_quota\"}}\n\n",
            "data: {\"error\":{\"code\":400}}\n\n",
            "event: response.failed\ndata: {\"response\":{\"error\":{\"code\":\"invalid_prompt\"}}}\n\n",
        ] {
            assert_eq!(judged(text), FirstEvent::Begun, "{text}");
        }
        for text in [
            "",
            "\n",
            "ev",
            "event: error\n",
            "event: error\ndata: {\"type\":",
            "data: {\"id\":\"c\",\"choi",
        ] {
            assert_eq!(judged(text), FirstEvent::Incomplete, "{text}");
        }
    }
}
