//! Several keys for a provider: a rejected or rate-limited key is replaced within the request.

use std::collections::HashSet;

use keybridge_providers::{
    config::{KeySelection, ProviderConfig, ProviderType},
    health::KeyStatus,
};
use keybridge_sim::{Exchange, KeyOverride};
use serde_json::Value;

use crate::support::{Answer, ENDPOINTS, World, body, pool_key, provider};

const FIRST: &str = "sk-first-0123456789abcdef";
const SECOND: &str = "sk-second-0123456789abcdef";
const OTHER: &str = "sk-other-0123456789abcdef";

/// Every provider has two keys.
async fn world() -> World {
    World::with(|config| config.providers.iter_mut().for_each(two_keys)).await
}

fn two_keys(provider: &mut ProviderConfig) {
    if provider.kind != ProviderType::Copilot {
        provider.keys = vec![pool_key("first", FIRST), pool_key("second", SECOND)];
    }
}

fn refuse(world: &World, key: &str, status: u16, retry_after: Option<u32>) {
    world.sim.override_key(key, Some(KeyOverride { status, retry_after }));
}

/// The statuses of the first provider's keys.
fn statuses(world: &World) -> Vec<KeyStatus> {
    world.bridge.provider_states()[0].keys.iter().map(|key| key.status).collect()
}

async fn ask(world: &World, path: &str, stream: bool) -> Answer {
    world.send(world.centralized(path, &body(path, "text", stream))).await
}

/// The credentials that the provider has seen, in order.
fn seen(world: &World) -> Vec<String> {
    let secret = |exchange: &Exchange| {
        let is_secret = |name: &str| matches!(name, "x-api-key" | "authorization");
        let header = exchange.headers.iter().find(|(name, _)| is_secret(name)).unwrap();
        String::from_utf8_lossy(&header.1).replace("Bearer ", "")
    };
    world.sim.exchanges().iter().map(secret).collect()
}

#[tokio::test]
async fn a_rejected_key_is_replaced_within_the_request() {
    for (status, after) in
        [(401, KeyStatus::Invalid), (403, KeyStatus::Resting), (429, KeyStatus::Resting)]
    {
        for path in ENDPOINTS {
            for stream in [true, false] {
                let world = world().await;
                refuse(&world, FIRST, status, Some(60));
                let answer = ask(&world, path, stream).await;
                assert_status!(answer, 200, "{path} {status}");
                assert_eq!(seen(&world), [FIRST, SECOND]);
                let record = world.settled_record().await;
                assert_eq!(record["attempts"], 2);
                assert_eq!(record["credential_source"], "pool:second");
                assert_eq!(record["credential_hint"], "sk-s...cdef");
                assert_eq!(record["credential_length"], SECOND.len());
                assert_eq!(
                    (&record["outcome"], &record["credential_kind"]),
                    (&"completed".into(), &"centralized".into())
                );
                assert_eq!(record["token_usages"].as_array().unwrap().len(), 1);
                // The next request knows, and its record has the same fingerprint.
                world.sim.clear();
                assert_status!(ask(&world, path, stream).await, 200);
                assert_eq!(seen(&world), [SECOND]);
                let records = world.settled_records(2).await;
                assert_eq!(records[1]["attempts"], 1);
                let fingerprint = |record: &Value| record["credential_fingerprint"].clone();
                assert_eq!(fingerprint(&records[1]), fingerprint(&records[0]));
                let provider = usize::from(!path.starts_with("/anthropic"));
                let states = world.bridge.provider_states();
                assert_eq!(states[provider].keys[0].status, after);
                assert!(states[provider].keys[0].until.is_some());
                assert_eq!(states[provider].keys[1].status, KeyStatus::Ready);
            }
        }
    }
}

#[tokio::test]
async fn a_403_for_every_key_is_the_requests_own_fault() {
    let world = world().await;
    refuse(&world, FIRST, 403, None);
    refuse(&world, SECOND, 403, None);
    let answer = ask(&world, ENDPOINTS[0], true).await;
    assert_status!(answer, 403);
    assert_eq!(answer.body, world.last_exchange().response_sent, "the provider's own words");
    assert_eq!(statuses(&world), [KeyStatus::Ready; 2]);
    world.sim.override_key(FIRST, None);
    assert_status!(ask(&world, ENDPOINTS[0], true).await, 200);
}

