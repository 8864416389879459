//! The usage of the Messages API.

use std::borrow::Cow;

use super::{Iteration, IterationKind, Usage, add_extra, raw, tokens};
use crate::{
    json::{Object, Value},
    observe::{Observation, set_text, text},
};

/// Maximum number of iterations of one response that are read.
const MAX_ITERATIONS: usize = 100;
/// Members of a usage object of the Messages API that columns hold.
const FIGURES: [&str; 4] =
    ["input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"];

/// Reads the usage of the Messages API.
pub(in crate::observe) fn messages(usage: &Value<'_>, observed: &mut Observation) {
    let [input, output, cache_read, cache_write] = FIGURES;
    let [input, output, cache_read, cache_write, speed, region, service_tier, iterations] = usage
        .get_all([
            input,
            output,
            cache_read,
            cache_write,
            "speed",
            "inference_geo",
            "service_tier",
            "iterations",
        ]);
    set_text(&mut observed.service_tier, service_tier);
    let known = observed.usage.get_or_insert_default();
    set_text(&mut known.speed, speed);
    set_text(&mut known.region, region);
    let mut latest = figures_of([input, output, cache_read, cache_write], usage);
    if !known.raw.is_empty() {
        latest.raw = overlaid(&known.raw, &latest.raw).unwrap_or(latest.raw);
    }
    known.update(latest);
    known.complete();
    let mut entries = iterations.iter().flat_map(|entries| entries.elements()).peekable();
    if entries.peek().is_some() {
        read_iterations(entries.take(MAX_ITERATIONS), known);
    }
}

/// The figures of a usage object of the Messages API.
fn figures(usage: &Value<'_>) -> Usage {
    figures_of(usage.get_all(FIGURES), usage)
}

/// The figures of a usage object of which these members hold those of the columns.
fn figures_of(columns: [Option<Value<'_>>; 4], usage: &Value<'_>) -> Usage {
    let mut read = columns_of(columns, usage);
    add_extra(&mut read.extra, usage, &FIGURES);
    read
}

/// The figures of the columns: input, output, and what was read from and written to a cache.
fn columns_of(columns: [Option<Value<'_>>; 4], usage: &Value<'_>) -> Usage {
    let mut read = Usage { raw: raw(usage), ..Usage::default() };
    let [input, output, cache_read, cache_write] =
        columns.map(|value| tokens(value, &mut read.is_unreadable));
    read.input_tokens = input;
    read.output_tokens = output;
    read.cache_read_input_tokens = cache_read;
    read.cache_write_input_tokens = cache_write;
    read
}

/// Reads the figures that Amazon Bedrock adds to the end of a stream, if the stream itself had none.
pub(in crate::observe) fn invocation_metrics(metrics: &Value<'_>, known: &mut Usage) {
    if known.input_tokens.is_some() && known.output_tokens.is_some() {
        return;
    }
    let figures = metrics.get_all([
        "inputTokenCount",
        "outputTokenCount",
        "cacheReadInputTokenCount",
        "cacheWriteInputTokenCount",
    ]);
    known.update(columns_of(figures, metrics));
}

/// Finds the iterations that the totals do not contain.
///
/// The totals are those of the `message` entries, or, after a fallback at the provider, those of its last
/// entry. Which one it is shows in the figures.
fn read_iterations<'a>(entries: impl Iterator<Item = Value<'a>>, known: &mut Usage) {
    let mut own = Usage::default();
    let mut declined = Vec::new();
    let mut others = Vec::new();
    for entry in entries {
        let kind = text(entry.get("type")).unwrap_or_default();
        let mut usage = figures(&entry);
        usage.complete();
        let mut iteration =
            Iteration { kind: IterationKind::Fallback, model: text(entry.get("model")), usage };
        match kind.as_str() {
            "message" => {
                own = sum(&own, &iteration.usage);
                declined.push(iteration);
            }
            "compaction" => {
                iteration.kind = IterationKind::Compaction;
                others.push(iteration);
            }
            kind if kind.starts_with("advisor") => {
                iteration.kind = IterationKind::Advisor;
                others.push(iteration);
            }
            _ => others.push(iteration),
        }
    }
    let is_fallback = |other: &Iteration| other.kind == IterationKind::Fallback;
    let served = others.iter().rposition(is_fallback);
    if !known.has_figures_of(&own)
        && let Some(at) = served
    {
        let served = others.remove(at);
        let all = others.iter().filter(|other| is_fallback(other));
        let all = all.fold(sum(&own, &served.usage), |all, other| sum(&all, &other.usage));
        known.fallback_model.clone_from(&served.model);
        if known.has_figures_of(&all) {
            others.retain(|other| !is_fallback(other));
        } else if known.has_figures_of(&served.usage) {
            declined.append(&mut others);
            others = declined;
        } else {
            others.insert(at, served);
        }
    }
    known.iterations = others;
}

fn sum(one: &Usage, other: &Usage) -> Usage {
    let add = |one: Option<u64>, other: Option<u64>| {
        one.into_iter().chain(other).reduce(u64::saturating_add)
    };
    Usage {
        input_tokens: add(one.input_tokens, other.input_tokens),
        output_tokens: add(one.output_tokens, other.output_tokens),
        cache_read_input_tokens: add(one.cache_read_input_tokens, other.cache_read_input_tokens),
        cache_write_input_tokens: add(one.cache_write_input_tokens, other.cache_write_input_tokens),
        ..Usage::default()
    }
}

/// The later one of two usage objects, with the members that only the earlier one has.
fn overlaid(earlier: &str, later: &str) -> Option<String> {
    let (earlier, later) =
        (Object::parse(earlier.as_bytes()).ok()?, Object::parse(later.as_bytes()).ok()?);
    let mut whole = String::from("{");
    let mut add = |key: &str, value: Value<'_>| {
        let comma = if whole.len() > 1 { "," } else { "" };
        whole.extend([comma, "\"", &escaped(key), "\":", value.raw()]);
    };
    let said = |key: &str| later.member(key).filter(|value| !value.is_null());
    for (key, value) in earlier.members() {
        add(&key, said(&key).unwrap_or(value));
    }
    for (key, value) in later.members().filter(|(key, _)| earlier.member(key).is_none()) {
        add(&key, value);
    }
    whole.push('}');
    Some(whole)
}

/// A key as it stands in a JSON string; keys of figures need no escape.
fn escaped(key: &str) -> Cow<'_, str> {
    if key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return key.into();
    }
    let literal = serde_json::Value::from(key).to_string();
    literal.get(1..literal.len() - 1).unwrap_or_default().to_owned().into()
}
