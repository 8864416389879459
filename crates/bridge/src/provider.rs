//! A provider instance at work: its settings, its key, its connections and its retries.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use bytes::Bytes;
use http::{
    HeaderMap, Method, Request, Response, Uri,
    uri::{PathAndQuery, Scheme},
};
use http_body_util::Full;
use hyper::body::Incoming;

use crate::{
    BridgeError,
    config::{Key, ProviderConfig},
    failure::Failure,
    metrics::Metrics,
    retry::{self, Budget},
    upstream::Upstream,
};

/// A request as it goes to a provider; its body is held, so that it can go again.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Outgoing {
    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// How often providers were asked for one record; clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attempts(Arc<AtomicU32>);

impl Attempts {
    pub(crate) fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One provider instance.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) config: ProviderConfig,
    upstream: Upstream,
    budget: Budget,
    /// The base URL's own path, without a slash at its end.
    base_path: String,
}

impl Provider {
    pub(crate) fn new(
        config: ProviderConfig,
        roots: &Arc<rustls::RootCertStore>,
    ) -> Result<Self, BridgeError> {
        if config.base_url.authority().is_none()
            || !matches!(config.base_url.scheme_str(), Some("http" | "https"))
        {
            return Err(BridgeError::BaseUrl { provider: config.name });
        }
        let upstream = Upstream::new(&config, roots);
        let base_path = config.base_url.path().trim_end_matches('/').to_owned();
        Ok(Self { config, upstream, budget: Budget::default(), base_path })
    }

    /// Asks the provider, and again where that may cure it: nothing of an answer has been relayed
    /// yet.
    pub(crate) async fn ask(
        &self,
        outgoing: &Outgoing,
        attempts: &Attempts,
        metrics: &Metrics,
    ) -> Result<Response<Incoming>, Failure> {
        self.budget.earn();
        let mut retries = 0;
        loop {
            attempts.0.fetch_add(1, Ordering::Relaxed);
            let answered = self.upstream.send(outgoing.request()).await;
            let may_retry = retries < self.config.max_retries;
            let again = may_retry.then(|| retry::again(&answered, retries)).flatten();
            let Some(again) = again else { return answered };
            let (provider, reason) = (&self.config.name, again.reason.label());
            if !self.budget.spend() {
                tracing::warn!(%provider, reason, "too many retries: this answer is passed on");
                return answered;
            }
            retries += 1;
            tracing::info!(%provider, reason, retries, pause = ?again.pause, "asked again");
            metrics.retried(provider, &reason);
            drop(answered);
            tokio::time::sleep(again.pause).await;
        }
    }

    /// The central key in use; the pool's order decides.
    pub(crate) fn key_in_use(&self) -> Option<&Key> {
        self.config.keys.first()
    }

    /// The address of an endpoint at the provider; slashes never double.
    pub(crate) fn uri(&self, path: &str, query: Option<&str>) -> Option<Uri> {
        let path = path.trim_start_matches('/');
        let mut path_and_query = format!("{}/{path}", self.base_path);
        if let Some(query) = query {
            path_and_query.push('?');
            path_and_query.push_str(query);
        }
        Uri::builder()
            .scheme(self.config.base_url.scheme().cloned().unwrap_or(Scheme::HTTPS))
            .authority(self.config.base_url.authority()?.clone())
            .path_and_query(PathAndQuery::try_from(path_and_query).ok()?)
            .build()
            .ok()
    }
}
