use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use aws_lc_rs::hmac;
use secrecy::SecretString;
use tokio::time::advance;

use super::{KeyVerdict, Pool};
use crate::{
    config::{Key, KeySelection, ProviderConfig, ProviderType},
    credential::{Credential, centralized_credentials},
    health::KeyStatus,
    target::Target,
};

const TARGET: Target<'static> = Target {
    endpoint: "/v1/messages",
    model: Some("opus"),
    session: None,
    bound_key: None,
    is_model_stream: false,
};
const OTHER_MODEL: Target<'static> = Target { model: Some("haiku"), ..TARGET };

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

fn first(names: &[&str]) -> Pool {
    let keys: Vec<(&str, u32)> = names.iter().map(|name| (*name, 1)).collect();
    pool(KeySelection::First, &keys)
}

fn name(credential: &Credential) -> String {
    credential.trace.source.strip_prefix("pool:").unwrap().to_owned()
}

fn picked(pool: &Pool, target: &Target<'_>, tried: &[usize]) -> Option<String> {
    pool.pick(target, tried).map(|credential| name(&credential))
}

fn limit(pool: &Pool, key: usize, seconds: u64) {
    let verdict = KeyVerdict::RateLimited(Some(Duration::from_secs(seconds)));
    pool.apply_verdict(key, &TARGET, verdict);
}

