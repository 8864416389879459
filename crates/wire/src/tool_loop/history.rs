//! Restores hidden calls in the history that a client sends.
//!
//! A client that received its own calls beside or after hidden ones sends its history without the
//! hidden ones. The provider then lacks what its thoughts and its cache depend on, and a response that
//! it stores itself waits for results that never arrive. The hidden turns are therefore stored under
//! keys that the client's next request contains: the id of a call or a response, or the signature of a
//! thought.

use std::collections::{HashMap, HashSet};

use serde_json::{Value as Json, json};

use super::turn::{self, CALL_KIND, Turn, TurnEntry};
use crate::{
    Dialect,
    json::{Kind, Object, Splice, Value, apply_splices},
};

mod chat;
mod responses;

use chat::restore_chat_message;
use responses::restore_items;

/// The maximum number of keys taken from a request, the latest first.
const MAX_KEYS: usize = 1_000;
/// How many trailing bytes of a signature or an encrypted thought identify it.
const SIGNATURE_TAIL_BYTES: usize = 48;

/// What later requests of the conversation need, by the keys that they will contain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Continuation {
    /// Keys and values.
    pub entries: Vec<(String, String)>,
}

/// A turn with hidden calls, as it is stored.
#[derive(Debug, Clone, Default)]
pub(super) struct HiddenTurn {
    entries: Vec<KeptEntry>,
    results: Vec<String>,
}

#[derive(Debug, Clone)]
struct KeptEntry {
    kind: String,
    /// What identifies it in a request, if anything does.
    key: Option<String>,
    shown: bool,
    /// JSON; empty for what the client has, except for members of a chat message, which it joins.
    raw: String,
}

impl Continuation {
    pub(super) fn new(past: &[HiddenTurn], turn: &Turn, results: &[String]) -> Self {
        let mut last = HiddenTurn::new(turn, results);
        if results.len() < turn.calls.len() {
            // Calls that were not executed have no results, and a provider rejects calls without results.
            last.entries.retain(|entry| entry.shown);
            last.results.clear();
        }
        let turns: Vec<&HiddenTurn> = past.iter().chain([&last]).collect();
        if past.is_empty() && !last.hides_calls() {
            return Self::default();
        }
        let value = Json::from_iter(turns.iter().map(|turn| turn.to_json())).to_string();
        // A client answers all of its calls, so one of them is enough to find the turn.
        let call = turn.client_calls.iter().find(|id| !id.is_empty()).map(|id| call_key(id));
        let key = call.or_else(|| {
            let shown = past.iter().flat_map(HiddenTurn::shown);
            let keys = shown.filter_map(|entry| entry.key.clone());
            keys.last().or_else(|| last.shown().find_map(|entry| entry.key.clone()))
        });
        Self { entries: key.map(|key| (key, value)).into_iter().collect() }
    }

    /// Records that a request which continues from the first response continues from the last one.
    #[must_use]
    pub fn with_response(mut self, first: Option<&str>, last: Option<&str>) -> Self {
        if let (Some(first), Some(last)) = (first, last)
            && first != last
        {
            self.entries.push((response_key(first), last.to_owned()));
        }
        self
    }
}

/// The key under which the last response of a tool loop is stored, given the id of its first one.
#[must_use]
pub fn response_key(id: &str) -> String {
    format!("response:{id}")
}

fn call_key(id: &str) -> String {
    format!("call:{id}")
}

impl HiddenTurn {
    pub(super) fn new(turn: &Turn, results: &[String]) -> Self {
        let entries = turn.entries.iter().filter(|entry| !entry.is_empty_text());
        Self { entries: entries.map(KeptEntry::new).collect(), results: results.to_vec() }
    }

    fn to_json(&self) -> Json {
        let entries = self.entries.iter().map(|entry| {
            json!({ "kind": entry.kind, "key": entry.key, "shown": entry.shown, "raw": entry.raw })
        });
        json!({ "entries": Json::from_iter(entries), "results": self.results })
    }

