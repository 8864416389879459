//! Unusual values, and limits on what is buffered of a turn.

use super::*;
use crate::tools::{InjectableTools, ToolDefinition};

#[test]
fn unusual_result_content_is_described() {
    let turn = Turn {
        calls: vec![crate::tool_loop::InjectedCall {
            id: "c".into(),
            name: ECHO.into(),
            arguments: "{}".into(),
        }],
        ..Turn::default()
    };
    let result = |dialect, parts: Vec<OutputPart>, is_error| {
        let results = turn.results(dialect, &[ToolOutput { parts, json: "{}".into(), is_error }]);
        serde_json::from_str::<Json>(&results[0]).unwrap()
    };
    for blank in ["", " \n"] {
        let block = result(Dialect::Messages, vec![OutputPart::Text(blank.into())], false);
        assert_eq!(block["content"], json!([{ "type": "text", "text": "(empty)" }]));
    }
    let texts = || vec![OutputPart::Text("a\"".into()), OutputPart::Text("é".into())];
    let block = result(Dialect::Messages, texts(), true);
    assert_eq!(block["content"].as_array().unwrap().len(), 2);
    assert_eq!(block["is_error"], true);
    assert_eq!(result(Dialect::ChatCompletions, texts(), false)["content"], "a\"é");
    assert_eq!(result(Dialect::Responses, Vec::new(), false)["output"], "");
    let told = vec![OutputPart::Text("Error: no".into())];
    assert_eq!(result(Dialect::Responses, told, true)["output"], "Error: no", "said once");
    assert!(turn.results(Dialect::Messages, &[]).is_empty());
}

