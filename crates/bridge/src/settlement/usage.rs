//! The recorded token usage of an answer.

use keybridge_ledger::{NewTokenUsage, record::Quality};
use keybridge_wire::observe::Observation;

/// Bytes of text per token, for the estimate of a truncated stream.
const BYTES_PER_TOKEN: u64 = 4;

/// One row per answer of a provider that accepted the request.
pub(super) fn token_usage(
    observed: &Observation,
    turn: u16,
    accepted: bool,
) -> Option<NewTokenUsage> {
    // A queued background answer has no figures yet; they are recorded when it is fetched.
    let is_pending = matches!(observed.status.as_deref(), Some("queued" | "in_progress"))
        && observed.usage.is_none()
        && observed.is_json;
    // An error before any answer.
    let is_failed =
        observed.usage.is_none() && observed.error.is_some() && observed.response_id.is_none();
    if !(accepted || observed.usage.is_some()) || is_pending || is_failed {
        return None;
    }
    let mut row = NewTokenUsage {
        provider_response_id: observed.response_id.clone(),
        quality: Quality::Unknown,
        turn,
        ..NewTokenUsage::default()
    };
    if let Some(usage) = &observed.usage {
        row.input_tokens = Some(usage.input_tokens);
        row.output_tokens = Some(usage.output_tokens);
        row.cache_read_input_tokens = Some(usage.cache_read_input_tokens);
        row.cache_write_input_tokens = Some(usage.cache_write_input_tokens);
        row.extra.clone_from(&usage.extra);
        row.quality = if observed.usage_is_final { Quality::Exact } else { Quality::Partial };
    }
    if row.quality != Quality::Exact && observed.relayed_text_bytes > 0 {
        let estimate = observed.relayed_text_bytes.div_ceil(BYTES_PER_TOKEN);
        row.output_tokens = Some(row.output_tokens.unwrap_or(0).max(estimate));
        row.quality = Quality::Partial;
        row.extra.insert("output_estimated_from_text_bytes".into(), observed.relayed_text_bytes);
    }
    Some(row)
}
