//! A request as a provider's prompt cache sees it, part by part.

use aws_lc_rs::digest;
use serde_json::{Value, json};

use crate::{handler::Api, turns::list};

/// Rolling hashes: each covers all parts up to its own.
pub(crate) fn hashes(api: Api, body: &Value) -> Vec<String> {
    let parts = match api {
        Api::Messages => messages(body),
        Api::Chat => {
            let messages = list(body, "messages").iter().map(|message| json!(["message", message]));
            tools(body).chain(messages).collect()
        }
        Api::Responses => responses(body),
    };
    let mut hashes: Vec<String> = Vec::with_capacity(parts.len());
    for part in parts {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(hashes.last().map(String::as_bytes).unwrap_or_default());
        context.update(part.to_string().as_bytes());
        let hash = context.finish();
        hashes.push(hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect());
    }
    hashes
}

fn tools(body: &Value) -> impl Iterator<Item = Value> {
    list(body, "tools").iter().map(|tool| json!(["tool", tool]))
}

/// Cache breakpoints move from request to request without changing what is cached.
fn messages(body: &Value) -> Vec<Value> {
    let mut parts: Vec<Value> = tools(body).collect();
    parts.extend(blocks(body.get("system")).map(|block| json!(["system", block])));
    for message in list(body, "messages") {
        let role = message.get("role");
        parts.extend(blocks(message.get("content")).map(|block| json!(["message", role, block])));
    }
    parts.iter_mut().for_each(unmark);
    parts
}

/// The blocks of a content; a string is one block.
fn blocks(content: Option<&Value>) -> impl Iterator<Item = Value> {
    let blocks = match content {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => vec![json!({ "type": "text", "text": text })],
        Some(Value::Array(blocks)) => blocks.clone(),
        Some(other) => vec![other.clone()],
    };
    blocks.into_iter()
}

fn unmark(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.shift_remove("cache_control");
            members.values_mut().for_each(unmark);
        }
        Value::Array(elements) => elements.iter_mut().for_each(unmark),
        _ => {}
    }
}

fn responses(body: &Value) -> Vec<Value> {
    let mut parts: Vec<Value> = tools(body).collect();
    let instructions = body.get("instructions").filter(|instructions| !instructions.is_null());
    parts.extend(instructions.map(|instructions| json!(["instructions", instructions])));
    match body.get("input") {
        Some(Value::String(text)) => {
            parts.push(json!(["item", { "role": "user", "content": text }]));
        }
        input => {
            let items = input.and_then(Value::as_array).into_iter().flatten();
            parts.extend(items.map(|item| json!(["item", item])));
        }
    }
    parts
}
