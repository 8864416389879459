//! What Bedrock accepts in a request, model by model: data, not code.

use std::collections::BTreeMap;

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
    betas: Vec<Beta>,
    removed: Vec<Removed>,
    thinking: Thinking,
}

/// A beta flag that Bedrock accepts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Beta {
    flag: String,
    /// All models if absent.
    models: Option<Vec<String>>,
}

/// A field that Bedrock refuses.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Removed {
    field: String,
    /// The flag with which Bedrock accepts it.
    unless: Option<String>,
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

/// Why a file of rules cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("invalid file of rules: {0}")]
pub struct RulesError(#[from] toml::de::Error);

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

    /// The requested flags that pass, in their order, each once.
    pub(super) fn passing<'a>(&self, requested: &[&'a str], model: &str) -> Vec<&'a str> {
        let mut passing = Vec::new();
        for flag in requested {
            let known = self.betas.iter().find(|beta| beta.flag == *flag);
            let passes = known.is_some_and(|beta| {
                beta.models.as_ref().is_none_or(|models| is_one_of(model, models))
            });
            if passes && !passing.contains(flag) {
                passing.push(*flag);
            }
        }
        passing
    }

    /// The fields that are removed from a request with these passing flags.
    pub(super) fn removed(&self, passing: &[&str]) -> impl Iterator<Item = &str> {
        let is_kept =
            |unless: &Option<String>| unless.as_deref().is_some_and(|flag| passing.contains(&flag));
        self.removed
            .iter()
            .filter(move |removed| !is_kept(&removed.unless))
            .map(|removed| removed.field.as_str())
    }

    /// Whether a model supports adaptive thinking.
    pub(super) fn is_adaptive(&self, model: &str) -> bool {
        !is_one_of(model, &self.thinking.not_adaptive)
    }

    /// The thinking budget of a request; none if it is below the minimum.
    pub(super) fn budget(&self, max_tokens: u64, effort: Option<&str>) -> Option<u64> {
        let percent = effort.and_then(|effort| self.thinking.percent.get(effort)).copied();
        let percent = percent.unwrap_or(self.thinking.default_percent);
        let budget = max_tokens.saturating_mul(percent) / 100;
        (budget >= self.thinking.smallest_budget).then_some(budget)
    }
}

fn is_one_of(model: &str, names: &[String]) -> bool {
    names.iter().any(|name| model.contains(name.as_str()))
}
