use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use aws_credential_types::provider::{
    self, error::CredentialsError, future::ProvideCredentials as Providing,
};
use tokio::time::advance;

use super::*;

/// A source whose fetches take a second each and then come to these results; further ones hang.
#[derive(Debug)]
struct Script {
    fetches: Arc<AtomicUsize>,
    results: Mutex<VecDeque<provider::Result>>,
}

impl ProvideCredentials for Script {
    fn provide_credentials<'a>(&'a self) -> Providing<'a>
    where
        Self: 'a,
    {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let result = self.results.lock().unwrap().pop_front();
        Providing::new(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            match result {
                Some(result) => result,
                None => std::future::pending().await,
            }
        })
    }
}

fn keys(id: &str, valid_for: Duration) -> provider::Result {
    Ok(Keys::new(id, "secret", None, Some(now() + valid_for), "test"))
}

fn failure() -> provider::Result {
    Err(CredentialsError::not_loaded("nobody there"))
}

/// Credentials of a source, and how often they were fetched.
fn scripted(
    results: impl Into<VecDeque<provider::Result>>,
) -> (Arc<Credentials>, Arc<AtomicUsize>) {
    let fetches = Arc::new(AtomicUsize::new(0));
    let results = Mutex::new(results.into());
    let script = Script { fetches: Arc::clone(&fetches), results };
    let credentials = Credentials::fetched("aws", SharedCredentialsProvider::new(script));
    (Arc::new(credentials), fetches)
}

/// Lets time pass for a fetch in the background too.
async fn pass(time: Duration) {
    tokio::task::yield_now().await;
    advance(time).await;
    tokio::task::yield_now().await;
}

/// The id of the current keys; none if there are none, or only after more than two seconds.
async fn current(credentials: &Credentials) -> Option<String> {
    let current = timeout(Duration::from_secs(2), credentials.current());
    current.await.ok()?.ok().map(|keys| keys.access_key_id().to_owned())
}

const SOON: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(3_600);

#[tokio::test(start_paused = true)]
async fn keys_that_are_valid_are_used_while_others_are_fetched() {
    let (credentials, fetches) = scripted([keys("old", SOON), keys("new", LONG)]);
    assert_eq!(current(&credentials).await.as_deref(), Some("old"));
    let before = Instant::now();
    for _request in 0..3 {
        assert_eq!(current(&credentials).await.as_deref(), Some("old"));
    }
    assert_eq!(before.elapsed(), Duration::ZERO, "no request waits");
    pass(Duration::from_secs(2)).await;
    assert_eq!(current(&credentials).await.as_deref(), Some("new"));
    assert_eq!(fetches.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_hangs_delays_no_request_as_long_as_the_keys_are_valid() {
    let (credentials, fetches) = scripted([keys("old", SOON)]);
    current(&credentials).await;
    let before = Instant::now();
    for seconds in [0, 10, 30] {
        assert_eq!(current(&credentials).await.as_deref(), Some("old"));
        pass(Duration::from_secs(seconds)).await;
    }
    assert_eq!(before.elapsed(), Duration::from_secs(40), "no request waits");
    assert_eq!(fetches.load(Ordering::SeqCst), 2, "one fetch at a time");
}

#[tokio::test(start_paused = true)]
async fn requests_without_keys_share_one_fetch_even_if_the_first_leaves() {
    let (credentials, fetches) = scripted([keys("first", LONG)]);
    let leaving = timeout(Duration::from_millis(500), credentials.current());
    assert!(leaving.await.is_err());
    let waiting = (0..5).map(|_| current(&credentials));
    for id in futures_util::future::join_all(waiting).await {
        assert_eq!(id.as_deref(), Some("first"));
    }
    assert_eq!(fetches.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_failed_is_made_again_after_a_backoff() {
    let (credentials, fetches) = scripted([failure(), keys("late", LONG)]);
    let missing = credentials.current().await.unwrap_err();
    assert_eq!(missing.detail, "no AWS credentials are available for the provider `aws`");
    assert_eq!(current(&credentials).await, None);
    assert_eq!(fetches.load(Ordering::SeqCst), 1, "not at once");
    pass(Duration::from_secs(5)).await;
    assert_eq!(current(&credentials).await.as_deref(), Some("late"));
}

#[tokio::test(start_paused = true)]
async fn keys_that_aws_refuses_are_replaced() {
    let (credentials, fetches) = scripted([keys("one", LONG), keys("two", LONG)]);
    let one = credentials.current().await.unwrap();
    credentials.forget(&one);
    assert_eq!(current(&credentials).await.as_deref(), Some("two"));
    credentials.forget(&one);
    assert_eq!(current(&credentials).await.as_deref(), Some("two"), "only those are forgotten");
    assert_eq!(fetches.load(Ordering::SeqCst), 2);
}
