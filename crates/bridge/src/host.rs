//! What the data path asks of its host: who a token belongs to, and what was kept for a user.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use keybridge_ledger::token::BridgeToken;
use uuid::Uuid;

/// The person behind a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The user's id.
    pub user_id: Uuid,
    /// The user's unique name.
    pub user_name: Arc<str>,
    /// The id of the token that was shown.
    pub token_id: Uuid,
}

/// Why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallerError {
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
    /// The directory cannot be asked at present.
    #[error("the directory of users cannot be reached: {0}")]
    Unavailable(String),
}

/// Knows users by their bridge tokens.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// The user a token belongs to, or why it is not accepted.
    async fn identify(&self, token: &BridgeToken) -> Result<Caller, CallerError>;

    /// What was kept for a user under these keys ([`keybridge_ledger::Entry::keep`]), or why that
    /// cannot be told.
    async fn kept(
        &self,
        user_id: Uuid,
        keys: Vec<String>,
    ) -> Result<HashMap<String, String>, String>;
}
