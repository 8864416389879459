//! What Bedrock's copy of the Messages API accepts, model by model: as strict as the real one, and
//! written down apart from the bridge's own rules.

use serde_json::{Map, Value};

use crate::turns::word;

/// The models that differ in what they accept, by a part of their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Generation {
    Claude4,
    Claude45,
    Claude46,
    Claude47,
    Claude48,
    Claude5,
}

/// The flags that Bedrock knows.
const FLAGS: [&str; 11] = [
    "computer-use-2024-10-22",
    "computer-use-2025-01-24",
    "token-efficient-tools-2025-02-19",
    "output-128k-2025-02-19",
    "interleaved-thinking-2025-05-14",
    "dev-full-thinking-2025-05-14",
    "context-1m-2025-08-07",
    CONTEXT_MANAGEMENT,
    EFFORT,
    TOOL_SEARCH,
    TOOL_EXAMPLES,
];
const CONTEXT_MANAGEMENT: &str = "context-management-2025-06-27";
const EFFORT: &str = "effort-2025-11-24";
const TOOL_SEARCH: &str = "tool-search-tool-2025-10-19";
const TOOL_EXAMPLES: &str = "tool-examples-2025-10-29";

const REQUEST: [&str; 12] = [
    "anthropic_version",
    "anthropic_beta",
    "max_tokens",
    "messages",
    "system",
    "stop_sequences",
    "temperature",
    "top_k",
    "top_p",
    "tools",
    "tool_choice",
    "thinking",
];

/// The schema of one request.
struct Schema<'a> {
    generation: Generation,
    model: &'a str,
    flags: Vec<&'a str>,
}

/// Checks the body of an invocation of a model; returns why it is rejected.
pub(super) fn check(model: &str, fields: &Map<String, Value>) -> Result<(), String> {
    if fields.get("anthropic_version") != Some(&"bedrock-2023-05-31".into()) {
        return Err("anthropic_version: Field required".into());
    }
    let flags: Vec<&str> = fields
        .get("anthropic_beta")
        .and_then(Value::as_array)
        .map(|flags| flags.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    if flags.iter().any(|flag| !FLAGS.contains(flag)) {
        return Err("invalid beta flag".into());
    }
    let schema = Schema { generation: generation(model), model, flags };
    schema.request(fields)
}

fn generation(model: &str) -> Generation {
    let has = |parts: &[&str]| parts.iter().any(|part| model.contains(part));
    if has(&["-4-5-"]) {
        Generation::Claude45
    } else if has(&["-4-6"]) {
        Generation::Claude46
    } else if has(&["-4-7"]) {
        Generation::Claude47
    } else if has(&["-4-8"]) {
        Generation::Claude48
    } else if has(&["claude-3", "-4-20", "-4-1-"]) {
        Generation::Claude4
    } else {
        Generation::Claude5
    }
}

impl Schema<'_> {
    fn has_flag(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }

    /// Whether answers can be bound to a schema: the newest models learn it late.
    fn has_structured_outputs(&self) -> bool {
        self.generation == Generation::Claude46 || self.model.contains("claude-opus-5")
    }

    fn request(&self, fields: &Map<String, Value>) -> Result<(), String> {
        for field in fields.keys() {
            let is_known = match field.as_str() {
                "output_config" => self.has_flag(EFFORT) || self.generation >= Generation::Claude46,
                "context_management" => self.has_flag(CONTEXT_MANAGEMENT),
                field => REQUEST.contains(&field),
            };
            extra(is_known, field)?;
        }
        let value = |field: &str| fields.get(field).unwrap_or(&Value::Null);
        for (name, _) in members(value("output_config")) {
            let is_known = name == "effort" || (name == "format" && self.has_structured_outputs());
            extra(is_known, &format!("output_config.{name}"))?;
        }
        self.thinking(value("thinking"))?;
        for (number, tool) in array(value("tools")).iter().enumerate() {
            self.tool(number, tool)?;
        }
        self.blocks("system", value("system"))?;
        for (number, message) in array(value("messages")).iter().enumerate() {
            self.message(number, message)?;
        }
        Ok(())
    }

    fn thinking(&self, thinking: &Value) -> Result<(), String> {
        let is_new = self.generation >= Generation::Claude46;
        let kind = word(thinking, "type");
        for (name, value) in members(thinking) {
            let is_known = match name.as_str() {
                "type" | "budget_tokens" => true,
                "display" => is_new && (value == "omitted" || value == "summarized"),
                _ => false,
            };
            extra(is_known, &format!("thinking.{kind}.{name}"))?;
        }
        if kind == "adaptive" && !is_new {
            return Err("thinking: Input tag 'adaptive' found using 'type' does not match any of the expected tags: 'disabled', 'enabled'".into());
        }
        Ok(())
    }

    fn tool(&self, number: usize, tool: &Value) -> Result<(), String> {
        let kind = if word(tool, "type").is_empty() { "custom" } else { word(tool, "type") };
        let is_known = match kind {
            "custom" => true,
            kind if kind.starts_with("tool_search_tool_") => self.has_flag(TOOL_SEARCH),
            kind => ["bash_", "text_editor_", "computer_", "memory_"]
                .iter()
                .any(|known| kind.starts_with(known)),
        };
        if !is_known {
            return Err(format!(
                "tools.{number}: Input tag '{kind}' found using 'type' does not match any of the expected tags"
            ));
        }
        for (name, _) in members(tool) {
            let is_known = match name.as_str() {
                "type" | "name" | "description" | "input_schema" | "cache_control" => true,
                "strict" => self.has_structured_outputs(),
                "defer_loading" => self.has_flag(TOOL_SEARCH),
                "input_examples" => self.has_flag(TOOL_EXAMPLES),
                name => {
                    kind != "custom" && (name.starts_with("display_") || name == "max_characters")
                }
            };
            extra(is_known, &format!("tools.{number}.{kind}.{name}"))?;
        }
        self.cache_control(&format!("tools.{number}.{kind}"), tool)
    }

    fn message(&self, number: usize, message: &Value) -> Result<(), String> {
        if word(message, "role") == "system" && self.generation < Generation::Claude47 {
            return Err("messages: Unexpected role \"system\". The Messages API accepts a top-level `system` parameter, not \"system\" as an input message role.".into());
        }
        if word(message, "role") == "system" && self.generation < Generation::Claude48 {
            return Err(format!("messages.{number}: role 'system' is not supported on this model"));
        }
        for (name, _) in members(message) {
            extra(name == "role" || name == "content", &format!("messages.{number}.{name}"))?;
        }
        let content = message.get("content").unwrap_or(&Value::Null);
        self.blocks(&format!("messages.{number}.content"), content)
    }

    fn blocks(&self, place: &str, content: &Value) -> Result<(), String> {
        for (number, block) in array(content).iter().enumerate() {
            let kind = word(block, "type");
            let place = format!("{place}.{number}.{kind}");
            if kind == "tool_reference" && !self.has_flag(TOOL_SEARCH) {
                return Err(format!(
                    "{place}: Input tag 'tool_reference' found using 'type' does not match any of the expected tags"
                ));
            }
            extra(block.get("caller").is_none(), &format!("{place}.caller"))?;
            self.cache_control(&place, block)?;
            if kind == "tool_result" {
                let nested = block.get("content").unwrap_or(&Value::Null);
                self.blocks(&format!("{place}.content"), nested)?;
            }
        }
        Ok(())
    }

    fn cache_control(&self, place: &str, value: &Value) -> Result<(), String> {
        let control = value.get("cache_control").unwrap_or(&Value::Null);
        for (name, _) in members(control) {
            let has_ttl = self.generation >= Generation::Claude45;
            let is_known = name == "type" || (name == "ttl" && has_ttl);
            extra(is_known, &format!("{place}.cache_control.{}.{name}", word(control, "type")))?;
        }
        Ok(())
    }
}

