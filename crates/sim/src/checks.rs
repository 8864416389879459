//! What a provider would refuse or wonder about.

use std::io::Read;

use http::{HeaderMap, header};
use serde_json::Value;

use crate::answer::{Api, Vendor};

/// Headers that no client sends to a provider.
const UNEXPECTED: [&str; 11] = [
    "connection",
    "cookie",
    "forwarded",
    "x-real-ip",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "expect",
];

/// Headers that carry a bridge token.
const GOVERNANCE: [&str; 3] =
    ["x-ai-governance-token", "x-coder-ai-governance-token", "x-coder-ai-governance-byok-token"];

/// What is wrong with the headers.
pub(crate) fn headers(vendor: Vendor, headers: &HeaderMap) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, value) in headers {
        let text = name.as_str();
        if UNEXPECTED.contains(&text)
            || GOVERNANCE.contains(&text)
            || text.starts_with("x-keybridge-")
            || text.starts_with("x-forwarded-")
        {
            problems.push(format!("the header {text} came through"));
        }
        if value.to_str().is_ok_and(|value| value.contains("kb_")) {
            problems.push(format!("the header {text} holds a bridge token"));
        }
    }
    let both = headers.contains_key("x-api-key") && headers.contains_key(header::AUTHORIZATION);
    if vendor == Vendor::Anthropic && both {
        problems.push("two credentials came".into());
    }
    problems
}

/// Why the credential is refused.
pub(crate) fn credentials(vendor: Vendor, headers: &HeaderMap) -> Option<&'static str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = text("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let credential = match vendor {
        Vendor::Anthropic => text("x-api-key").or(bearer),
        Vendor::OpenAi | Vendor::Copilot => bearer.or_else(|| {
            // The scheme's name has no case.
            text("authorization").and_then(|value| value.split_once(' ')).map(|(_, value)| value)
        }),
    };
    if credential.is_none_or(|value| value.trim().is_empty()) {
        return Some("no credential came");
    }
    if GOVERNANCE.iter().any(|name| headers.contains_key(*name)) {
        return Some("a governance header came");
    }
    let holds_token = |value: &str| value.split_whitespace().any(|word| word.starts_with("kb_"));
    let came = headers.values().filter_map(|value| value.to_str().ok()).any(holds_token);
    came.then_some("a bridge token came")
}

/// The body as JSON, or why it is refused.
pub(crate) fn body(api: Api, headers: &HeaderMap, body: &[u8]) -> Result<Value, String> {
    let plain = plain(headers, body)?;
    let value: Value =
        serde_json::from_slice(&plain).map_err(|error| format!("the body is not JSON: {error}"))?;
    let required: &[&str] = match api {
        Api::Messages => &["model", "messages", "max_tokens"],
        Api::Chat => &["model", "messages"],
        Api::Responses => &["model", "input"],
    };
    for field in required {
        if value.get(field).is_none() {
            return Err(format!("{field}: Field required"));
        }
    }
    match api {
        Api::Messages => tool_results(&value)?,
        Api::Chat => tool_messages(&value)?,
        Api::Responses => call_outputs(&value)?,
    }
    Ok(value)
}

/// Each tool result answers a call of the turn before it.
fn tool_results(body: &Value) -> Result<(), String> {
    let blocks = |message: &Value, kind: &str, field: &str| -> Vec<String> {
        let content = message.get("content").and_then(Value::as_array);
        content
            .into_iter()
            .flatten()
            .filter(|block| block.get("type").and_then(Value::as_str) == Some(kind))
            .filter_map(|block| block.get(field).and_then(Value::as_str).map(str::to_owned))
            .collect()
    };
    let mut called: Vec<String> = Vec::new();
    for message in body.get("messages").and_then(Value::as_array).into_iter().flatten() {
        for result in blocks(message, "tool_result", "tool_use_id") {
            if !called.contains(&result) {
                return Err(format!("unexpected tool_use_id {result} in a tool_result block"));
            }
        }
        called.extend(blocks(message, "tool_use", "id"));
    }
    Ok(())
}

/// Each message of a tool answers a call of an earlier message.
fn tool_messages(body: &Value) -> Result<(), String> {
    let mut called: Vec<&str> = Vec::new();
    for message in body.get("messages").and_then(Value::as_array).into_iter().flatten() {
        let calls = message.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
        called.extend(calls.filter_map(|call| call.get("id").and_then(Value::as_str)));
        if message.get("role").and_then(Value::as_str) != Some("tool") {
            continue;
        }
        let id = message.get("tool_call_id").and_then(Value::as_str).unwrap_or_default();
        if !called.contains(&id) {
            return Err(format!(
                "messages with role 'tool' must answer a preceding tool call: {id:?}"
            ));
        }
    }
    Ok(())
}

/// Each call output answers a call item, unless the provider holds the earlier items.
fn call_outputs(body: &Value) -> Result<(), String> {
    let holds = |key: &str| body.get(key).is_some_and(|value| !value.is_null());
    if holds("previous_response_id") || holds("conversation") {
        return Ok(());
    }
    let mut called: Vec<&str> = Vec::new();
    for item in body.get("input").and_then(Value::as_array).into_iter().flatten() {
        let kind = item.get("type").and_then(Value::as_str).unwrap_or_default();
        let id = item.get("call_id").and_then(Value::as_str);
        if kind.ends_with("_call") {
            called.extend(id);
        }
        let id = id.unwrap_or_default();
        let is_output = matches!(kind, "function_call_output" | "custom_tool_call_output");
        if is_output && !called.contains(&id) {
            return Err(format!("No tool call found for function call output with call_id {id}."));
        }
    }
    Ok(())
}

fn plain(headers: &HeaderMap, body: &[u8]) -> Result<Vec<u8>, String> {
    let coding = headers.get(header::CONTENT_ENCODING).and_then(|value| value.to_str().ok());
    match coding {
        None | Some("identity") => Ok(body.to_vec()),
        Some("gzip") => {
            let mut plain = Vec::new();
            let mut decoder = flate2::read::GzDecoder::new(body);
            decoder.read_to_end(&mut plain).map_err(|error| error.to_string())?;
            Ok(plain)
        }
        Some("zstd") => {
            let mut plain = Vec::new();
            let mut decoder =
                ruzstd::decoding::StreamingDecoder::new(body).map_err(|error| error.to_string())?;
            decoder.read_to_end(&mut plain).map_err(|error| error.to_string())?;
            Ok(plain)
        }
        Some(other) => Err(format!("the content encoding {other} is not supported")),
    }
}
