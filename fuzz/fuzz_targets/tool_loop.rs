//! Any turns of an inner loop: merged alike however they are cut, and nothing that is made of them is
//! no JSON.
#![no_main]

use std::collections::HashMap;

use keybridge_wire::{
    Dialect,
    tool_loop::{ClientView, StreamMerger, ToolOutput, Turn, BodyMerger, continuation_keys, restore_hidden_turns},
    json::Object,
    tools::{InjectableTools, ToolDefinition},
};
use libfuzzer_sys::fuzz_target;

/// The tool that the bridge has put in.
const TOOL: &str = "t";

fuzz_target!(|input: (u8, &[u8])| {
    let (size, bytes) = (usize::from(input.0) + 1, input.1);
    for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
        untouched(dialect, size, bytes);
        let whole = merged(dialect, &[bytes]);
        assert_eq!(merged(dialect, &bytes.chunks(1).collect::<Vec<_>>()), whole);
        assert_eq!(merged(dialect, &bytes.chunks(size).collect::<Vec<_>>()), whole);
        answer(dialect, bytes);
        request(dialect, bytes);
    }
});

/// Where no tool was put in, every event passes as it came.
fn untouched(dialect: Dialect, size: usize, bytes: &[u8]) {
    let mut merger = StreamMerger::new(dialect, ClientView { wants_usage: true, ..ClientView::default() });
    let shown: Vec<u8> = bytes.chunks(size).flat_map(|chunk| merger.push(chunk)).collect();
    assert!(bytes.starts_with(&shown));
    assert!(!merger.is_withholding());
}

fn client() -> ClientView {
    ClientView { injected: [TOOL.to_owned()].into(), ..ClientView::default() }
}

/// What a client sees of two such turns, and what goes upstream.
fn merged(dialect: Dialect, chunks: &[&[u8]]) -> (Vec<u8>, Vec<Option<Vec<u8>>>) {
    let mut merger = StreamMerger::new(dialect, client());
    let mut shown = Vec::new();
    let mut requests = Vec::new();
    for _ in 0..2 {
        chunks.iter().for_each(|chunk| shown.extend(merger.push(chunk)));
        shown.extend(merger.finish());
        let turn = merger.take_turn();
        let results = results(dialect, &turn);
        requests.push(turn.append_to(dialect, b"{}", &results).ok());
        let kept = merger.continuation(&turn, &results).entries.into_iter().collect();
        for body in requests.iter().flatten() {
            Object::parse(body).unwrap();
            put_back(dialect, body, &kept);
        }
        merger.next_turn(&turn, &results);
    }
    shown.extend(merger.release());
    (shown, requests)
}

fn results(dialect: Dialect, turn: &Turn) -> Vec<String> {
    let outputs: Vec<ToolOutput> = turn.calls.iter().map(|call| ToolOutput::error(&call.id)).collect();
    turn.results(dialect, &outputs)
}

/// A whole answer.
fn answer(dialect: Dialect, bytes: &[u8]) {
    let mut merger = BodyMerger::new(dialect, client());
    let Some(turn) = merger.read_turn(bytes) else { return };
    let results = results(dialect, &turn);
    merger.next_turn(&turn, &results);
    if let Ok(merged) = merger.merge(bytes, &turn) {
        Object::parse(&merged).unwrap();
    }
    let kept = merger.continuation(&turn, &results).entries.into_iter().collect();
    put_back(dialect, bytes, &kept);
}

/// A request, and what was kept under each of its keys.
fn request(dialect: Dialect, bytes: &[u8]) {
    let kept = String::from_utf8_lossy(bytes).into_owned();
    let kept = continuation_keys(dialect, bytes).into_iter().map(|key| (key, kept.clone())).collect();
    put_back(dialect, bytes, &kept);
    let tools = InjectableTools::new(&[ToolDefinition {
        id: TOOL.to_owned(),
        description: None,
        input_schema: "{}".to_owned(),
    }]);
    if let Ok(Some(made)) = tools.inject(dialect, bytes) {
        Object::parse(&made.body).unwrap();
        assert!(made.injected.contains(TOOL) && made.omitted.is_empty());
    }
}

fn put_back(dialect: Dialect, body: &[u8], kept: &HashMap<String, String>) {
    if let Some(made) = restore_hidden_turns(dialect, body, kept) {
        Object::parse(&made).unwrap();
    }
}
