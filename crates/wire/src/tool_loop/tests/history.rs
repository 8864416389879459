//! Hidden calls restored in the client's next request.
#![expect(clippy::needless_pass_by_value, reason = "values made on the spot")]

use super::*;

/// What the ledger would return for a request.
pub(super) fn kept(
    dialect: Dialect,
    request: &str,
    continuation: &Continuation,
) -> HashMap<String, String> {
    let keys = continuation_keys(dialect, request.as_bytes());
    let known: HashMap<_, _> = continuation.entries.iter().cloned().collect();
    keys.into_iter().filter_map(|key| Some((key.clone(), known.get(&key)?.clone()))).collect()
}

pub(super) fn restore(
    dialect: Dialect,
    request: &Json,
    continuation: &Continuation,
) -> Option<Json> {
    let request = request.to_string();
    let kept = kept(dialect, &request, continuation);
    let body = restore_hidden_turns(dialect, request.as_bytes(), &kept)?;
    Some(serde_json::from_slice(&body).unwrap())
}

/// Runs complete turns; returns the conversation that the provider has seen, including its last
/// response, and what is stored.
pub(super) fn conversation(
    dialect: Dialect,
    request: &Json,
    turns: &[Json],
) -> (Vec<Json>, Continuation) {
    let mut merger = BodyMerger::new(dialect, client());
    let mut body = request.to_string().into_bytes();
    for response in turns {
        let response = response.to_string();
        let turn = merger.read_turn(response.as_bytes()).unwrap();
        let results = turn.results(dialect, &call_outputs(&turn));
        body = turn.append_to(dialect, &body, &results).unwrap();
        if turn.should_continue() {
            merger.next_turn(&turn, &results);
            continue;
        }
        let seen: Json = serde_json::from_slice(&body).unwrap();
        let key = if dialect == Dialect::Responses { "input" } else { "messages" };
        return (seen[key].as_array().unwrap().clone(), merger.continuation(&turn, &results));
    }
    panic!("the last turn does not end the loop");
}

mod messages {
    use super::*;

    fn response(content: Json, stop: &str) -> Json {
        json!({ "id": "m", "type": "message", "content": content, "stop_reason": stop })
    }

    fn tool(id: &str, name: &str) -> Json {
        json!({ "type": "tool_use", "id": id, "name": name, "input": {} })
    }

    fn text(text: &str) -> Json {
        json!({ "type": "text", "text": text })
    }

    fn thinking(text: &str) -> Json {
        json!({ "type": "thinking", "thinking": text, "signature": format!("{text:x>60}") })
    }

    fn request() -> Json {
        json!({ "messages": [{ "role": "user", "content": "hi" }] })
    }

    fn result(id: &str) -> Json {
        json!({ "type": "tool_result", "tool_use_id": id, "content": "own" })
    }

    /// The client's next request after it received `content` and has results.
    fn next(content: Json, results: Json) -> Json {
        json!({ "messages": [
            { "role": "user", "content": "hi" },
            { "role": "assistant", "content": content },
            { "role": "user", "content": results },
        ] })
    }

    #[test]
    fn a_hidden_call_beside_the_clients_is_restored() {
        for hidden_first in [true, false] {
            let (hidden, own) = (tool("h", ECHO), tool("c", "Bash"));
            let content = if hidden_first {
                json!([text("x"), hidden, own])
            } else {
                json!([text("x"), own, hidden])
            };
            let turns = [response(content, "tool_use")];
            let (seen, continuation) = conversation(Dialect::Messages, &request(), &turns);
            let next = next(json!([text("x"), tool("c", "Bash")]), json!([result("c")]));
            let restored = restore(Dialect::Messages, &next, &continuation).unwrap();
            let messages = restored["messages"].as_array().unwrap();
            assert_eq!(messages[..2], seen[..2], "the assistant's turn is whole again");
            let results = messages[2]["content"].as_array().unwrap();
            assert_eq!(
                (results.len(), &results[0], &results[1]),
                (2, &seen[2]["content"][0], &result("c"))
            );
        }
    }