#[tokio::test(start_paused = true)]
async fn a_rate_limited_key_is_not_used_for_that_model_until_its_delay_has_passed() {
    let pool = first(&["a", "b"]);
    assert_eq!(picked(&pool, &TARGET, &[]).unwrap(), "a");
    limit(&pool, 0, 7);
    assert_eq!(picked(&pool, &TARGET, &[]).unwrap(), "b");
    assert_eq!(picked(&pool, &OTHER_MODEL, &[]).unwrap(), "a");
    assert_eq!(picked(&pool, &TARGET, &[1]), None, "none is left");
    limit(&pool, 1, 60);
    assert_eq!(picked(&pool, &TARGET, &[]), None, "both are rate limited");
    assert_eq!(name(&pool.pick_any(&TARGET).unwrap()), "a", "the one that is ready first");
    advance(Duration::from_secs(6)).await;
    assert_eq!(picked(&pool, &TARGET, &[]).unwrap(), "a", "one second is not worth a refusal");
    assert_eq!(picked(&pool, &TARGET, &[1]).unwrap(), "a", "nor to fail over to it");
    assert_eq!(picked(&pool, &TARGET, &[0, 1]), None, "but not a second time");
    pool.apply_verdict(1, &TARGET, KeyVerdict::Accepted);
    assert_eq!(picked(&pool, &TARGET, &[]).unwrap(), "b");
    assert_eq!(pool.states()[0].status, KeyStatus::Resting);
    advance(Duration::from_secs(1)).await;
    assert_eq!(picked(&pool, &TARGET, &[]).unwrap(), "a");
    assert_eq!(pool.states()[0].status, KeyStatus::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_a_keys_status_is_reported_once() {
    let pool = first(&["a", "b"]);
    let apply = |verdict| pool.apply_verdict(0, &TARGET, verdict).map(|(_, status)| status);
    assert_eq!(apply(KeyVerdict::Accepted), None);
    assert_eq!(apply(KeyVerdict::RateLimited(None)), Some(KeyStatus::Resting));
    assert_eq!(apply(KeyVerdict::RateLimited(None)), None);
    assert_eq!(apply(KeyVerdict::Invalid), Some(KeyStatus::Invalid));
    let state = pool.states().swap_remove(0);
    assert_eq!(state.restrictions[0].model.as_deref(), Some("opus"));
    assert!(state.until.unwrap() > state.restrictions[0].until, "it is rejected for longer");
    assert_eq!(apply(KeyVerdict::Accepted), Some(KeyStatus::Ready));
}

#[tokio::test(start_paused = true)]
async fn of_keys_that_are_not_ready_a_rejected_one_is_the_last_that_is_tried() {
    let pool = first(&["a", "b", "c"]);
    pool.apply_verdict(0, &TARGET, KeyVerdict::Invalid);
    pool.apply_verdict(1, &TARGET, KeyVerdict::Forbidden);
    limit(&pool, 2, 3_600);
    assert_eq!(picked(&pool, &TARGET, &[]), None);
    assert_eq!(name(&pool.pick_any(&TARGET).unwrap()), "c");
    let only = first(&["a"]);
    only.apply_verdict(0, &TARGET, KeyVerdict::Invalid);
    assert_eq!(picked(&only, &TARGET, &[]).unwrap(), "a", "the only key is always used");
    assert_eq!(picked(&only, &TARGET, &[0]), None, "once in a request");
    assert_eq!(only.states()[0].status, KeyStatus::Invalid);
    assert!(first(&[]).pick(&TARGET, &[]).is_none());
    assert!(first(&[]).pick_any(&TARGET).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_retry_uses_its_key_again_or_the_first_one_that_is_ready_after_its_backoff() {
    let pool = first(&["a", "b"]);
    let after = |seconds, used| {
        let delay = Duration::from_secs(seconds);
        pool.pick_after(delay, &TARGET, used).map(|credential| name(&credential))
    };
    assert_eq!(after(1, 1).unwrap(), "b");
    limit(&pool, 0, 9);
    limit(&pool, 1, 4);
    assert_eq!(after(3, 0), None);
    assert_eq!(after(4, 0).unwrap(), "b");
    let only = first(&["a"]);
    limit(&only, 0, 3_600);
    assert!(only.pick_after(Duration::ZERO, &TARGET, 0).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_bound_to_a_key_gets_it_unless_the_key_is_rejected() {
    let pool = first(&["a", "b", "c"]);
    let bound = Target { bound_key: Some("b"), ..TARGET };
    assert_eq!(picked(&pool, &bound, &[]).unwrap(), "b");
    assert_eq!(picked(&pool, &bound, &[1]), None, "the others do not know its objects");
    limit(&pool, 1, 60);
    assert_eq!(picked(&pool, &bound, &[]).unwrap(), "b");
    assert!(pool.pick_after(Duration::from_secs(59), &bound, 1).is_none());
    assert_eq!(name(&pool.pick_after(Duration::from_secs(60), &bound, 1).unwrap()), "b");
    pool.apply_verdict(1, &bound, KeyVerdict::Invalid);
    assert_eq!(picked(&pool, &bound, &[1]).unwrap(), "a");
    let unknown = Target { bound_key: Some("gone"), ..TARGET };
    assert_eq!(picked(&pool, &unknown, &[]).unwrap(), "a");
}

#[test]
fn keys_are_picked_by_their_weights() {
    let pool = pool(KeySelection::Weighted, &[("a", 1), ("b", 3), ("c", 6)]);
    let by_session = |number: u32| {
        let session = format!("session {number}");
        picked(&pool, &Target { session: Some(&session), ..TARGET }, &[]).unwrap()
    };
    let at_random = |_number| picked(&pool, &TARGET, &[]).unwrap();
    let picks: [&dyn Fn(u32) -> String; 2] = [&by_session, &at_random];
    for pick in picks {
        let mut counts: HashMap<String, u32> = HashMap::new();
        for number in 0..10_000 {
            *counts.entry(pick(number)).or_default() += 1;
        }
        // Ten standard deviations on both sides.
        for (name, expected) in [("a", 1_000), ("b", 3_000), ("c", 6_000)] {
            assert!(counts[name].abs_diff(expected) < 500, "{counts:?}");
        }
    }
    let alone: HashSet<_> = (0..100).map(|_| picked(&pool, &TARGET, &[0, 2]).unwrap()).collect();
    assert_eq!(alone, HashSet::from(["b".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_conversation_keeps_its_key_and_only_moves_while_that_one_is_not_ready() {
    let pool = pool(KeySelection::Weighted, &[("a", 1), ("b", 1), ("c", 1)]);
    let sessions: Vec<String> = (0..300).map(|number| format!("session {number}")).collect();
    let pick = || -> Vec<String> {
        let target = |session| Target { session: Some(session), ..TARGET };
        sessions.iter().map(|session| picked(&pool, &target(session), &[]).unwrap()).collect()
    };
    let before = pick();
    limit(&pool, 1, 60);
    let meanwhile = pick();
    for (before, meanwhile) in before.iter().zip(&meanwhile) {
        assert_ne!(meanwhile, "b");
        assert!(before == "b" || before == meanwhile, "those of other keys stay");
    }
    let moved = before.iter().zip(&meanwhile).filter(|(before, _)| *before == "b");
    let to: HashSet<&String> = moved.map(|(_, meanwhile)| meanwhile).collect();
    assert_eq!(to.len(), 2, "they are spread over the others");
    advance(Duration::from_secs(60)).await;
    assert_eq!(pick(), before);
}
