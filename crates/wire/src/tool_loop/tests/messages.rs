//! Turns of the Messages API.

use super::*;

const REQUEST: &str = r#"{"model":"m","tools":[],"messages":[{"role":"user","content":"hi"}]}"#;

/// A part of a response as it is streamed.
enum Block {
    Text(&'static str),
    /// With the signature.
    Thinking(&'static str, &'static str),
    Redacted(&'static str),
    /// The id, the name, and the arguments in pieces.
    Tool(&'static str, &'static str, &'static [&'static str]),
}

use Block::{Redacted, Text, Thinking, Tool};

pub(super) fn event(kind: &str, mut data: Json) -> String {
    let object = data.as_object_mut().unwrap();
    object.shift_insert(0, "type".into(), kind.into());
    named(kind, &data)
}

/// A turn with 10 input tokens and 5 output tokens.
fn turn(id: &str, blocks: &[Block], stop_reason: &str) -> String {
    let usage = json!({ "input_tokens": 10, "cache_read_input_tokens": 3, "output_tokens": 1 });
    let message = json!({
        "id": id, "type": "message", "role": "assistant", "model": "m", "content": [], "usage": usage,
    });
    let mut stream = event("message_start", json!({ "message": message }));
    for (index, block) in blocks.iter().enumerate() {
        let delta =
            |delta: Json| event("content_block_delta", json!({ "index": index, "delta": delta }));
        let (start, deltas) = match block {
            Text(text) => {
                let (one, two) = text.split_at(text.len() / 2);
                let part = |text| delta(json!({ "type": "text_delta", "text": text }));
                (json!({ "type": "text", "text": "" }), vec![part(one), part(two)])
            }
            Thinking(text, signature) => (
                json!({ "type": "thinking", "thinking": "", "signature": "" }),
                vec![
                    delta(json!({ "type": "thinking_delta", "thinking": text })),
                    delta(json!({ "type": "signature_delta", "signature": signature })),
                ],
            ),
            Redacted(data) => (json!({ "type": "redacted_thinking", "data": data }), Vec::new()),
            Tool(id, name, pieces) => {
                let part =
                    |json| delta(json!({ "type": "input_json_delta", "partial_json": json }));
                let start = json!({ "type": "tool_use", "id": id, "name": name, "input": {} });
                (start, pieces.iter().map(part).collect())
            }
        };
        stream += &event("content_block_start", json!({ "index": index, "content_block": start }));
        stream += &event("ping", json!({}));
        stream += &deltas.concat();
        stream += &event("content_block_stop", json!({ "index": index }));
    }
    stream += &event(
        "message_delta",
        json!({
            "delta": { "stop_reason": stop_reason, "stop_sequence": null }, "usage": { "output_tokens": 5 },
        }),
    );
    stream + &event("message_stop", json!({}))
}

/// Assembles a stream as strictly as the SDKs do.
pub(super) fn message(stream: &str) -> Json {
    let mut message = Json::Null;
    let mut is_open = false;
    let mut has_ended = false;
    for (name, data) in events(stream) {
        let data: Json = serde_json::from_str(&data).unwrap();
        assert_eq!(data["type"], name.as_str());
        assert!(!has_ended, "{name} after the end");
        let content = |message: &Json| message["content"].as_array().unwrap().len();
        match name.as_str() {
            "message_start" => {
                assert!(message.is_null(), "one start");
                message = data["message"].clone();
            }
            "content_block_start" => {
                assert!(!is_open);
                assert_eq!(data["index"], content(&message), "indexes are consecutive");
                message["content"].as_array_mut().unwrap().push(data["content_block"].clone());
                is_open = true;
            }
            "content_block_delta" => {
                assert!(is_open);
                assert_eq!(data["index"], content(&message) - 1);
                let block = message["content"].as_array_mut().unwrap().last_mut().unwrap();
                for (key, added) in data["delta"].as_object().unwrap() {
                    let key = if key == "partial_json" { "json" } else { key };
                    let before = block.get(key).and_then(Json::as_str).unwrap_or_default();
                    if key != "type" {
                        block[key] = format!("{before}{}", added.as_str().unwrap()).into();
                    }
                }
            }
            "content_block_stop" => {
                assert_eq!(data["index"], content(&message) - 1);
                is_open = false;
            }
            "message_delta" => {
                message["stop_reason"] = data["delta"]["stop_reason"].clone();
                for (key, figure) in data["usage"].as_object().unwrap() {
                    message["usage"][key] = figure.clone();
                }
            }
            "message_stop" => has_ended = true,
            _ => {}
        }
    }
    assert!(has_ended && !is_open);
    message
}

fn run_turns(turns: &[String]) -> LoopRun {
    run_streams(Dialect::Messages, client(), REQUEST, turns, usize::MAX)
}

#[test]
fn a_hidden_call_leaves_one_well_formed_response() {
    let first = turn(
        "msg_1",
        &[
            Thinking("let me see", "c2ln"),
            Redacted("cmVk"),
            Text("I look."),
            Tool("t1", ECHO, &["{\"a\"", ": 1}"]),
        ],
        "tool_use",
    );
    let second = turn("msg_2", &[Thinking("so", "c2ln2"), Text("Done.")], "end_turn");
    let run = run_turns(&[first, second]);
    let message = message(&run.shown);
    insta::assert_snapshot!(message, @r#"{"id":"msg_1","type":"message","role":"assistant","model":"m","content":[{"type":"thinking","thinking":"let me see","signature":"c2ln"},{"type":"redacted_thinking","data":"cmVk"},{"type":"text","text":"I look."},{"type":"thinking","thinking":"so","signature":"c2ln2"},{"type":"text","text":"Done."}],"usage":{"input_tokens":20,"cache_read_input_tokens":6,"output_tokens":10,"iterations":[{"type":"message","input_tokens":10,"cache_read_input_tokens":3,"output_tokens":5},{"type":"message","input_tokens":10,"cache_read_input_tokens":3,"output_tokens":5}]},"stop_reason":"end_turn"}"#);
    assert!(!run.shown.contains("bmcp_"), "{}", run.shown);
    let [request] = run.requests.as_slice() else { panic!("{:?}", run.requests) };
    extends(REQUEST, request, "messages");
    insta::assert_snapshot!(request, @r#"{"model":"m","tools":[],"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":[{"type":"thinking","thinking":"let me see","signature":"c2ln"},{"type":"redacted_thinking","data":"cmVk"},{"type":"text","text":"I look."},{"type":"tool_use","id":"t1","name":"bmcp_wiki_echo","input":{"a": 1}}]},{"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":[{"type":"text","text":"did {\"a\":1}"}],"is_error":false}]}]}"#);
    let observed = observed(Dialect::Messages, &run.shown);
    assert_eq!(observed.usage.unwrap().input_tokens, Some(20));
    assert_eq!(observed.stop_reason.as_deref(), Some("end_turn"));
}

#[test]
fn several_calls_and_turns_continue_until_the_model_stops() {
    let turns = [
        turn("1", &[Tool("a", ECHO, &[]), Tool("b", ECHO, &["{}"]), Text("")], "tool_use"),
        turn("2", &[Text("mid"), Tool("c", ADD, &["{\"x\":", "[1]}"])], "tool_use"),
        turn("3", &[Text("end")], "end_turn"),
    ];
    let run = run_turns(&turns);
    let message = message(&run.shown);
    assert_eq!(message["usage"]["output_tokens"], 15);
    let texts: Vec<&str> = message["content"]
        .as_array()
        .unwrap()
        .iter()
        .map(|b| b["text"].as_str().unwrap())
        .collect();
    assert_eq!(texts, ["", "mid", "end"]);
    extends(&run.requests[0], &run.requests[1], "messages");
    let last: Json = serde_json::from_str(&run.requests[1]).unwrap();
    let messages = last["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 5);
    assert_eq!(messages[1]["content"].as_array().unwrap().len(), 2, "an empty text is refused");
    assert_eq!(messages[2]["content"][1]["tool_use_id"], "b");
}

#[test]
fn client_calls_are_left_to_the_client() {
    let first = turn(
        "1",
        &[Text("x"), Tool("h", ECHO, &[]), Tool("c", "Bash", &["{\"cmd\":1}"])],
        "tool_use",
    );
    let run = run_turns(&[first]);
    let message = message(&run.shown);
    assert_eq!(message["stop_reason"], "tool_use");
    assert_eq!(message["content"].as_array().unwrap().len(), 2);
    assert_eq!(message["content"][1]["id"], "c");
    assert_eq!(run.last.client_calls, ["c"]);
    assert_eq!(run.last.calls.len(), 1);
    assert!(!run.continuation.entries.is_empty());
}

#[test]
fn a_truncated_call_is_not_executed() {
    let first = turn("1", &[Text("x"), Tool("h", ECHO, &["{\"a"])], "max_tokens");
    let run = run_turns(&[first]);
    assert!(!run.last.should_run_calls());
    let message = message(&run.shown);
    assert_eq!(message["stop_reason"], "max_tokens");
    assert_eq!(message["content"].as_array().unwrap().len(), 1);
}

#[test]
fn arguments_that_are_not_an_object_get_an_error_result() {
    for arguments in ["{\"a", "[1]", "7"] {
        let pieces: &'static [&'static str] = Box::leak(Box::new([arguments]));
        let first = turn("1", &[Tool("h", ECHO, pieces)], "tool_use");
        let run = run_turns(&[first, turn("2", &[Text("ok")], "end_turn")]);
        let request: Json = serde_json::from_str(&run.requests[0]).unwrap();
        let result = &request["messages"][2]["content"][0];
        assert_eq!(result["is_error"], true, "{arguments}");
        assert!(result["content"][0]["text"].as_str().unwrap().starts_with("Error:"));
    }
}

#[test]
fn an_error_in_a_later_turn_ends_the_response() {
    let first = turn("1", &[Text("x"), Tool("h", ECHO, &[])], "tool_use");
    let error = event("error", json!({ "error": { "type": "overloaded_error", "message": "no" } }));
    let mut merger = StreamMerger::new(Dialect::Messages, client());
    merger.push(first.as_bytes());
    let turn = merger.take_turn();
    merger.next_turn(&turn, &[]);
    assert_eq!(merger.push(error.as_bytes()), error.as_bytes());
    assert_eq!(merger.state(), TurnState::Relayed);
}

#[test]
fn texts_are_assembled_without_being_decoded() {
    // A split surrogate pair, an escape, and a citation.
    let mut first = String::new();
    for event in [
        r#"{"type":"message_start","message":{"id":"1","content":[],"usage":{"input_tokens":1}}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"a","citations":[]}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\ud83d"}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\ude00\n\u00e9"}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"citations_delta","citation":{"n":1.0}}}"#,
        r#"{"type":"content_block_stop","index":0}"#,
        r#"{"type":"content_block_start","index":1,"content_block":{"type":"tool_use","id":"t","name":"bmcp_wiki_echo","input":{}}}"#,
        r#"{"type":"content_block_stop","index":1}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":1}}"#,
        r#"{"type":"message_stop"}"#,
    ] {
        first += &format!("data: {event}\n\n");
    }
    let run = run_turns(&[first, turn("2", &[Text("k")], "end_turn")]);
    assert!(
        run.requests[0]
            .contains(r#"{"type":"text","text":"a\ud83d\ude00\n\u00e9","citations":[{"n":1.0}]}"#),
        "{}",
        run.requests[0]
    );
}

#[test]
fn complete_responses_merge_like_streams() {
    let response = |id: &str, content: Json, stop: &str| {
        json!({
            "id": id, "type": "message", "role": "assistant", "content": content, "stop_reason": stop,
            "usage": { "input_tokens": 10, "output_tokens": 5 },
        })
    };
    let thinking = json!({ "type": "thinking", "thinking": "t", "signature": "s" });
    let call = json!({ "type": "tool_use", "id": "t1", "name": ECHO, "input": { "a": 1 } });
    let first = response("1", json!([thinking, call]), "tool_use");
    let second = response("2", json!([{ "type": "text", "text": "Done." }]), "end_turn");
    let (merged, requests) =
        run_bodies(Dialect::Messages, client(), REQUEST, &[first, second.clone()]);
    insta::assert_snapshot!(merged, @r#"{"id":"1","type":"message","role":"assistant","content":[{"type":"thinking","thinking":"t","signature":"s"},{"type":"text","text":"Done."}],"stop_reason":"end_turn","usage":{"input_tokens":20,"output_tokens":10,"iterations":[{"type":"message","input_tokens":10,"output_tokens":5},{"type":"message","input_tokens":10,"output_tokens":5}]}}"#);
    extends(REQUEST, &requests[0], "messages");
    let (untouched, _) =
        run_bodies(Dialect::Messages, client(), REQUEST, std::slice::from_ref(&second));
    assert_eq!(untouched, second);
}

/// Events without names, given by their data.
fn unnamed(events: &[&str]) -> String {
    events.iter().map(|data| format!("data: {data}\n\n")).collect()
}

const START: &str = r#"{"type":"message_start","message":{"id":"1","role":"assistant","content":[],"usage":{"input_tokens":1}}}"#;
const HIDDEN: &str = r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"h","name":"bmcp_wiki_echo","input":{}}}"#;
const STOPPED: &str = r#"{"type":"content_block_stop","index":0}"#;
const WAITS: &str =
    r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":1}}"#;
const STOP: &str = r#"{"type":"message_stop"}"#;

/// Reads a single turn; returns it and what the client sees of it.
fn one(stream: &str) -> (Turn, String) {
    let mut merger = StreamMerger::new(Dialect::Messages, client());
    let shown = merger.push(stream.as_bytes());
    (merger.take_turn(), String::from_utf8(shown).unwrap())
}

#[test]
fn events_without_names_are_merged_too() {
    let first = unnamed(&[START, HIDDEN, STOPPED, WAITS, STOP]);
    let second = unnamed(&[
        r#"{"type":"message_start","message":{"id":"2","content":[]}}"#,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        STOPPED,
        r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#,
        STOP,
    ]);
    let run = run_turns(&[first, second]);
    insta::assert_snapshot!(run.shown, @r#"
    data: {"type":"message_start","message":{"id":"1","role":"assistant","content":[],"usage":{"input_tokens":1}}}

    data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}

    data: {"type":"content_block_stop","index":0}

    data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":1,"input_tokens":1,"iterations":[{"type":"message","input_tokens":1,"output_tokens":1}]}}

    data: {"type":"message_stop"}
    "#);
}

#[test]
fn a_split_surrogate_pair_in_arguments_is_joined() {
    let stream = unnamed(&[
        START,
        HIDDEN,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{\"a\":\"\ud83d"}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":null}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"\ude00\\u00e9\"} "}}"#,
        STOPPED,
        WAITS,
        STOP,
    ]);
    let (turn, _) = one(&stream);
    assert_eq!(turn.calls[0].arguments.trim(), r#"{"a":"😀\u00e9"}"#);
    let body = turn.append_to(Dialect::Messages, REQUEST.as_bytes(), &[]).unwrap();
    let body = String::from_utf8(body).unwrap();
    assert!(body.contains(r#""input":{"a":"😀\u00e9"}}"#), "{body}");
}

#[test]
fn arguments_that_are_not_an_object_are_not_sent_back_as_input() {
    for pieces in [&["[1]"][..], &["7"], &["{\"a"]] {
        let pieces: &'static [&'static str] = Box::leak(pieces.to_vec().into_boxed_slice());
        let (turn, _) = one(&turn("1", &[Tool("h", ECHO, pieces)], "tool_use"));
        assert_eq!(turn.calls[0].object(), None);
        assert_eq!(turn.calls[0].arguments, pieces[0], "for the record");
        let body = turn.append_to(Dialect::Messages, REQUEST.as_bytes(), &[]).unwrap();
        let body: Json = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["messages"][1]["content"][0]["input"], json!({}));
    }
}

#[test]
fn a_later_delta_without_a_stop_reason_keeps_the_earlier_one() {
    let cut = WAITS.replace("tool_use", "max_tokens");
    let more = r#"{"type":"message_delta","delta":{},"usage":{"output_tokens":2}}"#;
    let (turn, shown) = one(&unnamed(&[START, HIDDEN, STOPPED, &cut, more, STOP]));
    assert!(!turn.should_run_calls());
    assert_eq!(shown, unnamed(&[START]));
}

#[test]
fn unusual_block_indexes_are_kept_while_nothing_is_hidden() {
    let text = |index: &str| {
        [
            format!(r#"{{"type":"content_block_start","index":{index},"content_block":{{"type":"text","text":""}}}}"#),
            format!(r#"{{"type":"content_block_delta","index":{index},"delta":{{"type":"text_delta","text":"x"}}}}"#),
            format!(r#"{{"type":"content_block_stop","index":{index}}}"#),
        ]
        .map(|data| format!("data: {data}\n\n"))
        .concat()
    };
    let head = unnamed(&[START]);
    let tail = unnamed(&[WAITS, STOP]);
    let plain = head.clone() + &text("3") + &text("5") + &text("18446744073709551615") + &tail;
    let (_, shown) = one(&plain);
    assert_eq!(shown, plain);
    // After a hidden one, they are numbered from the last visible one.
    let hidden = unnamed(&[HIDDEN, STOPPED]).replace("\"index\":0", "\"index\":4");
    let (turn, shown) = one(&(head.clone() + &text("3") + &hidden + &text("5") + &tail));
    assert_eq!(shown, head + &text("3") + &text("4"));
    assert_eq!(turn.calls.len(), 1);
}

#[test]
fn unknown_events_pass_in_every_turn() {
    let odd = ": a comment\n\nevent: ping\ndata: {\"type\": \"ping\"}\n\n\
               event: news\ndata: {\"type\":\"news\",\"x\":1}\n\ndata: no json\n\n";
    let mut merger = StreamMerger::new(Dialect::Messages, client());
    let first = unnamed(&[START, HIDDEN]) + odd + &unnamed(&[STOPPED, WAITS, STOP]);
    let shown = merger.push(first.as_bytes());
    assert_eq!(String::from_utf8(shown).unwrap(), unnamed(&[START]) + odd);
    let turn = merger.take_turn();
    merger.next_turn(&turn, &[]);
    let marked = format!("\u{feff}{odd}");
    assert_eq!(String::from_utf8(merger.push(marked.as_bytes())).unwrap(), odd);
}

#[test]
fn an_error_replaces_an_ending_that_is_held_back() {
    let error = r#"{"type":"error","error":{"type":"overloaded_error","message":"no"}}"#;
    let mut merger = StreamMerger::new(Dialect::Messages, client());
    let shown = merger.push(unnamed(&[START, HIDDEN, STOPPED, WAITS, error]).as_bytes());
    assert_eq!(String::from_utf8(shown).unwrap(), unnamed(&[START, error]));
    assert_eq!(merger.state(), TurnState::Relayed);
    assert!(merger.release().is_empty());
}

#[test]
fn usage_that_no_turn_reports_is_not_invented() {
    let start = r#"{"type":"message_start","message":{"id":"1","content":[]}}"#;
    let waits = r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"}}"#;
    let end = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#;
    let first = unnamed(&[start, HIDDEN, STOPPED, waits, STOP]);
    let run = run_turns(&[first, unnamed(&[start, end, STOP])]);
    assert_eq!(run.shown, unnamed(&[start, end, STOP]));
}

#[test]
fn usage_of_three_turns_is_summed_once() {
    let hidden = |id: &str| turn(id, &[Text("x"), Tool("h", ECHO, &[])], "tool_use");
    let run = run_turns(&[hidden("1"), hidden("2"), turn("3", &[Text("y")], "end_turn")]);
    let usage = observed(Dialect::Messages, &run.shown).usage.unwrap();
    assert_eq!(
        (usage.input_tokens, usage.output_tokens, usage.cache_read_input_tokens),
        (Some(30), Some(15), Some(9))
    );
    let texts: Vec<Json> = message(&run.shown)["content"].as_array().unwrap().clone();
    assert_eq!(texts.len(), 3);
}

proptest! {
    #[test]
    fn any_line_ending_may_be_split_anywhere(
        cut in 1_usize..60, end in prop::sample::select(vec!["\n", "\r\n", "\r"])
    ) {
        let turns = [
            turn("1", &[Text("one"), Tool("h", ECHO, &["{\"k\":", "\"v\"}"])], "tool_use"),
            turn("2", &[Text("two"), Tool("i", ECHO, &[]), Tool("c", "Bash", &[])], "tool_use"),
        ]
        .map(|turn| turn.replace('\n', end));
        let whole = run_streams(Dialect::Messages, client(), REQUEST, &turns, usize::MAX);
        let cut = run_streams(Dialect::Messages, client(), REQUEST, &turns, cut);
        prop_assert_eq!(&cut.shown, &whole.shown);
        prop_assert_eq!(cut.requests, whole.requests);
        prop_assert_eq!(message(&cut.shown)["content"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn chunks_may_be_split_anywhere(cut in 1_usize..200) {
        let plain = turn("msg_1", &[Thinking("x", "s"), Text("héllo"), Tool("c", "Bash", &["{}"])], "tool_use");
        let crlf = format!("\u{feff}: hello\r\n\r\n{}", plain.replace('\n', "\r\n"));
        for stream in [plain, crlf] {
            let run = run_streams(Dialect::Messages, client(), REQUEST, std::slice::from_ref(&stream), cut);
            prop_assert_eq!(run.shown, stream, "nothing is changed where nothing is hidden");
        }
        let turns = [
            turn("1", &[Text("one"), Tool("h", ECHO, &["{\"k\":", "\"v\"}"])], "tool_use"),
            turn("2", &[Text("two")], "end_turn"),
        ];
        let whole = run_streams(Dialect::Messages, client(), REQUEST, &turns, usize::MAX);
        let cut = run_streams(Dialect::Messages, client(), REQUEST, &turns, cut);
        prop_assert_eq!(cut.shown, whole.shown);
        prop_assert_eq!(cut.requests, whole.requests);
    }
}

/// A response of one turn, with these blocks.
#[expect(clippy::needless_pass_by_value, reason = "values made on the spot")]
fn whole(id: &str, blocks: Json, stop_reason: &str, more: Json) -> Json {
    let mut response = json!({
        "id": id, "type": "message", "role": "assistant", "content": blocks, "stop_reason": stop_reason,
        "usage": { "input_tokens": 500, "cache_read_input_tokens": 60_000, "output_tokens": 40 },
    });
    response.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    response
}

/// The stream of such a response; what is not a member of every message comes with the last event.
fn streamed(response: &Json) -> String {
    let usage =
        json!({ "input_tokens": 500, "cache_read_input_tokens": 60_000, "output_tokens": 1 });
    let mut message = response.clone();
    for (key, value) in [("content", json!([])), ("stop_reason", Json::Null), ("usage", usage)] {
        message[key] = value;
    }
    let mut stream = event("message_start", json!({ "message": message }));
    for (index, block) in response["content"].as_array().unwrap().iter().enumerate() {
        let at = json!({ "index": index });
        stream += &event("content_block_start", json!({ "index": index, "content_block": block }));
        stream += &event("content_block_stop", at);
    }
    let mut delta = json!({ "stop_reason": response["stop_reason"] });
    for key in ["stop_details", "container"] {
        if let Some(value) = response.get(key) {
            delta[key] = value.clone();
        }
    }
    // Like servers that repeat the input as zero.
    let usage = json!({ "input_tokens": 0, "output_tokens": 40 });
    stream += &event("message_delta", json!({ "delta": delta, "usage": usage }));
    stream + &event("message_stop", json!({}))
}

fn hidden_call(id: &str) -> Json {
    json!({ "type": "tool_use", "id": id, "name": ECHO, "input": { "n": 1 } })
}

#[test]
fn the_usage_of_several_turns_says_how_large_each_was() {
    let turns: Vec<Json> = (1..5)
        .map(|turn| {
            whole(
                &format!("msg_{turn}"),
                json!([hidden_call(&format!("t{turn}"))]),
                "tool_use",
                json!({}),
            )
        })
        .chain([whole(
            "msg_5",
            json!([{ "type": "text", "text": "Done." }]),
            "end_turn",
            json!({}),
        )])
        .collect();
    let figures = json!({ "type": "message", "input_tokens": 500, "cache_read_input_tokens": 60_000, "output_tokens": 40 });
    let expected = json!({
        "input_tokens": 2_500, "cache_read_input_tokens": 300_000, "output_tokens": 200,
        "iterations": [figures, figures, figures, figures, figures],
    });
    let streams: Vec<String> = turns.iter().map(streamed).collect();
    let run = run_streams(Dialect::Messages, client(), REQUEST, &streams, 31);
    let last = events(&run.shown).into_iter().rfind(|(name, _)| name == "message_delta").unwrap();
    let last: Json = serde_json::from_str(&last.1).unwrap();
    assert_eq!(last["usage"], expected);
    assert_eq!(run_bodies(Dialect::Messages, client(), REQUEST, &turns).0["usage"], expected);
    // A single turn is not touched.
    let one = run_streams(Dialect::Messages, client(), REQUEST, &streams[4..], 31);
    assert_eq!(one.shown, streams[4]);
}

#[test]
fn the_next_turn_goes_on_in_the_container_of_the_last_one() {
    let container =
        |id: &str| json!({ "container": { "id": id, "expires_at": "2026-12-01T00:00:00Z" } });
    let turns = [
        whole("msg_1", json!([hidden_call("t1")]), "tool_use", container("container_1")),
        whole("msg_2", json!([hidden_call("t2")]), "tool_use", json!({})),
        whole("msg_3", json!([]), "end_turn", container("container_1")),
    ];
    let streams: Vec<String> = turns.iter().map(streamed).collect();
    for (requested, expected) in [
        (Json::Null, json!("container_1")),
        (json!("container_0"), json!("container_1")),
        (json!({ "skills": ["x"] }), json!({ "skills": ["x"], "id": "container_1" })),
    ] {
        let mut request: Json = serde_json::from_str(REQUEST).unwrap();
        if !requested.is_null() {
            request["container"] = requested;
        }
        let request = request.to_string();
        let streamed = run_streams(Dialect::Messages, client(), &request, &streams, 64).requests;
        let whole = run_bodies(Dialect::Messages, client(), &request, &turns).1;
        for body in streamed.iter().chain(&whole) {
            assert_eq!(serde_json::from_str::<Json>(body).unwrap()["container"], expected);
        }
        assert_eq!(streamed.len() + whole.len(), 4);
    }
    let without = [
        whole("msg_1", json!([hidden_call("t1")]), "tool_use", json!({ "container": null })),
        turns[2].clone(),
    ];
    let requests = run_bodies(Dialect::Messages, client(), REQUEST, &without).1;
    assert!(!requests[0].contains("container"), "{requests:?}");
}

#[test]
fn a_refusal_after_hidden_turns_reaches_the_client_with_its_details() {
    let details = json!({ "type": "refusal", "category": "cyber", "explanation": "No." });
    let turns = [
        whole("msg_1", json!([hidden_call("t1")]), "tool_use", json!({})),
        // Also with a call: it was not meant to be made.
        whole(
            "msg_2",
            json!([{ "type": "text", "text": "I" }, hidden_call("t2")]),
            "refusal",
            json!({ "stop_details": details }),
        ),
    ];
    let streams: Vec<String> = turns.iter().map(streamed).collect();
    let run = run_streams(Dialect::Messages, client(), REQUEST, &streams, 5);
    assert_eq!(run.requests.len(), 1, "the call of a refusal is not made");
    let last = events(&run.shown).into_iter().rfind(|(name, _)| name == "message_delta").unwrap();
    let last: Json = serde_json::from_str(&last.1).unwrap();
    assert_eq!(last["delta"], json!({ "stop_reason": "refusal", "stop_details": details }));
    assert_eq!(message(&run.shown)["content"], json!([{ "type": "text", "text": "I" }]));
    let seen = run_bodies(Dialect::Messages, client(), REQUEST, &turns).0;
    assert_eq!((&seen["stop_reason"], &seen["stop_details"]), (&json!("refusal"), &details));
    assert_eq!(seen["content"], json!([{ "type": "text", "text": "I" }]));
}

#[test]
fn a_pause_of_the_provider_is_the_clients_to_end() {
    let search = json!({ "type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": { "query": "ferry" } });
    let look = json!({ "type": "text", "text": "I look." });
    let turns = [
        whole("msg_1", json!([look, hidden_call("t1")]), "tool_use", json!({})),
        whole("msg_2", json!([search]), "pause_turn", json!({})),
    ];
    let streams: Vec<String> = turns.iter().map(streamed).collect();
    let run = run_streams(Dialect::Messages, client(), REQUEST, &streams, 17);
    let seen = message(&run.shown);
    assert_eq!(
        (&seen["stop_reason"], &seen["content"]),
        (&json!("pause_turn"), &json!([look, search]))
    );
    // The client sends the turn back as it is, and the provider sees its own turns again.
    let kept: HashMap<String, String> = run.continuation.entries.into_iter().collect();
    let user = json!({ "role": "user", "content": "hi" });
    let next = json!({ "messages": [user, { "role": "assistant", "content": seen["content"] }] });
    let keys = continuation_keys(Dialect::Messages, next.to_string().as_bytes());
    assert!(kept.keys().all(|key| keys.contains(key)) && !kept.is_empty());
    let restored =
        restore_hidden_turns(Dialect::Messages, next.to_string().as_bytes(), &kept).unwrap();
    let restored: Json = serde_json::from_slice(&restored).unwrap();
    let messages = restored["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 4);
    assert_eq!(messages[1]["content"], json!([look, hidden_call("t1")]));
    assert_eq!(messages[2]["content"][0]["tool_use_id"], "t1");
    assert_eq!(messages[3], json!({ "role": "assistant", "content": [search] }));
}
