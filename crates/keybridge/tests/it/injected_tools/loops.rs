//! The tool loop without failures.

use http_body_util::BodyExt;
use keybridge_sim::{INPUT_TOKENS, OUTPUT_TOKENS};

use super::*;

/// Thinking, text, a call and the next turn.
fn story() -> Value {
    json!([
        [{ "thinking": "let me see" }, { "text": "I look. " }, call("echo", json!({ "message": "hi" }))],
        [{ "thinking": "so" }, { "text": "It said: {result}" }],
    ])
}

#[tokio::test]
async fn two_turns_are_one_response() {
    let tools = Tools::start().await;
    for (count, way) in WAYS.into_iter().enumerate() {
        tools.world.sim.clear();
        let seen = tools.ask(way, &story()).await;
        assert_eq!(seen.text, "I look. It said: Echo: hi", "{way:?}: {}", seen.raw);
        assert!(!seen.raw.contains("bmcp_"), "{way:?}: neither tools nor calls: {}", seen.raw);
        assert_eq!(seen.tokens, (2 * INPUT_TOKENS, 2 * OUTPUT_TOKENS), "{way:?}");
        assert!(seen.calls.is_empty());
        let exchanges = tools.exchanges();
        assert_eq!(exchanges.len(), 2);
        assert!(exchanges[1].extends(&exchanges[0]), "{way:?}: the cache stays valid");
        let record = tools.world.settled_records(count + 1).await.pop().unwrap();
        check_record(&record, &seen, way);
    }
    let seen_by_server = format!("{:?}", tools.mcp.calls());
    assert!(!seen_by_server.contains(&tools.world.token));
    for key in [crate::support::ANTHROPIC_KEY, crate::support::OPENAI_KEY] {
        assert!(!seen_by_server.contains(key));
    }
    assert!(seen_by_server.contains(MCP_SECRET), "the server received its credential");
}

