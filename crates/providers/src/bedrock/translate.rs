//! Translates the body of a Messages request for `InvokeModel` by splices into its bytes.

use http::HeaderMap;
use keybridge_wire::json::{Edits, JsonError, Object};

use super::{BedrockConfig, restrict::restrict, rules::Schema};

/// The only version of the Messages API that `InvokeModel` supports.
const VERSION: &str = "\"bedrock-2023-05-31\"";

/// A translated request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Translated<'a> {
    pub(super) model: &'a str,
    pub(super) streaming: bool,
    pub(super) body: Vec<u8>,
}

/// Translates a request body that is not encoded.
pub(super) fn translate<'a>(
    config: &'a BedrockConfig,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Translated<'a>, JsonError> {
    let object = Object::parse(body)?;
    let requested_model =
        object.member("model").and_then(|value| value.as_str()).unwrap_or_default();
    let requested_model = requested_model.to_lowercase();
    let model = match &config.small_fast_model {
        Some(small) if requested_model.contains("haiku") => small.as_str(),
        _ => config.model.as_str(),
    };
    // The ARN of a custom inference profile does not name the model.
    let rule_model = if model.contains("claude") { model } else { requested_model.as_str() };
    let streaming = object.member("stream").and_then(|value| value.as_bool()).unwrap_or_default();
    let requested = requested_flags(headers);
    let schema = config.rules.schema(rule_model, &requested);
    let restricted = restrict(&schema, &object, body);
    let mut edits = Edits::new();
    edits.remove(&["model"]);
    edits.remove(&["stream"]);
    if !schema.is_adaptive()
        && let Some(thinking) = thinking(&schema, &object)
    {
        edits.set(&["thinking"], &thinking);
    }
    edits.set(&["anthropic_version"], VERSION);
    if schema.flags().is_empty() {
        edits.remove(&["anthropic_beta"]);
    } else {
        let flags = serde_json::Value::from(schema.flags());
        edits.set(&["anthropic_beta"], &flags.to_string());
    }
    let body = edits.apply(restricted.as_deref().unwrap_or(body))?;
    Ok(Translated { model, streaming, body })
}

/// The flags of all `anthropic-beta` headers.
fn requested_flags(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all("anthropic-beta").iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).collect()
}

/// The replacement of adaptive thinking.
fn thinking(schema: &Schema<'_>, object: &Object<'_>) -> Option<String> {
    let kind = object.member("thinking")?.get("type")?;
    if kind.as_str()? != "adaptive" {
        return None;
    }
    let effort = object.member("output_config").and_then(|value| value.get("effort"));
    let effort = effort.and_then(|value| value.as_str());
    let max_tokens = object.member("max_tokens").and_then(|max| max.as_u64()).unwrap_or_default();
    Some(match schema.budget(max_tokens, effort.as_deref()) {
        Some(budget) => format!(r#"{{"type":"enabled","budget_tokens":{budget}}}"#),
        None => r#"{"type":"disabled"}"#.to_owned(),
    })
}

#[cfg(test)]
mod tests;
