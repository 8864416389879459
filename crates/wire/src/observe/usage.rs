//! The providers' usage figures, mapped to the columns that all dialects share.

use std::collections::BTreeMap;

use serde_json::Number;

use crate::json::{Kind, Object, Value};

mod messages;
mod openai;

pub(super) use messages::{invocation_metrics, messages};
pub(super) use openai::openai;

/// Maximum number of further figures of one response.
const MAX_EXTRA: usize = 100;
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

/// A single figure that is no number of tokens, by its name; what is no number is left out.
pub(super) fn counted(name: &str, figure: &str) -> Usage {
    let figure = Value::parse(figure.as_bytes()).ok().and_then(|figure| number(&figure));
    let extra = figure.map(|figure| (name.to_owned(), figure)).into_iter().collect();
    Usage { extra, ..Usage::default() }
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
