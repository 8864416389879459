//! The configuration: as written ([`raw`]) and validated ([`Config`]).

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use http::HeaderName;
use keybridge_bridge::config::{BridgeConfig, RecordPolicy, ToolsConfig};
use keybridge_console::MetricsAccess;
use keybridge_ledger::{LedgerOptions, RetentionPolicy};
use keybridge_net::listener::{ConnectionLimits, ConnectionSettings, ServerTls};
use keybridge_policy::LimitsConfig;
use keybridge_providers::config::ProviderConfig;
use keybridge_telemetry::log::LogConfig;

use self::settings::Settings;
use crate::env::Env;

mod load;
mod permissions;
pub(crate) mod raw;
pub(crate) mod reference;
pub(crate) mod settings;
pub(crate) mod units;
mod validate;

/// The validated configuration.
#[derive(Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// URL that clients use, without a trailing slash.
    pub public_url: String,
    pub max_body: usize,
    /// Largest upload in bytes.
    pub max_upload: usize,
    /// Maximum pause between two pieces of a request body.
    pub body_timeout: Duration,
    /// Minimum rate of a request body in bytes per second; `None`: no minimum.
    pub min_body_rate: Option<NonZeroU32>,
    pub shutdown_grace: Duration,
    pub reuse_port: bool,
    /// Settings of clients' connections.
    pub connections: ConnectionSettings,
    /// How many connections are accepted, and from whom.
    pub connection_limits: ConnectionLimits,
    /// None: plain HTTP.
    pub tls: Option<ServerTls>,
    pub limits: LimitsConfig,
    pub trust_forwarded_headers: bool,
    pub store_url: String,
    /// Whether the store was named, instead of being the default one.
    pub store_is_named: bool,
    pub ledger: LedgerOptions,
    /// Where metrics are served without authentication; `None`: only on the main listener.
    pub metrics_listen: Option<SocketAddr>,
    /// Who can read them on the main listener without a token.
    pub metrics_access: MetricsAccess,
    /// How long records are kept.
    pub retention: RetentionPolicy,
    pub record: RecordPolicy,
    pub governance_headers: Vec<HeaderName>,
    pub offline_cache: OfflineCacheConfig,
    pub providers: Vec<ProviderConfig>,
    pub tools: ToolsConfig,
    pub log: LogConfig,
    /// The settings that change only with a restart.
    pub restart: Restart,
    /// All settings, as they are shown to administrators.
    pub settings: Settings,
    /// Settings that are known but have no effect in this release, certificates that cannot be read, and
    /// files with secrets that everyone can read.
    pub warnings: Vec<Problem>,
}

/// The file with what a start needs while the store cannot be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfflineCacheConfig {
    pub file: PathBuf,
    pub start: OfflineStart,
}

/// Whether a start without the store is allowed, and so whether there is an offline cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfflineStart {
    Allowed,
    Refused,
}

/// A problem of the configuration, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path in the file, such as `providers[0].base_url`, or the name of an environment variable.
    pub path: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// All problems of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "{count} problem{} in the configuration", if count == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}

/// Options of the command line that override file and environment.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub listen: Option<String>,
    pub store: Option<String>,
}

/// Where a process reads its configuration from.
#[derive(Debug, Clone)]
pub struct Source {
    /// None: [`DEFAULT_FILE`] if it exists.
    pub file: Option<PathBuf>,
    pub env: Env,
    pub overrides: Overrides,
}

/// The file that is read when none is named.
const DEFAULT_FILE: &str = "keybridge.toml";

impl Source {
    pub fn load(&self) -> Result<Config, Problems> {
        let default = Path::new(DEFAULT_FILE);
        let file = self.file.as_deref().or_else(|| default.exists().then_some(default));
        Config::load(file, &self.env, &self.overrides)
    }
}

/// The settings that are read only at startup, with their values.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Restart(BTreeMap<&'static str, serde_json::Value>);

impl Restart {
    const SETTINGS: &'static [&'static str] = &[
        "server.listen",
        "server.public_url",
        "server.shutdown_grace",
        "server.reuse_port",
        "server.trusted_proxies",
        "server.keep_alive",
        "server.idle_stream_handoff",
        "limits.max_connections",
        "limits.max_connections_per_address",
        "store.url",
        "store.max_connections",
        "store.read_timeout",
        "ledger.durability",
        "ledger.on_outage",
        "ledger.spool_dir",
        "ledger.spool_max_bytes",
        "ledger.spool_max_age",
        "ledger.retention",
        "ledger.retention_max_fraction",
        "auth.offline_cache",
        "telemetry.metrics_listen",
        "telemetry.metrics_local",
        "telemetry.log.format",
    ];
    /// A reload can replace the certificate, but not turn TLS on or off.
    const TLS: &'static str = "server.tls";

    fn of(raw: &raw::RawConfig) -> Self {
        let tree = serde_json::to_value(raw).unwrap_or_default();
        let value = |setting: &str| {
            tree.pointer(&format!("/{}", setting.replace('.', "/"))).cloned().unwrap_or_default()
        };
        let mut settings: BTreeMap<_, _> =
            Self::SETTINGS.iter().map(|setting| (*setting, value(setting))).collect();
        settings.insert(Self::TLS, raw.server.tls.is_some().into());
        Self(settings)
    }

    /// The settings that have another value in `other`.
    pub(crate) fn changed_by(&self, other: &Self) -> Vec<&'static str> {
        let changed = self.0.iter().filter(|(setting, value)| other.0.get(*setting) != Some(value));
        changed.map(|(setting, _)| *setting).collect()
    }
}

impl Config {
    /// Reads the file, if there is one; the environment overrides it, and the command line overrides both.
    pub fn load(file: Option<&Path>, env: &Env, overrides: &Overrides) -> Result<Self, Problems> {
        let text = match file {
            Some(path) => std::fs::read_to_string(path).map_err(|error| {
                let message = format!("cannot be read: {error}");
                Problems(vec![Problem { path: path.display().to_string(), message }])
            })?,
            None => String::new(),
        };
        let mut config = Self::parse(&text, env, overrides)?;
        config.settings.file = file.map(|path| path.display().to_string());
        config.warnings.extend(file.and_then(|path| permissions::warning(path, &text)));
        Ok(config)
    }

    pub fn parse(text: &str, env: &Env, overrides: &Overrides) -> Result<Self, Problems> {
        let load::Read { mut raw, problems, warnings, mut origins } = load::raw(text, env)?;
        if let Some(listen) = &overrides.listen {
            raw.server.listen.clone_from(listen);
            origins.command_line.push("server.listen");
        }
        if let Some(store) = &overrides.store {
            raw.store.url.clone_from(store);
            origins.command_line.push("store.url");
        }
        let settings = Settings::of(&raw, &origins);
        let config = validate::validate(raw, env, problems, warnings)?;
        Ok(Self { settings, ..config })
    }
}

impl Config {
    /// What the data path needs of it.
    pub fn into_bridge(self, server_secret: [u8; 32]) -> BridgeConfig {
        BridgeConfig {
            providers: self.providers,
            governance_headers: self.governance_headers,
            max_body: self.max_body,
            max_upload: self.max_upload,
            body_timeout: self.body_timeout,
            min_body_rate: self.min_body_rate,
            limits: self.limits,
            trust_forwarded_headers: self.trust_forwarded_headers,
            record: self.record,
            tools: self.tools,
            server_secret,
        }
    }
}

#[cfg(test)]
mod tests;
