//! Requests of the Responses API.

use super::{
    RequestView, ToolResult, TopLevel, Value, has_text, is_instruction, member_text, text,
};

pub(super) fn read(top: &TopLevel<'_>, view: &mut RequestView) {
    view.previous_response_id = text(top.previous_response_id);
    view.background = top.background.and_then(|value| value.as_bool()).unwrap_or_default();
    view.prompt = text(top.input.single());

    let items = top.input.entries();
    if let Some(last) = items.iter().rev().find(|item| is_turn(item)) {
        if has_text(last, "type", "function_call_output")
            || has_text(last, "type", "custom_tool_call_output")
        {
            view.correlating_tool_call_id = member_text(last, "call_id");
        }
        if has_text(last, "role", "user") {
            view.prompt = last.get("content").and_then(extract_prompt);
        }
    }
    let turn = items.iter().rposition(|item| item_kind(item) == ItemKind::FromModel);
    let new = items.get(turn.map_or(0, |turn| turn + 1)..).unwrap_or_default();
    let results = new.iter().filter(|item| item_kind(item) == ItemKind::ToolOutput);
    results
        .filter_map(|item| ToolResult::new(item.get("call_id"), item.get("output")))
        .for_each(|result| view.push_tool_result(result));
}

/// The kind of an input item.
#[derive(Debug, PartialEq, Eq)]
enum ItemKind {
    /// A message of the user, or an instruction.
    Message,
    ToolOutput,
    /// Part of an earlier response, or a reference to one.
    FromModel,
    Other,
}

/// Whether an item is the output of a tool, or a message other than an instruction.
fn is_turn(item: &Value<'_>) -> bool {
    match item_kind(item) {
        ItemKind::Message => !is_instruction(item),
        ItemKind::ToolOutput => true,
        ItemKind::FromModel => has_text(item, "role", "assistant"),
        ItemKind::Other => false,
    }
}

fn item_kind(item: &Value<'_>) -> ItemKind {
    if has_text(item, "role", "assistant") {
        return ItemKind::FromModel;
    }
    match item.get("type").and_then(|name| name.as_str()).as_deref() {
        None if item.get("role").is_some() => ItemKind::Message,
        Some("message") => ItemKind::Message,
        Some("reasoning" | "item_reference") => ItemKind::FromModel,
        Some(name) if name.ends_with("_call_output") => ItemKind::ToolOutput,
        Some(name) if name.ends_with("_call") => ItemKind::FromModel,
        _ => ItemKind::Other,
    }
}

/// Extracts a string, or all input texts joined with newlines.
fn extract_prompt(content: Value<'_>) -> Option<String> {
    if let Some(prompt) = text(Some(content)) {
        return Some(prompt);
    }
    let parts = content.elements().filter(|part| has_text(part, "type", "input_text"));
    let texts: Vec<String> = parts.filter_map(|part| member_text(&part, "text")).collect();
    (!texts.is_empty()).then(|| texts.join("\n"))
}
