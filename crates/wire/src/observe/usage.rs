//! The providers' usage figures, mapped to the columns that all dialects share.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::Number;

use super::{Observation, non_null, set_text, text};
use crate::json::{Kind, Object, Value};

/// Maximum number of further figures of one response.
const MAX_EXTRA: usize = 100;
/// Maximum number of iterations of one response that are read.
const MAX_ITERATIONS: usize = 100;
/// Maximum number of tokens that is taken for a figure: sums of many rows stay within 64 bits.
const MAX_TOKENS: u64 = 1 << 40;
/// Maximum nesting of objects in which further figures are searched for.
const MAX_EXTRA_DEPTH: usize = 4;
/// Maximum length of a usage object that is kept as it was sent; a record keeps less.
const MAX_RAW_BYTES: usize = 64 << 10;

/// The token usage of one response; `None` is "not known".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Input tokens neither read from a cache nor written to one.
    pub input_tokens: Option<u64>,
    /// Output tokens, thoughts included.
    pub output_tokens: Option<u64>,
    /// Input tokens read from a cache.
    pub cache_read_input_tokens: Option<u64>,
    /// Input tokens written to a cache.
    pub cache_write_input_tokens: Option<u64>,
    /// Those of them that are kept for an hour or more.
    pub cache_write_long_tokens: Option<u64>,
    /// Whether the answer was generated at a higher speed.
    pub speed: Option<String>,
    /// Where the answer was generated.
    pub region: Option<String>,
    /// Further figures by name, as the provider sent them.
    pub extra: BTreeMap<String, Number>,
    /// The provider's usage object.
    pub raw: String,
    /// Whether a figure was sent that is no number of tokens.
    pub is_unreadable: bool,
    /// What was generated for this response beyond these figures.
    pub iterations: Vec<Iteration>,
    /// The model whose figures these are, if a fallback at the provider served the response.
    pub fallback_model: Option<String>,
}

/// Tokens that a provider spent on a response and does not count in its totals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Iteration {
    /// What it was for.
    pub kind: IterationKind,
    /// The model, if it is named.
    pub model: Option<String>,
    /// Its figures.
    pub usage: Usage,
}

/// What an iteration was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IterationKind {
    /// A summary of the conversation.
    Compaction,
    /// Another model that was asked for advice.
    Advisor,
    /// A model before or after a fallback at the provider.
    Fallback,
}

impl Usage {
    /// The prompt, whether it was cached or not.
    #[must_use]
    pub fn prompt_tokens(&self) -> Option<u64> {
        let parts =
            [self.input_tokens, self.cache_read_input_tokens, self.cache_write_input_tokens];
        parts.into_iter().flatten().reduce(u64::saturating_add)
    }

    /// Cache writes of which the provider does not say how long they are kept, although it does of others:
    /// the total of a stream may grow after it was divided.
    #[must_use]
    pub fn undivided_cache_write_tokens(&self) -> Option<u64> {
        let undivided = self.cache_write_input_tokens?.checked_sub(self.divided_cache_writes()?)?;
        (undivided > 0).then_some(undivided)
    }

    /// Cache writes of which the provider of the Messages API says how long they are kept.
    fn divided_cache_writes(&self) -> Option<u64> {
        let parts = ["ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"];
        parts.into_iter().filter_map(|part| self.count(part)).reduce(u64::saturating_add)
    }

    fn count(&self, name: &str) -> Option<u64> {
        self.extra.get(name)?.as_u64().filter(|count| *count <= MAX_TOKENS)
    }

    fn cached_tokens(&self) -> u64 {
        let parts = [self.cache_read_input_tokens, self.cache_write_input_tokens];
        parts.into_iter().flatten().sum()
    }

