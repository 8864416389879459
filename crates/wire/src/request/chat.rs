//! Requests of the Chat Completions API.

use super::{
    RequestView, ToolResult, TopLevel, has_text, includes_usage, is_instruction, member_text,
    prompt,
};

pub(super) fn read(top: &TopLevel<'_>, view: &mut RequestView) {
    view.include_usage = top.stream_options.is_some_and(includes_usage);
    let messages = top.messages.entries();
    if let Some(last) = messages.iter().rev().find(|message| !is_instruction(message)) {
        if has_text(last, "role", "tool") {
            view.correlating_tool_call_id = member_text(last, "tool_call_id");
        }
        if has_text(last, "role", "user") {
            view.prompt = last.get("content").and_then(prompt::extract);
        }
    }
    let turn = messages.iter().rposition(|message| has_text(message, "role", "assistant"));
    let new = messages.get(turn.map_or(0, |turn| turn + 1)..).unwrap_or_default();
    let results = new.iter().filter(|message| has_text(message, "role", "tool"));
    results
        .filter_map(|result| ToolResult::new(result.get("tool_call_id"), result.get("content")))
        .for_each(|result| view.push_tool_result(result));
}
