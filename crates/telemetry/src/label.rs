//! Metric labels whose values come from outside.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

/// Most different values of a label that comes from outside; the rest are [`OTHER`].
const MOST: usize = 200;
const OTHER: &str = "other";
/// Longest label value from outside, in characters.
const CHARS: usize = 100;

/// Values of a label that come from outside, bounded in number.
#[derive(Debug, Default)]
pub struct BoundedLabel(Mutex<HashSet<String>>);

impl BoundedLabel {
    /// The value, or `other` where there are too many.
    pub fn bounded(&self, value: &str) -> String {
        let value: String = value.chars().take(CHARS).collect();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&value) {
            return value;
        }
        if known.len() >= MOST {
            return OTHER.into();
        }
        known.insert(value.clone());
        value
    }
}
