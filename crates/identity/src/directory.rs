//! Who a token belongs to: the store's answer, cached for a moment.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use keybridge_ledger::{Condition, Ledger};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use uuid::Uuid;

use crate::{Accounts, BridgeToken, Token, User, UserStatus};

/// How long an answer is used where no change is announced: the longest that a revoked token works.
const FRESH_FOR: Duration = Duration::from_secs(2);
/// How long it is used while the store is down and records go to the spool.
const STALE_FOR: Duration = Duration::from_secs(3_600);
/// Answers kept at most; when there are more, the cache is cleared.
const MAX_ANSWERS: usize = 10_000;
/// How long a token stays unknown. It cannot be created meanwhile: its secret is chosen at random.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);
/// Lookups of tokens that were not seen before at the same time: requests of strangers must not keep
/// those of known users waiting.
const MAX_NEW_LOOKUPS: usize = 4;
/// Longest wait for such a lookup.
const NEW_LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

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
/// change was announced. Tokens that the store does not know are remembered for [`UNKNOWN_FOR`].
#[derive(Debug)]
pub struct Directory {
    ledger: Ledger,
    answers: Mutex<HashMap<[u8; 32], Answer>>,
    /// Tokens that the store does not know, and since when.
    unknown: Mutex<HashMap<[u8; 32], Instant>>,
    new_lookups: Semaphore,
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
        Self {
            ledger,
            answers: Mutex::default(),
            unknown: Mutex::default(),
            new_lookups: Semaphore::new(MAX_NEW_LOOKUPS),
        }
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
            (_, None) => self.find_new(hash, version).await?,
            (_, stale) => match (self.find(hash).await, stale) {
                (Ok(identity), _) => {
                    self.keep(hash, version, &identity);
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

    /// Looks up a token that was not seen lately.
    async fn find_new(&self, hash: [u8; 32], version: u64) -> Result<Arc<Identity>, CallerError> {
        if self.is_unknown(&hash) {
            return Err(CallerError::Unknown);
        }
        let turn = timeout(NEW_LOOKUP_TIMEOUT, self.new_lookups.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            return Err(CallerError::Unavailable("too many unknown tokens".into()));
        };
        let found = self.find(hash).await;
        match &found {
            Ok(identity) => self.keep(hash, version, identity),
            Err(CallerError::Unknown) => self.remember_unknown(hash),
            Err(_other) => {}
        }
        found
    }

    fn is_unknown(&self, hash: &[u8; 32]) -> bool {
        let unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        unknown.get(hash).is_some_and(|since| since.elapsed() < UNKNOWN_FOR)
    }

    fn remember_unknown(&self, hash: [u8; 32]) {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        if unknown.len() >= MAX_ANSWERS {
            unknown.clear();
        }
        unknown.insert(hash, Instant::now());
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

    fn keep(&self, hash: [u8; 32], version: u64, identity: &Arc<Identity>) {
        let answer = Answer { since: Instant::now(), version, identity: Arc::clone(identity) };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NewUser, Role};

    #[tokio::test]
    async fn an_unknown_token_is_not_looked_up_again_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("keybridge.db").display());
        let ledger = Ledger::open(&url).unwrap();
        let accounts = Accounts::new(ledger.clone());
        let user = NewUser { name: "ada".into(), email: None, role: Role::Member };
        let user = accounts.create_user(&user).unwrap();
        let directory = Directory::new(ledger);
        let token = BridgeToken::generate().unwrap();
        assert_eq!(directory.identify(&token).await, Err(CallerError::Unknown));
        accounts.store_token(user.id, &token, None, None).unwrap();
        assert_eq!(directory.identify(&token).await, Err(CallerError::Unknown), "remembered");
        tokio::time::pause();
        tokio::time::advance(UNKNOWN_FOR).await;
        assert_eq!(directory.identify(&token).await.unwrap().user.id, user.id);
    }
}
