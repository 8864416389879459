//! Turns of the Chat Completions API.
#![expect(clippy::needless_pass_by_value, reason = "values made on the spot")]

use super::*;

const REQUEST: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream_options":{"include_usage":true}}"#;

fn asking() -> ClientView {
    ClientView { wants_usage: true, ..client() }
}

pub(super) fn chunk(id: &str, choices: Json, usage: Json) -> String {
    let mut chunk = json!({ "id": id, "object": "chat.completion.chunk", "choices": choices });
    chunk["usage"] = usage;
    format!("data: {chunk}\n\n")
}

pub(super) fn delta(id: &str, delta: Json) -> String {
    chunk(id, json!([{ "index": 0, "delta": delta, "finish_reason": null }]), Json::Null)
}

fn call(index: u64, id: &str, name: &str, arguments: &str) -> Json {
    json!({ "index": index, "id": id, "type": "function",
        "function": { "name": name, "arguments": arguments } })
}

fn more(index: u64, arguments: &str) -> Json {
    json!({ "index": index, "function": { "arguments": arguments } })
}

/// A turn of deltas with 10 prompt tokens, 4 of them cached, and 5 completion tokens.
pub(super) fn turn(id: &str, deltas: &[Json], finish: &str) -> String {
    let mut stream = delta(id, json!({ "role": "assistant", "content": "" }));
    stream += &deltas.iter().map(|d| delta(id, d.clone())).collect::<String>();
    let end = json!([{ "index": 0, "delta": {}, "finish_reason": finish }]);
    stream += &chunk(id, end, Json::Null);
    let usage = json!({ "prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
        "prompt_tokens_details": { "cached_tokens": 4 } });
    stream += &chunk(id, json!([]), usage);
    stream + "data: [DONE]\n\n"
}

fn calls(list: Json) -> Json {
    json!({ "tool_calls": list })
}

/// Assembles a stream as the SDKs do: texts are joined, calls are identified by index.
pub(super) fn completion(stream: &str) -> Json {
    let mut message = json!({ "role": "", "content": "", "tool_calls": [] });
    let (mut id, mut finish, mut usage) = (String::new(), Json::Null, Json::Null);
    let mut is_done = false;
    for (_, data) in events(stream) {
        assert!(!is_done, "{data} after the end");
        if data == "[DONE]" {
            is_done = true;
            continue;
        }
        let chunk: Json = serde_json::from_str(&data).unwrap();
        let own = chunk["id"].as_str().unwrap();
        assert!(id.is_empty() || id == own, "one id throughout");
        id = own.to_owned();
        if chunk["usage"].is_object() {
            usage = chunk["usage"].clone();
        }
        for choice in chunk["choices"].as_array().unwrap() {
            for (key, added) in choice["delta"].as_object().unwrap() {
                if let Some(text) = added.as_str() {
                    let before = message[key].as_str().unwrap_or_default();
                    message[key] = format!("{before}{text}").into();
                }
            }
            for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
                let list = message["tool_calls"].as_array_mut().unwrap();
                assert!(index <= list.len(), "indexes are consecutive");
                if index == list.len() {
                    list.push(call.clone());
                } else {
                    let before = list[index]["function"]["arguments"].as_str().unwrap();
                    let added = call["function"]["arguments"].as_str().unwrap();
                    list[index]["function"]["arguments"] = format!("{before}{added}").into();
                }
            }
            if !choice["finish_reason"].is_null() {
                assert!(finish.is_null(), "one finish reason");
                finish = choice["finish_reason"].clone();
            }
        }
    }
    assert!(is_done);
    json!({ "id": id, "message": message, "finish": finish, "usage": usage })
}

fn run_turns(client: ClientView, turns: &[String]) -> LoopRun {
    run_streams(Dialect::ChatCompletions, client, REQUEST, turns, usize::MAX)
}

