//! Requests of the Messages API.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::{Message, RequestView, TopLevel, Value, member_text, servers, text};
use crate::json::Kind;

/// Precedes the session id in a `metadata.user_id` that is not JSON.
const SESSION_MARK: &str = "_session_";

pub(super) fn read(top: &TopLevel<'_>, view: &mut RequestView) {
    view.metadata_session_id = top.metadata.and_then(session_id);
    view.hosted_servers = top.mcp_servers.map(servers::of_messages).unwrap_or_default();
    let (new, turn) = Message::new_ones(top.messages.entries());
    let last = new.iter().position(|message| !message.is_instruction());
    for (number, message) in new.iter().enumerate().rev() {
        let is_last = last == Some(number);
        for [id, content, is_error] in message.tool_results() {
            if is_last {
                view.correlating_tool_call_id = text(id);
            }
            view.add_tool_result(id, content, is_error.and_then(|value| value.as_bool()));
        }
        if let (true, Some(content)) = (message.is_of("user"), message.content) {
            view.add_user_content(content, is_last);
        }
    }
    if last.is_none() {
        let results = turn.iter().flat_map(Message::tool_results);
        let result = results.last().and_then(|[id, ..]| text(id));
        // A turn that was paused in the middle of the provider's own calls is sent back to go on:
        // <https://platform.claude.com/docs/en/build-with-claude/handling-stop-reasons>.
        let call = || turn.iter().flat_map(Message::provider_calls).last();
        view.correlating_tool_call_id = result.or_else(call);
    }
}

impl<'a> Message<'a> {
    /// Id, content and mark of an error of each tool result that has an id.
    fn tool_results(&self) -> impl Iterator<Item = [Option<Value<'a>>; 3]> + use<'a> {
        let members = ["type", "tool_use_id", "content", "is_error"];
        // Most messages have none, and searching for the word is cheaper than parsing.
        let content = self.content.filter(|content| mentions_results(content.raw()));
        let parts = content.into_iter().flat_map(move |content| content.objects(members));
        parts.filter_map(|[kind, id, content, is_error]| {
            let is_result = kind.is_some_and(|kind| kind.is_text("tool_result"));
            let is_named = || id?.as_str().filter(|id| !id.trim().is_empty());
            (is_result && is_named().is_some()).then_some([id, content, is_error])
        })
    }

    /// The ids of the calls of the provider's own tools.
    fn provider_calls(&self) -> impl Iterator<Item = String> + use<'a> {
        let parts = self.content.into_iter().flat_map(|content| content.objects(["type", "id"]));
        parts.filter_map(|[kind, id]| {
            kind.filter(|kind| kind.is_text("server_tool_use") || kind.is_text("mcp_tool_use"))?;
            text(id)
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
