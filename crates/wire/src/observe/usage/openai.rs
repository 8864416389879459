//! The usage of the Chat Completions and the Responses API.

use super::{Usage, add_extra, raw, tokens};
use crate::json::Value;

/// Members of a usage object of the OpenAI dialects that columns hold, in all spellings.
const FIGURES: [&str; 14] = [
    "prompt_tokens",
    "input_tokens",
    "completion_tokens",
    "output_tokens",
    "cached_tokens",
    "num_cached_tokens",
    "cache_read_tokens",
    "cache_read_input_tokens",
    "prompt_cache_hit_tokens",
    "cache_write_tokens",
    "cache_write_input_tokens",
    "cache_creation_tokens",
    "cache_creation_input_tokens",
    "cached_creation_tokens",
];
/// Tokens read from a cache, in the details of the prompt; the first one that is there counts.
const CACHE_READ: [&str; 3] = ["cached_tokens", "cache_read_tokens", "cache_read_input_tokens"];
/// The same beside the prompt's figure.
const FLAT_CACHE_READ: [&str; 5] = [
    "prompt_cache_hit_tokens",
    "cache_read_input_tokens",
    "cached_tokens",
    "cache_read_tokens",
    "num_cached_tokens",
];
/// Tokens written to a cache, in the details of the prompt and beside its figure.
const CACHE_WRITE: [&str; 5] = [
    "cache_write_tokens",
    "cache_creation_tokens",
    "cache_creation_input_tokens",
    "cache_write_input_tokens",
    "cached_creation_tokens",
];

/// Reads the usage of the Chat Completions or the Responses API; servers mix the spellings of both.
pub(in crate::observe) fn openai(usage: &Value<'_>, known: &mut Option<Box<Usage>>) {
    let mut latest = figures(usage);
    latest.complete();
    match known {
        Some(known) => known.update(latest),
        None => *known = Some(Box::new(latest)),
    }
}

fn figures(usage: &Value<'_>) -> Usage {
    let mut read = Usage { raw: raw(usage), ..Usage::default() };
    let flaw = &mut read.is_unreadable;
    let [prompt, input, completion, output, total, prompt_details, input_details, token_details] =
        usage.get_all([
            "prompt_tokens",
            "input_tokens",
            "completion_tokens",
            "output_tokens",
            "total_tokens",
            "prompt_tokens_details",
            "input_tokens_details",
            "prompt_token_details",
        ]);
    let prompt = tokens(first([prompt, input]), flaw);
    let output = tokens(first([completion, output]), flaw);
    let total = tokens(total, flaw);
    let details = first([prompt_details, input_details, token_details]);
    let cache_read = details.and_then(|details| first(details.get_all(CACHE_READ)));
    let cache_read =
        tokens(cache_read, flaw).or_else(|| tokens(first(usage.get_all(FLAT_CACHE_READ)), flaw));
    let cache_write = details.and_then(|details| first(details.get_all(CACHE_WRITE)));
    let cache_write =
        tokens(cache_write, flaw).or_else(|| tokens(first(usage.get_all(CACHE_WRITE)), flaw));
    add_extra(&mut read.extra, usage, &FIGURES);
    let cached = cache_read.unwrap_or_default().saturating_add(cache_write.unwrap_or_default());
    let reasoning = ["completion_reasoning", "output_reasoning", "reasoning_tokens"];
    let reasoning = reasoning.into_iter().find_map(|name| read.extra.get(name)?.as_u64());
    read.input_tokens = prompt.map(|prompt| prompt.saturating_sub(cached));
    read.output_tokens = output;
    if let Some((prompt, rest)) =
        prompt.and_then(|prompt| Some((prompt, total?.checked_sub(prompt)?)))
    {
        // What the total has more than prompt and output.
        let surplus = rest.saturating_sub(output.unwrap_or_default());
        if surplus > 0 && surplus == cached && output.is_some() && reasoning != Some(surplus) {
            read.input_tokens = Some(prompt);
        } else {
            // Some providers count reasoning in the total only.
            read.output_tokens = output.max(Some(rest));
        }
    }
    // A provider that gives the prompt and nothing of a cache used none.
    read.cache_read_input_tokens = cache_read.or(prompt.map(|_| 0));
    read.cache_write_input_tokens = cache_write.or(prompt.map(|_| 0));
    read
}

/// The first of these members that is not null.
fn first<'a, const N: usize>(members: [Option<Value<'a>>; N]) -> Option<Value<'a>> {
    members.into_iter().flatten().find(|member| !member.is_null())
}
