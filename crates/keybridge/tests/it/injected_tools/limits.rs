//! Limits of injected tools, and which requests get them.

use regex::Regex;

use super::*;

/// The names of the injected tools in the last request, and the request.
fn offered(tools: &Tools) -> (Vec<String>, Value) {
    let body: Value = serde_json::from_slice(&tools.exchanges().pop().unwrap().body).unwrap();
    let list = body["tools"].as_array().cloned().unwrap_or_default();
    let name = |tool: &Value| {
        let name = tool.get("name").or_else(|| tool["function"].get("name"));
        name.and_then(Value::as_str).unwrap().to_owned()
    };
    let names = list.iter().map(name).filter(|name| name.starts_with("bmcp_")).collect();
    (names, body)
}

fn client_tool(path: &str, name: &str) -> Value {
    match path {
        MESSAGES => json!({ "name": name, "input_schema": { "type": "object" } }),
        CHAT => {
            json!({ "type": "function", "function": { "name": name, "parameters": { "type": "object" } } })
        }
        _ => json!({ "type": "function", "name": name, "parameters": { "type": "object" } }),
    }
}

fn plain() -> Value {
    json!([[{ "text": "x" }]])
}

#[tokio::test]
async fn the_number_of_turns_is_limited() {
    let tools = Tools::with(|config| config.tools.max_turns = 2).await;
    for (count, way) in WAYS.into_iter().enumerate() {
        let turns: Vec<Value> = (0..4)
            .map(|n| json!([{ "text": format!("{n} ") }, call("echo", json!({ "message": "x" }))]))
            .collect();
        let seen = tools.ask(way, &turns.into()).await;
        let error = seen.error.clone().unwrap();
        assert!(error.contains("more than 2 turns"), "{way:?}: {error}");
        if way.1 {
            assert_eq!(seen.text, "0 1 2 ", "{way:?}: what came before was relayed");
        } else {
            assert_status!(seen, 502);
        }
        let record = tools.world.settled_records(count + 1).await.pop().unwrap();
        assert_eq!((&record["outcome"], &record["inner_turns"]), (&json!("failed"), &json!(2)));
        assert_eq!(record["token_usages"].as_array().unwrap().len(), 3, "every turn is billed");
        let rows = record["tool_usages"].as_array().unwrap();
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[2]["invocation_error"], "the call was not made");
    }
}

#[tokio::test]
async fn the_size_of_results_and_the_duration_of_calls_are_limited() {
    let tools = Tools::with(|config| {
        let server = &mut config.tools.servers[0];
        server.max_result = 1_000;
        server.call_timeout = Duration::from_millis(300);
    })
    .await;
    for (count, way) in WAYS.into_iter().enumerate() {
        let turns = json!([
            [call("big", json!({ "bytes": 50_000 })), call("slow", json!({ "ms": 60_000 }))],
            [{ "text": "{result}" }],
        ]);
        let seen = tools.ask(way, &turns).await;
        assert!(
            seen.text.contains("xxx") && seen.text.len() < 3_000,
            "{way:?}: {}",
            seen.text.len()
        );
        assert!(seen.text.contains("the limit is 1000"), "{}", seen.text);
        assert!(seen.text.contains("Error: timed out after 0.3 s"), "{}", seen.text);
        let record = tools.world.settled_records(count + 1).await.pop().unwrap();
        let rows = record["tool_usages"].as_array().unwrap();
        assert!(rows[0]["result_bytes"].as_u64().unwrap() > 50_000);
        assert_eq!(rows[1]["invocation_error"], "timed out after 0.3 s");
        until("the server is told", || tools.mcp.cancelled() > count).await;
    }
}

