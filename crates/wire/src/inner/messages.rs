//! The Messages API: <https://platform.claude.com/docs/en/build-with-claude/streaming>.

use std::{collections::HashSet, ops::Range};

use serde_json::Value as Json;

use super::{
    Fate, Verdict, View, forget,
    growing::{Growing, inside},
    turn::{Call, Entry, Turn},
    usage,
};
use crate::json::{Edits, Kind, Object, Value, string};

/// The state of the turns' streams.
#[derive(Debug, Default)]
pub(super) struct Stream {
    blocks: Vec<Block>,
    /// The index that the client's next block takes.
    next_index: u64,
    /// The figures of earlier turns, and of this one.
    earlier: Json,
    usage: Json,
    stop_reason: Option<String>,
    response_id: Option<String>,
}

/// A content block of this turn.
#[derive(Debug)]
struct Block {
    index: u64,
    /// Its index in the client's view; none if it is kept from the client.
    shown: Option<u64>,
    kind: String,
    content: Growing,
    /// A tool's arguments, which come as text: the insides of string literals, still escaped.
    input: String,
}

/// Stop reasons with which the model does not wait for results.
const ENDINGS: [&str; 5] =
    ["max_tokens", "refusal", "pause_turn", "stop_sequence", "model_context_window_exceeded"];

impl Stream {
    pub(super) fn event(&mut self, event: Option<&[u8]>, data: &[u8], view: &mut View) -> Verdict {
        if let Some((index, text)) = text_delta(data) {
            let number = number(data.get(index.clone()).unwrap_or_default());
            if view.keeps(text.len())
                && let (Some(block), Ok(text)) = (self.block(number), std::str::from_utf8(text))
            {
                block.content.text(&["text"], text);
            }
            return self.indexed(number, index);
        }
        let Ok(value) = Value::parse(data) else { return Verdict::default() };
        let kind = value.get("type").and_then(|kind| kind.as_str());
        match kind.as_deref().map(str::as_bytes).or(event) {
            Some(b"message_start") => self.message_start(&value, view),
            Some(b"content_block_start") => self.start(&value, view),
            Some(b"content_block_delta") => {
                if view.keeps(data.len()) {
                    self.delta(&value);
                }
                self.by_index(&value)
            }
            Some(b"message_delta") => self.message_delta(&value, data, view),
            Some(b"message_stop") => Verdict::of(view.conclude()),
            Some(b"error") => {
                view.fail();
                Verdict::default()
            }
            _ => self.by_index(&value),
        }
    }

    pub(super) fn take_turn(&mut self, offered: &HashSet<String>) -> Turn {
        let mut turn = Turn {
            awaits_results: self.awaits_results(),
            response_id: self.response_id.clone(),
            ..Turn::default()
        };
        for block in &self.blocks {
            match block.raw() {
                Some(raw) => {
                    add_block(&mut turn, &block.kind, &raw, &block.arguments(), offered);
                }
                None => turn.overflowed = true,
            }
        }
        turn
    }

    pub(super) fn next_turn(&mut self) {
        self.earlier = usage::sum(&self.earlier, &self.usage);
        self.usage = Json::Null;
        self.blocks.clear();
        self.stop_reason = None;
    }

    fn awaits_results(&self) -> bool {
        awaits_results(self.stop_reason.as_deref())
    }

    fn message_start(&mut self, value: &Value<'_>, view: &View) -> Verdict {
        let message = value.get("message");
        let member = |key| message.as_ref().and_then(|message| message.get(key));
        self.response_id = member("id").and_then(|id| id.as_str()).map(Into::into);
        self.usage = json(member("usage"));
        Verdict::of(if view.turn == 0 { Fate::Relay } else { Fate::Drop })
    }

    fn start(&mut self, value: &Value<'_>, view: &mut View) -> Verdict {
        let (Some(index), Some(content)) = (value.get("index"), value.get("content_block")) else {
            return Verdict::default();
        };
        let number = index.as_u64().unwrap_or_default();
        let kind = text(&content, "type");
        let is_hidden = kind == "tool_use" && view.is_injected(&text(&content, "name"));
        // As the provider counts, as long as the client sees all of it.
        let shown = if view.diverted || view.turn > 0 { self.next_index } else { number };
        view.diverted |= is_hidden;
        if !is_hidden {
            self.next_index = shown.saturating_add(1);
        }
        // Known in any case: what comes of it has to be told apart.
        let content = if view.keeps_part(content.raw().len()) { content.raw() } else { "{}" };
        self.blocks.push(Block {
            index: number,
            shown: (!is_hidden).then_some(shown),
            kind,
            content: Growing::new(content),
            input: String::new(),
        });
        forget(&mut self.blocks, view);
        self.indexed(number, index.range())
    }

