//! Logs on standard error, as text or JSON, never with a secret or a body.

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

/// The level of a running log, which can be changed.
#[derive(Debug, Clone)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

/// Starts logging; later calls in the same process do nothing.
pub fn start(log: &LogConfig) -> LogLevel {
    let (filter, level) = reload::Layer::new(filter(log));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let started = match log.format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    // An earlier call has started it.
    let _is_first = started.is_ok();
    LogLevel(level)
}

impl LogLevel {
    /// Changes the level.
    pub fn set(&self, log: &LogConfig) {
        if let Err(error) = self.0.reload(filter(log)) {
            tracing::error!(%error, "cannot change the log level");
        }
    }
}

/// The filter; without a directive of its own, the SDK for MCP would log what servers and models send.
fn filter(log: &LogConfig) -> EnvFilter {
    let level = &log.level;
    let directives =
        if level.contains("rmcp") { level.clone() } else { format!("{level},rmcp=error") };
    // Validated with the configuration.
    EnvFilter::try_new(directives).unwrap_or_else(|_invalid| EnvFilter::new("info"))
}
