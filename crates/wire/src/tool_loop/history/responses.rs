//! Hidden items in the history of a Responses request.

use super::{
    HiddenTurn, KeptEntry, KeptTurns, empty_range, interleave, item_key, key_of, starts_with,
};
use crate::{
    json::{Splice, Value},
    tool_loop::messages::text,
};

/// Restores the hidden items among the items of a Responses input.
pub(super) fn restore_items(
    items: &[Value<'_>],
    kept_turns: &mut KeptTurns<'_>,
    splices: &mut Vec<Splice>,
) {
    let mut done_until = 0;
    for (place, item) in items.iter().enumerate() {
        if place < done_until {
            continue;
        }
        let kind = text(item, "type");
        let Some(key) = item_key(item) else { continue };
        let Some(turns) = kept_turns.find(&key) else { continue };
        if kind.ends_with("_output") {
            let answered = |other: &Value<'_>| {
                key_of(other).as_deref() == Some(&key) && other.range().start < item.range().start
            };
            // The provider stores the calls itself and also waits for the results of the hidden ones.
            if let Some(last) = turns.last()
                && !items.iter().any(answered)
            {
                let results = last.results.iter().map(|result| format!("{result},"));
                splices.push(Splice {
                    range: empty_range(item.range().start),
                    text: results.collect(),
                });
                kept_turns.mark_restored(&turns);
            }
            continue;
        }
        let sequence: Vec<KeptEntry> = turns.iter().flat_map(HiddenTurn::sequence).collect();
        let shown: Vec<&KeptEntry> = sequence.iter().filter(|entry| entry.shown).collect();
        let position = shown.iter().position(|entry| entry.key.as_deref() == Some(&key));
        let start = position.and_then(|position| place.checked_sub(position));
        let Some(own) = start.and_then(|start| items.get(start..start + shown.len())) else {
            continue;
        };
        if starts_with(own, shown.iter().copied()) {
            splices.extend(interleave(sequence.iter(), own));
            kept_turns.mark_restored(&turns);
            done_until = start.unwrap_or_default() + shown.len();
        }
    }
}

impl HiddenTurn {
    /// Its entries followed by its results, as in a Responses input.
    fn sequence(&self) -> impl Iterator<Item = KeptEntry> {
        let results = self.results.iter().map(|raw| KeptEntry {
            kind: "function_call_output".to_owned(),
            key: None,
            shown: false,
            raw: raw.clone(),
        });
        self.entries.iter().cloned().chain(results)
    }
}
