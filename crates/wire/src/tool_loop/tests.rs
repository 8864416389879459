use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::{
    BodyMerger, ClientView, Continuation, OutputPart, StreamMerger, ToolOutput, Turn, TurnState,
    continuation_keys, restore_hidden_turns,
};
use crate::{Dialect, observe::Observer, sse::Framer};

mod bodies;
mod bounds;
mod chat;
mod conversations;
mod history;
mod messages;
mod responses;

/// The tools that the bridge injected in these tests.
const ECHO: &str = "bmcp_wiki_echo";
const ADD: &str = "bmcp_wiki_add";

fn client() -> ClientView {
    ClientView { injected_tools: [ECHO, ADD].map(Into::into).into(), ..ClientView::default() }
}

/// An event with a name and data.
fn named(name: &str, data: &Json) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

/// The names and data of a stream's events.
fn events(stream: &str) -> Vec<(String, String)> {
    let mut events = Vec::new();
    let mut push = |frame: crate::sse::Frame<'_>| {
        let (name, data) = frame.parts();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        if !data.is_empty() {
            events.push((text(name.unwrap_or_default()), text(&data)));
        }
    };
    let mut framer = Framer::new();
    framer.push(stream.as_bytes(), &mut push);
    framer.finish(&mut push);
    events
}

/// The result of a tool loop over a provider's streamed turns.
struct LoopRun {
    /// What the client sees.
    shown: String,
    /// The requests after the first one.
    requests: Vec<String>,
    continuation: Continuation,
    last: Turn,
}

/// Runs turns through a merger; the result of each injected call is its arguments.
fn run_streams(
    dialect: Dialect,
    client: ClientView,
    request: &str,
    turns: &[String],
    cut: usize,
) -> LoopRun {
    let mut merger = StreamMerger::new(dialect, client);
    let mut run = LoopRun {
        shown: String::new(),
        requests: Vec::new(),
        continuation: Continuation::default(),
        last: Turn::default(),
    };
    let mut body = request.as_bytes().to_vec();
    for (number, stream) in turns.iter().enumerate() {
        for chunk in stream.as_bytes().chunks(cut) {
            let shown = merger.push(chunk);
            run.shown.push_str(std::str::from_utf8(&shown).unwrap());
        }
        run.shown.push_str(std::str::from_utf8(&merger.finish()).unwrap());
        assert_ne!(merger.state(), TurnState::Open, "turn {number} has no end");
        let turn = merger.take_turn();
        assert!(!turn.overflowed);
        let results = turn.results(dialect, &call_outputs(&turn));
        if turn.should_continue() {
            assert_eq!(merger.state(), TurnState::Held);
            body = turn.append_to(dialect, &body, &results).unwrap();
            run.requests.push(String::from_utf8(body.clone()).unwrap());
            merger.next_turn(&turn, &results);
            continue;
        }
        let results = if turn.should_run_calls() { results } else { Vec::new() };
        run.continuation = merger.continuation(&turn, &results);
        run.last = turn;
        run.shown.push_str(std::str::from_utf8(&merger.release()).unwrap());
        assert_eq!(merger.state(), TurnState::Relayed);
    }
    run
}

/// Runs complete responses; returns what the client sees of the last one.
fn run_bodies(
    dialect: Dialect,
    client: ClientView,
    request: &str,
    turns: &[Json],
) -> (Json, Vec<String>) {
    let mut merger = BodyMerger::new(dialect, client);
    let mut body = request.as_bytes().to_vec();
    let mut requests = Vec::new();
    for response in turns {
        let response = response.to_string();
        let turn = merger.read_turn(response.as_bytes()).unwrap();
        if !turn.should_continue() {
            let merged = merger.merge(response.as_bytes(), &turn).unwrap();
            return (serde_json::from_slice(&merged).unwrap(), requests);
        }
        let results = turn.results(dialect, &call_outputs(&turn));
        body = turn.append_to(dialect, &body, &results).unwrap();
        requests.push(String::from_utf8(body.clone()).unwrap());
        merger.next_turn(&turn, &results);
    }
    panic!("the last turn does not end the loop");
}

fn call_outputs(turn: &Turn) -> Vec<ToolOutput> {
    let response = |call: &super::InjectedCall| match call.object() {
        Some(arguments) => text_output(&format!("did {}", Json::Object(arguments))),
        None => ToolOutput::error("no object"),
    };
    turn.calls.iter().map(response).collect()
}

fn text_output(text: &str) -> ToolOutput {
    let json = json!({ "content": [{ "type": "text", "text": text }] }).to_string();
    ToolOutput { parts: vec![OutputPart::Text(text.into())], json, is_error: false }
}