#[test]
fn arguments_are_an_object_or_rejected() {
    let object = |arguments: &str| {
        let call = crate::tool_loop::InjectedCall {
            id: String::new(),
            name: String::new(),
            arguments: arguments.into(),
        };
        call.object()
    };
    assert_eq!(object(" "), Some(serde_json::Map::new()));
    assert_eq!(Json::from(object(r#" {"a":[1]} "#).unwrap()), json!({ "a": [1] }));
    for odd in ["{", "[]", "null", "7", "{} {}", "\"{}\""] {
        assert_eq!(object(odd), None, "{odd}");
    }
}

#[test]
fn a_request_whose_conversation_is_not_a_list_is_an_error() {
    let turn = Turn::default();
    for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
        assert!(turn.append_to(dialect, b"[]", &["1".into()]).is_err());
        assert!(turn.append_to(dialect, br#"{"messages":7,"input":7}"#, &["1".into()]).is_err());
        assert!(turn.append_to(dialect, br#"{"messages":[],"input":[]}"#, &["{".into()]).is_err());
    }
    let other = br#"{ "previous_response_id" : "a", "x":1.0 }"#;
    let body = crate::tool_loop::set_previous_response(other, "b");
    assert_eq!(body.unwrap(), br#"{ "previous_response_id" : "b", "x":1.0 }"#);
}

/// For each dialect, a large event that the client sees, and two events of a hidden call.
fn large_and_hidden() -> [(Dialect, [String; 3]); 3] {
    let big = "x".repeat(1 << 20);
    let events = |events: [Json; 3]| events.map(|data| format!("data: {data}\n\n"));
    let text = json!({ "type": "content_block_delta", "index": 0,
        "delta": { "type": "text_delta", "text": big } });
    let start = json!({ "type": "content_block_start", "index": 1,
        "content_block": { "type": "tool_use", "id": "h", "name": ECHO, "input": {} } });
    let input = json!({ "type": "content_block_delta", "index": 1,
        "delta": { "type": "input_json_delta", "partial_json": "secret" } });
    let call = |arguments: &str| {
        let function = json!({ "name": ECHO, "arguments": arguments });
        let call = json!({ "index": 0, "id": "h", "function": function });
        json!({ "choices": [{ "delta": { "tool_calls": [call] } }] })
    };
    let said = json!({ "choices": [{ "delta": { "content": big } }] });
    let item =
        json!({ "type": "function_call", "name": ECHO, "call_id": "h", "arguments": "secret" });
    let added = json!({ "type": "response.output_item.added", "output_index": 1, "item": item });
    let done = json!({ "type": "response.output_item.done", "output_index": 1, "item": item });
    let message = json!({ "type": "response.output_item.done", "output_index": 0,
        "item": { "type": "message", "content": big } });
    [
        (Dialect::Messages, events([text, start, input])),
        (Dialect::ChatCompletions, events([said, call(""), call("secret")])),
        (Dialect::Responses, events([message, added, done])),
    ]
}

#[test]
fn a_hidden_call_stays_hidden_in_an_oversized_turn() {
    for (dialect, [large, one, two]) in large_and_hidden() {
        let mut merger = StreamMerger::new(dialect, client());
        // The text of a block is buffered, so there must be a block.
        let begun = r#"{"type":"content_block_start","index":0,"content_block":{"type":"text"}}"#;
        merger.push(format!("data: {begun}\n\n").as_bytes());
        for _ in 0..17 {
            assert!(merger.push(large.as_bytes()) == large.as_bytes(), "{dialect}");
        }
        assert!(merger.take_turn().overflowed, "{dialect}");
        // However many there are.
        for _ in 0..100 {
            let shown = merger.push(format!("{one}{two}").as_bytes());
            assert!(shown.is_empty(), "{dialect}: {}", String::from_utf8_lossy(&shown));
        }
        assert!(merger.is_withholding());
        let kept = merger.take_turn().entries.len();
        assert!(kept <= 65, "{dialect}: {kept}");
    }
}

#[test]
fn an_oversized_event_passes_only_while_nothing_is_hidden() {
    let large = format!("data: {{\"x\":\"{}\"}}\n\n", "x".repeat(crate::sse::MAX_EVENT_BYTES));
    let mut merger = StreamMerger::new(Dialect::ChatCompletions, client());
    assert!(merger.push(large.as_bytes()) == large.as_bytes());
    assert!(merger.take_turn().overflowed);
    let call = json!({ "index": 0, "id": "h", "function": { "name": ECHO } });
    let call = json!({ "choices": [{ "delta": { "tool_calls": [call] } }] });
    assert!(merger.push(format!("data: {call}\n\n").as_bytes()).is_empty());
    assert!(merger.push(large.as_bytes()).is_empty());
}

#[test]
fn the_ending_held_back_is_bounded() {
    let call = json!({ "index": 0, "id": "h", "function": { "name": ECHO } });
    let choices = json!([{ "delta": { "tool_calls": [call] }, "finish_reason": "stop" }]);
    let end = json!({ "choices": choices, "x": "x".repeat(1 << 20) });
    let end = format!("data: {end}\n\n");
    let mut merger = StreamMerger::new(Dialect::ChatCompletions, client());
    for _ in 0..40 {
        assert!(merger.push(end.as_bytes()).is_empty());
    }
    assert!(merger.take_turn().overflowed);
    assert!((15 << 20..20 << 20).contains(&merger.state.held.len()));
}

/// Documents made of the keys and values of responses and requests, in places where they do not belong.
fn odd() -> impl Strategy<Value = Vec<Json>> {
    let words = "type index output_index sequence_number content_block delta message response item \
                 output usage choices tool_calls function arguments name id call_id content input \
                 messages finish_reason partial_json text citation role tools";
    let kinds = "message_start content_block_start content_block_delta message_delta message_stop \
                 response.created response.output_item.added response.output_item.done \
                 response.completed tool_use function_call function reasoning thinking completed \
                 stop bmcp_wiki_echo c";
    let list = |words: &'static str| words.split_whitespace().collect::<Vec<_>>();
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        prop::sample::select(vec![0, 1, 2, u64::MAX]).prop_map(Json::from),
        prop::sample::select(list(kinds)).prop_map(Json::from),
    ];
    let document = leaf.prop_recursive(5, 40, 6, move |inner| {
        let member = (prop::sample::select(list(words)), inner.clone());
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(Json::from),
            prop::collection::vec(member, 1..6).prop_map(Json::from_iter),
        ]
    });
    prop::collection::vec(document, 1..6)
}

/// A stream of arbitrary events, with one kind of line ending.
fn odd_stream() -> impl Strategy<Value = String> {
    let line_end = prop::sample::select(vec!["\n", "\r\n", "\r"]);
    let name = prop::sample::select(vec!["", "event: x\n", ": c\n", "id: 1\nretry: 2\n", "\n"]);
    let named = prop::collection::vec(name, 1..7);
    (odd(), named, line_end, any::<bool>()).prop_map(|(documents, names, line_end, is_marked)| {
        let events = documents.iter().zip(names.iter().cycle());
        let mut stream = if is_marked { "\u{feff}".to_owned() } else { String::new() };
        for (data, name) in events {
            stream += &format!("{name}data: {data}\n\n");
        }
        (stream + "data: [DONE]\n\ndata: after\n\n").replace('\n', line_end)
    })
}

proptest! {
    #[test]
    fn without_injected_tools_every_byte_passes(
        stream in odd_stream(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..9)
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
            let mut merger = StreamMerger::new(dialect, ClientView { wants_usage: true, ..ClientView::default() });
            let mut shown = Vec::new();
            for cut in cuts.windows(2) {
                shown.extend(merger.push(&stream.as_bytes()[cut[0]..cut[1]]));
            }
            shown.extend(merger.finish());
            prop_assert_eq!(String::from_utf8(shown).unwrap(), &*stream, "{}", dialect);
            prop_assert!(!merger.is_withholding());
        }
    }

    #[test]
    fn values_of_unexpected_types_cause_no_panic(documents in odd()) {
        let offer = InjectableTools::new(&[ToolDefinition {
            id: ECHO.into(), description: None, input_schema: "{}".into(),
        }]);
        for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
            let mut merger = StreamMerger::new(dialect, client());
            for _ in 0..3 {
                for event in &documents {
                    merger.push(format!("data: {event}\n\n").as_bytes());
                }
                let turn = merger.take_turn();
                let _odd = merger.continuation(&turn, &[]);
                merger.next_turn(&turn, &[]);
            }
            for body in &documents {
                let body = body.to_string();
                let mut whole = BodyMerger::new(dialect, client());
                let read = whole.read_turn(body.as_bytes());
                if let Some(turn) = read {
                    let results = turn.results(dialect, &call_outputs(&turn));
                    whole.next_turn(&turn, &results);
                    let kept = whole.continuation(&turn, &results).entries.into_iter().collect();
                    let _odd = restore_hidden_turns(dialect, body.as_bytes(), &kept);
                    let _odd = whole.merge(body.as_bytes(), &turn);
                }
                if let Ok(Some(made)) = offer.inject(dialect, body.as_bytes()) {
                    prop_assert!(serde_json::from_slice::<Json>(&made.body).is_ok());
                }
            }
        }
    }

    #[test]
    fn restoring_never_produces_invalid_json(
        value in ".{0,60}", raw in r#"[{}",:a\[\]]{0,12}"#
    ) {
        let turn = json!({
            "entries": [
                { "kind": "tool_use", "shown": true },
                { "kind": "tool_call", "shown": true, "key": "call:c" },
                { "kind": "function_call", "shown": true, "key": "call:c" },
                { "kind": "content", "shown": true, "raw": raw },
                { "shown": false, "raw": raw },
            ],
            "results": [raw],
        });
        for (dialect, kind, body) in [
            (Dialect::Messages, "tool_use",
                r#"{"messages":[{"content":[{"type":"tool_use","id":"c"}]},{"content":[]}]}"#),
            (Dialect::ChatCompletions, "tool_call",
                r#"{"messages":[{"content":"x","tool_calls":[{"id":"c"}]}]}"#),
            (Dialect::Responses, "function_call", r#"{"input":[{"type":"function_call","call_id":"c"},{"type":"function_call_output","call_id":"c"}]}"#),
            (Dialect::Responses, "function_call",
                r#"{"input":[{"type":"function_call_output","call_id":"c"}]}"#),
        ] {
            let mut turn = turn.clone();
            let of_another = |entry: &Json| {
                entry["key"] == "call:c" && entry["kind"] != kind || entry["kind"] == "tool_use" && kind != "tool_use"
            };
            turn["entries"].as_array_mut().unwrap().retain(|entry| !of_another(entry));
            if dialect != Dialect::ChatCompletions {
                turn["entries"].as_array_mut().unwrap().retain(|entry| entry["kind"] != "content");
            }
            let hidden = json!({ "entries": [{ "shown": false, "raw": raw }], "results": [raw] });
            for kept in [value.clone(), json!([turn]).to_string(), json!([hidden, turn]).to_string()] {
                let kept = HashMap::from([("call:c".to_owned(), kept)]);
                if let Some(made) = restore_hidden_turns(dialect, body.as_bytes(), &kept) {
                    prop_assert!(serde_json::from_slice::<Json>(&made).is_ok());
                }
            }
        }
    }
}
