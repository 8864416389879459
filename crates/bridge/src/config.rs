//! The configuration of the data path: validated values only, nothing is parsed here.

use std::{num::NonZeroU32, time::Duration};

use http::HeaderName;
use keybridge_ledger::record::text::ContentLimits;
use keybridge_mcp::McpServerConfig;
use keybridge_policy::LimitsConfig;
use keybridge_providers::config::ProviderConfig;
use keybridge_wire::{Dialect, error::ErrorShape};

/// The governance headers that are read unless the configuration names others.
pub const GOVERNANCE_HEADERS: [&str; 3] =
    ["x-ai-governance-token", "x-coder-ai-governance-token", "x-coder-ai-governance-byok-token"];

/// Everything the data path needs to know of its configuration.
#[derive(Debug)]
pub struct BridgeConfig {
    /// The provider instances; their names are unique.
    pub providers: Vec<ProviderConfig>,
    /// Headers that carry the bridge token of a BYOK request, in order of precedence.
    pub governance_headers: Vec<HeaderName>,
    /// Largest request body in bytes, as sent and as decoded.
    pub max_body: usize,
    /// Largest upload in bytes: a body that is passed on while it arrives.
    pub max_upload: usize,
    /// Longest wait for the next piece of a request body.
    pub body_timeout: Duration,
    /// Minimum rate of a request body in bytes per second, averaged after its first seconds; `None`: no
    /// minimum.
    pub min_body_rate: Option<NonZeroU32>,
    /// Limits on requests and memory.
    pub limits: LimitsConfig,
    /// Whether forwarding headers (`X-Forwarded-*`, `Forwarded`, `X-Real-Ip`) go to providers.
    pub trust_forwarded_headers: bool,
    /// Which contents are recorded.
    pub record: RecordPolicy,
    /// The tools that are injected into requests.
    pub tools: ToolsConfig,
    /// Key of the credential fingerprints; stays the same for the life of a store.
    pub server_secret: [u8; 32],
}

/// The tools that are injected into requests, and the limits of their use.
#[derive(Debug, Clone)]
pub struct ToolsConfig {
    /// The MCP servers that offer them; their names are unique.
    pub servers: Vec<McpServerConfig>,
    /// Maximum number of further turns within one request.
    pub max_turns: u32,
    /// Whether a model may call several tools at once, if its client lets it.
    pub parallel_calls: bool,
    /// Models whose lower-case name contains one of these get no tools.
    pub skip_models: Vec<String>,
}

impl Default for ToolsConfig {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            max_turns: 25,
            parallel_calls: false,
            skip_models: vec!["haiku".into()],
        }
    }
}

/// Which contents are recorded in addition to the figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent settings")]
pub struct RecordPolicy {
    /// The user's prompts.
    pub prompts: bool,
    /// Arguments of tool calls.
    pub tool_arguments: bool,
    /// Thinking, reasoning summaries and commentary.
    pub thoughts: bool,
    /// Results of tool calls.
    pub tool_results: bool,
    /// The texts of answers.
    pub answers: bool,
    /// How much of each is recorded.
    pub contents: ContentLimits,
}

impl Default for RecordPolicy {
    fn default() -> Self {
        Self {
            prompts: true,
            tool_arguments: true,
            thoughts: true,
            tool_results: false,
            answers: false,
            contents: ContentLimits::default(),
        }
    }
}

/// The shape of errors for a client of this dialect.
pub(crate) const fn error_shape(dialect: Dialect) -> ErrorShape {
    match dialect {
        Dialect::Messages => ErrorShape::Anthropic,
        Dialect::ChatCompletions | Dialect::Responses => ErrorShape::OpenAi,
    }
}
