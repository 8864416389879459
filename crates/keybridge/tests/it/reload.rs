//! Reloads while requests are in flight: new requests use the new configuration, and open ones are not
//! affected.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use keybridge::config::Config;
use keybridge_policy::LimitsConfig;
use keybridge_providers::health::KeyStatus;
use keybridge_sim::{KeyOverride, mcp_server::McpSim};
use serde_json::json;

use crate::support::{Answer, ENDPOINTS, World, answer, body, client, mcp_server, pool_key};

const NEW_KEY: &str = "sk-new-0123456789abcdef";

/// Starts a stream that pauses after its first text until the simulated provider is released.
async fn start_stream(
    world: &World,
    path: &str,
    turns: &serde_json::Value,
) -> http::Response<Incoming> {
    let bearer = format!("Bearer {}", world.token);
    let turns = turns.to_string();
    let headers = [("authorization", bearer.as_str()), ("x-sim-turns", turns.as_str())];
    let request = world.post(path, &headers, body(path, "text", true));
    let mut response = client(false).request(request).await.unwrap();
    assert_eq!(response.status().as_u16(), 200, "{path}");
    response.body_mut().frame().await.unwrap().unwrap();
    response
}

async fn ask(world: &World, path: &str) -> Answer {
    world.send(world.centralized(path, &body(path, "text", false))).await
}

#[tokio::test]
async fn an_open_stream_keeps_its_configuration() {
    for path in ENDPOINTS {
        let world = World::start().await;
        let turns = json!([[{ "text": "a" }, { "hold": "go" }, { "text": "z" }]]);
        let open = start_stream(&world, path, &turns).await;
        // Its provider is removed, and the others get another key.
        let name = path.split('/').nth(1).unwrap().to_owned();
        let reloaded = world.reload(|config| {
            config.providers.retain(|provider| provider.name != name);
            config.providers[0].keys = vec![pool_key("new", NEW_KEY)];
        });
        reloaded.await.unwrap();
        assert_status!(ask(&world, path).await, 404, "{path}");
        let other = ENDPOINTS.into_iter().find(|other| !other.contains(&name)).unwrap();
        assert_status!(ask(&world, other).await, 200);
        let credential =
            if other.starts_with("/anthropic") { "x-api-key" } else { "authorization" };
        let seen = world.last_exchange().headers.into_iter().find(|(name, _)| name == credential);
        assert!(String::from_utf8(seen.unwrap().1).unwrap().ends_with(NEW_KEY));
        world.sim.release("go");
        let rest = answer(open).await;
        assert!(rest.text().contains("\"z\"") && !rest.truncated, "{path}: {}", rest.text());
        let records = world.settled_records(2).await;
        assert_eq!(
            (&records[0]["outcome"], &records[0]["provider"]),
            (&json!("completed"), &json!(name))
        );
        assert_eq!(records[1]["credential_source"], "pool:new");
    }
}

/// Two keys, of which the first is rejected.
fn two_keys(config: &mut Config) {
    config.providers[0].keys = vec![pool_key("dead", "sk-dead"), pool_key("good", "sk-good")];
}

#[tokio::test]
async fn the_state_of_keys_is_kept() {
    let path = ENDPOINTS[0];
    let world = World::with(two_keys).await;
    world.sim.override_key("sk-dead", Some(KeyOverride { status: 401, retry_after: None }));
    assert_status!(ask(&world, path).await, 200);
    let states = |world: &World| {
        let keys = &world.bridge.provider_states()[0].keys;
        keys.iter().map(|key| (key.name.clone(), key.status)).collect::<Vec<_>>()
    };
    let (invalid, ready) = (KeyStatus::Invalid, KeyStatus::Ready);
    assert_eq!(states(&world), [("dead".into(), invalid), ("good".into(), ready)]);
    world.reload(two_keys).await.unwrap();
    assert_eq!(states(&world), [("dead".into(), invalid), ("good".into(), ready)]);
    // The same keys with other names and in another order.
    let renamed = world.reload(|config| {
        two_keys(config);
        let provider = &mut config.providers[0];
        provider.keys.insert(0, pool_key("third", "sk-third"));
        provider.keys[1].name = "was dead".into();
    });
    renamed.await.unwrap();
    let expected = [("third", ready), ("was dead", invalid), ("good", ready)];
    assert_eq!(states(&world), expected.map(|(name, status)| (name.to_owned(), status)));
    assert_status!(ask(&world, path).await, 200);
    let records = world.settled_records(2).await;
    assert_eq!(records[1]["credential_source"], "pool:third");
    assert_eq!(records[1]["attempts"], 1);
}

