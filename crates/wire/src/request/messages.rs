//! Requests of the Messages API.

use super::{RequestView, ToolResult, Top, Value, is, is_instruction, member_text, prompt};
use crate::json::{Kind, Value as Json};

/// Stands in `metadata.user_id` before the session's id, where that is no JSON.
const SESSION_MARK: &str = "_session_";

pub(super) fn read(top: &Top<'_>, view: &mut RequestView) {
    view.metadata_session_id = top.metadata.and_then(session_id);
    let messages = top.messages.entries();
    if let Some(last) = messages.iter().rev().find(|message| !is_instruction(message)) {
        view.correlating_tool_call_id = tool_results(last).last().map(|result| result.tool_call_id);
        if is(last, "role", "user") {
            view.prompt = last.get("content").and_then(prompt::of);
        }
    }
    let turn = messages.iter().rposition(|message| is(message, "role", "assistant"));
    let new = messages.get(turn.map_or(0, |turn| turn + 1)..).unwrap_or_default();
    view.tool_results = new.iter().flat_map(tool_results).collect();
}

fn tool_results<'a>(message: &Value<'a>) -> impl Iterator<Item = ToolResult> + use<'a> {
    let parts = message.get("content").into_iter().flat_map(|content| content.elements());
    parts.filter(|part| is(part, "type", "tool_result")).filter_map(|part| {
        let result = ToolResult::new(part.get("tool_use_id"), part.get("content"))?;
        let is_error = part.get("is_error").and_then(|value| value.as_bool());
        Some(ToolResult { is_error, ..result })
    })
}

/// The session named in `metadata.user_id`, which agents fill in one of two ways.
fn session_id(metadata: Value<'_>) -> Option<String> {
    let user_id = member_text(&metadata, "user_id")?;
    match Json::parse(user_id.as_bytes()) {
        Ok(value) if value.kind() == Kind::Object => member_text(&value, "session_id"),
        _ => {
            let (_, session) = user_id.split_once(SESSION_MARK)?;
            Some(session.to_owned()).filter(|session| !session.trim().is_empty())
        }
    }
}
