//! Failures of injected tools and of later turns.

use http_body_util::BodyExt;
use keybridge_identity::Accounts;

use super::*;

#[tokio::test]
async fn the_model_gets_the_error_of_a_failed_call_and_the_response_continues() {
    let tools = Tools::start().await;
    let mut count = 0;
    for (tool, told, is_error) in [
        ("fail", "Error", Some(true)),
        ("gone", "Error: the MCP server sim is not available", None),
        ("invalid", "Error: the MCP server's result is not valid", None),
        ("protocol-error", "Error: ", None),
    ] {
        for way in WAYS {
            let turns = json!([[call(tool, json!({}))], [{ "text": "{result}" }]]);
            let seen = tools.ask(way, &turns).await;
            count += 1;
            assert_status!(seen, 200, "{tool} {way:?}");
            let expected = if tool == "fail" && way.0 == MESSAGES { "" } else { told };
            assert!(seen.text.starts_with(expected), "{tool} {way:?}: {}", seen.text);
            let record = tools.world.settled_records(count).await.pop().unwrap();
            assert_eq!(record["outcome"], "completed");
            let row = tool_of(&record);
            assert!(row["invocation_error"].is_string(), "{row}");
            assert_eq!(row["result_is_error"], json!(is_error), "{row}");
            let body: Value =
                serde_json::from_slice(&tools.exchanges().pop().unwrap().body).unwrap();
            if way.0 == MESSAGES {
                let result = &body["messages"].as_array().unwrap().last().unwrap()["content"][0];
                assert_eq!(result["is_error"], true);
            }
        }
    }
}

