//! What answers that have no `usage` state of their use: Cohere's billed units, images, seconds of audio.

use super::{Observation, non_null, set_text, text, usage};
use crate::json::{Kind, Value};

/// Reads the use that an answer of an API beside the dialects states.
pub(super) fn read(answer: &Value<'_>, observed: &mut Observation) {
    // <https://docs.cohere.com/reference/rerank>; its chat answers have them within `usage`.
    let units = ["meta", "usage"]
        .into_iter()
        .find_map(|key| non_null(&non_null(answer, key)?, "billed_units"))
        .filter(|units| units.kind() == Kind::Object);
    if let Some(units) = units {
        usage::openai(&units, &mut observed.usage);
    } else {
        let counted = images(answer).or_else(|| seconds(answer));
        let Some((name, figure)) = counted else { return };
        observed.usage = Some(Box::new(usage::counted(name, &figure)));
    }
    observed.usage_is_final = true;
    set_text(&mut observed.response_id, answer.get("id"));
    set_text(&mut observed.model, answer.get("model"));
}

/// The images of <https://platform.openai.com/docs/api-reference/images>.
fn images(answer: &Value<'_>) -> Option<(&'static str, String)> {
    let is_image =
        |item: &Value<'_>| item.get("b64_json").is_some() || text(item.get("url")).is_some();
    let count = answer.get("data")?.elements().filter(is_image).count();
    (count > 0).then(|| ("images", count.to_string()))
}

/// The duration of <https://platform.openai.com/docs/api-reference/audio/verbose-json-object>.
fn seconds(answer: &Value<'_>) -> Option<(&'static str, String)> {
    let is_transcription = answer.get("text").is_some_and(|text| text.kind() == Kind::String);
    let duration = answer.get("duration").filter(|_| is_transcription)?;
    // Some servers write it as text.
    let duration = duration.as_str().map_or_else(|| duration.raw().into(), |text| text.to_string());
    Some(("seconds", duration))
}
