//! The recorded token usage of an answer.

use keybridge_ledger::{
    NewTokenUsage,
    record::{Quality, UsageKind},
};
use keybridge_providers::provider::Provider;
use keybridge_wire::observe::{Iteration, IterationKind, Observation, Usage};

/// Bytes of text per token, for the estimate of a truncated stream.
const BYTES_PER_TOKEN: u64 = 4;
/// Calls of the provider's own tools in the Responses API that have a price each.
const PAID_CALLS: [&str; 4] =
    ["web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call"];

/// The rows of an answer of a provider that accepted the request: its own, and one for each part that its
/// totals do not contain.
pub(super) fn token_usages(
    observed: &Observation,
    turn: u16,
    accepted: bool,
    provider: &Provider,
) -> impl Iterator<Item = NewTokenUsage> {
    let answer = token_usage(observed, turn, accepted, provider);
    let usage = observed.usage.as_ref().filter(|_| answer.is_some());
    let iterations = usage.map(|usage| usage.iterations.as_slice()).unwrap_or_default();
    let parts = (1..).zip(iterations).map(move |(part, iteration)| {
        let row = NewTokenUsage { part, ..terms(observed, turn, provider) };
        iteration_row(iteration, observed, row)
    });
    answer.into_iter().chain(parts)
}

/// The row of an answer of a provider that accepted the request.
pub(super) fn token_usage(
    observed: &Observation,
    turn: u16,
    accepted: bool,
    provider: &Provider,
) -> Option<NewTokenUsage> {
    // A queued background answer has no figures yet; they are recorded when it is fetched.
    let is_measured = observed.usage.as_ref().is_some_and(|usage| usage.prompt_tokens() > Some(0));
    let is_pending = matches!(observed.status.as_deref(), Some("queued" | "in_progress"))
        && !is_measured
        && observed.is_json;
    // An error before any answer.
    let is_failed =
        observed.usage.is_none() && observed.error.is_some() && observed.response_id.is_none();
    if !(accepted || observed.usage.is_some()) || is_pending || is_failed {
        return None;
    }
    let mut row = terms(observed, turn, provider);
    row.model.clone_from(&observed.model);
    let text_bytes = observed.relayed_text_bytes;
    if let Some(usage) = &observed.usage {
        set_figures(&mut row, usage, text_bytes);
        if !observed.usage_is_final && row.quality == Quality::Exact {
            row.quality = Quality::Partial;
        }
    }
    if row.quality != Quality::Exact && text_bytes > 0 {
        let estimate = text_bytes.div_ceil(BYTES_PER_TOKEN);
        row.output_tokens = Some(row.output_tokens.unwrap_or(0).max(estimate));
        row.quality = Quality::Partial;
        row.extra.insert("output_estimated_from_text_bytes".into(), text_bytes.into());
    }
    count_calls(&mut row, observed);
    Some(row)
}

/// The row of an answer of which nothing has arrived.
pub(super) fn awaited_usage(turn: u16) -> NewTokenUsage {
    NewTokenUsage { quality: Quality::Unknown, turn, ..NewTokenUsage::default() }
}

/// A row with what all rows of an answer have in common.
fn terms(observed: &Observation, turn: u16, provider: &Provider) -> NewTokenUsage {
    let usage = observed.usage.as_ref();
    let region = usage.and_then(|usage| usage.region.clone());
    let served = observed.model.as_deref().unwrap_or_default();
    let profile = || Some(provider.bedrock()?.region_of(served).to_owned());
    NewTokenUsage {
        provider_response_id: observed.response_id.clone(),
        service_tier: observed.service_tier.clone(),
        speed: usage.and_then(|usage| usage.speed.clone()),
        region: region.or_else(profile),
        quality: Quality::Unknown,
        turn,
        ..NewTokenUsage::default()
    }
}

/// Sets the figures that are known. A prompt without any token was not measured, nor was an output of 0
/// tokens with text in it.
fn set_figures(row: &mut NewTokenUsage, usage: &Usage, text_bytes: u64) {
    let has_prompt = usage.prompt_tokens().is_some_and(|tokens| tokens > 0);
    if has_prompt {
        row.input_tokens = usage.input_tokens;
        // A cache that is not mentioned beside the input was not used.
        let unused = usage.input_tokens.map(|_| 0);
        row.cache_read_input_tokens = usage.cache_read_input_tokens.or(unused);
        row.cache_write_input_tokens = usage.cache_write_input_tokens.or(unused);
        row.cache_write_long_tokens = usage.cache_write_long_tokens;
    }
    let may_be_zero = has_prompt && text_bytes == 0;
    row.output_tokens = usage.output_tokens.filter(|tokens| *tokens > 0 || may_be_zero);
    row.extra.clone_from(&usage.extra);
    if let Some(tokens) = usage.undivided_cache_write_tokens() {
        row.extra.insert("cache_write_undivided".into(), tokens.into());
    }
    row.raw = (!usage.raw.is_empty()).then(|| usage.raw.clone());
    row.quality = match (row.input_tokens, row.output_tokens) {
        (Some(_), Some(_)) if !usage.is_unreadable => Quality::Exact,
        (None, None) if !has_prompt => Quality::Unknown,
        _ => Quality::Partial,
    };
}

/// Counts the calls of the provider's own tools that are paid for one by one; the Messages API counts its
/// own in the usage.
fn count_calls(row: &mut NewTokenUsage, observed: &Observation) {
    for call in &observed.tool_calls {
        if call.provider_executed && PAID_CALLS.contains(&call.name.as_str()) {
            let name = format!("{}s", call.name);
            let count = row.extra.get(&name).and_then(|count| count.as_u64()).unwrap_or_default();
            row.extra.insert(name, count.saturating_add(1).into());
        }
    }
}

/// The row of what the totals of an answer do not contain.
fn iteration_row(
    iteration: &Iteration,
    observed: &Observation,
    mut row: NewTokenUsage,
) -> NewTokenUsage {
    set_figures(&mut row, &iteration.usage, 0);
    let (kind, model) = match iteration.kind {
        IterationKind::Compaction => (UsageKind::Compaction, &observed.model),
        IterationKind::Advisor => (UsageKind::Advisor, &None),
        IterationKind::Fallback => (UsageKind::Fallback, &observed.declined_model),
    };
    // Only an invoice shows how the tokens of other models are billed.
    if kind != UsageKind::Compaction && row.quality == Quality::Exact {
        row.quality = Quality::Partial;
    }
    row.kind = kind;
    row.model = iteration.model.clone().or_else(|| model.clone());
    row
}
