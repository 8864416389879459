//! Circuit breakers: a provider that fails repeatedly gets no requests, and the others do.

use std::time::Duration;

use keybridge_providers::{
    config::{BreakerConfig, ProviderType},
    health::CircuitStatus,
};

use keybridge_sim::KeyOverride;

use crate::support::{
    ANTHROPIC_KEY, Answer, ENDPOINTS, OPENAI_KEY, World, body, pool_key, provider,
};

const OPEN: Duration = Duration::from_millis(300);
const HOUR: Duration = Duration::from_secs(3_600);

fn breaker() -> BreakerConfig {
    let interval = Duration::from_secs(10);
    BreakerConfig { failures: 3, interval, open: OPEN, trial_requests: 2 }
}

async fn world() -> World {
    World::with(|config| {
        config.providers.iter_mut().for_each(|provider| provider.circuit_breaker = Some(breaker()));
    })
    .await
}

async fn ask(world: &World, path: &str, scenario: &str) -> Answer {
    world.send(world.centralized(path, &body(path, scenario, true))).await
}

/// The circuits of a path's provider.
fn circuits(world: &World, path: &str) -> Vec<(String, CircuitStatus)> {
    let provider = usize::from(!path.starts_with("/anthropic"));
    let circuits = &world.bridge.provider_states()[provider].circuits;
    circuits.iter().map(|circuit| (circuit.model.clone(), circuit.status)).collect()
}

#[tokio::test]
async fn a_breaker_opens_after_failures_refuses_in_the_dialect_and_closes_again() {
    let mut settled = 0;
    for path in ENDPOINTS {
        for status in ["429", "503", "529"] {
            let world = world().await;
            let scenario = format!("error-{status}");
            for _ in 0..3 {
                assert_status!(ask(&world, path, &scenario).await, status.parse::<u16>().unwrap());
            }
            let refused = ask(&world, path, &scenario).await;
            assert_status!(refused, 503, "{path} {status}");
            assert_eq!(refused.headers["retry-after"], "1");
            assert!(refused.text().contains("circuit breaker is open"), "{}", refused.text());
            assert!(refused.json()["error"].is_object());
            assert_eq!(world.sim.exchanges().len(), 3, "no request reaches the provider");
            assert_status!(ask(&world, path, "text").await, 200, "another model");
            let records = world.settled_records(5).await;
            assert_eq!(records[3]["outcome"], "refused");
            assert!(records[3]["upstream_status"].is_null());
            settled += records.len();
            // The trial request fails too.
            tokio::time::sleep(OPEN).await;
            assert_status!(ask(&world, path, &scenario).await, status.parse::<u16>().unwrap());
            assert_status!(ask(&world, path, &scenario).await, 503);
            let failing =
                circuits(&world, path).into_iter().find(|(model, _)| model.contains("error"));
            assert_eq!(failing.unwrap().1, CircuitStatus::Open);
        }
    }
    assert_eq!(settled, 45);
}

#[tokio::test]
async fn an_error_within_a_stream_counts() {
    for path in ENDPOINTS {
        let world = world().await;
        for _ in 0..3 {
            let answer = ask(&world, path, "overloaded-mid-stream").await;
            assert_status!(answer, 200, "{path}: it began well");
        }
        world.settled_records(3).await;
        assert_status!(ask(&world, path, "overloaded-mid-stream").await, 503, "{path}");
    }
}

#[tokio::test]
async fn a_provider_that_recovers_is_used_again() {
    let world = world().await;
    let path = ENDPOINTS[0];
    let bearer = format!("Bearer {}", world.token);
    let headers = [("authorization", bearer.as_str()), ("x-sim-first", "once:503,503,503")];
    let ask = || world.send(world.post(path, &headers, body(path, "text", true)));
    for expected in [503, 503, 503, 503] {
        assert_status!(ask().await, expected);
    }
    assert_eq!(world.sim.exchanges().len(), 3);
    tokio::time::sleep(OPEN).await;
    for _ in 0..2 {
        assert_status!(ask().await, 200);
    }
    assert_eq!(circuits(&world, path)[0].1, CircuitStatus::Closed);
}

#[tokio::test]
async fn byok_credentials_are_counted_apart_and_their_rate_limits_not_at_all() {
    let world = world().await;
    let path = ENDPOINTS[0];
    let headers =
        [("x-api-key", "sk-own-0123456789abcdef"), ("x-ai-governance-token", &*world.token)];
    let own = |scenario: &str| world.send(world.post(path, &headers, body(path, scenario, true)));
    for scenario in ["error-401", "error-403", "error-429"] {
        for _ in 0..5 {
            let status = own(scenario).await.status.as_u16();
            assert_eq!(format!("error-{status}"), scenario);
        }
    }
    for _ in 0..3 {
        assert_status!(own("error-503").await, 503);
    }
    let count = world.sim.exchanges().len();
    assert_status!(own("error-503").await, 503);
    assert_eq!(world.sim.exchanges().len(), count, "open for BYOK");
    assert_status!(ask(&world, path, "error-503").await, 503);
    assert_eq!(world.sim.exchanges().len(), count + 1, "and closed for centralized requests");
}