#[test]
fn a_hidden_call_leaves_one_well_formed_response() {
    let first = turn(
        "1",
        &[
            json!({ "reasoning_content": "hm" }),
            json!({ "content": "I look. " }),
            calls(json!([call(0, "t1", ECHO, "")])),
            calls(json!([more(0, "{\"a\"")])),
            calls(json!([more(0, ":1}")])),
        ],
        "tool_calls",
    );
    let second = turn("2", &[json!({ "content": "Done." })], "stop");
    let run = run_turns(asking(), &[first, second]);
    insta::assert_snapshot!(completion(&run.shown), @r#"{"id":"1","message":{"role":"assistant","content":"I look. Done.","tool_calls":[],"reasoning_content":"hm"},"finish":"stop","usage":{"prompt_tokens":20,"completion_tokens":10,"total_tokens":30,"prompt_tokens_details":{"cached_tokens":8}}}"#);
    insta::assert_snapshot!(run.requests[0], @r#"{"model":"m","messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"I look. ","reasoning_content":"hm","tool_calls":[{"id":"t1","type":"function","function":{"name":"bmcp_wiki_echo","arguments":"{\"a\":1}"}}]},{"role":"tool","tool_call_id":"t1","content":"did {\"a\":1}"}],"stream_options":{"include_usage":true}}"#);
    assert!(!run.shown.contains("bmcp_"));
}

#[test]
fn usage_is_shown_only_to_a_client_that_asked_for_it() {
    let turns = [
        turn("1", &[calls(json!([call(0, "t1", ECHO, "{}")]))], "tool_calls"),
        turn("2", &[json!({ "content": "x" })], "stop"),
    ];
    assert!(completion(&run_turns(client(), &turns).shown)["usage"].is_null());
    assert_eq!(completion(&run_turns(asking(), &turns).shown)["usage"]["total_tokens"], 30);
    let one = [turn("1", &[json!({ "content": "x" })], "stop")];
    assert!(completion(&run_turns(client(), &one).shown)["usage"].is_null());
    assert_eq!(run_turns(asking(), &one).shown, one[0]);
}

#[test]
fn unusual_call_indexes_are_understood() {
    // Without indexes, and with all indexes 0.
    for number in [None, Some(0)] {
        let numbered = |mut call: Json| {
            match number {
                Some(index) => call["index"] = json!(index),
                None => {
                    call.as_object_mut().unwrap().remove("index");
                }
            }
            call
        };
        let first = turn(
            "1",
            &[
                calls(json!([numbered(call(0, "a", ECHO, "{\"n\":1}"))])),
                calls(json!([numbered(call(0, "b", ADD, "{\"n\":2}"))])),
            ],
            "stop",
        );
        let run = run_turns(asking(), &[first, turn("2", &[json!({ "content": "x" })], "stop")]);
        let request: Json = serde_json::from_str(&run.requests[0]).unwrap();
        let messages = request["messages"].as_array().unwrap();
        assert_eq!(messages.len(), 4, "{messages:?}");
        assert_eq!(messages[1]["tool_calls"][1]["id"], "b");
        assert_eq!(messages[3]["content"], "did {\"n\":2}");
        assert!(messages[1]["tool_calls"][0].get("index").is_none());
    }
}

#[test]
fn client_calls_are_numbered_from_zero() {
    let first = turn(
        "1",
        &[
            calls(json!([call(0, "h", ECHO, "{}"), call(1, "c", "bash", "{\"x\"")])),
            calls(json!([more(1, ":1}")])),
            calls(json!([call(2, "d", "bash", "{}")])),
        ],
        "tool_calls",
    );
    let run = run_turns(asking(), &[first]);
    let shown = completion(&run.shown);
    let list = shown["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(list.len(), 2);
    assert_eq!(
        (&list[0]["id"], &list[0]["function"]["arguments"]),
        (&json!("c"), &json!("{\"x\":1}"))
    );
    assert_eq!(shown["finish"], "tool_calls");
    assert_eq!(run.last.client_calls, ["c", "d"]);
}

#[test]
fn a_truncated_call_is_not_executed() {
    let first = turn("1", &[calls(json!([call(0, "h", ECHO, "{\"a")]))], "length");
    let run = run_turns(asking(), &[first]);
    assert!(!run.last.should_run_calls());
    assert_eq!(completion(&run.shown)["finish"], "length");
}

#[test]
fn usage_in_the_finishing_chunk_is_counted() {
    let end = |id: &str, finish: &str| {
        let choices = json!([{ "index": 0, "delta": {}, "finish_reason": finish }]);
        chunk(id, choices, json!({ "total_tokens": 7 })) + "data: [DONE]\n\n"
    };
    let first = delta("1", calls(json!([call(0, "h", ECHO, "{}")]))) + &end("1", "tool_calls");
    let second = delta("2", json!({ "content": "x" })) + &end("2", "stop");
    let run = run_turns(asking(), &[first, second]);
    assert_eq!(completion(&run.shown)["usage"]["total_tokens"], 14);
}

#[test]
fn complete_responses_merge_like_streams() {
    let response = |id: &str, message: Json, finish: &str| {
        json!({ "id": id, "choices": [{ "index": 0, "message": message, "finish_reason": finish }],
            "usage": { "prompt_tokens": 10, "completion_tokens": 5 } })
    };
    let call = json!({ "id": "t1", "type": "function", "function": { "name": ECHO, "arguments": "{\"a\":1}" } });
    let own =
        json!({ "id": "c", "type": "function", "function": { "name": "bash", "arguments": "{}" } });
    let first = json!({ "role": "assistant", "content": "I look. ", "tool_calls": [call] });
    let second =
        json!({ "role": "assistant", "content": "Done.", "refusal": null, "tool_calls": [own] });
    let turns = [response("1", first, "tool_calls"), response("2", second, "tool_calls")];
    let (merged, requests) = run_bodies(Dialect::ChatCompletions, asking(), REQUEST, &turns);
    insta::assert_snapshot!(merged, @r#"{"id":"1","choices":[{"index":0,"message":{"role":"assistant","content":"I look. Done.","refusal":null,"tool_calls":[{"id":"c","type":"function","function":{"name":"bash","arguments":"{}"}}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":20,"completion_tokens":10}}"#);
    extends(
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#,
        &requests[0],
        "messages",
    );
}

/// A chunk with content that also ends the response.
fn last_chunk(id: &str, delta: Json, finish: &str, usage: Json) -> String {
    chunk(id, json!([{ "index": 0, "delta": delta, "finish_reason": finish }]), usage)
}

const DONE: &str = "data: [DONE]\n\n";

#[test]
fn a_turn_in_a_single_chunk_shows_its_text() {
    let said = json!({ "role": "assistant", "content": "I look. ",
        "tool_calls": [call(0, "h", ECHO, "{}")] });
    let first = last_chunk("1", said, "tool_calls", json!({ "total_tokens": 7 })) + DONE;
    let second = last_chunk(
        "2",
        json!({ "role": "assistant", "content": "Done." }),
        "stop",
        json!({ "total_tokens": 8 }),
    ) + DONE;
    let seen = run_turns(client(), &[first.clone(), second]);
    insta::assert_snapshot!(seen.shown, @r#"
    data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":"I look. "},"finish_reason":null}],"usage":null}

    data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Done."},"finish_reason":null}],"usage":null}

    data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"total_tokens":15}}

    data: [DONE]
    "#);
    // A turn in one chunk without hidden calls is unchanged.
    let own = first.replace(ECHO, "bash");
    assert_eq!(run_turns(client(), std::slice::from_ref(&own)).shown, own);
}

#[test]
fn running_usage_covers_all_turns() {
    let running = |id: &str, said: Json, tokens: u64| {
        chunk(
            id,
            json!([{ "index": 0, "delta": said, "finish_reason": null }]),
            json!({ "total_tokens": tokens }),
        )
    };
    let first = running("1", calls(json!([call(0, "h", ECHO, "{}")])), 3)
        + &last_chunk("1", json!({}), "tool_calls", json!({ "total_tokens": 5 }))
        + DONE;
    let second = running("2", json!({ "content": "a" }), 2)
        + &last_chunk("2", json!({}), "stop", json!({ "total_tokens": 4 }))
        + DONE;
    let run = run_turns(client(), &[first, second]);
    let tokens: Vec<u64> = events(&run.shown)
        .iter()
        .filter_map(|(_, data)| {
            serde_json::from_str::<Json>(data).ok()?["usage"]["total_tokens"].as_u64()
        })
        .collect();
    assert_eq!(tokens, [3, 7, 9]);
}

#[test]
fn the_role_is_sent_once_and_empty_deltas_of_later_turns_are_dropped() {
    let first = turn("1", &[calls(json!([call(0, "h", ECHO, "{}")]))], "tool_calls");
    let role = json!({ "role": "assistant" });
    let said = json!({ "role": "assistant", "content": "x", "tool_calls": [] });
    let second = turn("2", &[role, calls(json!([])), calls(Json::Null), said, json!({})], "stop");
    let run = run_turns(client(), &[first, second]);
    let deltas: Vec<String> = events(&run.shown)
        .iter()
        .filter_map(|(_, data)| serde_json::from_str::<Json>(data).ok())
        .map(|chunk| chunk["choices"][0]["delta"].to_string())
        .collect();
    assert_eq!(
        deltas,
        [r#"{"role":"assistant","content":""}"#, r#"{"content":"x"}"#, "{}", "{}"],
        "the first, the text, the provider's own empty one and the end"
    );
    assert_eq!(run.shown.matches("[DONE]").count(), 1);
}

#[test]
fn calls_after_a_hidden_one_are_numbered_from_the_last_visible_one() {
    let numbered = |index: u64, id: &str, name: &str| calls(json!([call(index, id, name, "{}")]));
    let first = turn(
        "1",
        &[
            numbered(1, "a", "bash"),
            numbered(2, "h", ECHO),
            numbered(3, "b", "bash"),
            calls(json!([more(1, " ")])),
        ],
        "tool_calls",
    );
    let run = run_turns(client(), &[first]);
    let indexes: Vec<(u64, String)> = events(&run.shown)
        .iter()
        .filter_map(|(_, data)| serde_json::from_str::<Json>(data).ok())
        .filter_map(|chunk| {
            let call = &chunk["choices"][0]["delta"]["tool_calls"][0];
            Some((call["index"].as_u64()?, call["id"].as_str().unwrap_or_default().to_owned()))
        })
        .collect();
    assert_eq!(indexes, [(1, "a".into()), (2, "b".into()), (1, String::new())]);
}

#[test]
fn calls_without_an_index_get_one_once_something_is_hidden() {
    let bare = |id: &str, name: &str| json!({ "id": id, "type": "function", "function": { "name": name, "arguments": "{\"a\"" } });
    let rest = || json!([{ "function": { "arguments": ":1}" } }]);
    let deltas = [
        calls(json!([bare("h", ECHO)])),
        calls(rest()),
        calls(json!([bare("c", "bash")])),
        calls(rest()),
        calls(json!([bare("d", "bash")])),
        calls(rest()),
    ];
    let run = run_turns(client(), &[turn("1", &deltas, "tool_calls")]);
    assert_eq!(run.last.calls[0].arguments, "{\"a\":1}");
    let shown = completion(&run.shown);
    let list = shown["message"]["tool_calls"].as_array().unwrap();
    assert_eq!(list.len(), 2);
    for (call, id) in list.iter().zip(["c", "d"]) {
        assert_eq!(
            (&call["id"], &call["function"]["arguments"]),
            (&json!(id), &json!("{\"a\":1}"))
        );
    }
}

#[test]
fn arguments_may_be_a_string_an_object_or_missing() {
    for (arguments, read, sent) in [
        (json!({ "a": 1 }), r#"{"a":1}"#, json!({ "a": 1 })),
        (json!("no json"), "no json", json!("no json")),
        (json!(""), "{}", json!("{}")),
        (Json::Null, "{}", json!("{}")),
    ] {
        let mut called = call(0, "h", ECHO, "");
        called["function"]["arguments"] = arguments.clone();
        let turns = [turn("1", &[calls(json!([called]))], "tool_calls"), turn("2", &[], "stop")];
        let request: Json = serde_json::from_str(&run_turns(client(), &turns).requests[0]).unwrap();
        assert_eq!(request["messages"][1]["tool_calls"][0]["function"]["arguments"], sent);

        called.as_object_mut().unwrap().remove("index");
        let response = json!({ "choices": [{ "message": { "tool_calls": [called] }, "finish_reason": "tool_calls" }] });
        let whole = BodyMerger::new(Dialect::ChatCompletions, client())
            .read_turn(response.to_string().as_bytes());
        let mut merger = StreamMerger::new(Dialect::ChatCompletions, client());
        merger.push(turns[0].as_bytes());
        let made = merger.take_turn().calls;
        assert_eq!(made[0].arguments, read, "{arguments}");
        let whole = whole.unwrap().calls;
        assert_eq!(whole[0].object(), made[0].object());
    }
}

#[test]
fn the_id_of_a_call_may_arrive_late() {
    let mut begun = call(0, "", ECHO, "{");
    begun.as_object_mut().unwrap().remove("id");
    let mut rest = more(0, "}");
    rest["id"] = "h".into();
    let deltas = [calls(json!([begun])), calls(json!([rest])), calls(json!([more(0, " ")]))];
    let turns = [turn("1", &deltas, "tool_calls"), turn("2", &[], "stop")];
    let request: Json = serde_json::from_str(&run_turns(client(), &turns).requests[0]).unwrap();
    let messages = request["messages"].as_array().unwrap();
    assert_eq!(messages[1]["tool_calls"][0]["id"], "h");
    assert_eq!(messages[1]["tool_calls"][0]["function"]["arguments"], "{} ");
    assert_eq!((messages.len(), &messages[2]["tool_call_id"]), (3, &json!("h")));
}

#[test]
fn a_custom_call_belongs_to_the_client_and_is_unchanged() {
    let custom = |input: &str| json!({ "index": 1, "custom": { "input": input } });
    let begun = json!({ "index": 1, "id": "k", "type": "custom", "custom": { "name": "patch", "input": "" } });
    let first = turn(
        "1",
        &[
            calls(json!([call(0, "h", ECHO, "{}")])),
            calls(json!([begun])),
            calls(json!([custom("a")])),
            calls(json!([custom("b")])),
        ],
        "tool_calls",
    );
    let mut merger = StreamMerger::new(Dialect::ChatCompletions, client());
    let shown = String::from_utf8(merger.push(first.as_bytes())).unwrap();
    assert!(shown.contains(r#"{"index":0,"id":"k""#) && !shown.contains("\"index\":1"), "{shown}");
    let turn = merger.take_turn();
    assert_eq!(turn.client_calls, ["k"]);
    let body = turn.append_to(Dialect::ChatCompletions, REQUEST.as_bytes(), &[]).unwrap();
    let body: Json = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        body["messages"][1]["tool_calls"][1],
        json!({ "id": "k", "type": "custom", "custom": { "name": "patch", "input": "ab" } })
    );
}

#[test]
fn an_error_replaces_an_ending_that_is_held_back() {
    let begun = delta("1", calls(json!([call(0, "h", ECHO, "{}")])));
    let end = last_chunk("1", json!({}), "tool_calls", Json::Null);
    for error in [
        "data: {\"error\":{\"message\":\"no\"}}\n\n",
        "event: error\ndata: {\"message\":\"no\"}\n\n",
    ] {
        let mut merger = StreamMerger::new(Dialect::ChatCompletions, client());
        let shown = merger.push(format!("{begun}{end}{error}").as_bytes());
        assert_eq!(String::from_utf8(shown).unwrap(), error);
        assert_eq!(merger.state(), TurnState::Relayed);
        assert!(merger.release().is_empty());
    }
}

#[test]
fn a_final_event_without_its_blank_line_counts() {
    let whole = turn("1", &[json!({ "content": "x" })], "stop");
    let mut merger = StreamMerger::new(Dialect::ChatCompletions, asking());
    merger.push(whole.trim_end().as_bytes());
    assert_eq!(merger.state(), TurnState::Open);
    assert_eq!(merger.finish(), b"data: [DONE]\n\n");
    assert_eq!(merger.state(), TurnState::Relayed);
    assert!(merger.finish().is_empty());
}

proptest! {
    #[test]
    fn chunks_may_be_split_anywhere(cut in 1_usize..200) {
        let plain = turn("1", &[
            json!({ "content": "é" }), json!({ "tool_calls": [] }), json!({}),
            calls(json!([call(3, "c", "bash", "{}")])),
        ], "tool_calls");
        let run = run_streams(Dialect::ChatCompletions, asking(), REQUEST, std::slice::from_ref(&plain), cut);
        prop_assert_eq!(run.shown, plain);
        let turns = [
            turn("1", &[json!({ "content": "one" }), calls(json!([call(0, "h", ECHO, "{}")]))], "tool_calls"),
            turn("2", &[json!({ "content": "two" })], "stop"),
        ];
        let whole = run_streams(Dialect::ChatCompletions, asking(), REQUEST, &turns, usize::MAX);
        let cut = run_streams(Dialect::ChatCompletions, asking(), REQUEST, &turns, cut);
        prop_assert_eq!(cut.shown, whole.shown);
        prop_assert_eq!(cut.requests, whole.requests);
    }
}

#[test]
fn a_turn_may_end_without_done() {
    let first = turn("1", &[calls(json!([call(0, "t1", ECHO, "{}")]))], "tool_calls");
    let first = first.replace("data: [DONE]\n\n", "");
    let second = turn("2", &[json!({ "content": "Done." })], "stop");
    let run = run_turns(asking(), &[first, second]);
    assert_eq!(run.requests.len(), 1, "the call was made");
    assert_eq!(completion(&run.shown)["message"]["content"], "Done.");
}
