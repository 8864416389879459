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

/// Merges the usage of one turn that was sent in two parts, of which the later one is final. Figures are
/// cumulative: one that shrinks, such as to the zeros that some servers repeat, is no correction.
pub(super) fn overlaid(first: &Json, latest: &Json) -> Json {
    match (first, latest) {
        (Json::Object(first), Json::Object(latest)) => {
            let mut whole = latest.clone();
            whole.retain(|_, value| !value.is_null());
            for (key, value) in first {
                let later = whole.entry(key).or_insert_with(|| value.clone());
                if later.as_f64() < value.as_f64() {
                    *later = value.clone();
                }
            }
            Json::Object(whole)
        }
        (first, Json::Null) => first.clone(),
        (_, latest) => latest.clone(),
    }
}

/// The usage of the turns of one response, of which the client sees the sum.
///
/// Agents of the Messages API take the sum for the size of their context, and would compact it after every
/// response, unless `iterations` has the figures of each turn: then the last entry is the size.
/// <https://platform.claude.com/docs/en/build-with-claude/compaction#understanding-usage>
#[derive(Debug, Default)]
pub(super) struct TurnUsages {
    earlier: Json,
    iterations: Vec<Json>,
    /// Of the current turn.
    pub(super) current: Json,
}

/// The figures of an entry of `iterations`.
const ITERATION_FIGURES: [&str; 5] = [
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "cache_creation",
    "output_tokens",
];

impl TurnUsages {
    pub(super) fn next_turn(&mut self) {
        self.iterations.extend(iterations(&self.current));
        self.earlier = sum(&self.earlier, &self.current);
        self.current = Json::Null;
    }

    /// The sum of all turns; null if no turn has reported any usage.
    pub(super) fn sum(&self) -> Json {
        sum(&self.earlier, &self.current)
    }

    /// The sum of all turns, with an entry in `iterations` for each.
    pub(super) fn total(&self) -> Json {
        let mut total = self.sum();
        if let Json::Object(total) = &mut total {
            let all = self.iterations.iter().cloned().chain(iterations(&self.current));
            total.insert("iterations".into(), all.collect());
        }
        total
    }
}

/// The entries of a turn in `iterations`: the provider's own, if it has any.
fn iterations(usage: &Json) -> Vec<Json> {
    let Json::Object(figures) = usage else { return Vec::new() };
    if let Some(Json::Array(own)) = figures.get("iterations")
        && !own.is_empty()
    {
        return own.clone();
    }
    let mut entry = Map::new();
    entry.insert("type".into(), "message".into());
    let known = ITERATION_FIGURES.iter().filter_map(|key| figures.get_key_value(*key));
    entry.extend(known.map(|(key, value)| (key.clone(), value.clone())));
    vec![Json::Object(entry)]
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

    use super::{TurnUsages, overlaid, sum};

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
        let final_usage = json!({"output_tokens": 7, "input_tokens": 10});
        for latest in [
            json!({"output_tokens": 7, "input_tokens": null}),
            json!({"output_tokens": 7, "input_tokens": 0}),
        ] {
            assert_eq!(overlaid(&first, &latest), final_usage);
        }
        assert_eq!(overlaid(&first, &json!(null)), first);
    }

    #[test]
    fn each_turn_is_an_iteration_of_the_sum() {
        let mut usages = TurnUsages::default();
        let own = json!([{"type": "compaction", "input_tokens": 9}, {"type": "message", "input_tokens": 2}]);
        for current in [
            json!({"input_tokens": 10, "output_tokens": 1, "service_tier": "standard"}),
            json!(null),
            json!({"input_tokens": 2, "output_tokens": 2, "iterations": own}),
        ] {
            usages.current = current;
            usages.next_turn();
        }
        usages.current = json!({"input_tokens": 5, "output_tokens": 3, "cache_creation": {"ephemeral_5m_input_tokens": 4}});
        assert_eq!(
            usages.total(),
            json!({
                "input_tokens": 17, "output_tokens": 6, "service_tier": "standard",
                "cache_creation": {"ephemeral_5m_input_tokens": 4},
                "iterations": [
                    {"type": "message", "input_tokens": 10, "output_tokens": 1}, own[0], own[1],
                    {"type": "message", "input_tokens": 5, "output_tokens": 3,
                     "cache_creation": {"ephemeral_5m_input_tokens": 4}},
                ],
            })
        );
        assert!(TurnUsages::default().total().is_null());
    }
}