#[tokio::test]
async fn the_last_answer_of_an_exhausted_pool_passes_and_later_requests_are_sent_nevertheless() {
    let world = world().await;
    refuse(&world, FIRST, 401, None);
    refuse(&world, SECOND, 429, Some(40));
    for path in ENDPOINTS {
        // The second endpoint of a provider, which has rejected the key.
        let is_known = path == ENDPOINTS[2];
        for expected in [if is_known { vec![SECOND] } else { vec![FIRST, SECOND] }, vec![SECOND]] {
            world.sim.clear();
            let answer = ask(&world, path, true).await;
            assert_status!(answer, 429, "{path}");
            assert_eq!(answer.headers["retry-after"], "40");
            assert_eq!(answer.body, world.last_exchange().response_sent);
            assert_eq!(seen(&world), expected, "{path}: the one that may work first");
        }
    }
    // As soon as one works again, it serves.
    world.sim.override_key(SECOND, None);
    for path in ENDPOINTS {
        assert_status!(ask(&world, path, true).await, 200, "{path}");
    }
    let records = world.settled_records(9).await;
    let outcome = |record: &Value| record["outcome"].as_str().unwrap().to_owned();
    let outcomes: Vec<String> = records.iter().map(outcome).collect();
    assert_eq!(outcomes[..6], ["failed"; 6]);
    assert_eq!(outcomes[6..], ["completed"; 3]);
}

#[tokio::test]
async fn a_refusal_for_one_model_leaves_the_key_to_the_others() {
    for status in [403, 429] {
        for (path, kind) in ENDPOINTS.into_iter().zip([0, 1, 1]) {
            let world = world().await;
            let ask = |scenario| world.send(world.centralized(path, &body(path, scenario, true)));
            refuse(&world, FIRST, status, Some(60));
            assert_status!(ask("text").await, 200, "{path}");
            world.sim.override_key(FIRST, None);
            world.sim.clear();
            assert_status!(ask("text").await, 200, "{path}");
            assert_status!(ask("thinking").await, 200, "{path}");
            assert_eq!(seen(&world), [SECOND, FIRST], "{path} {status}");
            let key = &world.bridge.provider_states()[kind].keys[0];
            assert_eq!(key.status, KeyStatus::Resting);
            let [restriction] = &*key.restrictions else { panic!("{:?}", key.restrictions) };
            assert_eq!(restriction.model.as_deref(), Some("sim-text"));
            assert!(path.ends_with(&restriction.endpoint), "{restriction:?}");
            let expected = if status == 403 { KeyStatus::Forbidden } else { KeyStatus::Resting };
            assert_eq!(restriction.status, expected);
        }
    }
}

#[tokio::test]
async fn a_conversation_meets_its_key_again() {
    let world = World::with(|config| {
        for provider in &mut config.providers {
            two_keys(provider);
            provider.key_selection = KeySelection::Weighted;
        }
    })
    .await;
    let (path, bearer) = (ENDPOINTS[0], format!("Bearer {}", world.token));
    let ask = |session: String| {
        let headers = [
            ("authorization", bearer.as_str()),
            ("user-agent", "claude-cli/2.1"),
            ("x-claude-code-session-id", &session),
        ];
        world.send(world.post(path, &headers, body(path, "text", true)))
    };
    let mut used = HashSet::new();
    for number in 0..30 {
        world.sim.clear();
        for _ in 0..3 {
            assert_status!(ask(format!("conversation {number}")).await, 200);
        }
        let keys: HashSet<String> = seen(&world).into_iter().collect();
        assert_eq!(keys.len(), 1, "conversation {number}");
        used.extend(keys);
    }
    assert_eq!(used.len(), 2, "each key has conversations");
}

