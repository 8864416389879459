//! The text of answers, which is collected only where that is asked for.

use super::*;

/// The text of each choice, observed in pieces of this size.
fn answer(mut observer: Observer, bytes: &str, piece: usize) -> Vec<(u64, String)> {
    observer.collect_answer();
    for chunk in bytes.as_bytes().chunks(piece) {
        observer.observe(chunk);
    }
    observer.finish();
    observer.take().answer.unwrap().choices
}

fn check(dialect: Dialect, stream: &str, body: &str, expected: &[(u64, &str)]) {
    let expected: Vec<_> =
        expected.iter().map(|(choice, text)| (*choice, (*text).to_owned())).collect();
    for piece in [1, 7, 100_000] {
        assert_eq!(answer(Observer::stream(dialect), stream, piece), expected, "{dialect:?}");
        assert_eq!(answer(Observer::body(dialect), body, piece), expected, "{dialect:?}");
    }
    let mut observer = Observer::stream(dialect);
    observer.observe(stream.as_bytes());
    assert_eq!(observer.take().answer, None);
}

#[test]
fn the_text_of_a_message_is_that_of_its_text_blocks() {
    let stream = sse([
        (
            "content_block_start",
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":""}}"#,
        ),
        (
            "content_block_delta",
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}"#,
        ),
        (
            "content_block_start",
            r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":"One"}}"#,
        ),
        (
            "content_block_delta",
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":" \"two\"\n"}}"#,
        ),
        (
            "content_block_delta",
            r#"{ "type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"caf\u00e9 \ud83d\ude00"}}"#,
        ),
        (
            "content_block_start",
            r#"{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}"#,
        ),
        (
            "content_block_delta",
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{}"}}"#,
        ),
        ("message_stop", r#"{"type":"message_stop"}"#),
    ]);
    let body = r#"{"type":"message","content":[{"type":"thinking","thinking":"hm"},
        {"type":"text","text":"One \"two\"\n"},{"type":"text","text":"caf\u00e9 \ud83d\ude00"},
        {"type":"tool_use","id":"t","name":"f","input":{}}]}"#;
    check(Dialect::Messages, &stream, body, &[(0, "One \"two\"\ncafé 😀")]);
}

#[test]
fn each_choice_of_a_completion_has_its_text() {
    let delta = |choice: u64, delta: &str| {
        format!(
            r#"{{"id":"c","choices":[{{"index":{choice},"delta":{delta},"finish_reason":null}}]}}"#
        )
    };
    let chunks = [
        delta(0, r#"{"role":"assistant","content":""}"#),
        delta(0, r#"{"content":"One "}"#),
        delta(0, r#"{"content":"two\n"}"#),
        delta(1, r#"{"content":"Un"}"#),
        delta(1, r#"{"content":" deux"}"#),
        delta(0, r#"{"reasoning_content":"hm"}"#),
        delta(0, r#"{"content":[{"type":"text","text":"three"}]}"#),
        "[DONE]".to_owned(),
    ];
    let stream = sse(chunks.iter().map(|chunk| ("", chunk.as_str())));
    let body = r#"{"id":"c","choices":[
        {"index":0,"message":{"content":"One two\nthree","reasoning_content":"hm"}},
        {"index":1,"message":{"content":[{"type":"text","text":"Un"},{"type":"text","text":" deux"}]}}]}"#;
    check(Dialect::ChatCompletions, &stream, body, &[(0, "One two\nthree"), (1, "Un deux")]);
}

#[test]
fn the_text_of_a_response_is_that_of_its_messages_without_commentary() {
    let output = r#"[{"type":"reasoning","summary":[{"type":"summary_text","text":"hm"}]},
        {"type":"message","id":"m0","phase":"commentary","content":[{"type":"output_text","text":"I look."}]},
        {"type":"message","id":"m1","content":[{"type":"output_text","text":"One \"two\"\n"},
          {"type":"output_text","text":"three"}]}]"#;
    let completed = format!(
        r#"{{"type":"response.completed","response":{{"id":"r","status":"completed","output":{output}}}}}"#
    )
    .replace('\n', " ");
    let events = [
        (
            "response.output_item.added",
            r#"{"type":"response.output_item.added","output_index":1,"item":{"type":"message","id":"m0","phase":"commentary","content":[]}}"#,
        ),
        (
            "response.output_text.delta",
            r#"{"type":"response.output_text.delta","output_index":1,"delta":"I look."}"#,
        ),
        (
            "response.output_item.done",
            r#"{"type":"response.output_item.done","output_index":1,"item":{"type":"message","id":"m0","phase":"commentary","content":[{"type":"output_text","text":"I look."}]}}"#,
        ),
        (
            "response.output_text.delta",
            r#"{"type":"response.output_text.delta","output_index":2,"delta":"One \"two\"\n","sequence_number":3}"#,
        ),
        (
            "response.output_text.delta",
            r#"{ "type":"response.output_text.delta","output_index":2,"delta":"three"}"#,
        ),
        ("response.completed", completed.as_str()),
    ];
    let body =
        format!(r#"{{"id":"r","object":"response","status":"completed","output":{output}}}"#);
    let expected = [(0, "One \"two\"\nthree")];
    check(Dialect::Responses, &sse(events), &body, &expected);
    // Some servers send no deltas.
    check(Dialect::Responses, &sse([events[5]]), &body, &expected);
}
