//! What the API asks of its host: how the data path is.

use async_trait::async_trait;
use serde::Serialize;

/// Knows how the data path is.
#[async_trait]
pub trait DataPath: Send + Sync + 'static {
    /// The MCP servers in the order of the configuration.
    fn mcp_servers(&self) -> Vec<McpServer>;

    /// The provider instances in the order of the configuration.
    fn providers(&self) -> Vec<Provider>;

    /// Reads the configuration again and applies it to new requests.
    ///
    /// # Errors
    ///
    /// When something is wrong with it; all stays as it was then.
    async fn reload(&self, asked_by: &str) -> Result<Reloaded, ReloadError>;
}

/// What came of reading the configuration again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// Settings without effect.
    pub warnings: Vec<ConfigProblem>,
    /// Settings that have changed and need a restart.
    pub restart_needed: Vec<&'static str>,
}

/// A setting and what is to be said of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigProblem {
    /// Path in the file, such as `providers[0].base_url`, or the name of a variable.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

/// Why the configuration stays as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReloadError {
    /// This process has none that could be read again.
    Nothing,
    /// All that is wrong with it.
    Invalid(Vec<ConfigProblem>),
}

/// An MCP server whose tools the bridge offers to models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct McpServer {
    /// Its name in the configuration.
    pub name: String,
    /// Its address without query.
    pub url: String,
    /// `connecting`, `ready` or `down`.
    pub status: &'static str,
    /// Since when that is so, UTC.
    pub since: String,
    /// The version of the protocol that was agreed upon.
    pub protocol_version: Option<String>,
    /// What it calls itself, and its version.
    pub server_info: Option<String>,
    /// The ids of the tools that models are offered.
    pub tools: Vec<String>,
    /// Its tools that are malformed and left out, each with the reason.
    pub refused_tools: Vec<String>,
    /// What went wrong last.
    pub error: Option<String>,
}

/// A provider instance and its health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Provider {
    /// Its name in the configuration.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Where it is.
    pub base_url: String,
    /// The keys of its pool in the order of the configuration.
    pub keys: Vec<ProviderKey>,
    /// Its circuit breakers that have seen requests.
    pub circuit_breakers: Vec<CircuitBreaker>,
    /// The last error by the kind of the credential.
    pub last_errors: LastErrors,
}

/// A key of a provider's pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProviderKey {
    /// Its name in the configuration.
    pub name: String,
    /// The masked key.
    pub hint: String,
    /// `ready`, `resting` or `invalid`.
    pub state: &'static str,
    /// When it is tried again, UTC.
    pub until: Option<String>,
}

/// A circuit breaker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CircuitBreaker {
    /// The endpoint that it guards.
    pub endpoint: String,
    /// The model that it guards.
    pub model: String,
    /// `centralized` or `byok`.
    pub credential_kind: &'static str,
    /// `closed`, `half_open` or `open`.
    pub state: &'static str,
    /// Failures in a row.
    pub failures: u32,
    /// When trial requests pass, UTC.
    pub until: Option<String>,
}

/// The last error by the kind of the credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastErrors {
    /// With central keys.
    pub centralized: Option<LastError>,
    /// With requests' own credentials.
    pub byok: Option<LastError>,
}

/// What went wrong at a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastError {
    /// When, UTC.
    pub at: String,
    /// The provider's status, if it answered.
    pub status: Option<u16>,
    /// The kind of the error, as in records.
    pub kind: Option<String>,
}