    fn from_json(value: &Json) -> Self {
        let list = |key| value.get(key).and_then(Json::as_array).into_iter().flatten();
        let word = |value: &Json, key: &str| {
            value.get(key).and_then(Json::as_str).unwrap_or_default().to_owned()
        };
        let entries = list("entries").map(|entry| KeptEntry {
            kind: word(entry, "kind"),
            key: Some(word(entry, "key")).filter(|key| !key.is_empty()),
            shown: entry.get("shown").and_then(Json::as_bool).unwrap_or_default(),
            raw: word(entry, "raw"),
        });
        let results = list("results").filter_map(Json::as_str).map(ToOwned::to_owned);
        Self { entries: entries.collect(), results: results.collect() }
    }

    fn shown(&self) -> impl Iterator<Item = &KeptEntry> {
        self.entries.iter().filter(|entry| entry.shown)
    }

    fn hidden(&self) -> impl Iterator<Item = &KeptEntry> {
        self.entries.iter().filter(|entry| !entry.shown)
    }

    fn hides_calls(&self) -> bool {
        self.hidden().next().is_some()
    }

    /// The calls of a chat message.
    fn calls(&self) -> impl Iterator<Item = &KeptEntry> {
        self.entries.iter().filter(|entry| entry.kind == CALL_KIND)
    }

    /// The other members of a chat message.
    fn members(&self) -> impl Iterator<Item = &KeptEntry> {
        self.shown().filter(|entry| entry.kind != CALL_KIND && !entry.raw.is_empty())
    }
}

impl KeptEntry {
    fn new(entry: &TurnEntry) -> Self {
        let value = Value::parse(entry.raw.as_bytes()).ok();
        let key = value.and_then(|value| match entry.kind.as_str() {
            CALL_KIND => call_id(&value),
            _ => key_of(&value),
        });
        // Blocks, items and calls are objects; the client has the ones that it saw.
        let is_kept = !entry.shown || !entry.raw.starts_with('{');
        let raw = if is_kept { entry.raw.as_str() } else { "" };
        Self { kind: entry.kind.clone(), key, shown: entry.shown, raw: raw.to_owned() }
    }
}

impl KeptEntry {
    /// Whether a block or item of a request is the one that the client received for this entry.
    fn is(&self, value: &Value<'_>) -> bool {
        self.kind == kind_of(value) && (self.key.is_none() || self.key == key_of(value))
    }
}

/// The key of a call in a chat message.
fn call_id(call: &Value<'_>) -> Option<String> {
    Some(call_key(&call.get("id")?.as_str()?))
}

/// The key of a block or an item: the id of a call, or the signature of a thought.
fn key_of(value: &Value<'_>) -> Option<String> {
    let text = |key: &str| value.get(key).and_then(|text| text.as_str());
    let kind = text("type")?;
    match kind.as_ref() {
        // The provider's own calls are known to a client too, which goes on after a pause with them.
        "tool_use" | "server_tool_use" | "mcp_tool_use" => Some(call_key(&text("id")?)),
        "thinking" => signature_key(&text("signature")?),
        "redacted_thinking" => signature_key(&text("data")?),
        "reasoning" => match text("encrypted_content") {
            Some(encrypted) => signature_key(&encrypted),
            None => Some(format!("item:{}", text("id")?)),
        },
        kind if kind.ends_with("_call") => Some(call_key(&text("call_id")?)),
        _ => None,
    }
}

fn signature_key(signed: &str) -> Option<String> {
    let start = signed.ceil_char_boundary(signed.len().saturating_sub(SIGNATURE_TAIL_BYTES));
    let tail = signed.get(start..).filter(|tail| tail.len() >= SIGNATURE_TAIL_BYTES / 2)?;
    Some(format!("signed:{tail}"))
}