#[tokio::test]
async fn openai_gets_no_more_tools_than_it_accepts() {
    let tools = Tools::start().await;
    let all = tools.world.bridge.mcp_states()[0].tools.len();
    for (path, stream) in WAYS {
        for own in [120, 128] {
            let mut body = request(path, stream);
            body["tools"] = (0..own).map(|n| client_tool(path, &format!("own_{n}"))).collect();
            let seen = tools.send((path, stream), &body, &plain()).await;
            assert_status!(seen, 200);
            let room = if path == MESSAGES { all } else { (128 - own).min(all) };
            assert_eq!(offered(&tools).0.len(), room, "{path} {own}");
            let record = tools.world.records().await.pop().unwrap();
            let left_out = format!("tools_left_out:{}", all - room);
            let is_told = record["body_edits"].as_array().unwrap().contains(&left_out.into());
            assert_eq!(is_told, room < all && room > 0, "{}", record["body_edits"]);
        }
    }
}

#[tokio::test]
async fn a_tool_of_the_client_takes_precedence_over_one_of_the_same_name() {
    let tools = Tools::start().await;
    for way in WAYS {
        let mut body = request(way.0, way.1);
        body["tools"] = json!([client_tool(way.0, "bmcp_sim_echo")]);
        let turns = json!([[call("echo", json!({ "message": "mine" }))]]);
        let seen = tools.send(way, &body, &turns).await;
        assert_eq!(seen.calls.len(), 1, "{way:?}: its call goes to the client: {}", seen.raw);
        assert!(tools.mcp.calls().is_empty());
        let record = tools.world.records().await.pop().unwrap();
        assert_eq!(tool_of(&record)["injected"], false);
    }
}

#[tokio::test]
async fn the_configuration_decides_which_providers_get_which_tools() {
    let tools = Tools::with(|config| {
        let url = config.tools.servers[0].url.to_string();
        config.tools.servers[0].allow = Some(Regex::new("^(echo|add|fail)$").unwrap());
        config.tools.servers[0].deny = Some(Regex::new("fail").unwrap());
        let mut second = server_config("second", &url);
        second.allow = Some(Regex::new("^slow$").unwrap());
        second.providers = Some(vec!["openai".into()]);
        config.tools.servers.push(second);
    })
    .await;
    for way in WAYS {
        tools.ask(way, &plain()).await;
        let mut expected = vec!["bmcp_sim_add", "bmcp_sim_echo"];
        if way.0 != MESSAGES {
            expected.insert(0, "bmcp_second_slow");
        }
        assert_eq!(offered(&tools).0, expected, "{way:?}");
    }
}

#[tokio::test]
async fn some_requests_get_no_tools() {
    let tools = Tools::start().await;
    for way in WAYS {
        let mut body = request(way.0, way.1);
        body["model"] = "claude-HAIKU-4-5".into();
        tools.send(way, &body, &plain()).await;
        assert!(offered(&tools).0.is_empty(), "{way:?}");
        let record = tools.world.records().await.pop().unwrap();
        assert_eq!(record["body_edits"], json!([]));
    }
    let mut background = request(RESPONSES, false);
    background["background"] = true.into();
    tools.answer(RESPONSES, &background, &plain()).await;
    assert!(offered(&tools).0.is_empty());
    let mut legacy = request(CHAT, false);
    legacy["functions"] = json!([{ "name": "f", "parameters": {} }]);
    tools.send((CHAT, false), &legacy, &plain()).await;
    assert!(offered(&tools).0.is_empty());
    let mut several = request(CHAT, false);
    several["n"] = 2.into();
    tools.send((CHAT, false), &several, &plain()).await;
    assert!(offered(&tools).0.is_empty());
    let mut several = request(CHAT, true);
    several["n"] = 2.into();
    tools.send((CHAT, true), &several, &plain()).await;
    let (ids, body) = offered(&tools);
    assert!(!ids.is_empty() && body["n"] == 1);
}

#[tokio::test]
async fn models_make_one_call_at_a_time_unless_configured_otherwise() {
    for parallel in [false, true] {
        let tools = Tools::with(|config| config.tools.parallel_calls = parallel).await;
        for way in WAYS {
            tools.ask(way, &plain()).await;
            let (_, body) = offered(&tools);
            let told = match way.0 {
                MESSAGES => body["tool_choice"]["disable_parallel_tool_use"] == true,
                _ => body["parallel_tool_calls"] == false,
            };
            assert_eq!(told, !parallel, "{way:?}");
        }
    }
}
