//! Turns of the Responses API.

use super::*;

const REQUEST: &str = r#"{"model":"m","input":"hi"}"#;

fn message(id: &str, text: &str) -> Json {
    json!({ "id": id, "type": "message", "role": "assistant", "status": "completed",
        "content": [{ "type": "output_text", "text": text }] })
}

fn reasoning(id: &str) -> Json {
    json!({ "id": id, "type": "reasoning", "summary": [{ "type": "summary_text", "text": "hm" }] })
}

fn call(id: &str, name: &str, arguments: &str) -> Json {
    json!({ "id": format!("fc_{id}"), "type": "function_call", "status": "completed",
        "call_id": id, "name": name, "arguments": arguments })
}

pub(super) fn response(id: &str, status: &str, output: &[Json]) -> Json {
    let usage = json!({ "input_tokens": 10, "input_tokens_details": { "cached_tokens": 4 },
        "output_tokens": 5, "total_tokens": 15 });
    let usage = if status == "in_progress" { Json::Null } else { usage };
    json!({ "id": id, "object": "response", "status": status, "output": output,
        "parallel_tool_calls": false, "previous_response_id": "resp_last",
        "tools": [{ "type": "function", "name": "bash" }, { "type": "function", "name": ECHO },
            { "type": "web_search" }], "usage": usage })
}

/// A turn of output items.
pub(super) fn turn(id: &str, items: &[Json], status: &str) -> String {
    let mut number = 0;
    let mut stream = String::new();
    let mut push = |kind: &str, mut fields: Json| {
        let object = fields.as_object_mut().unwrap();
        object.shift_insert(0, "type".into(), kind.into());
        object.shift_insert(1, "sequence_number".into(), number.into());
        number += 1;
        stream += &named(kind, &fields);
    };
    for kind in ["response.created", "response.in_progress"] {
        push(kind, json!({ "response": response(id, "in_progress", &[]) }));
    }
    for (index, item) in items.iter().enumerate() {
        push("response.output_item.added", json!({ "output_index": index, "item": item }));
        let kind = match item["type"].as_str().unwrap() {
            "message" => "response.output_text.delta",
            "function_call" => "response.function_call_arguments.delta",
            _ => "response.reasoning_summary_text.delta",
        };
        push(kind, json!({ "output_index": index, "item_id": item["id"], "delta": "x" }));
        push("response.output_item.done", json!({ "output_index": index, "item": item }));
    }
    push(&format!("response.{status}"), json!({ "response": response(id, status, items) }));
    stream
}

/// Assembles a stream as strictly as the SDKs do.
pub(super) fn whole(stream: &str) -> Json {
    let mut done: Vec<Json> = Vec::new();
    let mut added = 0;
    let mut last = Json::Null;
    for (number, (name, data)) in events(stream).into_iter().enumerate() {
        assert!(last.is_null(), "{name} after the end");
        let data: Json = serde_json::from_str(&data).unwrap();
        assert_eq!(data["sequence_number"], number, "{name}: numbers are consecutive");
        match name.as_str() {
            "response.created" => assert_eq!(number, 0, "one beginning"),
            "response.output_item.added" => {
                assert_eq!(data["output_index"], added);
                added += 1;
            }
            "response.output_item.done" => {
                assert_eq!(data["output_index"], added - 1);
                done.push(data["item"].clone());
            }
            "response.completed" | "response.incomplete" | "response.failed" => {
                last = data["response"].clone();
            }
            _ => {
                if let Some(index) = data.get("output_index") {
                    assert_eq!(*index, added - 1);
                }
            }
        }
    }
    assert_eq!(last["output"], Json::from(done), "the end lists what was shown");
    last
}

fn run_turns(client: ClientView, request: &str, turns: &[String]) -> LoopRun {
    run_streams(Dialect::Responses, client, request, turns, usize::MAX)
}

