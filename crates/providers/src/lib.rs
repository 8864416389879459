//! Asking a provider: which credential, which key of a pool, how often, and whether at all.
//!
//! [`provider::Provider`] is one configured instance. Nothing here knows who makes a request or what is
//! recorded of it.

pub mod attempt;
pub mod bedrock;
pub mod body;
pub mod breaker;
pub mod choice;
pub mod config;
pub mod credential;
pub mod dump;
pub mod failure;
pub mod health;
pub mod metrics;
mod pool;
pub mod provider;
mod retry;
mod upstream;

/// Why a provider cannot be made of its configuration.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// A key that does not fit into a header.
    #[error("a key of the provider `{provider}` holds characters that no header has")]
    Key {
        /// The provider's name.
        provider: String,
    },
    /// A base URL without a scheme of `http` or `https`, or without a host.
    #[error("the base URL of the provider `{provider}` is not an http or https address")]
    BaseUrl {
        /// The provider's name.
        provider: String,
    },
    /// A provider of the type `bedrock` without the settings of that type.
    #[error("the provider `{provider}` has no settings for Amazon Bedrock")]
    Bedrock {
        /// The provider's name.
        provider: String,
    },
}
