//! Why the model or a filter of its provider refused.

use super::{non_null, text};
use crate::json::Value;

/// A refusal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    /// The provider's category: `cyber`, the names of the filters that matched, `content_filter` where
    /// they are not named, or `refusal` where the model refused in words of its own.
    pub category: Option<String>,
    /// Its explanation, or the model's words, at most 8 KiB.
    pub explanation: Option<String>,
}

/// Maximum length of an explanation, in bytes.
const MAX_EXPLANATION_BYTES: usize = 8 * 1_024;
/// The category of a refusal in words.
const REFUSAL: &str = "refusal";
/// How providers name a refusal by a filter.
const CONTENT_FILTER: &str = "content_filter";

impl Refusal {
    /// Reads `stop_details` of the Messages API. A credit token in it is a secret and is not read.
    pub(super) fn of_stop_details(details: &Value<'_>) -> Option<Box<Self>> {
        let [category, explanation] = details.get_all(["category", "explanation"]);
        let mut refusal = Self { category: text(category), explanation: None };
        if let Some(explanation) = text(explanation) {
            refusal.explain(&explanation);
        }
        (refusal != Self::default()).then(|| Box::new(refusal))
    }

    /// Whether a reason to stop names a filter.
    pub(super) fn is_filter(reason: &str) -> bool {
        reason.starts_with(CONTENT_FILTER)
    }

    /// The refusal by a filter whose results, by category, are these.
    pub(super) fn by_filter(results: Option<Value<'_>>) -> Box<Self> {
        let results = results.and_then(|results| results.as_object());
        let is_filtered = |value: &Value<'_>| {
            value.get("filtered").and_then(|filtered| filtered.as_bool()).unwrap_or_default()
        };
        let members = results.iter().flat_map(|results| results.members());
        let names: Vec<_> =
            members.filter(|(_, value)| is_filtered(value)).map(|(name, _)| name).collect();
        let category = if names.is_empty() { CONTENT_FILTER.to_owned() } else { names.join(", ") };
        Box::new(Self { category: Some(category), explanation: None })
    }

    /// Reads an error that a filter caused.
    pub(super) fn of_error(error: &Value<'_>) -> Option<Box<Self>> {
        text(error.get("code")).filter(|code| Self::is_filter(code))?;
        let inner = non_null(error, "innererror");
        Some(Self::by_filter(inner.and_then(|inner| inner.get("content_filter_result"))))
    }

    /// Adds words of the model's refusal.
    pub(super) fn add_words(refusal: &mut Option<Box<Self>>, words: &str) {
        if !words.is_empty() {
            let refusal = refusal.get_or_insert_default();
            refusal.category.get_or_insert_with(|| REFUSAL.to_owned());
            refusal.explain(words);
        }
    }

    fn explain(&mut self, words: &str) {
        let explanation = self.explanation.get_or_insert_default();
        let room = MAX_EXPLANATION_BYTES.saturating_sub(explanation.len());
        explanation.push_str(words.get(..words.floor_char_boundary(room)).unwrap_or_default());
    }
}