    #[test]
    fn hidden_turns_before_the_clients_call_are_restored() {
        let turns = [
            response(json!([thinking("a"), text("x"), tool("h1", ECHO)]), "tool_use"),
            response(json!([thinking("b"), tool("h2", ADD)]), "tool_use"),
            response(json!([thinking("c"), text("y"), tool("own", "Bash")]), "tool_use"),
        ];
        let (seen, continuation) = conversation(Dialect::Messages, &request(), &turns);
        let shown = json!([
            thinking("a"),
            text("x"),
            thinking("b"),
            thinking("c"),
            text("y"),
            tool("own", "Bash")
        ]);
        let next = next(shown, json!([result("own")]));
        let restored = restore(Dialect::Messages, &next, &continuation).unwrap();
        let messages = restored["messages"].as_array().unwrap();
        assert_eq!(messages[..6], seen[..6], "exactly what the provider has seen and said");
        assert_eq!(messages[6]["content"], json!([result("own")]));
    }

    #[test]
    fn a_thought_is_enough_to_find_hidden_turns() {
        let turns = [
            response(json!([thinking("a"), tool("h1", ECHO)]), "tool_use"),
            response(json!([thinking("b"), text("Done.")]), "end_turn"),
        ];
        let (seen, continuation) = conversation(Dialect::Messages, &request(), &turns);
        let next = json!({ "messages": [
            { "role": "user", "content": "hi" },
            { "role": "assistant", "content": [thinking("a"), thinking("b"), text("Done.")] },
            { "role": "user", "content": "and now?" },
        ] });
        let restored = restore(Dialect::Messages, &next, &continuation).unwrap();
        assert_eq!(restored["messages"].as_array().unwrap()[..4], seen[..4]);
    }

    #[test]
    fn calls_that_were_not_executed_are_not_restored() {
        let mixed =
            response(json!([text("x"), tool("h", ECHO), tool("own", "Bash")]), "max_tokens");
        let mut merger = BodyMerger::new(Dialect::Messages, client());
        let turn = merger.read_turn(mixed.to_string().as_bytes()).unwrap();
        assert!(!turn.should_run_calls());
        assert_eq!(merger.continuation(&turn, &[]), Continuation::default());
        // After a turn whose calls were executed, only those are restored.
        let first = response(json!([thinking("a"), tool("h1", ECHO)]), "tool_use");
        let turn = merger.read_turn(first.to_string().as_bytes()).unwrap();
        let results = turn.results(Dialect::Messages, &call_outputs(&turn));
        merger.next_turn(&turn, &results);
        let turn = merger.read_turn(mixed.to_string().as_bytes()).unwrap();
        let continuation = merger.continuation(&turn, &[]);
        let shown = json!([thinking("a"), text("x"), tool("own", "Bash")]);
        let next = next(shown, json!([result("own")]));
        let restored = restore(Dialect::Messages, &next, &continuation).unwrap();
        let messages = restored["messages"].as_array().unwrap();
        assert_eq!(messages.len(), 5);
        assert_eq!(messages[3]["content"], json!([text("x"), tool("own", "Bash")]));
        assert_eq!(messages[4]["content"], json!([result("own")]));
    }

