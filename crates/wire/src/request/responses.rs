//! Requests of the Responses API.

use super::{RequestView, ToolResult, Top, Value, is, is_instruction, member_text, text};

pub(super) fn read(top: &Top<'_>, view: &mut RequestView) {
    view.previous_response_id = text(top.previous_response_id);
    view.background = top.background.and_then(|value| value.as_bool()).unwrap_or_default();
    view.prompt = text(top.input.single());

    let items = top.input.entries();
    if let Some(last) = items.iter().rev().find(|item| is_turn(item)) {
        if is(last, "type", "function_call_output") || is(last, "type", "custom_tool_call_output") {
            view.correlating_tool_call_id = member_text(last, "call_id");
        }
        if is(last, "role", "user") {
            view.prompt = last.get("content").and_then(prompt);
        }
    }
    let turn = items.iter().rposition(|item| kind(item) == Item::FromModel);
    let new = items.get(turn.map_or(0, |turn| turn + 1)..).unwrap_or_default();
    let results = new.iter().filter(|item| kind(item) == Item::ToolOutput);
    view.tool_results = results
        .filter_map(|item| ToolResult::new(item.get("call_id"), item.get("output")))
        .collect();
}

/// What an item of the input is.
#[derive(Debug, PartialEq, Eq)]
enum Item {
    /// A message of the user or of an instructor.
    Message,
    ToolOutput,
    /// Part of an earlier answer, or a reference to one.
    FromModel,
    Other,
}

/// Whether an item is a message, of whomever but an instructor, or the output of a tool.
fn is_turn(item: &Value<'_>) -> bool {
    match kind(item) {
        Item::Message => !is_instruction(item),
        Item::ToolOutput => true,
        Item::FromModel => is(item, "role", "assistant"),
        Item::Other => false,
    }
}

fn kind(item: &Value<'_>) -> Item {
    if is(item, "role", "assistant") {
        return Item::FromModel;
    }
    match item.get("type").and_then(|name| name.as_str()).as_deref() {
        None if item.get("role").is_some() => Item::Message,
        Some("message") => Item::Message,
        Some("reasoning" | "item_reference") => Item::FromModel,
        Some(name) if name.ends_with("_call_output") => Item::ToolOutput,
        Some(name) if name.ends_with("_call") => Item::FromModel,
        _ => Item::Other,
    }
}

/// A string, or all input texts joined by a newline.
fn prompt(content: Value<'_>) -> Option<String> {
    if let Some(prompt) = text(Some(content)) {
        return Some(prompt);
    }
    let parts = content.elements().filter(|part| is(part, "type", "input_text"));
    let texts: Vec<String> = parts.filter_map(|part| member_text(&part, "text")).collect();
    (!texts.is_empty()).then(|| texts.join("\n"))
}