#[tokio::test]
async fn a_retry_waits_for_the_first_key_that_becomes_available() {
    let world = World::with(|config| {
        config.providers.iter_mut().for_each(|provider| {
            two_keys(provider);
            provider.max_retries = 1;
        });
    })
    .await;
    refuse(&world, FIRST, 401, None);
    refuse(&world, SECOND, 429, Some(1));
    let path = ENDPOINTS[0];
    let (answer, ()) = tokio::join!(ask(&world, path, true), async {
        while seen(&world).len() < 2 {
            tokio::task::yield_now().await;
        }
        world.sim.override_key(SECOND, None);
    });
    assert_status!(answer, 200);
    assert_eq!(seen(&world), [FIRST, SECOND, SECOND]);
    assert_eq!(world.settled_record().await["attempts"], 3);
}

#[tokio::test]
async fn a_refused_byok_credential_changes_no_key() {
    let world = world().await;
    for status in [401, 403, 429] {
        refuse(&world, OTHER, status, None);
        for path in ENDPOINTS {
            let bearer = format!("Bearer {OTHER}");
            let headers =
                [("authorization", bearer.as_str()), ("x-ai-governance-token", &world.token)];
            let answer = world.send(world.post(path, &headers, body(path, "text", true))).await;
            assert_status!(answer, status, "{path}");
        }
    }
    assert_eq!(world.sim.exchanges().len(), 9, "each was sent once, with its own credential");
    assert!(seen(&world).iter().all(|key| key == OTHER));
    let states = world.bridge.provider_states();
    assert!(states.iter().flat_map(|state| &state.keys).all(|key| key.status == KeyStatus::Ready));
    let error = states[0].last_byok_error.as_ref().unwrap();
    assert_eq!(error.status, Some(429));
    assert!(states[0].last_centralized_error.is_none());
}

#[tokio::test]
async fn the_fallback_serves_when_the_pool_is_exhausted() {
    let world = World::with(|config| {
        let base = config.providers[0].base_url.to_string();
        let mut spare = provider(ProviderType::Anthropic, base.trim_end_matches("/anthropic"));
        spare.name = "spare".into();
        spare.keys = vec![pool_key("spare", OTHER)];
        config.providers.iter_mut().for_each(two_keys);
        config.providers[0].fallback = Some("spare".into());
        // No retry waits for a key while the fallback can serve.
        config.providers[0].max_retries = 2;
        config.providers.push(spare);
    })
    .await;
    let path = ENDPOINTS[0];
    refuse(&world, FIRST, 429, Some(60));
    refuse(&world, SECOND, 401, None);
    for (count, expected) in [(1, vec![FIRST, SECOND, OTHER]), (2, vec![OTHER])] {
        world.sim.clear();
        let answer = ask(&world, path, true).await;
        assert_status!(answer, 200);
        assert_eq!(seen(&world), expected);
        let record = world.settled_records(count).await.pop().unwrap();
        assert_eq!(record["attempts"], expected.len());
        assert_eq!(
            (&record["provider"], &record["credential_source"]),
            (&"spare".into(), &"pool:spare".into())
        );
    }
    // A BYOK credential is never sent to the fallback.
    world.sim.clear();
    refuse(&world, "sk-own-0123456789abcdef", 403, None);
    let headers =
        [("x-api-key", "sk-own-0123456789abcdef"), ("x-ai-governance-token", &*world.token)];
    let answer = world.send(world.post(path, &headers, body(path, "text", true))).await;
    assert_status!(answer, 403);
    assert_eq!(seen(&world).len(), 1);
    // When the fallback has no key left either, its response passes.
    refuse(&world, OTHER, 529, None);
    assert_status!(ask(&world, path, true).await, 529);
}

#[tokio::test]
async fn a_provider_for_byok_only_says_so() {
    let world = World::with(|config| {
        for provider in &mut config.providers {
            provider.keys = Vec::new();
            provider.allow_central = false;
        }
    })
    .await;
    for path in ENDPOINTS {
        let answer = ask(&world, path, true).await;
        assert_status!(answer, 401, "{path}");
        assert!(answer.text().contains("your own credential only"), "{}", answer.text());
        assert_eq!(answer.headers["x-should-retry"], "false");
        let headers = [
            ("authorization", "Bearer sk-own-0123456789"),
            ("x-ai-governance-token", &*world.token),
        ];
        let answer = world.send(world.post(path, &headers, body(path, "text", true))).await;
        assert_status!(answer, 200, "{path}");
    }
}
