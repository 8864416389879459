//! The providers' usage figures, mapped to the columns that all dialects share.

use super::{Usage, non_null};
use crate::json::Value;

/// Maximum number of further counts of one response.
const MAX_EXTRA: usize = 100;

/// Reads the usage of the Messages API; its figures are cumulative, so new ones replace old ones.
pub(super) fn messages(usage: &Value<'_>, known: &mut Usage) {
    let [input, output, cache_read, cache_write, cache_creation, server_tool_use] =
        usage.get_all([
            "input_tokens",
            "output_tokens",
            "cache_read_input_tokens",
            "cache_creation_input_tokens",
            "cache_creation",
            "server_tool_use",
        ]);
    let update = |slot: &mut u64, figure: Option<Value<'_>>| {
        if let Some(tokens) = figure.and_then(|figure| figure.as_u64()) {
            *slot = tokens;
        }
    };
    update(&mut known.input_tokens, input);
    update(&mut known.output_tokens, output);
    update(&mut known.cache_read_input_tokens, cache_read);
    update(&mut known.cache_write_input_tokens, cache_write);
    for group in [cache_creation, server_tool_use] {
        let members = group.and_then(|group| group.as_object());
        for (name, value) in members.iter().flat_map(|group| group.members()) {
            let is_new = !known.extra.contains_key(&*name);
            if let Some(figure) = value.as_u64()
                && !(is_new && known.extra.len() >= MAX_EXTRA)
            {
                known.extra.insert(name.into_owned(), figure);
            }
        }
    }
}

/// Reads the usage of the Chat Completions API.
pub(super) fn chat(usage: &Value<'_>) -> Usage {
    let cached = detail(usage, "prompt_tokens_details", "cached_tokens").unwrap_or_default();
    let prompt = figure(usage, "prompt_tokens").unwrap_or_default();
    let extra = [
        ("prompt_audio", "prompt_tokens_details", "audio_tokens"),
        (
            "completion_accepted_prediction",
            "completion_tokens_details",
            "accepted_prediction_tokens",
        ),
        (
            "completion_rejected_prediction",
            "completion_tokens_details",
            "rejected_prediction_tokens",
        ),
        ("completion_audio", "completion_tokens_details", "audio_tokens"),
        ("completion_reasoning", "completion_tokens_details", "reasoning_tokens"),
    ];
    let named = extra.into_iter().filter_map(|(name, group, key)| {
        detail(usage, group, key).map(|tokens| (name.to_owned(), tokens))
    });
    Usage {
        input_tokens: prompt.saturating_sub(cached),
        output_tokens: figure(usage, "completion_tokens").unwrap_or_default(),
        cache_read_input_tokens: cached,
        extra: named.collect(),
        ..Usage::default()
    }
}

/// Reads the usage of the Responses API.
pub(super) fn responses(usage: &Value<'_>) -> Usage {
    let cached = detail(usage, "input_tokens_details", "cached_tokens").unwrap_or_default();
    let input = figure(usage, "input_tokens").unwrap_or_default();
    let reasoning = detail(usage, "output_tokens_details", "reasoning_tokens");
    let extra = [("output_reasoning", reasoning), ("total_tokens", figure(usage, "total_tokens"))];
    let named = extra.into_iter().filter_map(|(name, tokens)| Some((name.to_owned(), tokens?)));
    Usage {
        input_tokens: input.saturating_sub(cached),
        output_tokens: figure(usage, "output_tokens").unwrap_or_default(),
        cache_read_input_tokens: cached,
        extra: named.collect(),
        ..Usage::default()
    }
}

fn figure(usage: &Value<'_>, key: &str) -> Option<u64> {
    usage.get(key)?.as_u64()
}

fn detail(usage: &Value<'_>, group: &str, key: &str) -> Option<u64> {
    figure(&non_null(usage, group)?, key)
}
