use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use jiff::Timestamp;
use tokio::time::{Instant, advance};

use super::{Cooldowns, KeyVerdict, MAX_PLACES};
use crate::{health::KeyStatus, target::Target};

fn target<'a>(endpoint: &'a str, model: &'a str) -> Target<'a> {
    Target { endpoint, model: Some(model), ..Target::default() }
}

/// The status for a target, and the remaining seconds.
fn state(cooldowns: &Cooldowns, target: &Target<'_>) -> (KeyStatus, u64) {
    let availability = cooldowns.availability(target, Instant::now());
    (availability.status, availability.wait.as_secs())
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_and_a_403_are_of_one_endpoint_and_model_and_a_401_of_all() {
    let (mut key, now) = (Cooldowns::default(), Instant::now());
    let [opus, haiku] = ["opus", "haiku"].map(|model| target("/v1/messages", model));
    let [count, none] = [target("/count", "opus"), Target { model: None, ..opus }];
    key.apply(&opus, KeyVerdict::RateLimited(Some(Duration::from_secs(7))), now);
    key.apply(&haiku, KeyVerdict::Forbidden, now);
    assert_eq!(state(&key, &opus), (KeyStatus::Resting, 7));
    assert_eq!(state(&key, &haiku), (KeyStatus::Forbidden, 600));
    for other in [count, none] {
        assert_eq!(state(&key, &other), (KeyStatus::Ready, 0));
    }
    assert_eq!(key.status(now), KeyStatus::Resting);
    key.apply(&count, KeyVerdict::Invalid, now);
    for any in [opus, haiku, count, none] {
        assert_eq!(state(&key, &any), (KeyStatus::Invalid, 600));
    }
    assert_eq!(key.status(now), KeyStatus::Invalid);
    key.apply(&none, KeyVerdict::Accepted, now);
    assert_eq!(state(&key, &opus), (KeyStatus::Resting, 7), "that of another model is no news");
    key.apply(&opus, KeyVerdict::Accepted, now);
    key.apply(&haiku, KeyVerdict::Accepted, now);
    assert!(key.is_empty());
    assert_eq!(key.status(now), KeyStatus::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_is_probed_by_one_request_and_then_not_used_for_twice_as_long() {
    let here = target("/v1/messages", "opus");
    for (verdict, status) in
        [(KeyVerdict::Invalid, KeyStatus::Invalid), (KeyVerdict::Forbidden, KeyStatus::Forbidden)]
    {
        let mut key = Cooldowns::default();
        key.apply(&here, verdict, Instant::now());
        advance(Duration::from_secs(400)).await;
        key.start_use(&here);
        key.apply(&here, verdict, Instant::now());
        assert_eq!(state(&key, &here), (status, 200), "it was not worth a probe yet");
        advance(Duration::from_secs(200)).await;
        assert_eq!(state(&key, &here), (KeyStatus::Ready, 0));
        key.start_use(&here);
        assert_eq!(state(&key, &here), (status, 30), "others do not wait for the probe");
        key.apply(&here, verdict, Instant::now());
        assert_eq!(state(&key, &here), (status, 1_200));
        key.apply(&here, KeyVerdict::Accepted, Instant::now());
        key.apply(&here, verdict, Instant::now());
        assert_eq!(state(&key, &here), (status, 600), "an accepted key starts again");
    }
}

#[tokio::test(start_paused = true)]
async fn the_cooldowns_of_a_key_are_bounded_in_number_and_length() {
    let (mut key, now) = (Cooldowns::default(), Instant::now());
    let models: Vec<String> = (0..MAX_PLACES + 5).map(|number| format!("model-{number}")).collect();
    for (seconds, model) in (10..).zip(&models) {
        let verdict = KeyVerdict::RateLimited(Some(Duration::from_secs(seconds)));
        key.apply(&target("/v1/messages", model), verdict, now);
    }
    let listed = key.restrictions(now, Timestamp::UNIX_EPOCH);
    assert_eq!(listed.len(), MAX_PLACES);
    for forgotten in &models[..5] {
        let forgotten = target("/v1/messages", forgotten);
        assert_eq!(state(&key, &forgotten), (KeyStatus::Ready, 0), "it would have ended first");
    }
    let long = "x".repeat(201);
    let long = target("/v1/messages", &long);
    key.apply(&long, KeyVerdict::RateLimited(None), now);
    assert_eq!(state(&key, &long).0, KeyStatus::Ready);
    // A provider that sends a delay of a year gets a request after a day.
    let last = target("/v1/messages", models.last().unwrap());
    key.apply(&last, KeyVerdict::RateLimited(Some(Duration::MAX)), now);
    assert_eq!(state(&key, &last), (KeyStatus::Resting, 24 * 3_600));
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
