//! Protocol code of the three API dialects, free of I/O: bytes in, facts or bytes out.
//!
//! Nothing here uses sockets, tasks, clocks or databases, so all of it can be tested without them.

use std::fmt;

pub mod error;
pub mod first_event;
pub mod json;
pub mod list;
pub mod mask;
pub mod multipart;
pub mod observe;
pub mod request;
pub mod sse;
pub mod tool_loop;
pub mod tools;

/// The API that a request and its response use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Anthropic's Messages API.
    Messages,
    /// `OpenAI`'s Chat Completions API, and the many servers compatible with it.
    ChatCompletions,
    /// `OpenAI`'s Responses API.
    Responses,
}

impl Dialect {
    /// The name used in records, logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::ChatCompletions => "chat_completions",
            Self::Responses => "responses",
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Converts a length to a 64-bit count.
fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
