//! Arbitrary turns of a tool loop: they merge alike however they are split, and everything built from
//! them is valid JSON.
#![no_main]

use std::collections::HashMap;

use keybridge_wire::{
    Dialect,
    json::Object,
    tool_loop::{
        BodyMerger, ClientView, StreamMerger, ToolOutput, Turn, continuation_keys,
        restore_hidden_turns,
    },
    tools::{InjectableTools, ToolDefinition},
};
use libfuzzer_sys::fuzz_target;

/// The tool that the bridge injected.
const TOOL: &str = "t";

fuzz_target!(|input: (u8, &[u8])| {
    let (size, bytes) = (usize::from(input.0) + 1, input.1);
    for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
        passes_unchanged(dialect, size, bytes);
        let whole = merged(dialect, &[bytes]);
        assert_eq!(merged(dialect, &bytes.chunks(1).collect::<Vec<_>>()), whole);
        assert_eq!(merged(dialect, &bytes.chunks(size).collect::<Vec<_>>()), whole);
        response(dialect, bytes);
        request(dialect, bytes);
    }
});

/// Without injected tools, every event passes unchanged.
fn passes_unchanged(dialect: Dialect, size: usize, bytes: &[u8]) {
    let mut merger =
        StreamMerger::new(dialect, ClientView { wants_usage: true, ..ClientView::default() });
    let shown: Vec<u8> = bytes.chunks(size).flat_map(|chunk| merger.push(chunk)).collect();
    assert!(bytes.starts_with(&shown));
    assert!(!merger.is_withholding());
}

fn client() -> ClientView {
    ClientView { injected_tools: [TOOL.to_owned()].into(), ..ClientView::default() }
}

/// What a client sees of two such turns, and what is sent upstream.
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
            restore(dialect, body, &kept);
        }
        merger.next_turn(&turn, &results);
    }
    shown.extend(merger.release());
    (shown, requests)
}

fn results(dialect: Dialect, turn: &Turn) -> Vec<String> {
    let outputs: Vec<ToolOutput> =
        turn.calls.iter().map(|call| ToolOutput::error(&call.id)).collect();
    turn.results(dialect, &outputs)
}

/// A complete response.
fn response(dialect: Dialect, bytes: &[u8]) {
    let mut merger = BodyMerger::new(dialect, client());
    let Some(turn) = merger.read_turn(bytes) else { return };
    let results = results(dialect, &turn);
    merger.next_turn(&turn, &results);
    if let Ok(merged) = merger.merge(bytes, &turn) {
        Object::parse(&merged).unwrap();
    }
    let kept = merger.continuation(&turn, &results).entries.into_iter().collect();
    restore(dialect, bytes, &kept);
}

/// A request, with something stored under each of its keys.
fn request(dialect: Dialect, bytes: &[u8]) {
    let kept = String::from_utf8_lossy(bytes).into_owned();
    let kept =
        continuation_keys(dialect, bytes).into_iter().map(|key| (key, kept.clone())).collect();
    restore(dialect, bytes, &kept);
    let tools = InjectableTools::new(&[ToolDefinition {
        id: TOOL.to_owned(),
        description: None,
        input_schema: "{}".to_owned(),
    }]);
    if let Ok(Some(injection)) = tools.inject(dialect, bytes) {
        Object::parse(&injection.body).unwrap();
        assert!(injection.injected.contains(TOOL) && injection.omitted.is_empty());
    }
}

fn restore(dialect: Dialect, body: &[u8], kept: &HashMap<String, String>) {
    if let Some(restored) = restore_hidden_turns(dialect, body, kept) {
        Object::parse(&restored).unwrap();
    }
}