    #[test]
    fn blocks_of_another_response_do_not_match() {
        let content = json!([tool("h", ECHO), tool("a", "Bash"), tool("b", "Bash")]);
        let (_, continuation) =
            conversation(Dialect::Messages, &request(), &[response(content, "tool_use")]);
        for shown in [
            json!([tool("b", "Bash"), tool("a", "Bash")]),
            json!([tool("a", "Bash"), tool("z", "Bash")]),
            json!([text("new"), tool("a", "Bash"), tool("b", "Bash")]),
            json!([tool("a", "Bash")]),
            json!("text"),
            json!(null),
        ] {
            let next = next(shown, json!([result("a")]));
            assert_eq!(restore(Dialect::Messages, &next, &continuation), None, "{next}");
        }
        let shown = json!([tool("a", "Bash"), tool("b", "Bash")]);
        let mut odd = next(shown.clone(), json!("no results"));
        assert_eq!(restore(Dialect::Messages, &odd, &continuation), None);
        odd["messages"].as_array_mut().unwrap().pop();
        assert_eq!(restore(Dialect::Messages, &odd, &continuation), None);
        let next = next(shown, json!([result("b"), result("a")]));
        let restored = restore(Dialect::Messages, &next, &continuation).unwrap();
        assert_eq!(restored["messages"][2]["content"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn two_responses_in_one_history_are_both_restored() {
        let one = [response(json!([tool("h1", ECHO), tool("c1", "Bash")]), "tool_use")];
        let (_, one) = conversation(Dialect::Messages, &request(), &one);
        let two = [
            response(json!([thinking("a"), tool("h2", ECHO)]), "tool_use"),
            response(json!([text("y"), tool("c2", "Bash"), tool("h3", ADD)]), "tool_use"),
        ];
        let (_, two) = conversation(Dialect::Messages, &request(), &two);
        let kept = Continuation { entries: [one.entries, two.entries].concat() };
        let mut both = next(json!([tool("c1", "Bash")]), json!([result("c1")]));
        let shown = json!([thinking("a"), text("y"), tool("c2", "Bash")]);
        let more = next(shown, json!([result("c2")]));
        let list = both["messages"].as_array_mut().unwrap();
        list.extend_from_slice(&more["messages"].as_array().unwrap()[1..]);
        let restored = restore(Dialect::Messages, &both, &kept).unwrap();
        let ids: Vec<&str> = restored["messages"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|message| message["content"].as_array().into_iter().flatten())
            .filter_map(|block| block["id"].as_str().or_else(|| block["tool_use_id"].as_str()))
            .collect();
        assert_eq!(ids, ["h1", "c1", "h1", "c1", "h2", "h2", "c2", "h3", "h3", "c2"]);
    }

    #[test]
    fn stored_turns_are_checked_before_they_are_restored() {
        let turns = [response(json!([tool("h", ECHO), tool("own", "Bash")]), "tool_use")];
        let (_, continuation) = conversation(Dialect::Messages, &request(), &turns);
        let next = next(json!([tool("own", "Bash")]), json!([result("own")])).to_string();
        let (key, sound) = continuation.entries[0].clone();
        let put_back = |kept: &str| {
            let kept = HashMap::from([(key.clone(), kept.to_owned())]);
            restore_hidden_turns(Dialect::Messages, next.as_bytes(), &kept).is_some()
        };
        assert!(put_back(&sound));
        for odd in [
            "",
            "7",
            "{}",
            "[]",
            "[null]",
            "[{}]",
            r#"[{"entries":7,"results":{}}]"#,
            r#"[{"entries":[{"kind":"tool_use","shown":true}],"results":[]}]"#,
            r#"[{"entries":[{"kind":"tool_use","shown":true},{"raw":"{"}],"results":["]"]}]"#,
            &sound.replace(r#"\"h\""#, r#"\"h"#),
        ] {
            assert!(!put_back(odd), "{odd}");
        }
    }

    #[test]
    fn a_history_that_the_client_changed_is_left_alone() {
        let turns = [
            response(json!([thinking("a"), tool("h1", ECHO)]), "tool_use"),
            response(json!([text("x"), tool("own", "Bash")]), "tool_use"),
        ];
        let (_, continuation) = conversation(Dialect::Messages, &request(), &turns);
        let next = next(json!([text("x"), tool("own", "Bash")]), json!([result("own")]));
        assert_eq!(restore(Dialect::Messages, &next, &continuation), None, "its thought is gone");
        assert_eq!(restore(Dialect::Messages, &request(), &continuation), None);
    }
}

mod chat {
    use super::*;

    fn call(id: &str, name: &str) -> Json {
        json!({ "id": id, "type": "function", "function": { "name": name, "arguments": "{}" } })
    }

    fn response(content: Json, calls: Json) -> Json {
        let message = json!({ "role": "assistant", "content": content, "tool_calls": calls });
        json!({ "id": "c", "choices": [{ "index": 0, "message": message, "finish_reason": "tool_calls" }] })
    }

    fn next(content: Json, calls: Json) -> Json {
        json!({ "messages": [
            { "role": "user", "content": "hi" },
            { "role": "assistant", "content": content, "tool_calls": calls },
            { "role": "tool", "tool_call_id": "own", "content": "own" },
        ] })
    }

    #[test]
    fn hidden_calls_are_restored() {
        let request = json!({ "messages": [{ "role": "user", "content": "hi" }] });
        let turns = [
            response("I look. ".into(), json!([call("h1", ECHO)])),
            response("Now. ".into(), json!([call("h2", ADD), call("own", "bash")])),
        ];
        let (seen, continuation) = conversation(Dialect::ChatCompletions, &request, &turns);
        let next = next("I look. Now. ".into(), json!([call("own", "bash")]));
        let restored = restore(Dialect::ChatCompletions, &next, &continuation).unwrap();
        let messages = restored["messages"].as_array().unwrap();
        assert_eq!(messages[..5], seen[..5], "exactly what the provider has seen and said");
        assert_eq!(messages[5]["tool_call_id"], "own");
    }

    #[test]
    fn texts_are_compared_after_decoding() {
        let request = json!({ "messages": [{ "role": "user", "content": "hi" }] });
        let turns = [
            response("é/ ".into(), json!([call("h", ECHO)])),
            response("then".into(), json!([call("own", "b")])),
        ];
        let (seen, continuation) = conversation(Dialect::ChatCompletions, &request, &turns);
        let next = next("é/ then".into(), json!([call("own", "b")])).to_string();
        let escaped = next.replace("é/", r"\u00e9\/");
        assert_ne!(escaped, next);
        let kept = kept(Dialect::ChatCompletions, &escaped, &continuation);
        let body =
            restore_hidden_turns(Dialect::ChatCompletions, escaped.as_bytes(), &kept).unwrap();
        let restored: Json = serde_json::from_slice(&body).unwrap();
        assert_eq!(restored["messages"].as_array().unwrap()[..4], seen[..4]);
    }

    #[test]
    fn thoughts_return_to_their_turns() {
        let request = json!({ "messages": [{ "role": "user", "content": "hi" }] });
        let thinking = |mut response: Json, thought: &str, details: Json| {
            response["choices"][0]["message"]["reasoning_content"] = thought.into();
            response["choices"][0]["message"]["reasoning_details"] = details;
            response
        };
        let turns = [
            thinking(response(Json::Null, json!([call("h", ECHO)])), "hm. ", json!([{ "t": 1 }])),
            thinking(response("x".into(), json!([call("own", "b")])), "so.", Json::Null),
        ];
        let (seen, continuation) = conversation(Dialect::ChatCompletions, &request, &turns);
        // Clients that omit them, send them joined, or changed them.
        let mut next = next("x".into(), json!([call("own", "b")]));
        let without = restore(Dialect::ChatCompletions, &next, &continuation).unwrap();
        assert_eq!(without["messages"].as_array().unwrap()[..3], seen[..3]);
        assert!(without["messages"][3].get("reasoning_content").is_none());
        next["messages"][1]["reasoning_content"] = "hm. so.".into();
        let with = restore(Dialect::ChatCompletions, &next, &continuation).unwrap();
        assert_eq!(with["messages"].as_array().unwrap()[..4], seen[..4]);
        next["messages"][1]["reasoning_content"] = "other".into();
        let other = restore(Dialect::ChatCompletions, &next, &continuation).unwrap();
        assert!(other["messages"][1].get("reasoning_content").is_none());
        assert_eq!(other["messages"][3]["reasoning_content"], "other");
    }

    #[test]
    fn calls_that_the_client_changed_are_left_alone() {
        let request = json!({ "messages": [{ "role": "user", "content": "hi" }] });
        let calls = json!([call("h", ECHO), call("own", "b"), call("two", "b")]);
        let turns = [response(Json::Null, calls)];
        let (_, continuation) = conversation(Dialect::ChatCompletions, &request, &turns);
        for calls in [
            json!([call("own", "b")]),
            json!([call("two", "b"), call("own", "b")]),
            json!([call("own", "b"), call("new", "b")]),
            json!([call("h", ECHO), call("own", "b"), call("two", "b")]),
            json!([]),
            json!(7),
        ] {
            let next = next(Json::Null, calls);
            assert_eq!(restore(Dialect::ChatCompletions, &next, &continuation), None, "{next}");
        }
        let next = next(Json::Null, json!([call("own", "b"), call("two", "b")]));
        assert!(restore(Dialect::ChatCompletions, &next, &continuation).is_some());
    }

    #[test]
    fn a_text_that_the_client_changed_is_left_alone() {
        let request = json!({ "messages": [{ "role": "user", "content": "hi" }] });
        let turns = [
            response("I look. ".into(), json!([call("h", ECHO)])),
            response(Json::Null, json!([call("own", "b")])),
        ];
        let (_, continuation) = conversation(Dialect::ChatCompletions, &request, &turns);
        let next = next("else".into(), json!([call("own", "b")]));
        let restored = restore(Dialect::ChatCompletions, &next, &continuation).unwrap();
        assert_eq!(restored["messages"][1]["content"], Json::Null);
        assert_eq!(restored["messages"][3]["content"], "else");
    }
}

mod responses {
    use super::*;

    fn call(id: &str, name: &str) -> Json {
        json!({ "type": "function_call", "call_id": id, "name": name, "arguments": "{}" })
    }

    fn reasoning(id: &str) -> Json {
        json!({ "type": "reasoning", "id": id, "summary": [] })
    }

    fn message(text: &str) -> Json {
        json!({ "type": "message", "role": "assistant", "content": [{ "type": "output_text", "text": text }] })
    }

    fn output(id: &str) -> Json {
        json!({ "type": "function_call_output", "call_id": id, "output": "own" })
    }

    fn user() -> Json {
        json!({ "role": "user", "content": "hi" })
    }

    fn response(output: Json) -> Json {
        json!({ "id": "r", "status": "completed", "output": output })
    }

    #[test]
    fn hidden_items_are_restored_among_the_clients() {
        let request = json!({ "input": [user()] });
        let turns = [
            response(json!([reasoning("a"), message("x"), call("h1", ECHO)])),
            response(json!([reasoning("b"), call("own", "bash"), call("h2", ADD)])),
        ];
        let (seen, continuation) = conversation(Dialect::Responses, &request, &turns);
        let shown = [reasoning("a"), message("x"), reasoning("b"), call("own", "bash")];
        let mut input = vec![user()];
        input.extend(shown);
        input.push(output("own"));
        let restored =
            restore(Dialect::Responses, &json!({ "input": input }), &continuation).unwrap();
        let items = restored["input"].as_array().unwrap();
        assert_eq!(items[..seen.len()], seen[..], "exactly what the provider has seen and said");
        assert_eq!(items[seen.len()..], [output("own")]);
    }

    #[test]
    fn a_response_stored_by_the_provider_gets_the_hidden_results() {
        let request = json!({ "input": [user()] });
        let turns = [response(json!([call("h", ECHO), call("own", "bash"), call("two", "bash")]))];
        let (seen, continuation) = conversation(Dialect::Responses, &request, &turns);
        let next = json!({ "previous_response_id": "r", "input": [output("own"), output("two")] });
        let restored = restore(Dialect::Responses, &next, &continuation).unwrap();
        assert_eq!(restored["input"], json!([seen.last().unwrap(), output("own"), output("two")]));
    }

    #[test]
    fn a_response_stored_by_the_provider_gets_each_result_once() {
        let request = json!({ "input": [user()] });
        let turns = [
            response(json!([reasoning("a"), call("h1", ECHO)])),
            response(json!([call("own", "bash"), call("h2", ECHO), call("two", "bash")])),
        ];
        let (seen, continuation) = conversation(Dialect::Responses, &request, &turns);
        let hidden = seen.last().unwrap();
        let (own, two) = (output("own"), output("two"));
        for (sent, expected) in [
            (json!([own, user(), two]), json!([hidden, own, user(), two])),
            (json!([two, own]), json!([two, hidden, own])),
            (json!([user(), own, two]), json!([user(), hidden, own, two])),
            (json!([own, own]), json!([hidden, own, own])),
        ] {
            let next = json!({ "previous_response_id": "r", "input": sent });
            let restored = restore(Dialect::Responses, &next, &continuation).unwrap();
            assert_eq!(restored["input"], expected);
            assert_eq!(restore(Dialect::Responses, &restored, &continuation), None);
        }
        for input in [json!([output("else")]), json!("and now?")] {
            let next = json!({ "previous_response_id": "r", "input": input });
            assert_eq!(restore(Dialect::Responses, &next, &continuation), None);
        }
    }

    #[test]
    fn a_response_without_hidden_calls_at_its_end_needs_no_results() {
        let request = json!({ "input": [user()] });
        let turns = [response(json!([call("h", ECHO)])), response(json!([call("own", "bash")]))];
        let (_, continuation) = conversation(Dialect::Responses, &request, &turns);
        assert!(!continuation.entries.is_empty());
        let next = json!({ "previous_response_id": "r", "input": [output("own")] });
        assert_eq!(restore(Dialect::Responses, &next, &continuation), None);
    }

    #[test]
    fn a_call_without_an_id_does_not_identify_a_response() {
        let request = json!({ "input": [user()] });
        let approval = json!({ "type": "mcp_approval_request", "id": "a", "name": "x" });
        let turns = [response(json!([approval, call("h", ECHO), call("own", "bash")]))];
        let (_, continuation) = conversation(Dialect::Responses, &request, &turns);
        let keys: Vec<&str> = continuation.entries.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["call:own"]);
    }

    #[test]
    fn items_that_the_client_omitted_restore_nothing() {
        let request = json!({ "input": [user()] });
        let turns = [
            response(json!([reasoning("a"), message("x"), call("h", ECHO)])),
            response(json!([call("own", "bash")])),
        ];
        let (_, continuation) = conversation(Dialect::Responses, &request, &turns);
        let own = call("own", "bash");
        for input in [
            json!([user(), own, output("own")]),
            json!([user(), message("x"), own, output("own")]),
            json!([reasoning("b"), message("x"), own, output("own")]),
            json!([own]),
        ] {
            let next = json!({ "input": input });
            assert_eq!(restore(Dialect::Responses, &next, &continuation), None, "{next}");
        }
        let mut untyped = message("x");
        untyped.as_object_mut().unwrap().remove("type");
        let input = json!([user(), reasoning("a"), untyped, own, output("own")]);
        let next = json!({ "input": input });
        assert!(restore(Dialect::Responses, &next, &continuation).is_some());
    }

    #[test]
    fn a_thought_is_enough_to_find_hidden_items() {
        let request = json!({ "input": [user()] });
        let mut sealed = reasoning("a");
        sealed["encrypted_content"] = "0123456789".repeat(10).into();
        let turns = [
            response(json!([sealed.clone(), call("h", ECHO)])),
            response(json!([message("Done.")])),
        ];
        let (seen, continuation) = conversation(Dialect::Responses, &request, &turns);
        sealed.as_object_mut().unwrap().remove("id");
        let next = json!({ "input": [user(), sealed, message("Done."), user()] });
        let restored = restore(Dialect::Responses, &next, &continuation).unwrap();
        let items = restored["input"].as_array().unwrap();
        assert_eq!((items.len(), &items[2..4]), (6, &seen[2..4]));
    }

    #[test]
    fn two_responses_in_one_history_are_both_restored() {
        let request = json!({ "input": [user()] });
        let (_, one) = conversation(
            Dialect::Responses,
            &request,
            &[response(json!([call("h1", ECHO), call("c1", "b")]))],
        );
        let (_, two) = conversation(
            Dialect::Responses,
            &request,
            &[response(json!([call("c2", "b"), call("h2", ECHO)]))],
        );
        let kept = Continuation { entries: [one.entries, two.entries].concat() };
        let next = json!({ "input": [user(), call("c1", "b"), output("c1"), call("c2", "b"), output("c2")] });
        let restored = restore(Dialect::Responses, &next, &kept).unwrap();
        let ids: Vec<&str> = restored["input"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|item| item["call_id"].as_str())
            .collect();
        assert_eq!(ids, ["h1", "c1", "h1", "c1", "c2", "h2", "h2", "c2"]);
    }
}
