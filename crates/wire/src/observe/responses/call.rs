//! Calls among the output items of the Responses API: whose they are, where they run, and their results.

use super::super::{Approval, CallResult, ToolCall, non_null, text, tool_call::argument_text};
use crate::json::Value;

/// Reads an item that is a call of a function, a custom tool, or one of the provider's own tools, or asks
/// for the approval of one. A list of tools is no call, but the server it did not come from is recorded.
pub(super) fn tool_call(item: &Value<'_>) -> Option<ToolCall> {
    let kind = text(item.get("type"))?;
    let is_list = kind == "mcp_list_tools" && non_null(item, "error").is_some();
    if !(kind.ends_with("_call") || kind == APPROVAL_REQUEST || is_list) {
        return None;
    }
    let [call_id, id, name, server_name, container, environment, execution, caller] =
        item.get_all([
            "call_id",
            "id",
            "name",
            "server_label",
            "container_id",
            "environment",
            "execution",
            "caller",
        ]);
    let named = |value| text(value).filter(|text| !text.is_empty());
    let place = environment.and_then(|environment| environment.get("container_id"));
    let approval = match kind.as_str() {
        APPROVAL_REQUEST => Some(Approval::Requested),
        _ => non_null(item, "approval_request_id").map(|_| Approval::Approved),
    };
    let provider_executed = is_run_by_provider(&kind, environment, execution);
    let mut call = ToolCall {
        id: named(call_id).or_else(|| named(id)).unwrap_or_default(),
        arguments: arguments(item),
        provider_executed,
        result: provider_executed.then(|| call_result(item)).flatten(),
        name: named(name).unwrap_or(kind),
        server_name: named(server_name),
        approval,
        container_id: named(container).or_else(|| named(place)),
        ..ToolCall::default()
    };
    call.read_caller(caller);
    Some(call)
}

const APPROVAL_REQUEST: &str = "mcp_approval_request";

/// Whether the provider runs calls of a kind; a shell and a search run where the item says.
fn is_run_by_provider(
    kind: &str,
    environment: Option<Value<'_>>,
    execution: Option<Value<'_>>,
) -> bool {
    match kind {
        "function_call" | "custom_tool_call" | "computer_call" | "local_shell_call"
        | "apply_patch_call" => false,
        "shell_call" => {
            let place = environment.and_then(|environment| text(environment.get("type")));
            place.is_some_and(|place| place.starts_with("container"))
        }
        "tool_search_call" => !execution.is_some_and(|execution| execution.is_text("client")),
        _ => true,
    }
}

/// The arguments of a call, whatever its kind calls them.
fn arguments(item: &Value<'_>) -> String {
    let places = ["arguments", "input", "code", "actions", "action", "operation", "queries"];
    argument_text(item.get_all(places).into_iter().flatten().find(|value| !value.is_null()))
}

/// The result of a call that the provider made.
fn call_result(item: &Value<'_>) -> Option<CallResult> {
    let [error, status, output, outputs, results, result] =
        item.get_all(["error", "status", "output", "outputs", "results", "result"]);
    let places = [output, outputs, results, result].into_iter().flatten();
    CallResult::of_item(places.into_iter().find(|value| !value.is_null()), error, status)
}
