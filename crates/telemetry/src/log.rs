//! Logs: on standard error, as text or JSON, never with a secret or a body.

use tracing_subscriber::{EnvFilter, Registry, fmt, prelude::*, reload};

/// How logs are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or directives such as `info,keybridge_bridge=debug`.
    pub level: String,
    /// The shape of a line.
    pub format: LogFormat,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object per line.
    Json,
}

/// What is logged, which can be changed.
#[derive(Debug, Clone)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

/// Starts logging; a second call in one process does nothing.
pub fn start(log: &LogConfig) -> LogLevel {
    let (filter, level) = reload::Layer::new(filter(log));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let started = match log.format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    // Whoever started it before keeps it.
    let _already = started;
    LogLevel(level)
}

impl LogLevel {
    /// Changes the level.
    pub fn set(&self, log: &LogConfig) {
        if let Err(error) = self.0.reload(filter(log)) {
            tracing::error!(%error, "the log level stays as it was");
        }
    }
}

/// The directives; the SDK for MCP logs what servers and models say, unless it is told not to.
fn filter(log: &LogConfig) -> EnvFilter {
    let level = &log.level;
    let directives =
        if level.contains("rmcp") { level.clone() } else { format!("{level},rmcp=error") };
    // Validated with the configuration.
    EnvFilter::try_new(directives).unwrap_or_else(|_invalid| EnvFilter::new("info"))
}