fn extra(is_known: bool, field: &str) -> Result<(), String> {
    if is_known { Ok(()) } else { Err(format!("{field}: Extra inputs are not permitted")) }
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::check;

    const HAIKU_4_5: &str = "eu.anthropic.claude-haiku-4-5-20251001-v1:0";
    const OPUS_4_7: &str = "us.anthropic.claude-opus-4-7";
    const OPUS_5: &str = "us.anthropic.claude-opus-5";

    fn rejection(model: &str, more: &Value) -> Option<String> {
        let mut body = json!({
            "anthropic_version": "bedrock-2023-05-31", "max_tokens": 9,
            "messages": [{ "role": "user", "content": "hi" }],
        });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        check(model, body.as_object().unwrap()).err()
    }

    #[test]
    fn what_bedrock_does_not_know_is_rejected_with_its_place() {
        let tool =
            |field: &str| json!({ "tools": [{ "name": "Bash", "input_schema": {}, field: true }] });
        let block = json!({ "type": "text", "text": "t", "cache_control": { "type": "ephemeral", "scope": "global" } });
        let system =
            json!([{ "role": "user", "content": "a" }, { "role": "system", "content": "b" }]);
        for (model, more, expected) in [
            (HAIKU_4_5, json!({}), None),
            (HAIKU_4_5, json!({ "speed": "fast" }), Some("speed: Extra")),
            (
                HAIKU_4_5,
                json!({ "anthropic_beta": ["oauth-2025-04-20"] }),
                Some("invalid beta flag"),
            ),
            (
                HAIKU_4_5,
                tool("eager_input_streaming"),
                Some("tools.0.custom.eager_input_streaming: Extra"),
            ),
            (HAIKU_4_5, tool("strict"), Some("tools.0.custom.strict: Extra")),
            (OPUS_5, tool("strict"), None),
            (OPUS_5, tool("defer_loading"), Some("tools.0.custom.defer_loading: Extra")),
            (
                OPUS_5,
                json!({ "system": [block] }),
                Some("system.0.text.cache_control.ephemeral.scope: Extra"),
            ),
            (
                HAIKU_4_5,
                json!({ "messages": system }),
                Some("messages: Unexpected role \"system\""),
            ),
            (
                OPUS_4_7,
                json!({ "messages": system }),
                Some("messages.1: role 'system' is not supported"),
            ),
            (OPUS_5, json!({ "messages": system }), None),
            (OPUS_5, json!({ "output_config": { "effort": "low" } }), None),
            (
                HAIKU_4_5,
                json!({ "output_config": { "effort": "low" } }),
                Some("output_config: Extra"),
            ),
        ] {
            let rejection = rejection(model, &more);
            let is_expected = match (&rejection, expected) {
                (None, None) => true,
                (Some(message), Some(start)) => message.starts_with(start),
                _ => false,
            };
            assert!(is_expected, "{model} {more}: {rejection:?}");
        }
    }
}
