//! Who a token belongs to: the store's answer, cached for a moment.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use keybridge_ledger::{Condition, Ledger};
use tokio::time::Instant;
use uuid::Uuid;

use crate::{Accounts, BridgeToken, Token, User, UserStatus};

/// How long an answer is used where no change is announced: the longest that a revoked token works.
const FRESH_FOR: Duration = Duration::from_secs(2);
/// How long it is used while the store is down and records go to the spool.
const STALE_FOR: Duration = Duration::from_secs(3_600);
/// Answers kept at most; when there are more, the cache is cleared.
const MAX_ANSWERS: usize = 10_000;

/// A user and the token that identified them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: User,
    /// Their token.
    pub token: Token,
}

/// The person behind a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The user's id.
    pub user_id: Uuid,
    /// The user's unique name.
    pub user_name: Arc<str>,
    /// The id of the token.
    pub token_id: Uuid,
}

impl From<&Identity> for Caller {
    fn from(Identity { user, token }: &Identity) -> Self {
        Self { user_id: user.id, user_name: user.name.as_str().into(), token_id: token.id }
    }
}

/// Why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallerError {
    /// No such token.
    #[error("unknown token")]
    Unknown,
    /// It has expired.
    #[error("the token has expired")]
    Expired,
    /// It was revoked.
    #[error("the token was revoked")]
    Revoked,
    /// Its user is suspended.
    #[error("the user is suspended")]
    Suspended,
    /// The store cannot be read now.
    #[error("the directory of users is unavailable: {0}")]
    Unavailable(String),
}

/// Users by their tokens.
///
/// An answer of the store is used for [`FRESH_FOR`], or until a change is
/// announced; while the store is down and records go to the spool, for [`STALE_FOR`], or until a
/// change was announced. Unknown tokens are not cached.
#[derive(Debug)]
pub struct Directory {
    ledger: Ledger,
    answers: Mutex<HashMap<[u8; 32], Answer>>,
}

/// What the store said, when, and at which version of its users and tokens.
#[derive(Debug, Clone)]
struct Answer {
    since: Instant,
    version: u64,
    identity: Arc<Identity>,
}

impl Directory {
    /// The directory of a ledger's store.
    pub fn new(ledger: Ledger) -> Self {
        Self { ledger, answers: Mutex::default() }
    }

    /// The user and the token, if both are accepted.
    ///
    /// # Errors
    ///
    /// Why the token is not accepted.
    pub async fn identify(&self, token: &BridgeToken) -> Result<Arc<Identity>, CallerError> {
        let hash = token.hash();
        let version = self.ledger.access_version();
        let answer = self.answer(&hash).filter(|answer| answer.version == version);
        let within =
            |limit| answer.clone().filter(|answer: &Answer| answer.since.elapsed() < limit);
        if let Some(answer) = within(FRESH_FOR) {
            return accepted(answer.identity);
        }
        let identity = match (self.ledger.recorder().condition(), within(STALE_FOR)) {
            (Condition::Spooling, Some(answer)) => answer.identity,
            (_, stale) => match (self.find(hash).await, stale) {
                (Ok(identity), _) => {
                    let since = Instant::now();
                    let identity_found = Arc::clone(&identity);
                    self.keep(hash, Answer { since, version, identity: identity_found });
                    identity
                }
                // The ledger has not yet noticed that its store is down.
                (Err(CallerError::Unavailable(_)), Some(stale)) if self.ledger.spools() => {
                    stale.identity
                }
                (Err(error), _) => return Err(error),
            },
        };
        accepted(identity)
    }

    async fn find(&self, hash: [u8; 32]) -> Result<Arc<Identity>, CallerError> {
        let accounts = Accounts::new(self.ledger.clone());
        let found = tokio::task::spawn_blocking(move || accounts.find_token(&hash)).await;
        let (token, user) = found
            .map_err(|error| CallerError::Unavailable(error.to_string()))?
            .map_err(|error| CallerError::Unavailable(error.to_string()))?
            .ok_or(CallerError::Unknown)?;
        Ok(Arc::new(Identity { user, token }))
    }

    fn answer(&self, hash: &[u8; 32]) -> Option<Answer> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(hash).cloned()
    }

    fn keep(&self, hash: [u8; 32], answer: Answer) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MAX_ANSWERS {
            answers.clear();
        }
        answers.insert(hash, answer);
    }
}

fn accepted(identity: Arc<Identity>) -> Result<Arc<Identity>, CallerError> {
    let Identity { user, token } = &*identity;
    if token.revoked_at.is_some() {
        return Err(CallerError::Revoked);
    }
    if token.expires_at.is_some_and(|at| at <= Timestamp::now()) {
        return Err(CallerError::Expired);
    }
    if user.status == UserStatus::Suspended {
        return Err(CallerError::Suspended);
    }
    Ok(identity)
}