/// Checks that a request extends an earlier one: the same bytes up to the end of its conversation.
fn extends(earlier: &str, later: &str, conversation: &str) {
    let list = |text: &str| -> Vec<Json> {
        let body: Json = serde_json::from_str(text).unwrap();
        body[conversation].as_array().unwrap().clone()
    };
    let (before, after) = (list(earlier), list(later));
    assert!(after.len() > before.len());
    assert_eq!(after[..before.len()], before[..]);
    let end = earlier.rfind(']').unwrap();
    assert_eq!(later.get(..end), earlier.get(..end), "the bytes before are the same");
}

/// What an observer, the bridge's own reader of streams, makes of a merged stream.
fn observed(dialect: Dialect, stream: &str) -> crate::observe::Observation {
    let mut observer = Observer::stream(dialect);
    observer.observe(stream.as_bytes());
    assert!(observer.is_terminal(), "{stream}");
    observer.take()
}

#[test]
fn results_are_rendered_in_the_dialects_own_format() {
    let turn = Turn {
        calls: vec![super::InjectedCall {
            id: "c".into(),
            name: ECHO.into(),
            arguments: "{}".into(),
        }],
        ..Turn::default()
    };
    let results = |dialect, output: ToolOutput| turn.results(dialect, &[output]).join("\n");
    let mixed = ToolOutput {
        parts: vec![
            OutputPart::Text("a".into()),
            OutputPart::Text(String::new()),
            OutputPart::Image { media_type: "image/png".into(), data: "AAAA".into() },
            OutputPart::Image { media_type: "image/tiff".into(), data: "AAAA".into() },
            OutputPart::Other("hologram".into()),
        ],
        json: r#"{"content":[1]}"#.into(),
        is_error: false,
    };
    insta::assert_snapshot!(results(Dialect::Messages, mixed.clone()), @r#"{"type":"tool_result","tool_use_id":"c","content":[{"type":"text","text":"a"},{"type":"text","text":"(empty)"},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"AAAA"}},{"type":"text","text":"[image of type image/tiff]"},{"type":"text","text":"[content: hologram]"}],"is_error":false}"#);
    insta::assert_snapshot!(results(Dialect::ChatCompletions, mixed.clone()), @r#"{"role":"tool","tool_call_id":"c","content":"{\"content\":[1]}"}"#);
    insta::assert_snapshot!(results(Dialect::Responses, mixed), @r#"{"type":"function_call_output","call_id":"c","output":"{\"content\":[1]}"}"#);
    let two = ToolOutput {
        parts: vec![OutputPart::Text("a".into()), OutputPart::Text("b".into())],
        json: String::new(),
        is_error: true,
    };
    insta::assert_snapshot!(results(Dialect::ChatCompletions, two), @r#"{"role":"tool","tool_call_id":"c","content":"Error: ab"}"#);
    insta::assert_snapshot!(results(Dialect::Responses, ToolOutput::error("it is gone")), @r#"{"type":"function_call_output","call_id":"c","output":"Error: it is gone"}"#);
    insta::assert_snapshot!(results(Dialect::Messages, ToolOutput::error("it is gone")), @r#"{"type":"tool_result","tool_use_id":"c","content":[{"type":"text","text":"Error: it is gone"}],"is_error":true}"#);
}

#[test]
fn an_oversized_turn_cannot_be_continued() {
    let mut merger = StreamMerger::new(Dialect::Messages, client());
    let text = "x".repeat(1 << 20);
    let delta = json!({ "type": "text_delta", "text": text });
    let delta = json!({ "type": "content_block_delta", "index": 0, "delta": delta });
    merger.push(named("content_block_delta", &delta).as_bytes());
    assert!(!merger.take_turn().overflowed);
    for _ in 0..16 {
        merger.push(named("content_block_delta", &delta).as_bytes());
    }
    assert!(merger.take_turn().overflowed);
}

proptest! {
    #[test]
    fn arbitrary_bytes_cause_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
            let mut merger = StreamMerger::new(dialect, client());
            merger.push(&bytes);
            merger.finish();
            let turn = merger.take_turn();
            let _odd = turn.append_to(dialect, &bytes, &[]);
            let mut whole = BodyMerger::new(dialect, client());
            if let Some(turn) = whole.read_turn(&bytes) {
                let _odd = whole.merge(&bytes, &turn);
            }
            let keys = continuation_keys(dialect, &bytes);
            let kept = keys.into_iter().map(|key| (key, "[1,{}]".to_owned())).collect();
            let _odd = restore_hidden_turns(dialect, &bytes, &kept);
        }
    }
}
