//! The routes that do not call a model.

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::{
    bedrock, errors,
    handler::Vendor,
    player::Script,
    responses,
    scenario::{INPUT_TOKENS, OUTPUT_TOKENS},
};

/// A string of fixed length that is unique across processes.
pub(crate) fn serial() -> String {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };
    // Starts at the current time; a process handles less than one request per nanosecond.
    static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| {
        let now = jiff::Timestamp::now().as_nanosecond();
        AtomicU64::new(u64::try_from(now).unwrap_or_default())
    });
    format!("{:016x}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The response of such a route; `stored_model` is the model of the background response in its path.
pub(crate) fn script(
    vendor: Vendor,
    method: &Method,
    rest: &str,
    body: &Bytes,
    stored_model: Option<&str>,
) -> Script {
    let counted = (vendor == Vendor::Bedrock && *method == Method::POST)
        .then(|| bedrock::count_tokens(rest, body))
        .flatten();
    let found = match vendor {
        Vendor::Bedrock => match counted {
            Some(Err(message)) => return errors::script(vendor, 400, &message),
            counted => counted.and_then(Result::ok),
        },
        Vendor::Anthropic | Vendor::Mantle => anthropic(method, rest, body),
        Vendor::OpenAi => openai(method, rest, body, stored_model),
        Vendor::Copilot => copilot(method, rest),
    };
    found.map_or_else(
        || errors::script(vendor, 404, &format!("{method} {rest} does not exist")),
        |value| {
            let is_compaction =
                value.get("object").is_some_and(|object| object == "response.compaction");
            let id = value.get("id").and_then(Value::as_str).filter(|_| is_compaction);
            Script::json(200, &value).with_response_id(id.map(str::to_owned))
        },
    )
}

fn anthropic(method: &Method, rest: &str, body: &Bytes) -> Option<Value> {
    let model = |id: &str| json!({ "type": "model", "id": id, "display_name": id, "created_at": "2026-01-01T00:00:00Z" });
    if *method == Method::POST && rest == "/v1/messages/count_tokens" {
        return Some(json!({ "input_tokens": body.len() / 4 }));
    }
    if *method == Method::POST && rest.starts_with("/api/event_logging/") {
        return Some(json!({ "accepted_count": 1, "rejected_count": 0 }));
    }
    match rest.strip_prefix("/v1/models")? {
        "" => Some(
            json!({ "data": [model("claude-simulated")], "has_more": false, "first_id": "claude-simulated", "last_id": "claude-simulated" }),
        ),
        id => Some(model(id.strip_prefix('/')?)),
    }
}

fn openai(method: &Method, rest: &str, body: &Bytes, stored_model: Option<&str>) -> Option<Value> {
    let model = |id: &str| json!({ "id": id, "object": "model", "created": 1_767_225_600, "owned_by": "simulated" });
    if let Some(id) = rest.strip_prefix("/models") {
        return match id {
            "" => Some(json!({ "object": "list", "data": [model("gpt-simulated")] })),
            id => Some(model(id.strip_prefix('/')?)),
        };
    }
    if let Some(id) = rest.strip_prefix("/conversations") {
        let id =
            if id.is_empty() { format!("conv_{}", serial()) } else { id.trim_matches('/').into() };
        return Some(
            json!({ "id": id, "object": "conversation", "created_at": 1_767_225_600, "metadata": {} }),
        );
    }
    let rest = rest.strip_prefix("/responses/")?;
    if *method == Method::POST && rest == "compact" {
        return Some(json!({
            "id": format!("resp_{}", serial()), "object": "response.compaction", "created_at": 1_767_225_600,
            "output": [{ "type": "compaction", "id": format!("cmp_{}", serial()), "encrypted_content": "c2ltdWxhdGVk" }],
            "usage": responses::usage(INPUT_TOKENS, 0, OUTPUT_TOKENS, 0),
        }));
    }
    match (method, rest.split_once('/')) {
        (_, None) if *method == Method::GET => {
            Some(responses::stored(rest, stored_model.unwrap_or("gpt-simulated")))
        }
        (_, None) => Some(json!({ "id": rest, "object": "response", "deleted": true })),
        (_, Some((id, "cancel"))) => {
            Some(json!({ "id": id, "object": "response", "status": "cancelled", "output": [] }))
        }
        (_, Some((_, "input_items"))) => {
            let text = json!({ "type": "input_text", "text": "hi" });
            let item = json!({ "id": "msg_input", "type": "message", "status": "completed", "role": "user", "content": [text] });
            Some(
                json!({ "object": "list", "data": [item], "first_id": "msg_input", "last_id": "msg_input", "has_more": false }),
            )
        }
        (_, Some((id, other))) => Some(json!({ "id": id, "path": other, "bytes": body.len() })),
    }
}

fn copilot(method: &Method, rest: &str) -> Option<Value> {
    if rest == "/models" || rest.starts_with("/models/") {
        return openai(method, rest, &Bytes::new(), None);
    }
    let known = ["/agents/", "/mcp/", "/.well-known/"];
    known.iter().any(|path| rest.starts_with(path)).then(|| json!({ "path": rest }))
}
