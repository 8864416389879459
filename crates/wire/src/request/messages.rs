//! Requests of the Messages API.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::{RequestView, ToolResult, TopLevel, Value, member_text, prompt};
use crate::json::Kind;

/// Precedes the session id in a `metadata.user_id` that is not JSON.
const SESSION_MARK: &str = "_session_";

/// The relevant members of a message.
#[derive(Debug, Clone, Copy)]
struct Message<'a> {
    role: Option<Value<'a>>,
    content: Option<Value<'a>>,
}

pub(super) fn read(top: &TopLevel<'_>, view: &mut RequestView) {
    view.metadata_session_id = top.metadata.and_then(session_id);
    // From the end, so that a long history is not searched again.
    let mut new = Vec::new();
    let mut turn = None;
    for message in top.messages.entries().iter().rev().map(Message::read) {
        if message.is_of("assistant") {
            turn = Some(message);
            break;
        }
        new.push(message);
    }
    let last = new.iter().position(|message| !message.is_instruction());
    for (number, message) in new.iter().enumerate().rev() {
        for result in message.tool_results() {
            if last == Some(number) {
                view.correlating_tool_call_id = Some(result.tool_call_id.clone());
            }
            view.push_tool_result(result);
        }
    }
    match last.and_then(|last| new.get(last)) {
        Some(last) if last.is_of("user") => view.prompt = last.content.and_then(prompt::extract),
        Some(_) => {}
        None => {
            let results = turn.iter().flat_map(Message::tool_results);
            view.correlating_tool_call_id = results.last().map(|result| result.tool_call_id);
        }
    }
}

impl<'a> Message<'a> {
    fn read(message: &Value<'a>) -> Self {
        let [role, content] = message.get_all(["role", "content"]);
        Self { role, content }
    }

    fn is_of(&self, role: &str) -> bool {
        self.role.is_some_and(|value| value.is_text(role))
    }

    /// Whether it holds instructions to the model rather than a turn of the conversation.
    fn is_instruction(&self) -> bool {
        self.is_of("system") || self.is_of("developer")
    }

    fn tool_results(&self) -> impl Iterator<Item = ToolResult> + use<'a> {
        let members = ["type", "tool_use_id", "content", "is_error"];
        // Most messages have none, and searching for the word is cheaper than parsing.
        let content = self.content.filter(|content| mentions_results(content.raw()));
        let parts = content.into_iter().flat_map(move |content| content.objects(members));
        parts.filter_map(|[kind, id, content, is_error]| {
            kind.filter(|kind| kind.is_text("tool_result"))?;
            let is_error = is_error.and_then(|value| value.as_bool());
            Some(ToolResult { is_error, ..ToolResult::new(id, content)? })
        })
    }
}

/// Whether a content may have results: the word could only be spelled differently with an escape.
fn mentions_results(content: &str) -> bool {
    static WORD: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("tool_result"));
    static ESCAPE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\\u"));
    WORD.find(content.as_bytes()).is_some() || ESCAPE.find(content.as_bytes()).is_some()
}

/// The session named in `metadata.user_id`, which agents fill in either of two formats.
fn session_id(metadata: Value<'_>) -> Option<String> {
    let user_id = member_text(&metadata, "user_id")?;
    match Value::parse(user_id.as_bytes()) {
        Ok(value) if value.kind() == Kind::Object => member_text(&value, "session_id"),
        _ => {
            let (_, session) = user_id.split_once(SESSION_MARK)?;
            Some(session.to_owned()).filter(|session| !session.trim().is_empty())
        }
    }
}