#[tokio::test]
async fn a_provider_that_cannot_be_reached_opens_its_breaker() {
    let world = World::with(|config| {
        for one in &mut config.providers {
            *one = provider(one.kind, "http://127.0.0.1:9");
            one.circuit_breaker = Some(breaker());
        }
    })
    .await;
    for expected in [502, 502, 502, 503] {
        assert_status!(ask(&world, ENDPOINTS[0], "text").await, expected);
    }
}

#[tokio::test]
async fn the_fallback_serves_while_the_breaker_is_open() {
    let world = World::with(|config| {
        let base = config.providers[0].base_url.to_string();
        let mut spare = provider(ProviderType::Anthropic, base.trim_end_matches("/anthropic"));
        spare.name = "spare".into();
        spare.keys = vec![pool_key("spare", "sk-spare-0123456789abcdef")];
        config.providers[0] = provider(ProviderType::Anthropic, "http://127.0.0.1:9");
        config.providers[0].circuit_breaker = Some(breaker());
        config.providers[0].fallback = Some("spare".into());
        config.providers.push(spare);
    })
    .await;
    for expected in [502, 502, 502, 200, 200] {
        assert_status!(ask(&world, ENDPOINTS[0], "text").await, expected);
    }
    let records = world.settled_records(5).await;
    let providers: Vec<_> =
        records.iter().map(|record| record["provider"].as_str().unwrap()).collect();
    assert_eq!(providers, ["anthropic", "anthropic", "anthropic", "spare", "spare"]);
    assert_eq!(records[4]["credential_source"], "pool:spare");
}

#[tokio::test]
async fn it_counts_the_failures_of_a_provider_that_has_a_fallback() {
    for path in ENDPOINTS {
        let kind = usize::from(!path.starts_with("/anthropic"));
        let world = World::with(|config| {
            let mut spare = config.providers[kind].clone();
            spare.name = "spare".into();
            spare.keys = vec![pool_key("spare", "sk-spare-0123456789abcdef")];
            let first = &mut config.providers[kind];
            first.circuit_breaker = Some(BreakerConfig { open: HOUR, ..breaker() });
            first.fallback = Some("spare".into());
            config.providers.push(spare);
        })
        .await;
        let key = [ANTHROPIC_KEY, OPENAI_KEY][kind];
        world.sim.override_key(key, Some(KeyOverride { status: 429, retry_after: Some(3_600) }));
        for _ in 0..6 {
            let answer = ask(&world, path, "text").await;
            assert_eq!(answer.status.as_u16(), 200, "{path}: {}", answer.text());
        }
        let carries = |value: &[u8]| value.windows(key.len()).any(|part| part == key.as_bytes());
        let asked = world.sim.exchanges();
        let asked = asked
            .iter()
            .filter(|exchange| exchange.headers.iter().any(|(_, value)| carries(value)));
        assert_eq!(asked.count(), 3, "{path}: left alone after three failures");
        assert_eq!(circuits(&world, path), [("sim-text".to_owned(), CircuitStatus::Open)]);
        let state = &world.bridge.provider_states()[kind];
        let error = state.last_centralized_error.as_ref().unwrap();
        assert_eq!((error.status, error.kind.as_deref()), (Some(429), Some("rate_limit_error")));
    }
}

#[tokio::test]
async fn invented_models_leave_no_series_and_each_open_circuit_has_its_own() {
    let world = world().await;
    let path = ENDPOINTS[0];
    let bearer = format!("Bearer {}", world.token);
    for invented in 0..250 {
        let headers = [("authorization", bearer.as_str()), ("x-sim-scenario", "error-404")];
        let body = body(path, &format!("invented-{invented}"), false);
        assert_status!(world.send(world.post(path, &headers, body)).await, 404);
    }
    for scenario in ["error-503", "error-529"] {
        for _ in 0..3 {
            ask(&world, path, scenario).await;
        }
    }
    world.settled_records(256).await;
    let mut registry = prometheus_client::registry::Registry::default();
    world.bridge.register_metrics(&mut registry);
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
    assert!(!page.contains("invented"), "{page}");
    for model in ["sim-error-503", "sim-error-529"] {
        let open = |line: &&str| {
            line.starts_with("circuit_breaker_state{")
                && line.contains(&format!(r#"model="{model}""#))
                && line.ends_with(" 2")
        };
        assert_eq!(page.lines().filter(open).count(), 1, "{model}: {page}");
    }
}
