//! The default tools and their results.

use std::time::Duration;

use serde_json::{Value, json};

/// The maximum result size of `big`.
const MAX_BYTES: u64 = 64 << 20;
/// The maximum delay of `slow`.
const MAX_DELAY: Duration = Duration::from_secs(600);
/// One transparent pixel.
const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
/// JSON-RPC: the parameters are wrong.
const INVALID_PARAMS: i64 = -32_602;
/// JSON-RPC: the server failed.
const INTERNAL_ERROR: i64 = -32_603;

/// The outcome of a call.
#[derive(Debug)]
pub(super) enum Outcome {
    Result(Value),
    Error(i64, String),
    /// A result after a delay.
    Delayed(Duration, Value),
    /// The connection is closed without a response.
    Disconnect,
}

/// The tools of a new server.
pub(super) fn default_tools() -> Vec<Value> {
    let text = json!({ "type": "string" });
    let (integer, number) = (json!({ "type": "integer" }), json!({ "type": "number" }));
    let none = || json!({ "type": "object", "properties": {} });
    let needs = |properties: Value| {
        let required = properties.as_object().into_iter().flat_map(|all| all.keys());
        let required: Value = required.map(String::as_str).collect();
        json!({ "type": "object", "properties": properties, "required": required })
    };
    let tool = |name: &str, description: &str, schema: Value| json!({ "name": name, "description": description, "inputSchema": schema });
    let mut structured = tool("structured", "Returns structured content.", none());
    if let Some(structured) = structured.as_object_mut() {
        structured.insert("outputSchema".into(), needs(json!({ "answer": integer })));
    }
    vec![
        tool("echo", "Repeats a message.", needs(json!({ "message": text }))),
        tool("add", "Adds two numbers.", needs(json!({ "a": number, "b": number }))),
        tool("slow", "Returns after a delay.", needs(json!({ "ms": integer }))),
        tool(
            "fail",
            "Fails every time.",
            json!({ "type": "object", "properties": {}, "required": [] }),
        ),
        tool("big", "Returns a long text.", needs(json!({ "bytes": integer }))),
        tool("image", "Returns a picture.", none()),
        structured,
        tool("odd", "Returns content of an unknown type.", none()),
        tool("resource", "Returns a resource and a link to another.", none()),
        tool("invalid", "Returns an invalid result.", none()),
        tool("protocol-error", "Returns a protocol error.", none()),
        tool("gone", "Closes the connection without a response.", none()),
    ]
}

/// Calls a listed tool.
pub(super) fn call(name: &str, arguments: &Value) -> Outcome {
    let said =
        |text: String| Outcome::Result(json!({ "content": [{ "type": "text", "text": text }] }));
    let whole = |key: &str| arguments.get(key).and_then(Value::as_u64);
    match name {
        "echo" => match arguments.get("message").and_then(Value::as_str) {
            Some(message) => said(format!("Echo: {message}")),
            None => invalid_argument(name, "message"),
        },
        "add" => match (sum(arguments), arguments.get("a")) {
            (Some(sum), _) => said(sum),
            (None, Some(Value::Number(_))) => invalid_argument(name, "b"),
            (None, _) => invalid_argument(name, "a"),
        },
        "slow" => whole("ms").map_or_else(
            || invalid_argument(name, "ms"),
            |ms| {
                let text = format!("Done after {ms} ms.");
                let result = json!({ "content": [{ "type": "text", "text": text }] });
                Outcome::Delayed(Duration::from_millis(ms).min(MAX_DELAY), result)
            },
        ),
        "big" => whole("bytes")
            .filter(|bytes| *bytes <= MAX_BYTES)
            .and_then(|bytes| usize::try_from(bytes).ok())
            .map_or_else(|| invalid_argument(name, "bytes"), |bytes| said("x".repeat(bytes))),
        "protocol-error" => Outcome::Error(INTERNAL_ERROR, "The simulated tool broke.".into()),
        "gone" => Outcome::Disconnect,
        _ => Outcome::Result(fixed_result(name).unwrap_or_else(|| {
            json!({ "content": [{ "type": "text", "text": format!("{name} got {arguments}") }] })
        })),
    }
}

/// The error for a tool that the server does not have.
pub(super) fn unknown(name: &str) -> Outcome {
    Outcome::Error(INVALID_PARAMS, format!("Unknown tool: {name}"))
}

fn invalid_argument(name: &str, argument: &str) -> Outcome {
    Outcome::Error(INVALID_PARAMS, format!("Invalid arguments for tool {name}: {argument}"))
}

/// The sum as text; integers stay integers.
fn sum(arguments: &Value) -> Option<String> {
    let (a, b) = (arguments.get("a")?, arguments.get("b")?);
    let whole = a.as_i64().zip(b.as_i64()).and_then(|(a, b)| a.checked_add(b));
    match whole {
        Some(whole) => Some(whole.to_string()),
        None => Some((a.as_f64()? + b.as_f64()?).to_string()),
    }
}

/// The results that do not depend on arguments.
fn fixed_result(name: &str) -> Option<Value> {
    let text = |text: &str| json!({ "type": "text", "text": text });
    Some(match name {
        "fail" => json!({ "content": [text("The simulated tool failed.")], "isError": true }),
        "image" => json!({ "content": [
            text("A picture:"), { "type": "image", "data": PNG, "mimeType": "image/png" },
        ] }),
        "structured" => json!({
            "content": [text("{\"answer\":42}")], "structuredContent": { "answer": 42 },
        }),
        "odd" => json!({ "content": [
            { "type": "hologram", "shape": "cube" }, text("A text beside something odd."),
        ] }),
        "resource" => json!({ "content": [
            { "type": "resource", "resource": {
                "uri": "sim://notes/1", "mimeType": "text/plain", "text": "The text of a resource.",
            } },
            { "type": "resource_link", "uri": "sim://notes/2", "name": "notes-2", "mimeType": "text/plain" },
        ] }),
        "invalid" => json!({ "content": 42 }),
        _ => return None,
    })
}