    fn delta(&mut self, value: &Value<'_>) {
        let number = value.get("index").and_then(|index| index.as_u64()).unwrap_or_default();
        let Some(block) = self.block(number) else { return };
        let delta = value.get("delta").and_then(|delta| delta.as_object());
        for (key, added) in delta.iter().flat_map(|delta| delta.members()) {
            match key.as_ref() {
                "type" => {}
                _ if added.is_null() => {}
                "partial_json" if added.kind() == Kind::String => {
                    block.input.push_str(inside(added.raw()));
                }
                "citation" => {
                    let citation = std::iter::once(added.raw().to_owned());
                    block.content.elements(&["citations"], citation);
                }
                key if added.kind() == Kind::String => {
                    block.content.text(&[key], inside(added.raw()));
                }
                key => block.content.set(&[key], added.raw()),
            }
        }
    }

    /// The figures of the turn, and why it ended; to the client they are those of all turns.
    fn message_delta(&mut self, value: &Value<'_>, data: &[u8], view: &View) -> Verdict {
        let reason = value.get("delta").and_then(|delta| delta.get("stop_reason"));
        if let Some(reason) = reason.and_then(|reason| reason.as_str()) {
            self.stop_reason = Some(reason.into());
        }
        self.usage = usage::overlaid(&self.usage, &json(value.get("usage")));
        if view.turn == 0 {
            return Verdict::of(view.ending());
        }
        let whole = usage::sum(&self.earlier, &self.usage);
        if whole.is_null() {
            return Verdict::of(view.ending());
        }
        let mut edits = Edits::new();
        edits.set(&["usage"], &whole.to_string());
        Verdict::replaced(view.ending(), data, edits.apply(data))
    }

    /// An event about a block: dropped with it, or with the index that the client knows.
    fn by_index(&self, value: &Value<'_>) -> Verdict {
        match value.get("index") {
            Some(index) => self.indexed(index.as_u64().unwrap_or_default(), index.range()),
            None => Verdict::default(),
        }
    }

    fn indexed(&self, number: u64, range: Range<usize>) -> Verdict {
        match self.blocks.iter().rev().find(|block| block.index == number) {
            None => Verdict::default(),
            Some(Block { shown: None, .. }) => Verdict::of(Fate::Drop),
            Some(Block { shown: Some(shown), .. }) if *shown == number => Verdict::default(),
            Some(Block { shown: Some(shown), .. }) => {
                Verdict::edited(Fate::Relay, vec![(range, shown.to_string())])
            }
        }
    }

    fn block(&mut self, index: u64) -> Option<&mut Block> {
        self.blocks.iter_mut().rev().find(|block| block.index == index)
    }
}

impl Block {
    /// The block as it stands in a whole answer.
    fn raw(&self) -> Option<String> {
        let mut content = self.content.clone();
        let input = self.arguments();
        if self.kind.ends_with("tool_use") && !input.trim().is_empty() {
            // What is no object cannot stand there; its result tells the model.
            let is_object = Object::parse(input.as_bytes()).is_ok();
            content.set(&["input"], if is_object { input.trim() } else { "{}" });
        }
        content.json().ok()
    }

    fn arguments(&self) -> String {
        string::decode(&format!("\"{}\"", self.input)).into_owned()
    }
}

/// Adds a content block to what is known of a turn; tells whether the client sees it.
pub(super) fn add_block(
    turn: &mut Turn,
    kind: &str,
    raw: &str,
    arguments: &str,
    offered: &HashSet<String>,
) -> bool {
    let mut shown = true;
    if kind == "tool_use"
        && let Ok(block) = Value::parse(raw.as_bytes())
    {
        let (id, name) = (text(&block, "id"), text(&block, "name"));
        if offered.contains(&name) {
            let input = block.get("input").map(|input| input.raw().to_owned());
            let arguments = Some(arguments).filter(|text| !text.trim().is_empty());
            let arguments = arguments.map(ToOwned::to_owned).or(input).unwrap_or_default();
            turn.calls.push(Call { id, name, arguments });
            shown = false;
        } else {
            turn.client_calls.push(id);
        }
    }
    turn.entries.push(Entry::new(kind, raw, shown));
    shown
}

/// Whether the model that stopped for this reason waits for results.
pub(super) fn awaits_results(stop_reason: Option<&str>) -> bool {
    stop_reason.is_none_or(|reason| !ENDINGS.contains(&reason))
}

/// Where the index stands and the escaped text of a text delta in the shape it always has.
fn text_delta(data: &[u8]) -> Option<(Range<usize>, &[u8])> {
    const HEAD: &[u8] = br#"{"type":"content_block_delta","index":"#;
    let text = crate::observe::messages_text(data)?;
    let digits = data.get(HEAD.len()..)?.iter().take_while(|byte| byte.is_ascii_digit()).count();
    Some((HEAD.len()..HEAD.len() + digits, text))
}

fn number(digits: &[u8]) -> u64 {
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

pub(super) fn text(value: &Value<'_>, key: &str) -> String {
    let text = value.get(key).and_then(|text| text.as_str());
    text.map(Into::into).unwrap_or_default()
}

pub(super) fn json(value: Option<Value<'_>>) -> Json {
    value.and_then(|value| serde_json::from_str(value.raw()).ok()).unwrap_or_default()
}
