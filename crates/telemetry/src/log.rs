//! Logs on standard error, as text or JSON, never with a secret or a body.

use std::borrow::Cow;

use tracing_subscriber::{EnvFilter, Registry, fmt, prelude::*, reload};

mod limiter;
mod lines;

use limiter::Limiter;
use lines::CleanLines;
pub use {limiter::REQUEST_LOG, lines::MAX_LINE_BYTES};

/// How logs are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A level, or directives such as `info,keybridge_bridge=debug`.
    pub level: String,
    /// The shape of a line.
    pub format: LogFormat,
    /// Lines of one kind that are written in a second, apart from the log of requests; 0 for no limit.
    pub lines_per_second: u32,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object per line.
    Json,
}

/// Masks the secrets in a line.
pub type MaskFn = for<'t> fn(&'t str) -> Cow<'t, str>;

/// The level and the limit of a running log, which can be changed.
#[derive(Debug, Clone)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>, Limiter);

/// Starts logging; later calls in the same process do nothing. `mask` is applied to each line.
pub fn start(log: &LogConfig, mask: MaskFn) -> LogLevel {
    let (filter, level) = reload::Layer::new(filter(log));
    let limiter = Limiter::new(log.lines_per_second);
    let registry = tracing_subscriber::registry().with(filter).with(limiter.clone());
    let writer = CleanLines { inner: std::io::stderr, format: log.format, mask };
    let layer = fmt::layer().with_writer(writer).with_ansi(false);
    let started = match log.format {
        LogFormat::Text => registry.with(layer).try_init(),
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
    };
    // Otherwise an earlier call has started it.
    if started.is_ok() {
        limiter.start_reports();
    }
    LogLevel(level, limiter)
}

impl LogLevel {
    /// Changes the level and the limit.
    pub fn set(&self, log: &LogConfig) {
        if let Err(error) = self.0.reload(filter(log)) {
            tracing::error!(%error, "cannot change the log level");
        }
        self.1.set(log.lines_per_second);
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