#[tokio::test]
async fn content_other_than_text_is_passed_as_each_dialect_allows() {
    let tools = Tools::start().await;
    for tool in ["image", "odd", "resource", "structured"] {
        for way in WAYS {
            let turns = json!([[call(tool, json!({}))], [{ "text": "ok" }]]);
            let seen = tools.ask(way, &turns).await;
            assert_status!(seen, 200, "{tool} {way:?}");
            assert_eq!(seen.text, "ok", "{tool} {way:?}");
            let body = String::from_utf8_lossy(&tools.exchanges().pop().unwrap().body).into_owned();
            if tool == "image" && way.0 == MESSAGES {
                assert!(body.contains(r#""media_type":"image/png""#), "{body}");
            }
        }
    }
}

#[tokio::test]
async fn arguments_that_are_not_an_object_are_not_sent_to_the_tool() {
    let tools = Tools::start().await;
    for (count, way) in WAYS.into_iter().enumerate() {
        // A response of the Messages API that is not streamed cannot contain arguments that are not JSON.
        let arguments = if way == (MESSAGES, false) { json!([1]) } else { json!("{\"message\": ") };
        let turns = json!([
            [{ "call": "bmcp_sim_echo", "arguments": arguments }],
            [{ "text": "{result}" }],
        ]);
        let seen = tools.ask(way, &turns).await;
        assert!(
            seen.text.starts_with("Error: the arguments are not a JSON object"),
            "{way:?}: {}",
            seen.raw
        );
        assert!(tools.mcp.calls().is_empty());
        let record = tools.world.settled_records(count + 1).await.pop().unwrap();
        assert!(tool_of(&record)["invocation_error"].as_str().unwrap().contains("not called"));
        tools.exchanges();
    }
}

#[tokio::test]
async fn a_truncated_call_is_not_made() {
    let tools = Tools::start().await;
    for (count, way) in WAYS.into_iter().enumerate() {
        let arguments = if way == (MESSAGES, false) { json!({}) } else { json!("{\"mess") };
        let turns = json!([
            [{ "text": "so far" }, { "call": "bmcp_sim_echo", "arguments": arguments }, { "stop": "max_tokens" }],
        ]);
        let seen = tools.ask(way, &turns).await;
        assert_eq!((seen.text.as_str(), seen.calls.len()), ("so far", 0), "{way:?}: {}", seen.raw);
        let stop = match way.0 {
            MESSAGES => "max_tokens",
            CHAT => "length",
            _ => "incomplete",
        };
        assert_eq!(seen.stop, stop, "it ends as the model ended it");
        assert!(tools.mcp.calls().is_empty());
        let record = tools.world.settled_records(count + 1).await.pop().unwrap();
        assert_eq!((&record["outcome"], &record["inner_turns"]), (&json!("completed"), &json!(0)));
        assert_eq!(tool_of(&record)["invocation_error"], "the call was not made");
    }
}

#[tokio::test]
async fn a_provider_may_reject_the_second_turn() {
    let tools = Tools::start().await;
    for (count, way) in WAYS.into_iter().enumerate() {
        let turns = json!([[{ "text": "one" }, call("echo", json!({ "message": "x" }))], [{ "error": 429 }]]);
        let seen = tools.ask(way, &turns).await;
        let error = seen.error.clone().unwrap();
        assert!(error.contains("asks for this error"), "{way:?}: {error}");
        if way.1 {
            assert_status!(seen, 200);
            assert_eq!(seen.text, "one");
        } else {
            assert_status!(seen, 429);
            let sent = tools.world.last_exchange().response_sent;
            assert_eq!(seen.raw.as_bytes(), sent, "the provider's own error, unchanged");
        }
        let record = tools.world.settled_records(count + 1).await.pop().unwrap();
        assert_eq!(
            (&record["outcome"], &record["upstream_status"]),
            (&json!("failed"), &json!(429)),
            "{record:#}"
        );
        assert!(record["error_message"].as_str().unwrap().contains("asks for this error"));
        assert_eq!(
            record["token_usages"].as_array().unwrap().len(),
            1,
            "the first turn is paid for"
        );
        assert_eq!(record["token_usages"][0]["quality"], "exact");
        assert_eq!(record["attempts"], 2);
    }
}

#[tokio::test]
async fn a_provider_may_truncate_the_second_turn() {
    let tools = Tools::start().await;
    for (count, way) in WAYS.into_iter().enumerate() {
        for (number, end) in ["break", "error_event"].into_iter().enumerate() {
            let mut last = json!([{ "text": "two" }]);
            last.as_array_mut().unwrap().push(json!({ end: true }));
            let turns = json!([[{ "text": "one" }, call("echo", json!({ "message": "x" }))], last]);
            let seen = tools.ask(way, &turns).await;
            assert!(seen.error.is_some(), "{way:?} {end}: {}", seen.raw);
            if way.1 {
                assert!(seen.text.starts_with("one"), "{way:?} {end}: {}", seen.raw);
                assert!(!seen.raw.contains("bmcp_"));
            }
            let record = tools.world.settled_records(2 * count + number + 1).await.pop().unwrap();
            assert_eq!(record["outcome"], "failed", "{way:?} {end}: {record:#}");
            assert_eq!(record["token_usages"][0]["quality"], "exact");
            assert!(tool_of(&record)["invocation_error"].is_null());
        }
    }
}

#[tokio::test]
async fn a_client_that_disconnects_cancels_the_call() {
    for way in WAYS {
        let tools = Tools::start().await;
        let turns = json!([[{ "text": "one" }, call("slow", json!({ "ms": 60_000 }))], [{ "text": "two" }]]);
        let bearer = format!("Bearer {}", tools.world.token);
        let turns = turns.to_string();
        let headers = [("authorization", bearer.as_str()), ("x-sim-turns", turns.as_str())];
        let request = tools.world.post(way.0, &headers, request(way.0, way.1).to_string());
        let client = crate::support::client(false);
        let mut asking = Box::pin(async move {
            let mut answer = client.request(request).await.unwrap().into_body();
            while answer.frame().await.is_some() {}
        });
        let running = until("the tool runs", || tools.mcp.running() > 0);
        tokio::select! {
            () = &mut asking => panic!("{way:?}: the response ended"),
            () = running => drop(asking),
        }
        until("the server is told", || tools.mcp.cancelled() == 1).await;
        let record = tools.world.settled_record().await;
        assert_eq!(record["outcome"], "cancelled", "{way:?}");
        assert_eq!(record["token_usages"][0]["quality"], "exact", "{way:?}: {record:#}");
        let row = tool_of(&record);
        assert_eq!(
            (&row["injected"], &row["invocation_error"]),
            (&json!(true), &json!("the call was cancelled"))
        );
        assert!(row["duration_ms"].is_u64());
        assert_eq!(record["attempts"], 1, "the provider got no further request");
    }
}

/// Interrupts a request while its tool runs; returns what the client received.
async fn interrupt_call(tools: &Tools, way: (&str, bool), interrupt: impl FnOnce()) -> Seen {
    let turns = json!([[{ "text": "one" }, call("slow", json!({ "ms": 60_000 }))]]);
    let asking = tools.ask(way, &turns);
    tokio::pin!(asking);
    tokio::select! {
        _seen = &mut asking => panic!("{way:?}: the response ended"),
        () = until("the tool runs", || tools.mcp.running() > 0) => {}
    }
    interrupt();
    asking.await
}

#[tokio::test]
async fn a_shutdown_ends_the_tool_loop() {
    for way in WAYS {
        let tools = Tools::start().await;
        let seen = interrupt_call(&tools, way, || tools.world.shutdown.cancel()).await;
        assert!(seen.error.unwrap().contains("shutting down"), "{way:?}");
        let record = tools.world.settled_record().await;
        assert_eq!(record["outcome"], "failed");
        assert_eq!(record["token_usages"][0]["quality"], "exact");
        tools.world.bridge.close_mcp_sessions().await;
        until("the session is ended", || tools.mcp.sessions_deleted() == 1).await;
    }
}

#[tokio::test]
async fn a_revocation_ends_the_tool_loop() {
    for way in WAYS {
        let tools = Tools::start().await;
        let revoke = || {
            let accounts = Accounts::new(tools.world.ledger.clone());
            let token = accounts.tokens(Some("ada")).unwrap().remove(0);
            accounts.revoke_token(token.id).unwrap();
        };
        let seen = interrupt_call(&tools, way, revoke).await;
        assert!(seen.error.unwrap().contains("the bridge token was revoked"), "{way:?}");
        until("the call is cancelled", || tools.mcp.cancelled() == 1).await;
        let record = tools.world.settled_record().await;
        assert_eq!(record["error_kind"], "token_revoked", "{way:?}: {record:#}");
        assert_eq!(record["token_usages"][0]["quality"], "exact");
    }
}

#[tokio::test]
async fn a_later_turn_uses_the_key_that_works() {
    let (tired, fresh) = ("sk-tired-0123456789abcdef", "sk-fresh-0123456789abcdef");
    for way in WAYS {
        let tools = Tools::with(|config| {
            for provider in &mut config.providers[..2] {
                provider.keys = vec![pool_key("tired", tired), pool_key("fresh", fresh)];
            }
        })
        .await;
        let answer = KeyOverride { status: 429, retry_after: Some(60) };
        tools.world.sim.override_key(tired, Some(answer));
        let turns = json!([[call("echo", json!({ "message": "hi" }))], [{ "text": "done" }]]);
        assert_eq!(tools.ask(way, &turns).await.text, "done", "{way:?}");
        let used: Vec<bool> = tools
            .exchanges()
            .iter()
            .map(|exchange| {
                let values =
                    exchange.headers.iter().map(|(_, value)| String::from_utf8_lossy(value));
                values.into_iter().any(|value| value.contains(fresh))
            })
            .collect();
        assert_eq!(used, [false, true, true], "{way:?}");
        let record = tools.world.settled_record().await;
        assert_eq!((&record["inner_turns"], &record["attempts"]), (&json!(1), &json!(3)));
        assert_eq!(record["credential_source"], "pool:fresh");
    }
}
