//! Requests of the Chat Completions API.

use super::{
    RequestView, ToolResult, Top, asks_for_usage, is, is_instruction, member_text, prompt,
};

pub(super) fn read(top: &Top<'_>, view: &mut RequestView) {
    view.asks_for_usage = top.stream_options.is_some_and(asks_for_usage);
    let messages = top.messages.entries();
    if let Some(last) = messages.iter().rev().find(|message| !is_instruction(message)) {
        if is(last, "role", "tool") {
            view.correlating_tool_call_id = member_text(last, "tool_call_id");
        }
        if is(last, "role", "user") {
            view.prompt = last.get("content").and_then(prompt::of);
        }
    }
    let turn = messages.iter().rposition(|message| is(message, "role", "assistant"));
    let new = messages.get(turn.map_or(0, |turn| turn + 1)..).unwrap_or_default();
    let results = new.iter().filter(|message| is(message, "role", "tool"));
    view.tool_results = results
        .filter_map(|result| ToolResult::new(result.get("tool_call_id"), result.get("content")))
        .collect();
}
