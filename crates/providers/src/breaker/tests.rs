use std::{sync::Arc, time::Duration};

use http::StatusCode;
use tokio::time::advance;

use super::{Breakers, Permit, Verdict};
use crate::{config::BreakerConfig, health::CircuitStatus};

struct World {
    breakers: Breakers,
}

impl World {
    fn new() -> Self {
        let config = BreakerConfig {
            failures: 5,
            interval: Duration::from_secs(10),
            open: Duration::from_secs(30),
            trial_requests: 3,
        };
        Self { breakers: Breakers::new("anthropic", Some(config), Arc::default()) }
    }

    fn admit(&self, model: &str) -> Result<Permit, Duration> {
        let admitted = self.breakers.admit("/v1/messages", Some(model), "centralized");
        admitted.map(|permit| permit.expect("a circuit guards it"))
    }

    /// Requests that end like this.
    fn end(&self, count: usize, verdict: Verdict) {
        for _ in 0..count {
            self.admit("m").unwrap().record_end(verdict);
        }
    }

    fn status(&self) -> CircuitStatus {
        self.breakers.states()[0].status
    }
}

#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_open_it_and_three_trials_close_it() {
    let world = World::new();
    world.end(4, Verdict::Fails);
    world.end(1, Verdict::Works);
    world.end(4, Verdict::Fails);
    assert_eq!(world.status(), CircuitStatus::Closed, "they were not in a row");
    world.end(1, Verdict::Fails);
    assert_eq!(world.status(), CircuitStatus::Open);
    assert_eq!(world.admit("m").unwrap_err(), Duration::from_secs(30));
    assert!(world.admit("other").is_ok(), "the circuit of another model is closed");
    advance(Duration::from_secs(30)).await;
    let trials: Vec<_> = (0..3).map(|_| world.admit("m").unwrap()).collect();
    assert_eq!(world.status(), CircuitStatus::HalfOpen);
    assert_eq!(world.admit("m").unwrap_err(), Duration::from_secs(1), "no more than three");
    for mut trial in trials {
        trial.record_head(Verdict::Works);
    }
    assert_eq!(world.status(), CircuitStatus::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_fails_opens_it_again() {
    let world = World::new();
    world.end(5, Verdict::Fails);
    advance(Duration::from_secs(30)).await;
    let mut stream = world.admit("m").unwrap();
    stream.record_head(Verdict::Works);
    stream.record_end(Verdict::Fails);
    assert_eq!(world.status(), CircuitStatus::Open, "an error within its stream counts");
    assert_eq!(world.admit("m").unwrap_err(), Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn trials_without_a_verdict_are_given_back() {
    let world = World::new();
    world.end(5, Verdict::Fails);
    advance(Duration::from_secs(30)).await;
    world.end(10, Verdict::Unknown);
    // Dropped without an end, as when a client leaves.
    drop(world.admit("m").unwrap());
    let silent: Vec<_> = (0..3).map(|_| world.admit("m").unwrap()).collect();
    assert!(world.admit("m").is_err());
    advance(Duration::from_secs(30)).await;
    assert!(world.admit("m").is_ok(), "trials without an outcome do not keep others out for ever");
    drop(silent);
}

#[tokio::test(start_paused = true)]
async fn failures_that_are_far_apart_do_not_open_it() {
    let world = World::new();
    for _ in 0..20 {
        world.end(2, Verdict::Fails);
        advance(Duration::from_secs(10)).await;
    }
    assert_eq!(world.status(), CircuitStatus::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_request_counts_only_in_the_phase_that_admitted_it() {
    let world = World::new();
    let old: Vec<_> = (0..9).map(|_| world.admit("m").unwrap()).collect();
    world.end(5, Verdict::Fails);
    advance(Duration::from_secs(30)).await;
    for _ in 0..3 {
        world.admit("m").unwrap().record_head(Verdict::Works);
    }
    old.into_iter().for_each(|permit| permit.record_end(Verdict::Fails));
    assert_eq!(world.status(), CircuitStatus::Closed);
}

#[tokio::test]
async fn circuits_are_bounded_and_off_by_default() {
    let world = World::new();
    for index in 0..super::MAX_CIRCUITS * 2 {
        drop(world.admit(&format!("m{index}")).unwrap());
    }
    assert!(world.breakers.states().len() <= super::MAX_CIRCUITS);
    let long = format!("/v1/models/{}", "x".repeat(super::MAX_LABEL_BYTES));
    assert!(world.breakers.admit(&long, Some("m"), "byok").unwrap().is_none());
    let off = Breakers::new("anthropic", None, Arc::default());
    assert!(off.admit("/v1/messages", Some("m"), "byok").unwrap().is_none());
}

#[test]
fn a_refused_credential_says_nothing_of_the_provider() {
    let of = |status: u16, kind| Verdict::of_status(StatusCode::from_u16(status).unwrap(), kind);
    for kind in ["centralized", "byok"] {
        for status in [503, 504, 529] {
            assert_eq!(of(status, kind), Verdict::Fails);
        }
        for status in [401, 403, 500, 502] {
            assert_eq!(of(status, kind), Verdict::Unknown);
        }
        for status in [200, 400, 404, 413] {
            assert_eq!(of(status, kind), Verdict::Works);
        }
    }
    assert_eq!(of(429, "centralized"), Verdict::Fails);
    assert_eq!(of(429, "byok"), Verdict::Unknown);
    assert_eq!(Verdict::of_error("rate_limit_error", "byok"), Verdict::Unknown);
    assert_eq!(Verdict::of_error("overloaded_error", "byok"), Verdict::Fails);
}
