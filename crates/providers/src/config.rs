//! The validated settings of one provider instance.

use std::{path::PathBuf, time::Duration};

use http::{
    HeaderName, HeaderValue, Uri,
    uri::{PathAndQuery, Scheme},
};
use keybridge_net::egress::Egress;
use secrecy::{ExposeSecret, SecretString};

use crate::{
    bedrock::config::BedrockConfig,
    query,
    routes::AllowedRoute,
    vendors::{CredentialForm, Profile},
};
pub use crate::{kind::ProviderType, query::QueryParameter};

/// A named key of a provider's pool.
#[derive(Debug, Clone)]
pub struct Key {
    /// The name that records show as `pool:<name>`.
    pub name: String,
    /// The key itself.
    pub value: SecretString,
    /// How often it is used among others with [`KeySelection::Weighted`]; at least 1.
    pub weight: u32,
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.weight == other.weight
            && self.value.expose_secret() == other.value.expose_secret()
    }
}

/// How a key is chosen among those that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeySelection {
    /// The first in order; the others take over when it may not be used. This keeps prompt caches
    /// warm, which providers hold by account.
    #[default]
    First,
    /// At random, by weight.
    Weighted,
}

/// What happens to a request through a company's key that names an object of which it is not known who
/// made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnknownObjects {
    /// It is refused.
    #[default]
    Refuse,
    /// It is sent: for objects that were made without keybridge and are shared by all users.
    Allow,
}

/// The timeouts of an exchange with a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP and TLS.
    pub connect: Duration,
    /// From sending the request to the response head.
    pub head: Duration,
    /// Silence within a response body.
    pub idle: Duration,
}

/// Where exchanges are written, and how much of them is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpConfig {
    /// The folder; made if it is not there, for this user alone.
    pub dir: PathBuf,
    /// What is kept in all, in bytes; the oldest files go first.
    pub max_bytes: u64,
    /// How long files are kept.
    pub max_age: Duration,
}

/// When a circuit breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Consecutive failures that open it; at least 1.
    pub failures: u32,
    /// The time within which the failures must come.
    pub interval: Duration,
    /// How long it stays open.
    pub open: Duration,
    /// Trial requests that pass afterwards; all must succeed. At least 1.
    pub trial_requests: u32,
}

/// The instance that takes over for another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fallback {
    /// Its name.
    pub provider: String,
    /// The model that is asked there; `None`: the same.
    pub model: Option<String>,
}

impl From<&str> for Fallback {
    fn from(provider: &str) -> Self {
        Self { provider: provider.into(), model: None }
    }
}

/// One provider instance.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of the operator")]
pub struct ProviderConfig {
    /// First segment of its paths.
    pub name: String,
    /// Its kind.
    pub kind: ProviderType,
    /// What its vendor does differently.
    pub profile: Profile,
    /// Scheme, authority and an optional path; for [`ProviderType::OpenAi`] it ends in `/v1`.
    pub base_url: Uri,
    /// Company keys.
    pub keys: Vec<Key>,
    /// Which of them is used.
    pub key_selection: KeySelection,
    /// Whether a request may use a company key.
    pub allow_central: bool,
    /// Whether a request may bring its own credential (BYOK).
    pub allow_byok: bool,
    /// Whether a request that announces its own credential and brings none may use a company key.
    pub byok_fallback: bool,
    /// Whether the provider gets the user's id and name in headers.
    pub send_actor_headers: bool,
    /// Static headers of this instance; they replace a client's own.
    pub set_headers: Vec<(HeaderName, HeaderValue)>,
    /// Routes that requests may take beyond those of its kind.
    pub allow_routes: Vec<AllowedRoute>,
    /// Query parameters of every request; they replace a client's own of the same name.
    pub set_query: Vec<QueryParameter>,
    /// Stops requests while the provider fails; `None` = off.
    pub circuit_breaker: Option<BreakerConfig>,
    /// Another instance with the same dialects, which is used while this one's circuit breaker is open or its
    /// pool has no key left; for company keys only.
    pub fallback: Option<Fallback>,
    /// Whether a request through a company's key may name objects of which it is not known who made them.
    pub unknown_objects: UnknownObjects,
    /// Most retries of a request, as long as no part of an answer was relayed.
    pub max_retries: u32,
    /// The timeouts of each stage.
    pub timeouts: Timeouts,
    /// How connections to it are made.
    pub egress: Egress,
    /// HTTP/2 towards the provider instead of HTTP/1.1.
    pub http2: bool,
    /// Where exchanges are written for debugging, credentials masked; `None` = off.
    pub dump: Option<DumpConfig>,
    /// Set for [`ProviderType::Bedrock`].
    pub bedrock: Option<BedrockConfig>,
}

impl ProviderConfig {
    /// An instance named after its kind, without keys: both kinds of credential are allowed, nothing is
    /// retried, guarded or dumped.
    pub fn new(kind: ProviderType, base_url: Uri) -> Self {
        Self {
            name: kind.as_str().into(),
            kind,
            profile: Profile::of_type(kind),
            base_url,
            keys: Vec::new(),
            key_selection: KeySelection::First,
            allow_central: true,
            allow_byok: true,
            byok_fallback: true,
            send_actor_headers: false,
            set_headers: Vec::new(),
            allow_routes: Vec::new(),
            set_query: Vec::new(),
            circuit_breaker: None,
            fallback: None,
            unknown_objects: UnknownObjects::Refuse,
            max_retries: 0,
            timeouts: Timeouts {
                connect: Duration::from_secs(5),
                head: Duration::from_secs(30),
                idle: Duration::from_secs(30),
            },
            egress: Egress::default(),
            http2: false,
            dump: None,
            bedrock: None,
        }
    }

    /// Whether centralized requests are sent without a credential.
    pub fn is_keyless(&self) -> bool {
        match self.profile.credential {
            CredentialForm::None => true,
            CredentialForm::Aws => false,
            CredentialForm::Bearer | CredentialForm::Header(_) => {
                self.profile.key_optional && self.keys.is_empty()
            }
        }
    }

    /// The URI of a path below the base URL, without doubled slashes, with the query parameters that the
    /// instance adds to the client's.
    pub fn uri(&self, path: &str, query: Option<&str>) -> Option<Uri> {
        let (base, path) =
            (self.base_url.path().trim_end_matches('/'), path.trim_start_matches('/'));
        let mut path_and_query = format!("{base}/{path}");
        if let Some(query) = query::with_own(&self.set_query, &self.profile.query, query) {
            path_and_query.push('?');
            path_and_query.push_str(&query);
        }
        Uri::builder()
            .scheme(self.base_url.scheme().cloned().unwrap_or(Scheme::HTTPS))
            .authority(self.base_url.authority()?.clone())
            .path_and_query(PathAndQuery::try_from(path_and_query).ok()?)
            .build()
            .ok()
    }
}