/// The keys in a request under which something may be stored: at most 1,000, latest first.
#[must_use]
pub fn continuation_keys(dialect: Dialect, body: &[u8]) -> Vec<String> {
    let Ok(object) = Object::parse(body) else { return Vec::new() };
    let mut keys = keys(dialect, &object);
    keys.reverse();
    keys.dedup();
    keys.truncate(MAX_KEYS);
    keys
}

/// The keys in a request, in order.
fn keys(dialect: Dialect, object: &Object<'_>) -> Vec<String> {
    if dialect == Dialect::Responses {
        return entries(object, "input").filter_map(|item| item_key(&item)).collect();
    }
    let mut keys = Vec::new();
    for message in entries(object, "messages") {
        let parts = message.get("content").into_iter().flat_map(|content| content.elements());
        keys.extend(parts.filter_map(|part| key_of(&part)));
        let calls = message.get("tool_calls").into_iter().flat_map(|calls| calls.elements());
        keys.extend(calls.filter_map(|call| call_id(&call)));
    }
    keys
}

/// The key of an item, or of the call whose output it is.
fn item_key(item: &Value<'_>) -> Option<String> {
    let call = item.get("call_id").and_then(|id| id.as_str());
    call.map(|id| call_key(&id)).or_else(|| key_of(item))
}

/// The stored turns, each of which is restored at most once.
struct KeptTurns<'k> {
    kept: &'k HashMap<String, String>,
    /// The keys of what the request already contains.
    present: HashSet<String>,
}

impl KeptTurns<'_> {
    /// Finds the turns stored under a key, unless the request already contains one of their calls.
    fn find(&self, key: &str) -> Option<Vec<HiddenTurn>> {
        let value: Json = serde_json::from_str(self.kept.get(key)?).ok()?;
        let turns: Vec<_> = value.as_array()?.iter().map(HiddenTurn::from_json).collect();
        let is_present =
            |entry: &KeptEntry| entry.key.as_ref().is_some_and(|key| self.present.contains(key));
        let has_any = turns.iter().flat_map(HiddenTurn::hidden).any(is_present);
        (!has_any).then_some(turns)
    }

    fn mark_restored(&mut self, turns: &[HiddenTurn]) {
        let hidden = turns.iter().flat_map(HiddenTurn::hidden);
        self.present.extend(hidden.filter_map(|entry| entry.key.clone()));
    }
}

/// Restores stored turns in a request; returns `None` if none of them fits.
#[must_use]
pub fn restore_hidden_turns(
    dialect: Dialect,
    body: &[u8],
    kept: &HashMap<String, String>,
) -> Option<Vec<u8>> {
    let object = Object::parse(body).ok()?;
    let present = keys(dialect, &object).into_iter().collect();
    let mut kept_turns = KeptTurns { kept, present };
    let mut splices = Vec::new();
    if dialect == Dialect::Responses {
        let items: Vec<Value<'_>> = entries(&object, "input").collect();
        restore_items(&items, &mut kept_turns, &mut splices);
    } else {
        let messages: Vec<Value<'_>> = entries(&object, "messages").collect();
        for (at, message) in messages.iter().enumerate() {
            let next = messages.get(at + 1);
            let message_splices = if dialect == Dialect::Messages {
                restore_message(message, next, &mut kept_turns)
            } else {
                restore_chat_message(message, &mut kept_turns).map(|splice| vec![splice])
            };
            splices.extend(message_splices.into_iter().flatten());
        }
    }
    splices.retain(|splice| !(splice.range.is_empty() && splice.text.is_empty()));
    if splices.is_empty() {
        return None;
    }
    let restored = apply_splices(body, splices);
    // What was stored is valid JSON, unless the storage is corrupt.
    Object::parse(&restored).is_ok().then_some(restored)
}

