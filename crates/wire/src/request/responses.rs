//! Requests of the Responses API.

use super::{
    Attachments, RequestView, ToolResult, TopLevel, Value, content_size, has_text, is_instruction,
    member_text, servers, text,
};

pub(super) fn read(top: &TopLevel<'_>, view: &mut RequestView) {
    view.previous_response_id = text(top.previous_response_id);
    view.background = top.background.and_then(|value| value.as_bool()).unwrap_or_default();
    view.prompt = text(top.input.single());

    view.hosted_servers = top.tools.map(servers::of_tools).unwrap_or_default();
    let items = top.input.entries();
    let last = items.iter().rposition(is_turn);
    if let Some(last) = last.and_then(|last| items.get(last)) {
        view.correlating_tool_call_id = correlating_id(last);
        if has_text(last, "role", "user") {
            let content = last.get("content");
            view.prompt =
                content.and_then(|content| extract_prompt(content, &mut view.attachments));
        }
    }
    let turn = items.iter().rposition(|item| item_kind(item) == ItemKind::FromModel);
    for (number, item) in items.iter().enumerate().skip(turn.map_or(0, |turn| turn + 1)) {
        match item_kind(item) {
            ItemKind::ToolOutput => {
                let [id, output] = item.get_all(["call_id", "output"]);
                view.add_tool_result(id, output, None);
            }
            ItemKind::Approval => view.add_approval(item),
            ItemKind::Message if last != Some(number) && has_text(item, "role", "user") => {
                if let Some(content) = item.get("content") {
                    view.attachments.add_parts(&content);
                }
            }
            ItemKind::Message | ItemKind::FromModel | ItemKind::Other => {}
        }
    }
}

/// The id of the call that an item answers and that ties the request to the response which made it.
fn correlating_id(item: &Value<'_>) -> Option<String> {
    let key = match item.get("type")?.as_str()?.as_ref() {
        "function_call_output" | "custom_tool_call_output" => "call_id",
        APPROVAL => "approval_request_id",
        _ => return None,
    };
    member_text(item, key)
}

/// The type of an item that answers whether the provider may call a tool.
const APPROVAL: &str = "mcp_approval_response";

impl RequestView {
    fn add_approval(&mut self, item: &Value<'_>) {
        let [id, approve, reason] = item.get_all(["approval_request_id", "approve", "reason"]);
        if let Some(tool_call_id) = text(id) {
            self.push_tool_result(ToolResult {
                tool_call_id,
                bytes: reason.map_or(0, |reason| content_size(&reason)),
                is_error: None,
                approved: approve.and_then(|approve| approve.as_bool()),
                content: None,
            });
        }
    }
}

/// The kind of an input item.
#[derive(Debug, PartialEq, Eq)]
enum ItemKind {
    /// A message of the user, or an instruction.
    Message,
    ToolOutput,
    /// The user's answer whether the provider may call a tool.
    Approval,
    /// Part of an earlier response, or a reference to one.
    FromModel,
    Other,
}

/// Whether an item is the output of a tool, or a message other than an instruction.
fn is_turn(item: &Value<'_>) -> bool {
    match item_kind(item) {
        ItemKind::Message => !is_instruction(item),
        ItemKind::ToolOutput | ItemKind::Approval => true,
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
        Some(APPROVAL) => ItemKind::Approval,
        Some(name) if name.ends_with("_call_output") => ItemKind::ToolOutput,
        Some(name) if name.ends_with("_call") => ItemKind::FromModel,
        _ => ItemKind::Other,
    }
}

/// Extracts a string, or all input texts joined with newlines. Files among the parts are attachments.
fn extract_prompt(content: Value<'_>, attachments: &mut Attachments) -> Option<String> {
    if let Some(prompt) = text(Some(content)) {
        return Some(prompt);
    }
    let mut texts = Vec::new();
    let mut has_other_parts = false;
    for [kind, words] in content.objects(["type", "text"]) {
        let Some(kind) = kind else { continue };
        if kind.is_text("input_text") {
            texts.extend(text(words));
        } else {
            has_other_parts = true;
        }
    }
    if has_other_parts {
        attachments.add_parts(&content);
    }
    (!texts.is_empty()).then(|| texts.join("\n"))
}
