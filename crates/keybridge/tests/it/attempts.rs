//! Each exchange with a provider is a row of the record: keys, retries, fallbacks and turns.

use keybridge_providers::config::ProviderType;
use keybridge_sim::{KeyOverride, mcp_server::McpSim};
use serde_json::Value;

use crate::support::{ANTHROPIC_KEY, ENDPOINTS, World, body, mcp_server, pool_key, provider};

const SPARE_KEY: &str = "sk-spare-0123456789abcdef";

/// One member of all attempts of a record, in their order.
fn each(record: &Value, member: &str) -> Vec<Value> {
    let attempts = record["upstream_attempts"].as_array().unwrap();
    attempts.iter().map(|attempt| attempt[member].clone()).collect()
}

#[tokio::test]
async fn a_record_names_the_edits_of_the_instance_that_served_and_each_attempt_its_own() {
    let mcp = McpSim::new().start().await.unwrap();
    let world = World::with(|config| {
        let mut server = mcp_server("sim", &mcp.url());
        server.providers = Some(vec!["anthropic".into()]);
        config.tools.servers.push(server);
        let base = config.providers[0].base_url.to_string();
        let mut spare = provider(ProviderType::Anthropic, base.trim_end_matches("/anthropic"));
        spare.name = "spare".into();
        spare.keys = vec![pool_key("spare", SPARE_KEY)];
        config.providers[0].fallback = Some("spare".into());
        config.providers.push(spare);
    })
    .await;
    world.sim.override_key(ANTHROPIC_KEY, Some(KeyOverride { status: 429, retry_after: Some(60) }));
    let path = ENDPOINTS[0];
    let answer = world.send(world.centralized(path, &body(path, "text", true))).await;
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.text());
    let sent = String::from_utf8_lossy(&world.last_exchange().body).into_owned();
    assert!(!sent.contains("bmcp_sim"), "the spare instance has no tools: {sent}");
    let record = world.settled_record().await;
    assert_eq!(record["provider"], "spare");
    assert_eq!(record["body_edits"], Value::Array(Vec::new()), "what was sent to it had no edits");
    assert_eq!(record["attempts"], 2);
    assert_eq!(each(&record, "number"), [1, 2]);
    assert_eq!(each(&record, "provider"), ["anthropic", "spare"]);
    assert_eq!(each(&record, "key_name"), ["main", "spare"]);
    assert_eq!(each(&record, "status"), [429, 200]);
    assert_eq!(each(&record, "error_kind"), [Value::from("rate_limit_error"), Value::Null]);
    let edits = each(&record, "body_edits");
    assert_eq!(edits[0][0], "inject_tools", "{edits:?}");
    assert_eq!(edits[1], Value::Array(Vec::new()));
}

#[tokio::test]
async fn retries_and_turns_are_attempts_of_one_record() {
    let mcp = McpSim::new().start().await.unwrap();
    let world = World::with(|config| {
        config.tools.servers.push(mcp_server("sim", &mcp.url()));
    })
    .await;
    let bearer = format!("Bearer {}", world.token);
    let turns = r#"[[{"call":"bmcp_sim_echo","arguments":{"text":"x"}}],[{"text":"done"}]]"#;
    let headers = [("authorization", bearer.as_str()), ("x-sim-turns", turns)];
    for (count, path) in ENDPOINTS.into_iter().enumerate() {
        let text = body(path, "text", true).replace("sim-text", "m");
        let answer = world.send(world.post(path, &headers, text)).await;
        assert_eq!(answer.status.as_u16(), 200, "{path}: {}", answer.text());
        let record = world.settled_records(count + 1).await.remove(count);
        assert_eq!(record["attempts"], 2, "{path}");
        assert_eq!(each(&record, "turn"), [0, 1], "{path}");
        assert_eq!(each(&record, "status"), [200, 200], "{path}");
        assert_eq!(each(&record, "credential_kind"), ["centralized", "centralized"], "{path}");
        assert!(each(&record, "duration_ms").iter().all(Value::is_u64), "{path}");
    }
}

#[tokio::test]
async fn an_attempt_without_an_answer_has_an_error_and_no_status() {
    let world = World::with(|config| {
        config.providers[0].base_url = "http://127.0.0.1:1".parse().unwrap();
    })
    .await;
    let path = ENDPOINTS[0];
    let answer = world.send(world.centralized(path, &body(path, "text", true))).await;
    assert_eq!(answer.status.as_u16(), 502, "{}", answer.text());
    let record = world.settled_record().await;
    assert_eq!(each(&record, "status"), [Value::Null]);
    assert_eq!(each(&record, "error_kind"), ["api_error"]);
}
