//! A provider instance at work: its settings, its key and its connections.

use std::sync::Arc;

use http::{
    Uri,
    uri::{PathAndQuery, Scheme},
};

use crate::{
    BridgeError,
    config::{Key, ProviderConfig},
    upstream::Upstream,
};

/// One provider instance.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) config: ProviderConfig,
    pub(crate) upstream: Upstream,
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
        Ok(Self { config, upstream, base_path })
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