fn check_record(record: &Value, seen: &Seen, way: (&str, bool)) {
    assert_eq!(record["outcome"], "completed", "{way:?} {record:#}");
    assert_eq!((&record["inner_turns"], &record["attempts"]), (&json!(1), &json!(2)));
    assert_eq!(record["body_edits"], json!(["inject_tools", "parallel_tool_calls"]), "{way:?}");
    let (_path, is_stream) = way;
    let events = is_stream.then(|| crate::phases::events(&seen.raw));
    assert_eq!(record["events_relayed"], json!(events), "{way:?}: {}", seen.raw);
    let rows = record["token_usages"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "a row for each response");
    assert_eq!(
        rows[0]["provider_response_id"], seen.id,
        "the client sees the id of the first response"
    );
    assert_ne!(rows[1]["provider_response_id"], seen.id);
    for row in rows {
        assert_eq!(row["quality"], "exact");
        assert_eq!(
            (&row["input_tokens"], &row["output_tokens"]),
            (&json!(INPUT_TOKENS), &json!(OUTPUT_TOKENS))
        );
    }
    let tool = tool_of(record);
    assert_eq!((&tool["tool"], &tool["injected"]), (&json!("echo"), &json!(true)));
    assert_eq!(tool["arguments"], json!({ "message": "hi" }));
    assert!(tool["server_url"].as_str().unwrap().ends_with("/mcp"));
    assert!(tool["duration_ms"].is_u64() && tool["result_bytes"].as_u64().unwrap() > 8, "{tool}");
    assert_eq!(
        (&tool["invocation_error"], &tool["result_is_error"]),
        (&Value::Null, &json!(false))
    );
    assert_eq!(tool["provider_response_id"], seen.id);
    let thoughts: Vec<&str> = record["thoughts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["content"].as_str().unwrap())
        .collect();
    assert_eq!(thoughts, ["let me see", "so"], "{way:?}");
}

#[tokio::test]
async fn results_and_the_answer_of_each_turn_are_recorded_if_that_is_configured() {
    for way in WAYS {
        let tools = Tools::with(|config| {
            config.record.tool_results = true;
            config.record.answers = true;
        })
        .await;
        tools.ask(way, &story()).await;
        let record = tools.world.settled_record().await;
        let tool = tool_of(&record);
        assert_eq!(tool["result"], "Echo: hi", "{way:?}: {record:#}");
        assert_eq!(tool["result_interception_id"], Value::Null);
        let answers = record["answers"].as_array().unwrap().iter();
        let texts: Vec<_> = answers.map(|row| row["content"].as_str().unwrap()).collect();
        assert_eq!(texts, ["I look. ", "It said: Echo: hi"], "{way:?}");
    }
}

#[tokio::test]
async fn the_client_sees_at_once_what_the_model_writes() {
    for path in ENDPOINTS {
        let tools = Tools::start().await;
        let turns = json!([
            [{ "text": "ONE" }, { "hold": "first" }, call("echo", json!({ "message": "hi" }))],
            [{ "text": "TWO" }, { "hold": "second" }, { "text": "END" }],
        ]);
        let bearer = format!("Bearer {}", tools.world.token);
        let turns = turns.to_string();
        let headers = [("authorization", bearer.as_str()), ("x-sim-turns", turns.as_str())];
        let request = tools.world.post(path, &headers, request(path, true).to_string());
        let mut answer = crate::support::client(false).request(request).await.unwrap().into_body();
        let mut text = String::new();
        // The provider sends the rest only after this has been read.
        for (word, hold) in [("ONE", "first"), ("TWO", "second")] {
            while !text_of(&text).contains(word) {
                let frame = tokio::time::timeout(Duration::from_secs(10), answer.frame()).await;
                let frame = frame.unwrap_or_else(|_| panic!("{path}: {word} is held back: {text}"));
                text.push_str(
                    std::str::from_utf8(frame.unwrap().unwrap().data_ref().unwrap()).unwrap(),
                );
            }
            tools.world.sim.release(hold);
        }
        let rest = answer.collect().await.unwrap().to_bytes();
        text.push_str(std::str::from_utf8(&rest).unwrap());
        assert!(text_of(&text).contains("END"), "{text}");
    }
}

/// The text of a stream so far.
fn text_of(stream: &str) -> String {
    let whole = stream.rfind("\n\n").map_or(0, |end| end + 2);
    let part = |event: Value| {
        let delta = &event["delta"];
        let texts = [&delta["text"], delta, &event["choices"][0]["delta"]["content"]];
        texts.iter().find_map(|text| text.as_str()).unwrap_or_default().to_owned()
    };
    seen::events(stream.get(..whole).unwrap()).into_iter().map(part).collect()
}

#[tokio::test]
async fn calls_of_one_turn_run_concurrently_and_each_gets_its_result() {
    let tools = Tools::start().await;
    let slow = |ms: u64| call("slow", json!({ "ms": ms }));
    for (count, way) in WAYS.into_iter().enumerate() {
        tools.world.sim.clear();
        let turns = json!([
            [slow(300), slow(200), call("add", json!({ "a": 2, "b": 3 }))],
            [{ "text": "{result}" }],
        ]);
        let asking = tools.ask(way, &turns);
        tokio::pin!(asking);
        let mut most = 0;
        let seen = loop {
            tokio::select! {
                seen = &mut asking => break seen,
                () = sleep(Duration::from_millis(5)) => most = most.max(tools.mcp.running()),
            }
        };
        assert!(most >= 2, "{way:?}: both run at the same time");
        let results: Vec<&str> = seen.text.split_whitespace().collect();
        assert!(seen.text.contains("300") && seen.text.contains("200"), "{results:?}");
        assert!(seen.text.trim_end().ends_with('5'), "in the order of the calls: {results:?}");
        let record = tools.world.settled_records(count + 1).await.pop().unwrap();
        let rows = record["tool_usages"].as_array().unwrap();
        let names: Vec<&str> = rows.iter().map(|row| row["tool"].as_str().unwrap()).collect();
        assert_eq!(names, ["slow", "slow", "add"]);
        assert!(rows.iter().all(|row| row["invocation_error"].is_null()));
        tools.exchanges();
    }
}

#[tokio::test]
async fn many_turns_are_one_response() {
    let tools = Tools::start().await;
    for way in WAYS {
        tools.world.sim.clear();
        let mut turns: Vec<Value> = (0..5)
            .map(|n| json!([{ "redacted": true }, { "thinking": format!("t{n}") }, { "text": format!("{n} ") }, call("echo", json!({ "message": n.to_string() }))]))
            .collect();
        turns.push(json!([{ "text": "end" }]));
        let seen = tools.ask(way, &turns.into()).await;
        assert_eq!(seen.text, "0 1 2 3 4 end", "{way:?}");
        assert_eq!(seen.tokens, (6 * INPUT_TOKENS, 6 * OUTPUT_TOKENS));
        let exchanges = tools.exchanges();
        assert_eq!(exchanges.len(), 6);
        assert!(exchanges.windows(2).all(|pair| pair[1].extends(&pair[0])), "{way:?}");
    }
}

#[tokio::test]
async fn the_same_configuration_produces_the_same_requests() {
    let (one, other) = (Tools::start().await, Tools::start().await);
    for way in WAYS {
        let mut bodies = Vec::new();
        for tools in [&one, &other, &one] {
            tools.ask(way, &json!([[{ "text": "x" }]])).await;
            bodies.push(tools.world.last_exchange().body);
        }
        assert!(bodies.windows(2).all(|pair| pair[0] == pair[1]), "{way:?}");
    }
}