#[tokio::test]
async fn metrics_show_the_current_configuration() {
    let world = World::with(two_keys).await;
    let mut registry = prometheus_client::registry::Registry::default();
    world.bridge.register_metrics(&mut registry);
    let page = || {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        page
    };
    assert!(page().contains(r#"key_pool_state{provider="anthropic",key="dead"} 0"#), "{}", page());
    world.reload(|_config| {}).await.unwrap();
    assert!(!page().contains("dead"), "{}", page());
    assert!(page().contains(r#"key_pool_state{provider="anthropic",key="main"} 0"#));
}

#[tokio::test]
async fn limits_count_requests_in_flight() {
    let path = ENDPOINTS[1];
    let world = World::start().await;
    let turns = json!([[{ "text": "a" }, { "hold": "go" }]]);
    let open = start_stream(&world, path, &turns).await;
    let limited = |config: &mut Config| {
        config.limits = LimitsConfig {
            concurrent_requests: 1,
            requests_per_second: 1,
            burst: 2,
            body_memory: 1 << 21,
            ..LimitsConfig::default()
        };
    };
    world.reload(limited).await.unwrap();
    assert_status!(ask(&world, path).await, 429, "one is in flight already");
    drop(open);
    world.settled_records(2).await;
    let statuses = [ask(&world, path).await, ask(&world, path).await, ask(&world, path).await]
        .map(|answer| answer.status.as_u16());
    assert_eq!(statuses, [200, 200, 429]);
    world.reload(limited).await.unwrap();
    assert_status!(ask(&world, path).await, 429, "the same limit still counts");
    world.reload(|_config| {}).await.unwrap();
    for _ in 0..5 {
        assert_status!(ask(&world, path).await, 200, "no limit");
    }
}

#[tokio::test]
async fn an_invalid_configuration_changes_nothing() {
    let world = World::start().await;
    let refused = world.reload(|config| {
        config.limits.concurrent_requests = 1;
        config.providers[1].keys = vec![pool_key("bad", "line\nbreak")];
    });
    let error = refused.await.unwrap_err().to_string();
    assert!(error.contains("openai") && !error.contains("break"), "{error}");
    for path in ENDPOINTS {
        assert_status!(ask(&world, path).await, 200);
    }
}

#[tokio::test]
async fn sessions_of_unchanged_servers_stay_and_others_end_after_the_last_request() {
    let (mcp, other) = (McpSim::new(), McpSim::new());
    let (first_server, other_server) = (mcp.start().await.unwrap(), other.start().await.unwrap());
    let (url, other_url) = (first_server.url(), other_server.url());
    let world = World::with(|config| config.tools.servers.push(mcp_server("sim", &url))).await;
    let both = |config: &mut Config| {
        config.tools.servers = vec![mcp_server("sim", &url), mcp_server("other", &other_url)];
    };
    world.reload(both).await.unwrap();
    assert_eq!((mcp.sessions_opened(), other.sessions_opened()), (1, 1), "one stays, one is new");
    let path = ENDPOINTS[0];
    ask(&world, path).await;
    let sent = String::from_utf8_lossy(&world.last_exchange().body).into_owned();
    assert!(sent.contains("bmcp_sim_echo") && sent.contains("bmcp_other_echo"), "at once");
    // The tool is called after the servers have been removed from the configuration.
    let call = json!({ "call": "bmcp_sim_echo", "arguments": { "message": "late" } });
    let turns = json!([[{ "text": "a" }, { "hold": "go" }, call], [{ "text": "{result}" }]]);
    let open = start_stream(&world, path, &turns).await;
    world.reload(|_config| {}).await.unwrap();
    assert_eq!(world.bridge.mcp_states().len(), 0);
    ask(&world, path).await;
    assert!(!String::from_utf8_lossy(&world.last_exchange().body).contains("bmcp_"));
    assert_eq!(
        (mcp.sessions_deleted(), other.sessions_deleted()),
        (0, 0),
        "a request may still need them"
    );
    world.sim.release("go");
    let rest = answer(open).await;
    assert!(!rest.truncated && mcp.calls().len() == 1, "{}", rest.text());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while (mcp.sessions_deleted(), other.sessions_deleted()) != (1, 1) {
        assert!(tokio::time::Instant::now() < deadline, "the sessions do not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let records = world.settled_records(3).await;
    assert!(records.iter().all(|record| record["outcome"] == "completed"), "{records:#?}");
    let tool = &records[1]["tool_usages"][0];
    assert_eq!((&tool["tool"], &tool["error"]), (&json!("echo"), &json!(null)), "{tool}");
}
