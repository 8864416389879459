//! What the Messages API rejects.

use std::collections::HashSet;

use serde_json::Value;

use super::is_name;
use crate::{
    signature,
    turns::{list, word},
};

/// The maximum length of a tool name.
const MAX_NAME_LENGTH: usize = 128;

pub(crate) fn check(body: &Value) -> Result<(), String> {
    tools(body)?;
    signatures(body)?;
    results(body)
}

fn tools(body: &Value) -> Result<(), String> {
    let mut names = HashSet::new();
    for (index, tool) in list(body, "tools").iter().enumerate() {
        let Some(name) = tool.get("name").and_then(Value::as_str) else { continue };
        if !is_name(name, MAX_NAME_LENGTH) {
            return Err(format!(
                "tools.{index}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,{MAX_NAME_LENGTH}}}$'"
            ));
        }
        if !names.insert(name) {
            return Err("tools: Tool names must be unique.".into());
        }
    }
    Ok(())
}

/// Checks that thinking blocks come back unchanged.
fn signatures(body: &Value) -> Result<(), String> {
    for (at, message) in list(body, "messages").iter().enumerate() {
        for (number, block) in list(message, "content").iter().enumerate() {
            let (is_intact, field, kind) = match word(block, "type") {
                "thinking" => {
                    let signature = signature::sign_thinking(word(block, "thinking"));
                    (word(block, "signature") == signature, "signature", "thinking")
                }
                "redacted_thinking" => {
                    (signature::is_redacted_data(word(block, "data")), "data", "redacted_thinking")
                }
                _ => continue,
            };
            if !is_intact {
                return Err(format!(
                    "messages.{at}.content.{number}: Invalid `{field}` in `{kind}` block"
                ));
            }
        }
    }
    Ok(())
}

/// Checks that the next message starts with a result for each call, and has no other results.
fn results(body: &Value) -> Result<(), String> {
    let (mut pending, mut known) = (Vec::new(), HashSet::new());
    for (at, message) in list(body, "messages").iter().enumerate() {
        let leading = list(message, "content").iter();
        let leading = leading.take_while(|block| word(block, "type") == "tool_result");
        let answered: HashSet<&str> = leading.map(|block| word(block, "tool_use_id")).collect();
        unanswered(at, &pending, |id| answered.contains(id))?;
        let mut seen = HashSet::new();
        for (number, id) in ids(message, "tool_result", "tool_use_id") {
            if !pending.contains(&id) {
                return Err(format!(
                    "messages.{at}.content.{number}: unexpected `tool_use_id` found in `tool_result` blocks: {id}. Each `tool_result` block must have a corresponding `tool_use` block in the previous message."
                ));
            }
            if !seen.insert(id) {
                return Err(format!(
                    "messages.{at}.content.{number}: each tool_use must have a single result. Found multiple `tool_result` blocks with id: {id}"
                ));
            }
        }
        pending.clear();
        for (number, id) in ids(message, "tool_use", "id") {
            if !known.insert(id) {
                return Err(format!(
                    "messages.{at}.content.{number}: `tool_use` ids must be unique"
                ));
            }
            pending.push(id);
        }
    }
    unanswered(list(body, "messages").len(), &pending, |_id| false)
}

fn unanswered(
    next: usize,
    pending: &[&str],
    is_answered: impl Fn(&str) -> bool,
) -> Result<(), String> {
    let missing: Vec<&str> = pending.iter().copied().filter(|id| !is_answered(id)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "messages.{}: `tool_use` ids were found without `tool_result` blocks immediately after: {}. Each `tool_use` block must have a corresponding `tool_result` block in the next message.",
        next.saturating_sub(1),
        missing.join(", ")
    ))
}

/// The ids in the blocks of a type in a message, with the indexes of the blocks.
fn ids<'a>(
    message: &'a Value,
    kind: &'static str,
    field: &'static str,
) -> impl Iterator<Item = (usize, &'a str)> {
    let blocks = list(message, "content").iter().enumerate();
    blocks
        .filter(move |(_, block)| word(block, "type") == kind)
        .map(move |(number, block)| (number, word(block, field)))
}
