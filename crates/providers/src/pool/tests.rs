use std::{collections::HashMap, time::Duration};

use aws_lc_rs::hmac;
use http::{HeaderMap, HeaderValue, StatusCode};
use secrecy::SecretString;
use tokio::time::advance;

use super::{KeyVerdict, Pool};
use crate::{
    config::{Key, KeySelection, ProviderConfig, ProviderType},
    credential::centralized_credentials,
    health::KeyStatus,
};

/// A pool with keys of these names and weights.
fn pool(selection: KeySelection, keys: &[(&str, u32)]) -> Pool {
    let mut config =
        ProviderConfig::new(ProviderType::Anthropic, "http://localhost".parse().unwrap());
    config.key_selection = selection;
    config.keys = keys
        .iter()
        .map(|(name, weight)| Key {
            name: (*name).into(),
            value: SecretString::from(format!("sk-{name}-0123456789")),
            weight: *weight,
        })
        .collect();
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
    Pool::new(&config, centralized_credentials(&config, &key).unwrap())
}

fn picked(pool: &Pool, tried: &[usize]) -> Option<String> {
    pool.pick(tried).map(|credential| credential.trace.source.clone())
}

fn first(names: &[&str]) -> Pool {
    let keys: Vec<(&str, u32)> = names.iter().map(|name| (*name, 1)).collect();
    pool(KeySelection::First, &keys)
}

#[tokio::test(start_paused = true)]
async fn a_rate_limited_key_is_not_used_for_the_delay_that_its_provider_sends() {
    let pool = first(&["a", "b"]);
    assert_eq!(picked(&pool, &[]).unwrap(), "pool:a");
    pool.apply_verdict(0, KeyVerdict::RateLimited(Some(Duration::from_secs(7))));
    assert_eq!(picked(&pool, &[]).unwrap(), "pool:b");
    assert_eq!(picked(&pool, &[1]), None, "none is left");
    pool.apply_verdict(1, KeyVerdict::RateLimited(Some(Duration::from_secs(60))));
    assert_eq!(picked(&pool, &[]), None, "both are rate limited");
    advance(Duration::from_secs(6)).await;
    assert_eq!(picked(&pool, &[]).unwrap(), "pool:a", "one second is not worth a refusal");
    assert_eq!(picked(&pool, &[1]).unwrap(), "pool:a", "nor to fail over to it");
    assert_eq!(picked(&pool, &[0, 1]), None, "but not a second time");
    pool.apply_verdict(1, KeyVerdict::Accepted);
    assert_eq!(picked(&pool, &[]).unwrap(), "pool:b");
    advance(Duration::from_secs(1)).await;
    assert_eq!(picked(&pool, &[]).unwrap(), "pool:a");
    // Its status stays until an answer shows that the key is accepted.
    assert_eq!(pool.states()[0].status, KeyStatus::Resting);
    assert_eq!(pool.apply_verdict(0, KeyVerdict::Accepted), Some(("a", KeyStatus::Ready)));
    assert_eq!(pool.apply_verdict(0, KeyVerdict::Accepted), None, "the status has not changed");
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_is_probed_by_one_request_and_then_not_used_for_twice_as_long() {
    let pool = first(&["a", "b"]);
    pool.apply_verdict(0, KeyVerdict::Invalid);
    advance(Duration::from_secs(599)).await;
    assert_eq!(picked(&pool, &[]).unwrap(), "pool:b");
    advance(Duration::from_secs(1)).await;
    assert_eq!(picked(&pool, &[]).unwrap(), "pool:a", "the probe");
    assert_eq!(picked(&pool, &[]).unwrap(), "pool:b", "others do not wait for it");
    pool.apply_verdict(0, KeyVerdict::Invalid);
    advance(Duration::from_secs(1_199)).await;
    assert_eq!(picked(&pool, &[]).unwrap(), "pool:b");
    advance(Duration::from_secs(1)).await;
    assert_eq!(picked(&pool, &[]).unwrap(), "pool:a");
    pool.apply_verdict(0, KeyVerdict::Accepted);
    pool.apply_verdict(0, KeyVerdict::Invalid);
    advance(Duration::from_secs(600)).await;
    assert_eq!(
        picked(&pool, &[]).unwrap(),
        "pool:a",
        "an accepted key starts again with the first cooldown"
    );
}

#[tokio::test(start_paused = true)]
async fn the_only_key_is_always_used() {
    let pool = first(&["a"]);
    pool.apply_verdict(0, KeyVerdict::Invalid);
    assert_eq!(picked(&pool, &[]).unwrap(), "pool:a");
    assert_eq!(picked(&pool, &[0]), None, "once in a request");
    assert_eq!(pool.states()[0].status, KeyStatus::Invalid);
    assert!(first(&[]).pick(&[]).is_none());
    assert_eq!(first(&[]).time_until_usable(), None);
}

#[tokio::test(start_paused = true)]
async fn the_first_usable_key_serves_a_retry_after_its_backoff() {
    let pool = first(&["a", "b"]);
    pool.apply_verdict(0, KeyVerdict::RateLimited(Some(Duration::from_secs(9))));
    pool.apply_verdict(1, KeyVerdict::RateLimited(Some(Duration::from_secs(4))));
    assert_eq!(pool.time_until_usable(), Some(Duration::from_secs(4)));
    assert!(pool.first_usable_within(Duration::from_secs(3)).is_none());
    let key = pool.first_usable_within(Duration::from_secs(4)).unwrap();
    assert_eq!(key.trace.source, "pool:b");
    // A provider that sends a delay of a year gets a request after a day.
    pool.apply_verdict(1, KeyVerdict::RateLimited(Some(Duration::from_secs(1 << 25))));
    pool.apply_verdict(0, KeyVerdict::Invalid);
    advance(Duration::from_secs(24 * 3_600)).await;
    assert!(pool.is_ready(1));
}

#[test]
fn keys_are_picked_by_their_weights() {
    let pool = pool(KeySelection::Weighted, &[("a", 1), ("b", 3), ("c", 6)]);
    let mut counts: HashMap<String, u32> = HashMap::new();
    for _ in 0..10_000 {
        *counts.entry(picked(&pool, &[]).unwrap()).or_default() += 1;
    }
    // Ten standard deviations on both sides.
    for (name, expected) in [("pool:a", 1_000), ("pool:b", 3_000), ("pool:c", 6_000)] {
        assert!(counts[name].abs_diff(expected) < 500, "{counts:?}");
    }
    let alone = (0..100).map(|_| picked(&pool, &[0, 2]).unwrap());
    assert!(alone.into_iter().all(|source| source == "pool:b"));
}

#[test]
fn the_verdict_of_an_answer_follows_its_status() {
    let mut headers = HeaderMap::new();
    let of = |status: u16, headers: &HeaderMap| {
        KeyVerdict::of(StatusCode::from_u16(status).unwrap(), headers)
    };
    assert_eq!(of(401, &headers), KeyVerdict::Invalid);
    assert_eq!(of(403, &headers), KeyVerdict::Forbidden);
    assert_eq!(of(429, &headers), KeyVerdict::RateLimited(None));
    for status in [200, 400, 404, 500, 503, 529] {
        assert_eq!(of(status, &headers), KeyVerdict::Accepted);
    }
    headers.insert("retry-after", HeaderValue::from_static("12"));
    assert_eq!(of(429, &headers), KeyVerdict::RateLimited(Some(Duration::from_secs(12))));
}