/// Splits a message of the Messages API that consists of several turns.
fn restore_message(
    message: &Value<'_>,
    next: Option<&Value<'_>>,
    kept_turns: &mut KeptTurns<'_>,
) -> Option<Vec<Splice>> {
    let content = message.get("content").filter(|content| content.kind() == Kind::Array)?;
    let blocks: Vec<Value<'_>> = content.elements().collect();
    let turns = blocks.iter().find_map(|block| kept_turns.find(&key_of(block)?))?;
    if !starts_with(&blocks, turns.iter().flat_map(HiddenTurn::shown)) {
        return None;
    }
    let (last, past) = turns.split_last()?;
    let mut blocks = blocks.into_iter();
    let mut before = String::new();
    let mut own_start = None;
    for turn in past {
        let parts: Vec<String> = turn
            .entries
            .iter()
            .filter_map(|entry| match entry.shown {
                true => blocks.next().map(|block| block.raw().to_owned()),
                false => Some(entry.raw.clone()),
            })
            .collect();
        before.push_str(&turn::assistant_message(&parts.join(",")));
        before.push(',');
        before.push_str(&turn::user_message(&turn.results));
        before.push(',');
        own_start.get_or_insert(content.range().start + 1);
    }
    let rest: Vec<Value<'_>> = blocks.collect();
    let mut splices = vec![Splice { range: empty_range(message.range().start), text: before }];
    if let (Some(start), Some(first)) = (own_start, rest.first()) {
        splices.push(Splice { range: start..first.range().start, text: String::new() });
    }
    if last.hides_calls() {
        let results_content =
            next?.get("content").filter(|content| content.kind() == Kind::Array)?;
        splices.extend(interleave(last.entries.iter(), &rest));
        splices.push(prepend(&results_content, &last.results));
    }
    if rest.is_empty() {
        return None;
    }
    kept_turns.mark_restored(&turns);
    Some(splices)
}

/// Splices hidden entries between the elements that are the shown ones in the same order.
fn interleave<'k>(sequence: impl Iterator<Item = &'k KeptEntry>, own: &[Value<'_>]) -> Vec<Splice> {
    let mut own = own.iter();
    let mut after = None;
    let mut leading = String::new();
    let mut splices = Vec::new();
    for entry in sequence {
        if !entry.shown {
            match after {
                Some(end) => {
                    splices
                        .push(Splice { range: empty_range(end), text: format!(",{}", entry.raw) });
                }
                None => leading.push_str(&format!("{},", entry.raw)),
            }
        } else if let Some(element) = own.next() {
            if after.is_none() {
                let text = std::mem::take(&mut leading);
                splices.push(Splice { range: empty_range(element.range().start), text });
            }
            after = Some(element.range().end);
        }
    }
    splices.retain(|splice| !splice.text.is_empty());
    splices
}

fn prepend(array: &Value<'_>, added: &[String]) -> Splice {
    let comma = if array.elements().next().is_some() { "," } else { "" };
    let text = format!("{}{comma}", added.join(","));
    Splice { range: empty_range(array.range().start + 1), text }
}

const fn empty_range(place: usize) -> std::ops::Range<usize> {
    place..place
}

/// Whether these blocks or items start with those that the client has seen.
fn starts_with<'k>(blocks: &[Value<'_>], mut shown: impl Iterator<Item = &'k KeptEntry>) -> bool {
    let mut blocks = blocks.iter();
    shown.all(|entry| blocks.next().is_some_and(|block| entry.is(block)))
}

/// The type of a block or an item; a Responses message may omit it.
fn kind_of(value: &Value<'_>) -> String {
    match super::messages::text(value, "type") {
        kind if kind.is_empty() && value.get("role").is_some() => "message".to_owned(),
        kind => kind,
    }
}

/// The entries of a conversation.
fn entries<'a>(object: &Object<'a>, key: &str) -> impl Iterator<Item = Value<'a>> + use<'a> {
    object.member(key).into_iter().flat_map(|entries| entries.elements())
}
