//! The models for which a provider refuses `stream_options.include_usage`.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Maximum number of models that are remembered for one provider; the oldest are forgotten.
const MAX_MODELS: usize = 256;
/// Maximum length of a model's name that is remembered, in bytes.
const MAX_MODEL_BYTES: usize = 256;

/// The models for which a provider refused the field; requests without a model count as one.
#[derive(Debug, Default)]
pub(crate) struct UsageRefusals(Mutex<VecDeque<String>>);

impl UsageRefusals {
    fn models(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn contains(&self, model: Option<&str>) -> bool {
        self.models().iter().any(|known| known == model.unwrap_or_default())
    }

    pub(crate) fn insert(&self, model: &str) {
        let mut models = self.models();
        if model.len() > MAX_MODEL_BYTES || models.iter().any(|known| known == model) {
            return;
        }
        if models.len() == MAX_MODELS {
            models.pop_front();
        }
        models.push_back(model.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_number_of_models_is_remembered() {
        let refusals = UsageRefusals::default();
        assert!(!refusals.contains(Some("a")));
        refusals.insert("a");
        refusals.insert("a");
        assert!(refusals.contains(Some("a")) && !refusals.contains(None));
        refusals.insert(&"long".repeat(100));
        for number in 0..MAX_MODELS {
            refusals.insert(&number.to_string());
        }
        assert!(!refusals.contains(Some("a")) && refusals.contains(Some("0")));
        assert_eq!(refusals.models().len(), MAX_MODELS);
    }
}
