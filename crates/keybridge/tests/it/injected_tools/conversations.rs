//! Hidden calls next to and before the client's own, and the next request of the conversation.

use super::*;

/// Checks that the next request begins with the last request of the previous exchange, except for its
/// last message.
async fn continue_conversation(
    tools: &Tools,
    way: (&str, bool),
    seen: &Seen,
    body: &Value,
) -> Value {
    let before = tools.exchanges();
    let turns = json!([[], [], [], [{ "text": "{result}" }]]);
    let next = tools.send(way, body, &turns).await;
    assert_status!(next, 200, "{way:?}");
    let after = tools.exchanges();
    let last = after.last().unwrap();
    assert!(last.extends(before.last().unwrap()), "{way:?}: the hidden calls are back");
    assert!(!seen.raw.contains("bmcp_") && !next.raw.contains("bmcp_"));
    serde_json::from_slice(&last.body).unwrap()
}

#[tokio::test]
async fn a_turn_may_call_tools_of_bridge_and_client() {
    let tools = Tools::start().await;
    for (count, way) in WAYS.into_iter().enumerate() {
        tools.world.sim.clear();
        let own = json!({ "call": "own_tool", "arguments": { "x": 1 } });
        let turns = json!([[{ "text": "both" }, call("echo", json!({ "message": "hid" })), own]]);
        let seen = tools.ask(way, &turns).await;
        assert_eq!((seen.calls.len(), seen.text.as_str()), (1, "both"), "{way:?}: {}", seen.raw);
        let record = tools.world.settled_records(2 * count + 1).await.pop().unwrap();
        assert_eq!(record["inner_turns"], 0);
        let rows = record["tool_usages"].as_array().unwrap();
        assert_eq!((&rows[0]["injected"], &rows[1]["injected"]), (&json!(true), &json!(false)));
        let sent = continue_conversation(&tools, way, &seen, &seen.next(way.0, way.1)).await;
        assert!(sent.to_string().contains("Echo: hid"), "{way:?}: {sent}");
        let record = tools.world.settled_records(2 * count + 2).await.pop().unwrap();
        assert_eq!(record["body_edits"][0], "restore_hidden_calls");
        assert_eq!(record["correlating_tool_call_id"], seen.calls[0]);
    }
}

#[tokio::test]
async fn hidden_turns_may_come_before_the_clients_call() {
    let tools = Tools::start().await;
    for way in WAYS {
        tools.world.sim.clear();
        let own = json!({ "call": "own_tool", "arguments": {} });
        let turns = json!([
            [{ "thinking": "a" }, { "text": "I look. " }, call("echo", json!({ "message": "one" }))],
            [{ "redacted": true }, { "thinking": "b" }, call("echo", json!({ "message": "two" }))],
            [{ "thinking": "c" }, { "text": "Now you." }, own],
        ]);
        let seen = tools.ask(way, &turns).await;
        assert_eq!((seen.calls.len(), seen.text.as_str()), (1, "I look. Now you."), "{way:?}");
        let mut next = seen.next(way.0, way.1);
        if way.0 == CHAT {
            // Clients do not send back the model's reasoning in this dialect.
            next["messages"][1].as_object_mut().unwrap().remove("reasoning_content");
        }
        continue_without_reasoning(&tools, way, &next).await;
    }
}

/// Like [`continue_conversation`], except that the reasoning of a chat message is not part of the
/// history.
async fn continue_without_reasoning(tools: &Tools, way: (&str, bool), body: &Value) {
    let before = tools.exchanges();
    let next = tools.send(way, body, &json!([[], [], [], [{ "text": "{result}" }]])).await;
    assert_status!(next, 200, "{way:?}");
    let after = tools.exchanges();
    let last = after.last().unwrap();
    let sent = String::from_utf8_lossy(&last.body).into_owned();
    assert!(sent.contains("Echo: one") && sent.contains("Echo: two"), "{way:?}: {sent}");
    if way.0 != CHAT {
        assert!(last.extends(before.last().unwrap()), "{way:?}");
    }
}

#[tokio::test]
async fn previous_response_id_continues_from_the_last_turn() {
    for stream in [true, false] {
        let tools = Tools::start().await;
        let way = (RESPONSES, stream);
        let turns = json!([[call("echo", json!({ "message": "hid" }))], [{ "text": "done" }]]);
        let seen = tools.ask(way, &turns).await;
        let mut next = request(RESPONSES, stream);
        next["previous_response_id"] = seen.id.clone().into();
        let second = tools.send(way, &next, &json!([[{ "text": "again" }]])).await;
        assert_status!(second, 200);
        assert_eq!(second.text, "again", "{}", second.raw);
        assert!(second.raw.contains(&seen.id), "the client sees the id that it knows");
        let records = tools.world.settled_records(2).await;
        let last_id = &records[0]["token_usages"][1]["provider_response_id"];
        let sent: Value = serde_json::from_slice(&tools.exchanges().pop().unwrap().body).unwrap();
        assert_eq!(sent["previous_response_id"], *last_id);
        assert_eq!(records[1]["body_edits"][0], "previous_response_id");
    }
}

#[tokio::test]
async fn a_response_stored_by_the_provider_gets_all_results() {
    for stream in [true, false] {
        let tools = Tools::start().await;
        let way = (RESPONSES, stream);
        let own = json!({ "call": "own_tool", "arguments": {} });
        let turns = json!([
            [call("echo", json!({ "message": "zero" }))],
            [call("echo", json!({ "message": "hid" })), own],
        ]);
        let seen = tools.ask(way, &turns).await;
        let mut next = request(RESPONSES, stream);
        next["previous_response_id"] = seen.id.clone().into();
        next["input"] = seen.outputs().into();
        let second = tools.send(way, &next, &json!([[], [], [{ "text": "{result}" }]])).await;
        assert_status!(second, 200);
        let sent = String::from_utf8_lossy(&tools.exchanges().pop().unwrap().body).into_owned();
        assert!(sent.contains("Echo: hid") && !sent.contains("Echo: zero"), "{sent}");
    }
}

#[tokio::test]
async fn hidden_calls_of_one_user_are_not_restored_for_another() {
    let tools = Tools::start().await;
    let bob = crate::support::user_with_token(&tools.world.ledger, "bob");
    for way in WAYS {
        tools.world.sim.clear();
        let own = json!({ "call": "own_tool", "arguments": {} });
        let turns = json!([[call("echo", json!({ "message": "hid" })), own]]);
        let seen = tools.ask(way, &turns).await;
        let bearer = format!("Bearer {bob}");
        let headers =
            [("authorization", bearer.as_str()), ("x-sim-turns", r#"[[],[{"text":"x"}]]"#)];
        let body = seen.next(way.0, way.1).to_string();
        let answer = tools.world.send(tools.world.post(way.0, &headers, body)).await;
        assert_status!(answer, 200);
        let sent = String::from_utf8_lossy(&tools.exchanges().pop().unwrap().body).into_owned();
        assert!(!sent.contains("Echo: hid"), "{way:?}: {sent}");
    }
}
