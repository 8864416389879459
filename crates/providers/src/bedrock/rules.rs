//! What Bedrock accepts in a request, model by model: data, not code.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// The rules of this release.
const BUILT_IN: &str = include_str!("rules.toml");

/// What Bedrock accepts in a request of the Messages API.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// The day on which the rules were checked.
    #[serde(rename = "as_of")]
    _as_of: String,
    /// Models by the names of groups, for lists of models.
    #[serde(default)]
    groups: BTreeMap<String, Vec<String>>,
    betas: Vec<Beta>,
    /// The places in which fields without a rule are removed.
    #[serde(default)]
    closed: BTreeSet<Place>,
    #[serde(default)]
    fields: Vec<FieldRule>,
    thinking: Thinking,
    #[serde(default)]
    count_tokens: CountTokens,
}

/// A beta flag that Bedrock accepts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Beta {
    flag: String,
    /// Other flags of the Messages API that ask for the same.
    #[serde(default)]
    also_for: Vec<String>,
    /// All models if absent.
    models: Option<Vec<String>>,
}

/// Where a field stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Place {
    Request,
    Message,
    Tool,
    Block,
    CacheControl,
    Thinking,
    OutputConfig,
}

/// Who accepts some fields of a place, or some types of what stands there.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct FieldRule {
    #[serde(rename = "in")]
    place: Place,
    #[serde(default)]
    names: Vec<String>,
    /// The beginnings of types.
    #[serde(default)]
    types: Vec<String>,
    /// All models if absent.
    models: Option<Vec<String>>,
    #[serde(default)]
    except: Vec<String>,
    /// The flag with which Bedrock accepts it.
    with: Option<String>,
    /// All values if absent.
    values: Option<Vec<String>>,
    /// The day of the source.
    #[serde(default, rename = "checked")]
    _checked: Option<String>,
    /// Where the fact comes from.
    #[serde(default, rename = "source")]
    _source: Option<String>,
}

/// How adaptive thinking is translated into a budget.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Thinking {
    not_adaptive: Vec<String>,
    default_percent: u64,
    smallest_budget: u64,
    /// Percent of the maximum of tokens, by effort.
    percent: BTreeMap<String, u64>,
}

/// For which models Bedrock counts tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct CountTokens {
    models: Vec<String>,
    #[serde(default, rename = "checked")]
    _checked: Option<String>,
    #[serde(default, rename = "source")]
    _source: Option<String>,
}

/// Why a file of rules cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("invalid file of rules: {0}")]
pub struct RulesError(#[from] toml::de::Error);

/// The rules for one request: for its model, and with the flags that it asks for.
#[derive(Debug)]
pub(super) struct Schema<'a> {
    rules: &'a Rules,
    model: &'a str,
    flags: Vec<&'a str>,
}

impl Rules {
    /// The rules of this release.
    ///
    /// # Errors
    ///
    /// Never: a test reads the built-in rules.
    pub fn built_in() -> Result<Self, RulesError> {
        Self::read(BUILT_IN)
    }

    /// Reads rules in the format of the built-in ones.
    ///
    /// # Errors
    ///
    /// When it is not TOML, or a key is unknown or missing.
    pub fn read(text: &str) -> Result<Self, RulesError> {
        Ok(toml::from_str(text)?)
    }

    /// The rules for a model, given the flags that were asked for.
    pub(super) fn schema<'a>(&'a self, model: &'a str, requested: &[&str]) -> Schema<'a> {
        let mut flags = Vec::new();
        for flag in requested {
            let named = self.betas.iter().filter(|beta| {
                beta.flag == *flag || beta.also_for.iter().any(|other| other == flag)
            });
            for beta in named.filter(|beta| self.is_listed(model, beta.models.as_deref())) {
                if !flags.contains(&beta.flag.as_str()) {
                    flags.push(beta.flag.as_str());
                }
            }
        }
        Schema { rules: self, model, flags }
    }

    /// Whether Bedrock counts tokens for a model.
    pub(super) fn counts_tokens(&self, model: &str) -> bool {
        self.is_one_of(model, &self.count_tokens.models)
    }

    /// Whether a model is in a list; absent, the list has all.
    fn is_listed(&self, model: &str, models: Option<&[String]>) -> bool {
        models.is_none_or(|models| self.is_one_of(model, models))
    }

    fn is_one_of(&self, model: &str, models: &[String]) -> bool {
        models.iter().any(|name| match self.groups.get(name) {
            Some(group) => group.iter().any(|name| model.contains(name.as_str())),
            None => model.contains(name.as_str()),
        })
    }
}

impl Schema<'_> {
    /// The flags that pass, in the order in which they were asked for, each once.
    pub(super) fn flags(&self) -> &[&str] {
        &self.flags
    }

    /// Whether a field with this value, as JSON, is accepted.
    pub(super) fn takes_field(&self, place: Place, name: &str, value: &str) -> bool {
        let value = value.trim_matches('"');
        let has_value = |rule: &FieldRule| {
            rule.values.as_ref().is_none_or(|values| values.iter().any(|known| known == value))
        };
        let mut named = self.rules_of(place, |rule| rule.names.iter().any(|known| known == name));
        let mut is_known = false;
        let is_taken = named.any(|rule| {
            is_known = true;
            self.applies(rule) && has_value(rule)
        });
        is_taken || (!is_known && !self.rules.closed.contains(&place))
    }

    /// Whether what stands at a place may have this type; a type without a rule is accepted.
    pub(super) fn takes_type(&self, place: Place, kind: &str) -> bool {
        let is_named = |rule: &FieldRule| rule.types.iter().any(|known| kind.starts_with(known));
        let mut named = self.rules_of(place, is_named).peekable();
        named.peek().is_none() || named.any(|rule| self.applies(rule))
    }

    /// Whether the model supports adaptive thinking.
    pub(super) fn is_adaptive(&self) -> bool {
        !self.rules.is_one_of(self.model, &self.rules.thinking.not_adaptive)
    }

    /// The thinking budget of a request; none if it is below the minimum.
    pub(super) fn budget(&self, max_tokens: u64, effort: Option<&str>) -> Option<u64> {
        let thinking = &self.rules.thinking;
        let percent = effort.and_then(|effort| thinking.percent.get(effort)).copied();
        let percent = percent.unwrap_or(thinking.default_percent);
        let budget = max_tokens.saturating_mul(percent) / 100;
        (budget >= thinking.smallest_budget).then_some(budget)
    }

    fn rules_of(
        &self,
        place: Place,
        is_named: impl Fn(&FieldRule) -> bool,
    ) -> impl Iterator<Item = &FieldRule> {
        self.rules.fields.iter().filter(move |rule| rule.place == place && is_named(rule))
    }

    fn applies(&self, rule: &FieldRule) -> bool {
        self.rules.is_listed(self.model, rule.models.as_deref())
            && !self.rules.is_one_of(self.model, &rule.except)
            && rule.with.as_deref().is_none_or(|flag| self.flags.contains(&flag))
    }
}
