//! Sockets: the listener that clients connect to, and connections out to providers and MCP servers.
//!
//! Nothing in this crate knows a protocol above HTTP, a provider or a record.

pub mod chunked;
pub mod egress;
pub mod encoding;
pub mod listener;
pub mod path;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Formats an error and its causes on one line, for the log only.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
