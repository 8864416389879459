//! AWS credentials: fetched once for all requests, and refreshed in the background before they
//! expire.

use std::{fmt, sync::Arc, time::Duration};

use aws_credential_types::{
    Credentials as Keys,
    provider::{ProvideCredentials, SharedCredentialsProvider},
};
use http::StatusCode;
use keybridge_net::error_chain;
use keybridge_policy::Backoff;
use keybridge_wire::error::ErrorKind;
use secrecy::ExposeSecret;
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;

use super::{AwsSource, BedrockConfig, sign::now};
use crate::failure::Failure;

#[cfg(feature = "bedrock-credentials")]
mod chain;
#[cfg(feature = "bedrock-credentials")]
use chain::Chain;

/// Keys that expire within this time are refreshed in the background.
const REFRESH_BEFORE: Duration = Duration::from_secs(5 * 60);
/// Keys that expire within this time are used only if no others can be fetched.
const MIN_VALIDITY: Duration = Duration::from_secs(30);
/// Timeout of a fetch, the whole chain of sources included.
const FETCH_TIMEOUT: Duration = Duration::from_secs(20);
/// Delays between fetches that fail.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(10));

/// The AWS credentials of one provider.
pub(super) enum Credentials {
    /// Keys of the configuration.
    Static(Keys),
    /// Keys of another source, which expire.
    Fetched { cache: Arc<Cache>, tasks: TaskTracker },
}

/// Keys of a source.
pub(super) struct Cache {
    provider: String,
    source: SharedCredentialsProvider,
    state: watch::Sender<CachedKeys>,
}

struct CachedKeys {
    keys: Option<Keys>,
    /// One fetch at a time, which all requests without keys wait for.
    is_fetching: bool,
    /// No fetch before this time, after one that failed.
    retry_at: Option<Instant>,
    backoff: Backoff,
}

/// A running fetch; when it is dropped, another one may run.
struct Fetch(Arc<Cache>);

impl Credentials {
    pub(super) fn new(provider: &str, config: &BedrockConfig) -> Self {
        match (&config.source, &config.assume_role) {
            (AwsSource::Static { access_key_id, secret_access_key, session_token }, None) => {
                let token = session_token.as_ref().map(|token| token.expose_secret().to_owned());
                let secret = secret_access_key.expose_secret();
                Self::Static(Keys::new(access_key_id, secret, token, None, "configuration"))
            }
            _ => Self::fetched(provider, SharedCredentialsProvider::new(Chain::new(config))),
        }
    }

    fn fetched(provider: &str, source: SharedCredentialsProvider) -> Self {
        let state = CachedKeys { keys: None, is_fetching: false, retry_at: None, backoff: BACKOFF };
        let state = watch::Sender::new(state);
        let cache = Arc::new(Cache { provider: provider.into(), source, state });
        Self::Fetched { cache, tasks: TaskTracker::new() }
    }

    /// Keys that are valid now. Waits for a fetch only if there are none.
    pub(super) async fn current(&self) -> Result<Keys, Failure> {
        let (cache, tasks) = match self {
            Self::Static(keys) => return Ok(keys.clone()),
            Self::Fetched { cache, tasks } => (cache, tasks),
        };
        if let Some(keys) = cache.valid_for(REFRESH_BEFORE) {
            return Ok(keys);
        }
        if let Some(fetch) = Fetch::begin(cache) {
            tasks.spawn(fetch.run());
        }
        if let Some(keys) = cache.valid_for(MIN_VALIDITY) {
            return Ok(keys);
        }
        let mut state = cache.state.subscribe();
        // The sender lives as long as the cache.
        let _fetched = state.wait_for(|state| !state.is_fetching).await.is_ok();
        cache.valid_for(Duration::ZERO).ok_or_else(|| cache.missing())
    }

    /// Removes keys that AWS refuses.
    pub(super) fn forget(&self, refused: &Keys) {
        let Self::Fetched { cache, .. } = self else { return };
        cache.state.send_modify(|state| {
            state.keys.take_if(|keys| keys.access_key_id() == refused.access_key_id());
        });
    }
}

impl Cache {
    /// The keys, if they do not expire within this time.
    fn valid_for(&self, margin: Duration) -> Option<Keys> {
        let state = self.state.borrow();
        let is_valid = |keys: &&Keys| keys.expiry().is_none_or(|expiry| expiry > now() + margin);
        state.keys.as_ref().filter(is_valid).cloned()
    }

    fn missing(&self) -> Failure {
        let detail =
            format!("no AWS credentials are available for the provider `{}`", self.provider);
        Failure::upstream(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Api, detail)
    }
}

impl Fetch {
    /// Begins a fetch, unless there is one already or the last one has just failed.
    fn begin(cache: &Arc<Cache>) -> Option<Self> {
        let begins = cache.state.send_if_modified(|state| {
            let is_due = state.retry_at.is_none_or(|at| at <= Instant::now());
            let begins = is_due && !state.is_fetching;
            state.is_fetching |= begins;
            begins
        });
        begins.then(|| Self(Arc::clone(cache)))
    }

    async fn run(self) {
        let Cache { provider, source, state } = &*self.0;
        let error = match timeout(FETCH_TIMEOUT, source.provide_credentials()).await {
            Ok(Ok(keys)) => {
                tracing::debug!(provider, "fetched AWS credentials");
                return state.send_modify(|state| {
                    state.keys = Some(keys);
                    state.retry_at = None;
                    state.backoff.reset();
                });
            }
            Ok(Err(error)) => error_chain(&error),
            Err(_elapsed) => format!("no answer within {} s", FETCH_TIMEOUT.as_secs()),
        };
        tracing::error!(provider, error, "cannot fetch AWS credentials");
        state.send_modify(|state| {
            state.retry_at = Some(Instant::now() + state.backoff.next_delay());
        });
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.0.state.send_modify(|state| state.is_fetching = false);
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

/// A build without AWS's chain has no source but the configuration.
#[cfg(not(feature = "bedrock-credentials"))]
#[derive(Debug)]
struct Chain;

#[cfg(not(feature = "bedrock-credentials"))]
impl Chain {
    const fn new(_config: &BedrockConfig) -> Self {
        Self
    }
}

#[cfg(not(feature = "bedrock-credentials"))]
impl ProvideCredentials for Chain {
    fn provide_credentials<'a>(
        &'a self,
    ) -> aws_credential_types::provider::future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let error = "this build supports static AWS keys only";
        aws_credential_types::provider::future::ProvideCredentials::ready(Err(
            aws_credential_types::provider::error::CredentialsError::not_loaded(error),
        ))
    }
}

#[cfg(test)]
mod tests;
