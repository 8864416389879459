//! The token usage of several turns as a sum, in the provider's own format.

use serde_json::{Map, Number, Value as Json};

/// Adds the usage of a later turn to that of earlier ones.
///
/// Numbers are added, objects member by member; of anything else, the later value is kept.
pub(super) fn sum(earlier: &Json, later: &Json) -> Json {
    match (earlier, later) {
        (Json::Number(earlier), Json::Number(later)) => Json::Number(added(earlier, later)),
        (Json::Object(earlier), Json::Object(later)) => {
            let mut sums: Map<String, Json> = later
                .iter()
                .map(|(key, value)| {
                    let sum = earlier.get(key).map(|before| sum(before, value));
                    (key.clone(), sum.unwrap_or_else(|| value.clone()))
                })
                .collect();
            for (key, value) in earlier {
                sums.entry(key).or_insert_with(|| value.clone());
            }
            Json::Object(sums)
        }
        (earlier, Json::Null) => earlier.clone(),
        (_, later) => later.clone(),
    }
}

/// Merges the usage of one turn that was sent in two parts, of which the later one is final.
pub(super) fn overlaid(first: &Json, latest: &Json) -> Json {
    match (first, latest) {
        (Json::Object(first), Json::Object(latest)) => {
            let mut whole = latest.clone();
            whole.retain(|_, value| !value.is_null());
            for (key, value) in first {
                whole.entry(key).or_insert_with(|| value.clone());
            }
            Json::Object(whole)
        }
        (first, Json::Null) => first.clone(),
        (_, latest) => latest.clone(),
    }
}

fn added(earlier: &Number, later: &Number) -> Number {
    if let (Some(earlier), Some(later)) = (earlier.as_u64(), later.as_u64()) {
        return earlier.saturating_add(later).into();
    }
    let sum = earlier.as_f64().zip(later.as_f64()).map(|(earlier, later)| earlier + later);
    sum.and_then(Number::from_f64).unwrap_or_else(|| later.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{overlaid, sum};

    #[test]
    fn numbers_are_added_recursively_and_other_values_are_the_later_ones() {
        let earlier = json!({"input_tokens": 10, "details": {"cached": 4}, "tier": "a", "cost": 0.5, "only": 1});
        let later = json!({"input_tokens": 5, "details": {"cached": 1, "new": 2}, "tier": "b", "cost": 0.25, "none": null});
        assert_eq!(
            sum(&earlier, &later),
            json!({"input_tokens": 15, "details": {"cached": 5, "new": 2}, "tier": "b", "cost": 0.75, "none": null, "only": 1})
        );
    }

    #[test]
    fn the_final_usage_of_a_turn_overrides_its_first_one() {
        let first = json!({"input_tokens": 10, "output_tokens": 1});
        let latest = json!({"output_tokens": 7, "input_tokens": null});
        assert_eq!(overlaid(&first, &latest), json!({"output_tokens": 7, "input_tokens": 10}));
        assert_eq!(overlaid(&first, &json!(null)), first);
    }
}
