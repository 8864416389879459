//! Complete responses.
#![expect(clippy::needless_pass_by_value, reason = "values made on the spot")]

use super::*;

fn merged(dialect: Dialect, client: ClientView, turns: &[Json]) -> Json {
    run_bodies(dialect, client, r#"{"messages":[],"input":[]}"#, turns).0
}

fn tool(id: &str, name: &str) -> Json {
    json!({ "type": "tool_use", "id": id, "name": name, "input": {} })
}

fn function(id: &str, name: &str) -> Json {
    json!({ "id": id, "type": "function", "function": { "name": name, "arguments": "{}" } })
}

fn item(id: &str, name: &str) -> Json {
    json!({ "type": "function_call", "call_id": id, "name": name, "arguments": "{}" })
}

fn completion(calls: Json, finish: &str) -> Json {
    let message = json!({ "content": null, "tool_calls": calls });
    json!({ "id": "1", "choices": [{ "message": message, "finish_reason": finish }] })
}

#[test]
fn a_response_without_hidden_calls_keeps_its_bytes() {
    for (dialect, body) in [
        (
            Dialect::Messages,
            r#"{ "content":[ {"type":"text","text":"x"} ], "stop_reason":"end_turn" }"#,
        ),
        (
            Dialect::ChatCompletions,
            r#"{"choices":[ {"message":{"content":"x"}},{"message":{}} ] }"#,
        ),
        (Dialect::Responses, r#"{"output":[ ],"status":"completed","tools":[{"type":"x"}]} "#),
    ] {
        let mut whole = BodyMerger::new(dialect, client());
        let turn = whole.read_turn(body.as_bytes()).unwrap();
        assert!(!turn.should_continue());
        assert_eq!(whole.merge(body.as_bytes(), &turn).unwrap(), body.as_bytes());
    }
}

#[test]
fn a_body_that_is_not_a_models_response_is_not_read() {
    let error = r#"{"type":"error","error":{"message":"no"}}"#;
    for body in ["", "no json", error, r#"{"error":"no"}"#] {
        for dialect in [Dialect::Messages, Dialect::ChatCompletions, Dialect::Responses] {
            assert!(
                BodyMerger::new(dialect, client()).read_turn(body.as_bytes()).is_none(),
                "{body}"
            );
        }
    }
}

#[test]
fn client_calls_are_left_to_the_client() {
    let message = json!({ "id": "1", "content": [tool("h", ECHO), tool("c", "Bash")],
        "stop_reason": "tool_use", "usage": { "output_tokens": 5 } });
    let seen = merged(Dialect::Messages, client(), &[message]);
    assert_eq!(seen["content"], json!([tool("c", "Bash")]));
    assert_eq!(seen["usage"]["output_tokens"], 5, "of one turn as they came");

    let calls = json!([function("c", "bash"), function("h", ECHO)]);
    let seen = merged(Dialect::ChatCompletions, client(), &[completion(calls, "tool_calls")]);
    let message = &seen["choices"][0]["message"];
    assert_eq!(message["tool_calls"], json!([function("c", "bash")]));
    assert_eq!(message["content"], Json::Null);

    let output = [item("h", ECHO), item("c", "bash")];
    let response = json!({ "id": "1", "output": output, "status": "completed" });
    let seen = merged(Dialect::Responses, client(), &[response]);
    assert_eq!(seen["output"], json!([item("c", "bash")]));
}

#[test]
fn a_truncated_call_is_neither_executed_nor_shown() {
    let cut = json!({ "content": [tool("h", ECHO)], "stop_reason": "max_tokens" });
    let seen = merged(Dialect::Messages, client(), &[cut]);
    assert_eq!((&seen["content"], &seen["stop_reason"]), (&json!([]), &json!("max_tokens")));

    let cut = completion(json!([function("h", ECHO)]), "length");
    let seen = merged(Dialect::ChatCompletions, client(), &[cut]);
    assert!(seen["choices"][0]["message"].get("tool_calls").is_none());
    assert_eq!(seen["choices"][0]["finish_reason"], "length");

    let cut = json!({ "output": [item("h", ECHO)], "status": "incomplete", "error": null });
    assert_eq!(merged(Dialect::Responses, client(), &[cut])["output"], json!([]));
}

#[test]
fn a_response_without_usage_or_status_is_merged_too() {
    let turns = [
        json!({ "id": "1", "output": [item("h", ECHO)] }),
        json!({ "id": "2", "output": [item("c", "bash")] }),
    ];
    let seen = merged(Dialect::Responses, client(), &turns);
    assert_eq!(seen, json!({ "id": "1", "output": [item("c", "bash")] }));
}

#[test]
fn a_response_echoes_the_clients_settings() {
    let client = ClientView {
        previous_response_id: Some("resp_0".into()),
        parallel_tool_calls: Some("null".into()),
        ..client()
    };
    let response = json!({ "id": "1", "output": [], "status": "completed",
        "previous_response_id": "resp_last", "parallel_tool_calls": false,
        "tools": [{ "type": "function", "name": ADD }] });
    let seen = merged(Dialect::Responses, client.clone(), &[response]);
    assert_eq!(seen["previous_response_id"], "resp_0");
    assert_eq!((&seen["parallel_tool_calls"], &seen["tools"]), (&Json::Null, &json!([])));
    // Nothing is added to a response that does not echo the request.
    let bare = json!({ "id": "1", "output": [], "status": "completed" });
    assert_eq!(merged(Dialect::Responses, client, std::slice::from_ref(&bare)), bare);
}
