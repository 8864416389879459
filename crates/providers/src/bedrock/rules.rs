//! What Bedrock takes of a request, model by model: data, not code.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The rules of this release.
const BUILT_IN: &str = include_str!("rules.toml");

/// What Bedrock takes of a request of the Messages API.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// The day on which somebody looked.
    #[serde(rename = "as_of")]
    _as_of: String,
    betas: Vec<Beta>,
    removed: Vec<Removed>,
    thinking: Thinking,
}

/// A beta flag that Bedrock knows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Beta {
    flag: String,
    /// For all models where it is absent.
    models: Option<Vec<String>>,
}

/// A field that Bedrock does not know.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Removed {
    field: String,
    /// The flag with which it is known.
    unless: Option<String>,
}

/// How adaptive thinking becomes a budget.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Thinking {
    not_adaptive: Vec<String>,
    default_percent: u64,
    smallest_budget: u64,
    /// By effort.
    percent: BTreeMap<String, u64>,
}

/// Why a file has no rules.
#[derive(Debug, thiserror::Error)]
#[error("not a file of rules: {0}")]
pub struct RulesError(#[from] toml::de::Error);

impl Rules {
    /// The rules of this release.
    ///
    /// # Errors
    ///
    /// Never: a test reads them.
    pub fn built_in() -> Result<Self, RulesError> {
        Self::read(BUILT_IN)
    }

    /// Rules from the text of a file in the form of the built-in one.
    ///
    /// # Errors
    ///
    /// When it is no TOML, has a key that is not known, or lacks one.
    pub fn read(text: &str) -> Result<Self, RulesError> {
        Ok(toml::from_str(text)?)
    }

    /// The flags among those asked for that pass, in their order, each once.
    pub(super) fn passing<'a>(&self, asked: &[&'a str], model: &str) -> Vec<&'a str> {
        let mut passing = Vec::new();
        for flag in asked {
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

    /// The fields that a request with these passing flags loses.
    pub(super) fn removed(&self, passing: &[&str]) -> impl Iterator<Item = &str> {
        let is_kept =
            |unless: &Option<String>| unless.as_deref().is_some_and(|flag| passing.contains(&flag));
        self.removed
            .iter()
            .filter(move |removed| !is_kept(&removed.unless))
            .map(|removed| removed.field.as_str())
    }

    /// Whether a model decides by itself how long it thinks.
    pub(super) fn is_adaptive(&self, model: &str) -> bool {
        !is_one_of(model, &self.thinking.not_adaptive)
    }

    /// The budget of a model's thinking; none where it is too small to be allowed.
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
