//! Requests as coding agents send them: tools, and a conversation of a certain length.
#![expect(clippy::indexing_slicing, reason = "keys of an object that is made here")]

use serde_json::{Value, json};

/// The length of a message in the conversation.
const MESSAGE_LENGTH: usize = 2_000;

/// Builds a request body of about this size.
pub(crate) fn body(path: &str, model: &str, streaming: bool, bytes: usize) -> String {
    let is_messages = path.ends_with("/messages");
    let mut body = json!({ "model": model, "max_tokens": 1024, "stream": streaming });
    if !is_messages && streaming {
        body["stream_options"] = json!({ "include_usage": true });
    }
    // Agents send some 20 tools; a short request has none.
    if bytes > 20_000 {
        body["tools"] = (0..20).map(|number| tool(number, is_messages)).collect();
    }
    let mut messages = Vec::new();
    let mut left = bytes.saturating_sub(body.to_string().len());
    while left > 0 {
        let role = if messages.len() % 2 == 0 { "user" } else { "assistant" };
        let length = left.min(MESSAGE_LENGTH);
        messages
            .push(json!({ "role": role, "content": [{ "type": "text", "text": text(length) }] }));
        left = left.saturating_sub(length + 70);
    }
    if messages.len() % 2 == 0 {
        messages.push(json!({ "role": "user", "content": "Go on." }));
    }
    body["messages"] = messages.into();
    body.to_string()
}

/// Code with quotes and newlines, which JSON escapes.
fn text(length: usize) -> String {
    const LINE: &str = "    let answer = plan(\"who\", &path)?; // what was asked for\n";
    LINE.chars().cycle().take(length).collect()
}

fn tool(number: usize, is_messages: bool) -> Value {
    let name = format!("tool_{number}");
    let description =
        "Does what its name says, with the file of that path, and gives what it found. ".repeat(5);
    let schema = json!({
        "type": "object",
        "properties": { "path": { "type": "string" }, "limit": { "type": "integer" } },
        "required": ["path"],
    });
    if is_messages {
        json!({ "name": name, "description": description, "input_schema": schema })
    } else {
        json!({ "type": "function", "function": { "name": name, "description": description, "parameters": schema } })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::body;

    #[test]
    fn requests_have_about_the_requested_size() {
        for path in ["/v1/messages", "/v1/chat/completions"] {
            for bytes in [1_000, 200_000, 1_000_000] {
                let text = body(path, "bench-1", true, bytes);
                assert!(
                    text.len() > bytes * 9 / 10 && text.len() < bytes * 12 / 10,
                    "{path} {bytes}"
                );
                let json: Value = serde_json::from_str(&text).unwrap();
                let last = json["messages"].as_array().unwrap().last().unwrap();
                assert_eq!(last["role"], "user", "{path} {bytes}");
            }
        }
    }
}