    /// Adds later figures of the same response. Figures are cumulative, so that none shrinks: if the parts
    /// of the prompt are divided otherwise, the later division counts unless the prompt has become smaller.
    fn update(&mut self, latest: Self) {
        let divided = Self {
            input_tokens: latest.input_tokens.or(self.input_tokens),
            cache_read_input_tokens: latest
                .cache_read_input_tokens
                .or(self.cache_read_input_tokens),
            cache_write_input_tokens: latest
                .cache_write_input_tokens
                .or(self.cache_write_input_tokens),
            ..Self::default()
        };
        let size = |usage: &Self| (usage.prompt_tokens(), usage.cached_tokens());
        if size(&divided) >= size(self) {
            self.input_tokens = divided.input_tokens;
            self.cache_read_input_tokens = divided.cache_read_input_tokens;
            self.cache_write_input_tokens = divided.cache_write_input_tokens;
        } else if divided.prompt_tokens() < self.prompt_tokens() {
            self.input_tokens = self.input_tokens.max(divided.input_tokens);
            self.cache_read_input_tokens =
                self.cache_read_input_tokens.max(divided.cache_read_input_tokens);
            self.cache_write_input_tokens =
                self.cache_write_input_tokens.max(divided.cache_write_input_tokens);
        }
        self.output_tokens = self.output_tokens.max(latest.output_tokens);
        self.cache_write_long_tokens =
            self.cache_write_long_tokens.max(latest.cache_write_long_tokens);
        self.is_unreadable |= latest.is_unreadable;
        self.raw = latest.raw;
        for (name, figure) in latest.extra {
            keep_larger(&mut self.extra, name, figure);
        }
    }

    /// Completes the figures from the parts that the provider lists.
    fn complete(&mut self) {
        let kept = ["cache_write_ttl_1h", "cache_write_ttl_12h", "cache_write_ttl_24h"];
        let kept = kept.into_iter().filter_map(|name| self.count(name));
        let long = self.count("ephemeral_1h_input_tokens");
        let long = long.or(kept.reduce(u64::saturating_add));
        self.cache_write_input_tokens =
            self.cache_write_input_tokens.max(self.divided_cache_writes()).max(long);
        self.cache_write_long_tokens = self.cache_write_long_tokens.max(long);
    }

    fn has_figures_of(&self, other: &Self) -> bool {
        let figures = |usage: &Self| {
            [
                usage.input_tokens,
                usage.output_tokens,
                usage.cache_read_input_tokens,
                usage.cache_write_input_tokens,
            ]
            .map(Option::unwrap_or_default)
        };
        figures(self) == figures(other)
    }
}

/// Members of a usage object of the Messages API that columns hold.
const MESSAGES_FIGURES: [&str; 4] =
    ["input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"];

