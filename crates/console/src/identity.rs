//! What the API asks of its host: who a bearer is.

use async_trait::async_trait;
use keybridge_ledger::record::{Token, User};

/// A bearer that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identified {
    /// Who it is.
    pub user: User,
    /// With which token.
    pub token: Token,
}

/// Why a bearer is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// No such token.
    #[error("unknown token")]
    Unknown,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It was revoked.
    #[error("the token was revoked")]
    Revoked,
    /// Its user is suspended.
    #[error("the user is suspended")]
    Suspended,
    /// Nobody can be identified at present.
    #[error("the directory of users cannot be reached: {0}")]
    Unavailable(String),
}

/// Knows users by their bearer tokens.
#[async_trait]
pub trait Identity: Send + Sync + 'static {
    /// The user of a bearer token, or why it is not accepted.
    async fn identify(&self, bearer: &str) -> Result<Identified, IdentityError>;
}
