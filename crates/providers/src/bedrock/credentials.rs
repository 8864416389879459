//! AWS credentials: found, kept for a while, fetched again before they expire.

#[cfg(feature = "bedrock-credentials")]
use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::Credentials as Keys;
use http::StatusCode;
use keybridge_wire::error::ErrorKind;
use secrecy::ExposeSecret;
use tokio::{sync::Mutex, time::Instant};

use super::{AwsSource, BedrockConfig, sign::now};
use crate::failure::Failure;

/// Credentials that expire within this time are fetched again.
const REFRESH_BEFORE: Duration = Duration::from_secs(5 * 60);
/// Longest that finding credentials may take, the whole chain included.
const PATIENCE: Duration = Duration::from_secs(20);
/// For so long nobody asks again after credentials could not be found.
const PAUSE: Duration = Duration::from_secs(5);

/// The credentials of one provider.
pub(super) struct Credentials {
    provider: String,
    source: Source,
    /// Held while credentials are fetched, so that only one request fetches them.
    cached: Mutex<Cached>,
}

#[derive(Default)]
struct Cached {
    keys: Option<Keys>,
    failed_at: Option<Instant>,
}

/// Where they come from.
#[derive(Clone)]
enum Source {
    Static(Keys),
    #[cfg(feature = "bedrock-credentials")]
    Fetched(Arc<fetched::Fetched>),
    #[cfg(not(feature = "bedrock-credentials"))]
    Missing,
}

impl Credentials {
    pub(super) fn new(provider: &str, config: &BedrockConfig) -> Self {
        Self { provider: provider.into(), source: Source::of(config), cached: Mutex::default() }
    }

    /// Credentials that are valid now.
    pub(super) async fn current(&self) -> Result<Keys, Failure> {
        if let Source::Static(keys) = &self.source {
            return Ok(keys.clone());
        }
        let mut cached = self.cached.lock().await;
        if let Some(keys) = cached.keys.as_ref().filter(|keys| is_valid(keys, REFRESH_BEFORE)) {
            return Ok(keys.clone());
        }
        // Those that are about to expire still do, should there be no others.
        let last = cached.keys.clone().filter(|keys| is_valid(keys, Duration::ZERO));
        let is_pausing = cached.failed_at.is_some_and(|at| at.elapsed() < PAUSE);
        let found = if is_pausing { None } else { self.fetch(&mut cached).await };
        found.or(last).ok_or_else(|| self.missing())
    }

    /// AWS does not know these any more.
    pub(super) async fn forget(&self, refused: &Keys) {
        let mut cached = self.cached.lock().await;
        let is_same = |keys: &Keys| keys.access_key_id() == refused.access_key_id();
        if cached.keys.as_ref().is_some_and(is_same) {
            cached.keys = None;
        }
    }

    async fn fetch(&self, cached: &mut Cached) -> Option<Keys> {
        let error = match tokio::time::timeout(PATIENCE, self.source.fetch()).await {
            Ok(Ok(keys)) => {
                tracing::debug!(provider = %self.provider, "AWS credentials were fetched");
                *cached = Cached { keys: Some(keys.clone()), failed_at: None };
                return Some(keys);
            }
            Ok(Err(error)) => error,
            Err(_elapsed) => format!("not found within {} s", PATIENCE.as_secs()),
        };
        tracing::error!(provider = %self.provider, error, "no AWS credentials");
        cached.failed_at = Some(Instant::now());
        None
    }

    fn missing(&self) -> Failure {
        let detail = format!("the provider `{}` has no AWS credentials at present", self.provider);
        Failure::upstream(StatusCode::SERVICE_UNAVAILABLE, ErrorKind::Api, detail)
    }
}

fn is_valid(keys: &Keys, margin: Duration) -> bool {
    keys.expiry().is_none_or(|expiry| expiry > now() + margin)
}

impl Source {
    fn of(config: &BedrockConfig) -> Self {
        match (&config.source, &config.assume_role) {
            (AwsSource::Static { access_key_id, secret_access_key, session_token }, None) => {
                let token = session_token.as_ref().map(|token| token.expose_secret().to_owned());
                let secret = secret_access_key.expose_secret();
                Self::Static(Keys::new(access_key_id, secret, token, None, "configuration"))
            }
            #[cfg(feature = "bedrock-credentials")]
            _ => Self::Fetched(Arc::new(fetched::Fetched::new(config))),
            #[cfg(not(feature = "bedrock-credentials"))]
            _ => Self::Missing,
        }
    }

    /// Asks the source.
    #[cfg(feature = "bedrock-credentials")]
    async fn fetch(&self) -> Result<Keys, String> {
        match self {
            Self::Static(keys) => Ok(keys.clone()),
            Self::Fetched(fetched) => fetched.fetch().await,
        }
    }

    /// Without AWS's chain there is nobody to ask.
    #[cfg(not(feature = "bedrock-credentials"))]
    fn fetch(&self) -> std::future::Ready<Result<Keys, String>> {
        std::future::ready(match self {
            Self::Static(keys) => Ok(keys.clone()),
            Self::Missing => Err("this build knows static keys only".into()),
        })
    }
}

#[cfg(feature = "bedrock-credentials")]
mod fetched;
