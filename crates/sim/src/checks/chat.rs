//! What the Chat Completions API rejects.

use serde_json::Value;

use super::openai_tools;
use crate::turns::{list, word};

pub(crate) fn check(body: &Value) -> Result<(), String> {
    openai_tools(body, "function.name")?;
    // The calls of the latest message that has any, and those that have no result yet.
    let (mut called, mut missing): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for message in list(body, "messages") {
        if word(message, "role") == "tool" {
            let id = word(message, "tool_call_id");
            if !called.contains(&id) {
                return Err(format!(
                    "messages with role 'tool' must be a response to a preceding message with 'tool_calls': {id:?}"
                ));
            }
            missing.retain(|waiting| *waiting != id);
            continue;
        }
        unanswered(&missing)?;
        called = list(message, "tool_calls").iter().map(|call| word(call, "id")).collect();
        missing.clone_from(&called);
    }
    unanswered(&missing)
}

fn unanswered(missing: &[&str]) -> Result<(), String> {
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. The following tool_call_ids did not have response messages: {}",
        missing.join(", ")
    ))
}
