//! Errors that providers report, in the various forms that servers give them.

use super::{ProviderError, text};
use crate::json::{Kind, Value};

/// The kind of an error that has neither a type nor a code.
const UNNAMED_ERROR: &str = "error";
/// The members that hold an error's message, in order of preference.
const MESSAGE_KEYS: [&str; 5] = ["message", "msg", "detail", "errors", "error_description"];
/// How deeply messages nest: `message.detail[].msg`.
const MAX_MESSAGE_DEPTH: usize = 6;
/// Maximum number of messages that are joined.
const MAX_MESSAGES: usize = 8;

impl ProviderError {
    /// Reads an `error` value: an object with type or code and message, or a plain string.
    pub(super) fn read(error: &Value<'_>) -> Self {
        let kind = kind_of(error).unwrap_or_else(|| UNNAMED_ERROR.to_owned());
        Self { kind, message: message_of(error, MAX_MESSAGE_DEPTH).unwrap_or_default() }
    }

    /// The error in a body or in the data of an event: its `error` member, an object that calls itself an
    /// error, or either in an array.
    pub(super) fn find(value: &Value<'_>) -> Option<Self> {
        if value.kind() == Kind::Array {
            let first = value.elements().next()?;
            return (first.kind() == Kind::Object).then(|| Self::find(&first)).flatten();
        }
        let [error, object, kind] = value.get_all(["error", "object", "type"]);
        if let Some(error) = error.filter(is_reported) {
            return Some(Self::of_member(&error, value));
        }
        let is_error = |member: Option<Value<'_>>| member.is_some_and(|name| name.is_text("error"));
        (is_error(object) || is_error(kind)).then(|| Self::read(value))
    }

    /// The error in a body that lacks what an answer has: it may have nothing but a message.
    pub(super) fn of_non_answer(value: &Value<'_>) -> Option<Self> {
        let is_list = value.kind() == Kind::Array;
        Self::find(value).or_else(|| {
            let read = Self::read(value);
            (!is_list && !read.message.is_empty()).then_some(read)
        })
    }

    /// The error of an `error` member that may be a word or a flag beside the message.
    fn of_member(error: &Value<'_>, parent: &Value<'_>) -> Self {
        let mut read = Self::read(error);
        if error.kind() == Kind::Object {
            return read;
        }
        if let Some(kind) = kind_of(parent) {
            read.kind = kind;
        }
        if let Some(message) = message_of(parent, MAX_MESSAGE_DEPTH)
            && message != read.message
        {
            let separator = if read.message.is_empty() { "" } else { ": " };
            read.message = format!("{}{separator}{message}", read.message);
        }
        read
    }
}

/// Whether an `error` member reports one: many servers give it an empty value otherwise.
pub(crate) fn is_reported(error: &Value<'_>) -> bool {
    match error.kind() {
        Kind::Null => false,
        Kind::Bool => error.as_bool() == Some(true),
        Kind::String => error.as_str().is_some_and(|text| !text.is_empty()),
        Kind::Number => error.as_u64() != Some(0),
        Kind::Array => error.elements().next().is_some(),
        Kind::Object => error.as_object().is_some_and(|error| error.members().next().is_some()),
    }
}

/// The type or code of an error.
fn kind_of(error: &Value<'_>) -> Option<String> {
    let [kind, code, status] = error.get_all(["type", "code", "status"]);
    let named = |member: Option<Value<'_>>| text(member).filter(|text| !text.is_empty());
    let number = |member: Option<Value<'_>>| {
        member.filter(|code| code.kind() == Kind::Number).map(|code| code.raw().to_owned())
    };
    named(kind)
        .filter(|kind| kind != UNNAMED_ERROR)
        .or_else(|| named(code))
        .or_else(|| number(code))
        .or_else(|| named(status))
        .or_else(|| number(status))
}

/// The message of an error, in whatever member it is.
fn message_of(error: &Value<'_>, depth: usize) -> Option<String> {
    let depth = depth.checked_sub(1)?;
    match error.kind() {
        Kind::String => text(Some(*error)).filter(|message| !message.is_empty()),
        Kind::Array => {
            let messages = error.elements().filter_map(|one| message_of(&one, depth));
            let messages: Vec<String> = messages.take(MAX_MESSAGES).collect();
            (!messages.is_empty()).then(|| messages.join("; "))
        }
        Kind::Object => {
            let found = error.get_all(MESSAGE_KEYS).into_iter().flatten();
            let message = found.into_iter().find_map(|member| message_of(&member, depth))?;
            Some(match location(error) {
                Some(location) => format!("{message} ({location})"),
                None => message,
            })
        }
        Kind::Number | Kind::Bool | Kind::Null => None,
    }
}

/// The place in the request that a validation error names, as `body.stream_options`.
fn location(error: &Value<'_>) -> Option<String> {
    let parts = error.get("loc")?.elements().take(MAX_MESSAGES);
    let parts = parts.map(|part| part.as_str().map_or_else(|| part.raw().into(), Into::into));
    let parts: Vec<String> = parts.collect();
    (!parts.is_empty()).then(|| parts.join("."))
}
