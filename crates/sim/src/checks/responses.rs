//! What the Responses API rejects.

use std::collections::HashSet;

use serde_json::Value;

use super::{RejectedRequest, openai_tools};
use crate::{
    exchange::ExchangeLog,
    turns::{list, word},
};

pub(crate) fn check(body: &Value) -> Result<(), String> {
    openai_tools(body, "name")?;
    reasoning(body)?;
    outputs(body)
}

/// The ids of the calls in a request's input.
pub(crate) fn call_ids(body: &Value) -> impl Iterator<Item = &str> {
    let items = list(body, "input").iter();
    items.filter(|item| word(item, "type").ends_with("_call")).map(|item| word(item, "call_id"))
}

/// Checks that items which are not stored are not referred to by id alone.
fn reasoning(body: &Value) -> Result<(), String> {
    if body.get("store") != Some(&Value::Bool(false)) {
        return Ok(());
    }
    for item in list(body, "input") {
        if word(item, "type") == "reasoning" && word(item, "encrypted_content").is_empty() {
            let id = word(item, "id");
            return Err(format!(
                "Item with id '{id}' not found. Items are not persisted when `store` is set to false. Try again with `store` set to true, or remove this item from your input."
            ));
        }
    }
    Ok(())
}

/// Checks that each call has an output and each output a call, unless the provider stores earlier items.
fn outputs(body: &Value) -> Result<(), String> {
    let holds = |key: &str| body.get(key).is_some_and(|value| !value.is_null());
    let items = list(body, "input");
    let is_partial = holds("previous_response_id")
        || holds("conversation")
        || items.iter().any(|item| word(item, "type") == "item_reference");
    let (mut called, mut missing) = (HashSet::new(), Vec::new());
    for item in items {
        let (kind, id) = (word(item, "type"), word(item, "call_id"));
        if kind.ends_with("_call") {
            called.insert(id);
        }
        match kind {
            "function_call" => missing.push(("function call", id)),
            "custom_tool_call" => missing.push(("custom tool call", id)),
            "function_call_output" | "custom_tool_call_output" => {
                if !called.contains(id) && !is_partial {
                    return Err(format!(
                        "No tool call found for function call output with call_id {id}."
                    ));
                }
                missing.retain(|(_, waiting)| *waiting != id);
            }
            _ => {}
        }
    }
    match missing.first() {
        Some((what, id)) => Err(format!("No tool output found for {what} {id}.")),
        None => Ok(()),
    }
}

/// Checks that a request can continue from an earlier response; ids of foreign formats pass.
pub(crate) fn previous(id: &str, body: &Value, log: &ExchangeLog) -> Result<(), RejectedRequest> {
    if !id.starts_with("resp_") {
        return Ok(());
    }
    let Some(past) = log.responses.get(id).filter(|past| past.is_stored) else {
        if log.is_background(id) {
            return Ok(());
        }
        let message = format!("Previous response with id '{id}' not found.");
        return Err(RejectedRequest { message, code: Some("previous_response_not_found") });
    };
    let outputs = list(body, "input").iter();
    let outputs = outputs.filter(|item| word(item, "type").ends_with("_call_output"));
    let answered: HashSet<&str> = outputs.map(|item| word(item, "call_id")).collect();
    if let Some(call) = past.calls.iter().find(|call| !answered.contains(call.as_str())) {
        return Err(format!("No tool output found for function call {call}.").into());
    }
    let own: HashSet<&str> = call_ids(body).collect();
    let is_known = |call: &&str| own.contains(call) || log.responses.has_call(id, call);
    match answered.iter().find(|call| !is_known(call)) {
        Some(call) => {
            Err(format!("No tool call found for function call output with call_id {call}.").into())
        }
        None => Ok(()),
    }
}
