//! The state of the data path that the API needs from its host.

use async_trait::async_trait;
use serde::Serialize;
use utoipa::ToSchema;

/// Shows the state of the data path.
#[async_trait]
pub trait DataPath: Send + Sync + 'static {
    /// The MCP servers in the order of the configuration.
    fn mcp_servers(&self) -> Vec<McpServer>;

    /// The provider instances in the order of the configuration.
    fn providers(&self) -> Vec<Provider>;

    /// The configuration in force, without secrets.
    fn configuration(&self) -> Configuration;

    /// Reloads the configuration and applies it to new requests.
    ///
    /// # Errors
    ///
    /// When it is not valid; the current one stays in force.
    async fn reload(&self, requested_by: &str) -> Result<Reloaded, ReloadError>;
}

/// The configuration in force, and the process that shows it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Configuration {
    /// Version of the process that responds.
    pub version: &'static str,
    /// Its id among the processes that serve from the store.
    #[schema(format = "uuid")]
    pub replica: String,
    /// When it began to serve, UTC.
    #[schema(format = DateTime)]
    pub started_at: String,
    /// The configuration file; null if there is none.
    #[schema(required)]
    pub file: Option<String>,
    /// All settings, in the order of the reference page.
    pub settings: Vec<Setting>,
    /// Settings that have been changed by a reload and take effect after a restart: `settings` has the values
    /// before.
    pub restart_needed: Vec<&'static str>,
    /// The last reload; null if there was none.
    #[schema(required)]
    pub last_reload: Option<LastReload>,
}

/// A setting.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Setting {
    /// Its path in the file, such as `providers[0].base_url`.
    pub name: String,
    /// Its value, with `***` in place of secrets; null where it is not set and has no default.
    #[schema(required)]
    pub value: serde_json::Value,
    /// Where the value comes from.
    pub origin: SettingOrigin,
    /// The environment variable that it comes from.
    #[schema(required)]
    pub variable: Option<String>,
}

/// Where the value of a setting comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SettingOrigin {
    /// It is set nowhere.
    Default,
    /// The configuration file.
    File,
    /// An environment variable.
    Environment,
    /// An option of the command line.
    CommandLine,
}

/// The last reload of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct LastReload {
    /// When, UTC.
    #[schema(format = DateTime)]
    pub at: String,
    /// By whom, such as `ada through the API` or `SIGHUP`.
    pub requested_by: String,
    /// Whether the configuration was valid and is in force.
    pub applied: bool,
    /// Every problem, if it was not valid.
    pub problems: Vec<ConfigProblem>,
    /// Settings that have no effect.
    pub warnings: Vec<ConfigProblem>,
}

/// The result of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Reloaded {
    /// Settings that have no effect.
    pub warnings: Vec<ConfigProblem>,
    /// Settings that changed and need a restart.
    pub restart_needed: Vec<&'static str>,
}

/// A problem with a setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ConfigProblem {
    /// Path in the file, such as `providers[0].base_url`, or the name of a variable.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

/// Why the configuration was not reloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReloadError {
    /// This process has no configuration to reload.
    Nothing,
    /// Every problem with it.
    Invalid(Vec<ConfigProblem>),
}

/// An MCP server whose tools are offered to models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct McpServer {
    /// Its name in the configuration.
    pub name: String,
    /// Its URL without the query.
    pub url: String,
    /// `connecting`, `ready` or `down`.
    pub status: &'static str,
    /// When the status last changed, UTC.
    pub since: String,
    /// The negotiated protocol version.
    #[schema(required)]
    pub protocol_version: Option<String>,
    /// Its own name and version.
    #[schema(required)]
    pub server_info: Option<String>,
    /// The names of the tools offered to models.
    pub tools: Vec<String>,
    /// Malformed tools that are not offered, each with the reason.
    pub refused_tools: Vec<String>,
    /// The definitions of the tools offered to models.
    pub tool_definitions: Vec<ToolDefinition>,
    /// The last error.
    #[schema(required)]
    pub error: Option<String>,
}

/// The definition of a tool, and how often the server changed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ToolDefinition {
    /// The name that models see.
    pub id: String,
    /// SHA-256 of its description and schema, in hex.
    pub sha256: String,
    /// How often it has changed since this process first saw it.
    pub changes: u64,
    /// When it last changed, UTC.
    #[schema(required)]
    pub changed_at: Option<String>,
}

/// A provider instance and its health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Provider {
    /// Its name in the configuration.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its base URL.
    pub base_url: String,
    /// The keys of its pool, in the order of the configuration.
    pub keys: Vec<ProviderKey>,
    /// Its circuit breakers, once they have seen a request.
    pub circuit_breakers: Vec<CircuitBreaker>,
    /// The last errors, by kind of credential.
    pub last_errors: LastErrors,
}

/// A key of a provider's pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ProviderKey {
    /// Its name in the configuration.
    pub name: String,
    /// The masked key.
    pub hint: String,
    /// `ready`, `resting` if there is anything that it is not used for, or `invalid`.
    pub state: &'static str,
    /// When it is used again for everything, UTC.
    #[schema(required)]
    pub until: Option<String>,
    /// What it is not used for.
    pub restrictions: Vec<KeyRestriction>,
}

/// An endpoint and a model for which a key of a provider's pool is not used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct KeyRestriction {
    /// The endpoint.
    pub endpoint: String,
    /// The model; null for requests that name none.
    #[schema(required)]
    pub model: Option<String>,
    /// `resting` after a rate limit, `forbidden` after a 403.
    pub state: &'static str,
    /// When the key is used for it again, UTC.
    pub until: String,
}

/// A circuit breaker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CircuitBreaker {
    /// The endpoint.
    pub endpoint: String,
    /// The model.
    pub model: String,
    /// `centralized` or `byok`.
    pub credential_kind: &'static str,
    /// `closed`, `half_open` or `open`.
    pub state: &'static str,
    /// Consecutive failures.
    pub failures: u32,
    /// When it lets trial requests pass, UTC.
    #[schema(required)]
    pub until: Option<String>,
}

/// The last errors of a provider, by kind of credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct LastErrors {
    /// With the company's keys.
    #[schema(required)]
    pub centralized: Option<LastError>,
    /// With callers' own credentials.
    #[schema(required)]
    pub byok: Option<LastError>,
}

/// An error of a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct LastError {
    /// When, UTC.
    pub at: String,
    /// The provider's HTTP status, if it responded.
    #[schema(required)]
    pub status: Option<u16>,
    /// The kind of error, as in the records.
    #[schema(required)]
    pub kind: Option<String>,
}