#[test]
fn a_hidden_call_leaves_one_well_formed_response() {
    let client = ClientView {
        previous_response_id: Some("resp_first".into()),
        parallel_tool_calls: Some("true".into()),
        ..client()
    };
    let first = turn(
        "resp_1",
        &[reasoning("rs_1"), message("m1", "I look."), call("t1", ECHO, "{\"a\":1}")],
        "completed",
    );
    let second = turn("resp_2", &[reasoning("rs_2"), message("m2", "Done.")], "completed");
    let run = run_turns(client, REQUEST, &[first, second]);
    let whole = whole(&run.shown);
    assert!(!run.shown.contains("bmcp_"), "neither call nor tool");
    assert_eq!((&whole["id"], &whole["parallel_tool_calls"]), (&json!("resp_1"), &json!(true)));
    assert_eq!(whole["previous_response_id"], "resp_first");
    assert_eq!(whole["tools"].as_array().unwrap().len(), 2);
    insta::assert_snapshot!(whole["usage"], @r#"{"input_tokens":20,"input_tokens_details":{"cached_tokens":8},"output_tokens":10,"total_tokens":30}"#);
    assert_eq!(whole["output"].as_array().unwrap().len(), 4);
    insta::assert_snapshot!(run.requests[0], @r#"{"model":"m","input":[{"role":"user","content":"hi"},{"id":"rs_1","type":"reasoning","summary":[{"type":"summary_text","text":"hm"}]},{"id":"m1","type":"message","role":"assistant","status":"completed","content":[{"type":"output_text","text":"I look."}]},{"id":"fc_t1","type":"function_call","status":"completed","call_id":"t1","name":"bmcp_wiki_echo","arguments":"{\"a\":1}"},{"type":"function_call_output","call_id":"t1","output":"did {\"a\":1}"}]}"#);
    let link = run.continuation.with_response(Some("resp_1"), run.last.response_id.as_deref());
    assert!(link.entries.contains(&("response:resp_1".into(), "resp_2".into())), "{link:?}");
}

#[test]
fn a_stream_without_hidden_calls_keeps_its_bytes() {
    let stream = turn("r", &[message("m", "x"), call("c", "bash", "{}")], "completed");
    let bare = stream.replace(r#",{"type":"function","name":"bmcp_wiki_echo"}"#, "");
    let run = run_turns(client(), REQUEST, std::slice::from_ref(&bare));
    assert_eq!(run.shown, bare);
}

#[test]
fn items_not_stored_by_the_provider_are_sent_only_if_self_contained() {
    let mut sealed = reasoning("rs_2");
    sealed["encrypted_content"] = "x".repeat(60).into();
    let first = turn("r1", &[reasoning("rs_1"), sealed, call("t", ECHO, "{}")], "completed");
    let turns = [first, turn("r2", &[message("m", "x")], "completed")];
    let stored = run_turns(client(), r#"{"input":[]}"#, &turns);
    assert!(stored.requests[0].contains("rs_1"));
    let unstored = run_turns(client(), r#"{"input":[],"store":false}"#, &turns);
    assert!(!unstored.requests[0].contains("rs_1") && unstored.requests[0].contains("rs_2"));
    let held = run_turns(client(), r#"{"input":"hi","conversation":"conv_1"}"#, &turns);
    let request: Json = serde_json::from_str(&held.requests[0]).unwrap();
    assert_eq!(
        request["input"],
        json!([{ "type": "function_call_output", "call_id": "t", "output": "did {}" }])
    );
}

#[test]
fn a_truncated_response_keeps_the_models_ending() {
    let first = turn("r1", &[message("m", "x"), call("t", ECHO, "{\"a")], "incomplete");
    let run = run_turns(client(), REQUEST, &[first]);
    assert!(!run.last.should_run_calls());
    let whole = whole(&run.shown);
    assert_eq!(
        (&whole["status"], whole["output"].as_array().unwrap().len()),
        (&json!("incomplete"), 1)
    );
}

#[test]
fn client_calls_are_left_to_the_client() {
    let items = [call("h", ECHO, "{}"), call("c", "bash", "{}"), message("m", "x")];
    let run = run_turns(client(), REQUEST, &[turn("r1", &items, "completed")]);
    let whole = whole(&run.shown);
    assert_eq!(whole["output"].as_array().unwrap().len(), 2);
    assert_eq!(run.last.client_calls, ["c"]);
}

#[test]
fn complete_responses_merge_like_streams() {
    let first = response("resp_1", "completed", &[reasoning("rs"), call("t", ECHO, "{}")]);
    let second = response("resp_2", "completed", &[message("m", "Done.")]);
    let (merged, requests) = run_bodies(Dialect::Responses, client(), REQUEST, &[first, second]);
    assert_eq!((&merged["id"], &merged["usage"]["total_tokens"]), (&json!("resp_1"), &json!(30)));
    assert_eq!(merged["output"].as_array().unwrap().len(), 2);
    assert_eq!(merged["tools"].as_array().unwrap().len(), 2);
    assert_eq!(requests.len(), 1);
}

#[test]
fn sequence_numbers_have_no_gap_whatever_follows_a_turn() {
    let first = turn("r1", &[message("m", "x"), call("t", ECHO, "{}")], "completed");
    let mut merger = StreamMerger::new(Dialect::Responses, client());
    let shown = merger.push(first.as_bytes());
    assert_eq!(merger.state(), TurnState::Held);
    let count = u64::try_from(events(std::str::from_utf8(&shown).unwrap()).len()).unwrap();
    assert_eq!(merger.next_sequence_number(), count, "an error may come in place of the ending");
    merger.release();
    assert_eq!(merger.next_sequence_number(), count + 1);
    merger.release();
    assert_eq!(merger.next_sequence_number(), count + 1);
}

#[test]
fn items_completed_out_of_order_are_listed_by_index() {
    let event = |number: u64, kind: &str, index: u64, item: &Json| {
        named(
            kind,
            &json!({ "type": kind, "sequence_number": number, "output_index": index, "item": item }),
        )
    };
    let (one, two) = (call("c1", "bash", "{}"), call("c2", "bash", "{}"));
    let (added, done) = ("response.output_item.added", "response.output_item.done");
    let hidden = call("h", ECHO, "{}");
    let stream = [
        event(0, added, 0, &hidden),
        event(1, added, 1, &one),
        event(2, added, 2, &two),
        event(3, done, 2, &two),
        event(4, done, 1, &one),
        event(5, done, 0, &hidden),
        named(
            "response.completed",
            &json!({ "type": "response.completed", "sequence_number": 6,
            "response": response("r", "completed", &[hidden.clone(), one.clone(), two.clone()]) }),
        ),
    ]
    .concat();
    let run = run_turns(client(), REQUEST, &[stream]);
    let seen: Vec<Json> =
        events(&run.shown).iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    let numbers: Vec<u64> = seen.iter().map(|e| e["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    let indexes: Vec<Option<u64>> = seen.iter().map(|e| e["output_index"].as_u64()).collect();
    assert_eq!(indexes, [Some(0), Some(1), Some(1), Some(0), None]);
    assert_eq!(seen[4]["response"]["output"], json!([one, two]));
}

#[test]
fn items_that_only_the_terminal_event_contains_are_included() {
    let last = |id: &str, output: &[Json]| {
        let data =
            json!({ "type": "response.completed", "response": response(id, "completed", output) });
        named("response.completed", &data)
    };
    let first = last("r1", &[message("m1", "x"), call("h", ECHO, "{}")]);
    let second = [
        named("response.output_item.added", &json!({ "type": "response.output_item.added", "output_index": 0, "item": message("m2", "") })),
        last("r2", &[message("m2", "y")]),
    ]
    .concat();
    let run = run_turns(client(), REQUEST, &[first, second]);
    assert!(run.requests[0].contains("\"call_id\":\"h\""));
    let seen: Vec<Json> =
        events(&run.shown).iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    assert_eq!(seen[0]["output_index"], 1, "the first message has the place before");
    assert_eq!(seen[1]["response"]["output"], json!([message("m1", "x"), message("m2", "y")]));
    assert_eq!(seen.len(), 2);
}

#[test]
fn an_item_without_a_done_event_keeps_its_position() {
    let event = |kind: &str, index: u64, item: &Json| {
        named(kind, &json!({ "type": kind, "output_index": index, "item": item }))
    };
    let items = [message("m", "x"), call("h", ECHO, "{}"), call("c", "bash", "{}")];
    let mut stream = String::new();
    for (index, item) in (0..).zip(&items) {
        stream += &event("response.output_item.added", index, item);
    }
    stream += &event("response.output_item.done", 2, &items[2]);
    let last = response("r", "completed", &items);
    stream +=
        &named("response.completed", &json!({ "type": "response.completed", "response": last }));
    let run = run_turns(client(), REQUEST, &[stream]);
    let (_, last) = events(&run.shown).pop().unwrap();
    let last: Json = serde_json::from_str(&last).unwrap();
    assert_eq!(last["response"]["output"], json!([items[0], items[2]]));
    assert_eq!((run.last.calls.len(), run.last.client_calls.len()), (1, 1));
}

#[test]
fn an_item_under_two_indexes_is_one_call() {
    let mut listed = call("h", ECHO, "{}");
    listed["id"] = "another".into();
    let event = |kind: &str| {
        named(kind, &json!({ "type": kind, "output_index": 1, "item": call("h", ECHO, "{}") }))
    };
    let stream = [
        event("response.output_item.added"),
        event("response.output_item.done"),
        named(
            "response.completed",
            &json!({ "type": "response.completed",
            "response": response("r", "completed", &[listed]) }),
        ),
    ]
    .concat();
    let mut merger = StreamMerger::new(Dialect::Responses, client());
    assert!(merger.push(stream.as_bytes()).is_empty());
    assert_eq!(merger.take_turn().calls.len(), 1);
}

#[test]
fn a_later_turn_may_fail_or_be_incomplete() {
    for status in ["failed", "incomplete"] {
        let turns = [
            turn("r1", &[message("m1", "x"), call("t", ECHO, "{}")], "completed"),
            turn("r2", &[message("m2", "y"), call("u", ECHO, "{\"a")], status),
        ];
        let run = run_turns(client(), REQUEST, &turns);
        let whole = whole(&run.shown);
        assert_eq!((&whole["id"], &whole["status"]), (&json!("r1"), &json!(status)));
        assert_eq!(whole["usage"]["total_tokens"], 30);
        assert!(!run.last.should_run_calls());
        assert_eq!(observed(Dialect::Responses, &run.shown).status.as_deref(), Some(status));
    }
}

#[test]
fn an_error_in_a_later_turn_has_the_next_sequence_number() {
    let first = turn("r1", &[message("m1", "x"), call("t", ECHO, "{}")], "completed");
    let mut merger = StreamMerger::new(Dialect::Responses, client());
    let shown = merger.push(first.as_bytes());
    let count = events(std::str::from_utf8(&shown).unwrap()).len();
    let turn = merger.take_turn();
    merger.next_turn(&turn, &[]);
    let error = json!({ "type": "error", "sequence_number": 0, "message": "no" });
    let shown = String::from_utf8(merger.push(named("error", &error).as_bytes())).unwrap();
    assert_eq!(
        shown,
        named("error", &json!({ "type": "error", "sequence_number": count, "message": "no" }))
    );
    assert_eq!(merger.state(), TurnState::Relayed);
}

#[test]
fn echoed_settings_that_were_not_changed_are_left_alone() {
    let stream = turn("r", &[message("m", "x")], "completed");
    let run = run_turns(client(), REQUEST, std::slice::from_ref(&stream));
    assert_eq!(run.shown, stream.replace(r#"{"type":"function","name":"bmcp_wiki_echo"},"#, ""));
}

proptest! {
    #[test]
    fn chunks_may_be_split_anywhere(cut in 1_usize..300) {
        let turns = [
            turn("1", &[message("m1", "é"), call("h", ECHO, "{}"), message("m2", "y")], "completed"),
            turn("2", &[message("m3", "z")], "completed"),
        ];
        let all = run_streams(Dialect::Responses, client(), REQUEST, &turns, usize::MAX);
        whole(&all.shown);
        let cut = run_streams(Dialect::Responses, client(), REQUEST, &turns, cut);
        prop_assert_eq!(cut.shown, all.shown);
        prop_assert_eq!(cut.requests, all.requests);
    }
}
