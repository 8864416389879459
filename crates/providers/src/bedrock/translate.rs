//! The body of a Messages request as `InvokeModel` takes it: splices, nothing is written anew.

use http::HeaderMap;
use keybridge_wire::json::{Edits, JsonError, Object, Value};

use super::BedrockConfig;

/// The one version of the Messages API that `InvokeModel` speaks.
const VERSION: &str = "\"bedrock-2023-05-31\"";

/// What goes to Bedrock.
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
    let asked_model = object.member("model").and_then(|value| value.as_str()).unwrap_or_default();
    let asked_model = asked_model.to_lowercase();
    let model = match &config.small_fast_model {
        Some(small) if asked_model.contains("haiku") => small.as_str(),
        _ => config.model.as_str(),
    };
    // The ARN of an inference profile of one's own does not tell the model.
    let judged = if model.contains("claude") { model } else { asked_model.as_str() };
    let streaming = object.member("stream").and_then(|value| value.as_bool()).unwrap_or_default();
    let rules = &config.rules;
    let asked = asked_flags(headers);
    let passing = rules.passing(&asked, judged);
    let mut edits = Edits::new();
    edits.remove(&["model"]);
    edits.remove(&["stream"]);
    for field in rules.removed(&passing) {
        edits.remove(&[field]);
    }
    if !rules.is_adaptive(judged)
        && let Some(thinking) = thinking(config, &object)
    {
        edits.set(&["thinking"], &thinking);
    }
    edits.set(&["anthropic_version"], VERSION);
    if passing.is_empty() {
        edits.remove(&["anthropic_beta"]);
    } else {
        edits.set(&["anthropic_beta"], &serde_json::Value::from(passing).to_string());
    }
    Ok(Translated { model, streaming, body: edits.apply(body)? })
}

/// The flags of all `anthropic-beta` headers.
fn asked_flags(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all("anthropic-beta").iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).collect()
}

/// What takes the place of adaptive thinking.
fn thinking(config: &BedrockConfig, object: &Object<'_>) -> Option<String> {
    let kind = object.member("thinking")?.get("type")?;
    if kind.as_str()? != "adaptive" {
        return None;
    }
    let effort = object.member("output_config").and_then(|value| value.get("effort"));
    let effort = effort.and_then(|value| value.as_str());
    let max_tokens = object.member("max_tokens").map(whole).unwrap_or_default();
    Some(match config.rules.budget(max_tokens, effort.as_deref()) {
        Some(budget) => format!(r#"{{"type":"enabled","budget_tokens":{budget}}}"#),
        None => r#"{"type":"disabled"}"#.to_owned(),
    })
}

/// A count, which may be written as `1e3`.
fn whole(value: Value<'_>) -> u64 {
    let written = || value.raw().parse::<serde_json::Number>().ok()?.as_f64();
    let rounded = || format!("{:.0}", written()?.trunc()).parse().ok();
    value.as_u64().or_else(rounded).unwrap_or_default()
}

#[cfg(test)]
mod tests;