/// Reads the usage of the Messages API.
pub(super) fn messages(usage: &Value<'_>, observed: &mut Observation) {
    let [speed, region, service_tier, iterations] =
        usage.get_all(["speed", "inference_geo", "service_tier", "iterations"]);
    set_text(&mut observed.service_tier, service_tier);
    let known = observed.usage.get_or_insert_default();
    set_text(&mut known.speed, speed);
    set_text(&mut known.region, region);
    let mut latest = messages_figures(usage);
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
fn messages_figures(usage: &Value<'_>) -> Usage {
    let mut read = Usage { raw: raw(usage), ..Usage::default() };
    let [input, output, cache_read, cache_write] =
        usage.get_all(MESSAGES_FIGURES).map(|value| tokens(value, &mut read.is_unreadable));
    read.input_tokens = input;
    read.output_tokens = output;
    read.cache_read_input_tokens = cache_read;
    read.cache_write_input_tokens = cache_write;
    add_extra(&mut read.extra, usage, &MESSAGES_FIGURES);
    read
}

/// Reads the figures that Amazon Bedrock adds to the end of a stream, if the stream itself had none.
pub(super) fn invocation_metrics(metrics: &Value<'_>, known: &mut Usage) {
    if known.input_tokens.is_some() && known.output_tokens.is_some() {
        return;
    }
    let figures = metrics.get_all([
        "inputTokenCount",
        "outputTokenCount",
        "cacheReadInputTokenCount",
        "cacheWriteInputTokenCount",
    ]);
    let mut read = Usage { raw: raw(metrics), ..Usage::default() };
    let [input, output, cache_read, cache_write] =
        figures.map(|value| tokens(value, &mut read.is_unreadable));
    known.update(Usage {
        input_tokens: input,
        output_tokens: output,
        cache_read_input_tokens: cache_read,
        cache_write_input_tokens: cache_write,
        ..read
    });
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
        let mut usage = messages_figures(&entry);
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

/// Members of a usage object of the OpenAI dialects that columns hold, in all spellings.
const OPENAI_FIGURES: [&str; 14] = [
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
pub(super) fn openai(usage: &Value<'_>, known: &mut Option<Box<Usage>>) {
    let mut latest = openai_figures(usage);
    latest.complete();
    match known {
        Some(known) => known.update(latest),
        None => *known = Some(Box::new(latest)),
    }
}

/// A single figure that is no number of tokens, by its name; what is no number is left out.
pub(super) fn counted(name: &str, figure: &str) -> Usage {
    let figure = Value::parse(figure.as_bytes()).ok().and_then(|figure| number(&figure));
    let extra = figure.map(|figure| (name.to_owned(), figure)).into_iter().collect();
    Usage { extra, ..Usage::default() }
}

fn openai_figures(usage: &Value<'_>) -> Usage {
    let mut read = Usage { raw: raw(usage), ..Usage::default() };
    let flaw = &mut read.is_unreadable;
    let prompt = first(Some(*usage), ["prompt_tokens", "input_tokens"], flaw);
    let output = first(Some(*usage), ["completion_tokens", "output_tokens"], flaw);
    let total = first(Some(*usage), ["total_tokens"], flaw);
    let details = ["prompt_tokens_details", "input_tokens_details", "prompt_token_details"];
    let details = details.into_iter().find_map(|key| non_null(usage, key));
    let cache_read =
        first(details, CACHE_READ, flaw).or_else(|| first(Some(*usage), FLAT_CACHE_READ, flaw));
    let cache_write =
        first(details, CACHE_WRITE, flaw).or_else(|| first(Some(*usage), CACHE_WRITE, flaw));
    add_extra(&mut read.extra, usage, &OPENAI_FIGURES);
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

/// The first of these members that is not null, as a number of tokens.
fn first<const N: usize>(
    object: Option<Value<'_>>,
    keys: [&str; N],
    is_unreadable: &mut bool,
) -> Option<u64> {
    let members = object?.get_all(keys);
    let member = members.into_iter().flatten().find(|member| !member.is_null());
    tokens(member, is_unreadable)
}

/// A number of tokens; notes if something else was sent.
fn tokens(value: Option<Value<'_>>, is_unreadable: &mut bool) -> Option<u64> {
    let value = value.filter(|value| !value.is_null())?;
    let tokens = value.as_u64().filter(|tokens| *tokens <= MAX_TOKENS);
    *is_unreadable |= tokens.is_none();
    tokens
}

/// Adds the numbers of a usage object that are in no column.
fn add_extra(extra: &mut BTreeMap<String, Number>, usage: &Value<'_>, columns: &[&str]) {
    if let Some(usage) = usage.as_object() {
        add_members(extra, &usage, &Group { columns, ..Group::default() });
    }
}

/// How the members of an object are named.
#[derive(Default)]
struct Group<'a> {
    prefix: String,
    /// Whether names are given without `_tokens`.
    is_details: bool,
    depth: usize,
    columns: &'a [&'a str],
}

fn add_members(extra: &mut BTreeMap<String, Number>, object: &Object<'_>, group: &Group<'_>) {
    for (key, value) in object.members() {
        match value.kind() {
            Kind::Number if !group.columns.contains(&&*key) => {
                let stem = key.strip_suffix("_tokens").filter(|_| group.is_details);
                let name = format!("{}{}", group.prefix, stem.unwrap_or(&key));
                if let Some(figure) = number(&value) {
                    keep_larger(extra, name, figure);
                }
            }
            Kind::Object if group.depth < MAX_EXTRA_DEPTH => {
                let Some(object) = value.as_object() else { continue };
                let details =
                    key.strip_suffix("_tokens_details").or(key.strip_suffix("_token_details"));
                let has_own_names = key.starts_with("cache_creation") || key == "server_tool_use";
                let prefix = match details {
                    _ if has_own_names => String::new(),
                    Some(stem) => format!("{stem}_"),
                    None => format!("{}{key}.", group.prefix),
                };
                let is_details = details.is_some() && !has_own_names;
                let depth = group.depth + 1;
                add_members(extra, &object, &Group { prefix, is_details, depth, ..*group });
            }
            _ => {}
        }
    }
}

fn keep_larger(extra: &mut BTreeMap<String, Number>, name: String, figure: Number) {
    let is_full = extra.len() >= MAX_EXTRA;
    match extra.get_mut(&name) {
        Some(known) if known.as_f64() > figure.as_f64() => {}
        Some(known) => *known = figure,
        None if is_full => {}
        None => {
            extra.insert(name, figure);
        }
    }
}

/// A number of any kind; whole ones as integers, however they are written.
fn number(value: &Value<'_>) -> Option<Number> {
    value.as_u64().map(Number::from).or_else(|| serde_json::from_str(value.raw()).ok())
}

fn raw(usage: &Value<'_>) -> String {
    let raw = usage.raw();
    raw.get(..raw.floor_char_boundary(MAX_RAW_BYTES)).unwrap_or_default().to_owned()
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
