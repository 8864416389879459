//! Any turns of an inner loop: merged alike however they are cut, and nothing that is made of them is
//! no JSON.
#![no_main]

use std::collections::HashMap;

use keybridge_wire::{
    Dialect,
    inner::{Client, Merger, Output, Turn, Whole, anchors, restored},
    json::Object,
    tools::{Offer, ToolDefinition},
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
    let mut merger = Merger::new(dialect, Client { wants_usage: true, ..Client::default() });
    let shown: Vec<u8> = bytes.chunks(size).flat_map(|chunk| merger.push(chunk)).collect();
    assert!(bytes.starts_with(&shown));
    assert!(!merger.is_diverted());
}

fn client() -> Client {
    Client { offered: [TOOL.to_owned()].into(), ..Client::default() }
}

/// What a client sees of two such turns, and what goes upstream.
fn merged(dialect: Dialect, chunks: &[&[u8]]) -> (Vec<u8>, Vec<Option<Vec<u8>>>) {
    let mut merger = Merger::new(dialect, client());
    let mut shown = Vec::new();
    let mut requests = Vec::new();
    for _ in 0..2 {
        chunks.iter().for_each(|chunk| shown.extend(merger.push(chunk)));
        shown.extend(merger.finish());
        let turn = merger.take_turn();
        let results = results(dialect, &turn);
        requests.push(turn.appended(dialect, b"{}", &results).ok());
        let kept = merger.continuation(&turn, &results).kept.into_iter().collect();
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
    let outputs: Vec<Output> = turn.calls.iter().map(|call| Output::error(&call.id)).collect();
    turn.results(dialect, &outputs)
}

/// A whole answer.
fn answer(dialect: Dialect, bytes: &[u8]) {
    let mut whole = Whole::new(dialect, client());
    let Some(turn) = whole.read(bytes) else { return };
    let results = results(dialect, &turn);
    whole.next_turn(&turn, &results);
    if let Ok(merged) = whole.merged(bytes, &turn) {
        Object::parse(&merged).unwrap();
    }
    let kept = whole.continuation(&turn, &results).kept.into_iter().collect();
    put_back(dialect, bytes, &kept);
}

/// A request, and what was kept under each of its keys.
fn request(dialect: Dialect, bytes: &[u8]) {
    let kept = String::from_utf8_lossy(bytes).into_owned();
    let kept = anchors(dialect, bytes).into_iter().map(|key| (key, kept.clone())).collect();
    put_back(dialect, bytes, &kept);
    let offer = Offer::new(&[ToolDefinition {
        id: TOOL.to_owned(),
        description: None,
        input_schema: "{}".to_owned(),
    }]);
    if let Ok(Some(made)) = offer.inject(dialect, bytes) {
        Object::parse(&made.body).unwrap();
        assert!(made.offered.contains(TOOL) && made.left_out.is_empty());
    }
}

fn put_back(dialect: Dialect, body: &[u8], kept: &HashMap<String, String>) {
    if let Some(made) = restored(dialect, body, kept) {
        Object::parse(&made).unwrap();
    }
}
