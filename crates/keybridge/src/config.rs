//! The configuration: what the user wrote ([`raw`]) and what was made of it ([`Config`]).

use std::{fmt, net::SocketAddr, path::Path, time::Duration};

use http::HeaderName;
use keybridge_bridge::config::{LimitsConfig, ProviderConfig, RecordPolicy, ToolsConfig};
use keybridge_ledger::LedgerOptions;

use crate::env::Env;

mod load;
pub(crate) mod raw;
pub(crate) mod reference;
pub(crate) mod units;
mod validate;

/// The validated configuration.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) listen: SocketAddr,
    /// What users type, without a slash at its end.
    pub(crate) public_url: String,
    pub(crate) max_body: usize,
    pub(crate) shutdown_grace: Duration,
    pub(crate) limits: LimitsConfig,
    pub(crate) trust_forwarded_headers: bool,
    pub(crate) store_url: String,
    pub(crate) ledger: LedgerOptions,
    /// Where metrics are served; `None`: on the main listener.
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// `None`: records are kept for ever.
    pub(crate) retention: Option<Duration>,
    pub(crate) record: RecordPolicy,
    pub(crate) governance_headers: Vec<HeaderName>,
    pub(crate) providers: Vec<ProviderConfig>,
    pub(crate) tools: ToolsConfig,
    pub(crate) log: Log,
    /// Settings that are understood and have no effect in this release.
    pub(crate) warnings: Vec<Problem>,
}

/// How logs are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Log {
    /// A level, or directives such as `info,keybridge_bridge=debug`.
    pub(crate) level: String,
    pub(crate) format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Something wrong with the configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Path in the file, such as `providers[0].base_url`, or the name of a variable.
    pub(crate) path: String,
    pub(crate) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// All that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problems(pub(crate) Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "{count} problem{} in the configuration", if count == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}

/// What the command line sets over file and environment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    pub(crate) listen: Option<String>,
    pub(crate) store: Option<String>,
}

impl Config {
    /// Reads a file, if there is one, with the environment over it and the command line over both.
    pub(crate) fn load(
        file: Option<&Path>,
        env: &Env,
        overrides: &Overrides,
    ) -> Result<Self, Problems> {
        let text = match file {
            Some(path) => std::fs::read_to_string(path).map_err(|error| {
                Problems(vec![Problem {
                    path: path.display().to_string(),
                    message: format!("cannot be read: {error}"),
                }])
            })?,
            None => String::new(),
        };
        Self::parse(&text, env, overrides)
    }

    pub(crate) fn parse(text: &str, env: &Env, overrides: &Overrides) -> Result<Self, Problems> {
        let load::Read { mut raw, problems, warnings } = load::raw(text, env)?;
        if let Some(listen) = &overrides.listen {
            raw.server.listen.clone_from(listen);
        }
        if let Some(store) = &overrides.store {
            raw.store.url.clone_from(store);
        }
        validate::validate(raw, env, problems, warnings)
    }
}

#[cfg(test)]
mod tests;
