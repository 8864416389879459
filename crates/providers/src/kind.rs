//! The kinds of providers.

use std::fmt;

use keybridge_wire::error::ErrorShape;
use serde::Deserialize;

/// The kind of a provider: its dialects, its routes and its credential headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderType {
    /// Anthropic's API: Messages.
    Anthropic,
    /// OpenAI's API and servers compatible with it: Chat Completions and Responses.
    OpenAi,
    /// GitHub Copilot: all three dialects, with the user's own token only.
    Copilot,
    /// Anthropic's models on Amazon Bedrock: Messages, with AWS credentials.
    Bedrock,
}

impl ProviderType {
    /// The name used in configuration and records.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anthropic => "anthropic",
            Self::OpenAi => "openai",
            Self::Copilot => "copilot",
            Self::Bedrock => "bedrock",
        }
    }

    /// The shape of this provider's errors.
    pub const fn error_shape(self) -> ErrorShape {
        match self {
            Self::Anthropic | Self::Bedrock => ErrorShape::Anthropic,
            Self::OpenAi | Self::Copilot => ErrorShape::OpenAi,
        }
    }
}

impl fmt::Display for ProviderType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
