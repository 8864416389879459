//! Sending requests to a provider: with which credential, with how many retries, and whether at all.
//!
//! [`provider::Provider`] is one configured instance. Nothing here knows who makes a request or what a
//! record holds.

pub mod attempt;
pub mod bearer;
pub mod bedrock;
pub mod body;
pub mod breaker;
pub mod choice;
pub mod config;
mod cooldown;
pub mod credential;
pub mod dump;
pub mod failure;
pub mod health;
mod kind;
pub mod metrics;
pub mod outgoing;
mod pool;
pub mod provider;
mod query;
mod retry;
pub mod routes;
pub mod secrets;
pub mod target;
pub mod upload;
mod upstream;
mod usage_refusals;
pub mod vendors;

/// Why a provider cannot be created from its configuration.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// A key is not a valid header value.
    #[error("a key of the provider `{provider}` is not a valid header value")]
    Key {
        /// The provider's name.
        provider: String,
    },
    /// The base URL has another scheme than `http` or `https`, or no host.
    #[error("the base URL of the provider `{provider}` is not an http or https address")]
    BaseUrl {
        /// The provider's name.
        provider: String,
    },
    /// The provider has the type `bedrock` and no settings for it.
    #[error("the provider `{provider}` has no settings for Amazon Bedrock")]
    Bedrock {
        /// The provider's name.
        provider: String,
    },
}
