//! Hidden turns in the history of a Chat Completions request.

use std::{borrow::Cow, collections::BTreeSet};

use serde_json::Value as Json;

use super::{HiddenTurn, KeptTurns, call_id};
use crate::{
    json::{Edits, Splice, Value},
    tool_loop::{chat::is_empty_value, turn},
};

/// Splits a chat message that consists of several turns.
pub(super) fn restore_chat_message(
    message: &Value<'_>,
    kept_turns: &mut KeptTurns<'_>,
) -> Option<Splice> {
    let calls: Vec<Value<'_>> = message.get("tool_calls")?.elements().collect();
    let turns = calls.iter().find_map(|call| kept_turns.find(&call_id(call)?))?;
    let (last, past) = turns.split_last()?;
    let shown = last.calls().filter(|entry| entry.shown).map(|entry| entry.key.clone());
    if !shown.eq(calls.iter().map(call_id)) {
        return None;
    }
    let mut edits = Edits::new();
    let mut text = String::new();
    let kinds = past.iter().flat_map(HiddenTurn::members).map(|entry| entry.kind.as_str());
    let mut restored: BTreeSet<&str> = kinds.collect();
    restored.retain(|key| restore_member(key, message, past, &mut edits));
    for turn in past {
        let members = turn.members().filter(|entry| restored.contains(entry.kind.as_str()));
        let members = members.map(|entry| (entry.kind.as_str(), entry.raw.as_str()));
        let hidden: Vec<&str> = turn.calls().map(|entry| entry.raw.as_str()).collect();
        text.push_str(&turn::chat_message(members, &hidden));
        text.push(',');
        for result in &turn.results {
            text.push_str(result);
            text.push(',');
        }
    }
    let mut own = calls.iter();
    let all = last.calls().filter_map(|entry| match entry.shown {
        true => own.next().map(Value::raw),
        false => Some(entry.raw.as_str()),
    });
    if last.hides_calls() {
        let all: Vec<&str> = all.collect();
        edits.set(&["tool_calls"], &format!("[{}]", all.join(",")));
    }
    let edited = edits.apply(message.raw().as_bytes()).ok()?;
    text.push_str(std::str::from_utf8(&edited).ok()?);
    for result in &last.results {
        text.push(',');
        text.push_str(result);
    }
    kept_turns.mark_restored(&turns);
    Some(Splice { range: message.range(), text })
}

/// Moves the texts of earlier turns under a key out of the client's message, which holds the texts of
/// all turns joined; returns whether those turns get them back.
fn restore_member(key: &str, message: &Value<'_>, past: &[HiddenTurn], edits: &mut Edits) -> bool {
    let Some(own) = message.get(key).filter(|own| !is_empty_value(own)) else {
        // Many clients do not send thoughts back; a missing text was removed by the client.
        return key != "content";
    };
    let parts = past.iter().flat_map(HiddenTurn::members).filter(|entry| entry.kind == key);
    let all: Option<String> = parts
        .map(|entry| Value::parse(entry.raw.as_bytes()).ok()?.as_str().map(Cow::into_owned))
        .collect();
    let (Some(own), Some(all)) = (own.as_str(), all) else { return false };
    match own.strip_prefix(&all) {
        None => return false,
        Some("") if key == "content" => edits.set(&[key], "null"),
        Some("") => edits.remove(&[key]),
        Some(rest) => edits.set(&[key], &Json::from(rest).to_string()),
    }
    true
}
