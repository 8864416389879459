//! Logs: on standard error, as text or JSON, never with a secret or a body.

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::config::{Log, LogFormat};

/// Starts logging; a second call in one process does nothing.
pub(crate) fn start(log: &Log) {
    // Validated with the configuration.
    let filter = EnvFilter::try_new(level(log)).unwrap_or_else(|_invalid| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let started = match log.format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    // Whoever started it before keeps it.
    let _already = started;
}

/// The directives; the SDK for MCP logs what servers and models say, unless it is told not to.
fn level(log: &Log) -> String {
    let level = &log.level;
    if level.contains("rmcp") { level.clone() } else { format!("{level},rmcp=error") }
}
