//! Identifies callers by their tokens, with a cache in front of the store.

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

/// How long a cached identity is used if no change is announced: the longest that a revoked token works.
const FRESH_TTL: Duration = Duration::from_secs(2);
/// How long it is used while the store is down and records go to the spool.
const STALE_TTL: Duration = Duration::from_secs(3_600);
/// Maximum number of cached tokens; the cache is cleared when it is full.
const MAX_CACHED: usize = 10_000;
/// How long an unknown token is remembered. It cannot be created in this time, as secrets are random.
const UNKNOWN_TTL: Duration = Duration::from_secs(10);
/// Maximum number of concurrent lookups of tokens that are not cached: requests with unknown tokens must
/// not delay those of known users.
const MAX_NEW_LOOKUPS: usize = 4;
/// Maximum number of such lookups that wait; further ones are refused at once.
const MAX_WAITING_LOOKUPS: usize = 256;
/// Timeout of the wait for such a lookup.
const NEW_LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

/// A user and the token that identified them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: User,
    /// Their token.
    pub token: Token,
}

/// The user who made a request.
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
    /// There is no such token.
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
    /// The store cannot be read.
    #[error("the directory of users is unavailable: {0}")]
    Unavailable(String),
}

/// Users by their tokens.
///
/// An identity is cached for [`FRESH_TTL`], or until a change is announced; while the store is down and
/// records go to the spool, for [`STALE_TTL`], or until a change is announced. Unknown tokens are
/// remembered for [`UNKNOWN_TTL`].
#[derive(Debug)]
pub struct Directory {
    ledger: Ledger,
    cache: Mutex<HashMap<[u8; 32], CachedIdentity>>,
    /// Unknown tokens, with the time of their lookup.
    unknown: Mutex<HashMap<[u8; 32], Instant>>,
    new_lookups: Semaphore,
    waiting_lookups: Semaphore,
}

/// A cached identity, with the time of its lookup and the version of users and tokens.
#[derive(Debug, Clone)]
struct CachedIdentity {
    since: Instant,
    version: u64,
    identity: Arc<Identity>,
}

impl Directory {
    /// The directory of a ledger's store.
    pub fn new(ledger: Ledger) -> Self {
        Self {
            ledger,
            cache: Mutex::default(),
            unknown: Mutex::default(),
            new_lookups: Semaphore::new(MAX_NEW_LOOKUPS),
            waiting_lookups: Semaphore::new(MAX_WAITING_LOOKUPS),
        }
    }

    /// Identifies the user of a token, if both are accepted.
    ///
    /// # Errors
    ///
    /// Why the token is not accepted.
    pub async fn identify(&self, token: &BridgeToken) -> Result<Arc<Identity>, CallerError> {
        let hash = token.hash();
        let version = self.ledger.access_version();
        let cached = self.cached(&hash).filter(|cached| cached.version == version);
        let within =
            |limit| cached.clone().filter(|cached: &CachedIdentity| cached.since.elapsed() < limit);
        if let Some(fresh) = within(FRESH_TTL) {
            return accepted(fresh.identity);
        }
        let identity = match (self.ledger.recorder().condition(), within(STALE_TTL)) {
            (Condition::Spooling, Some(stale)) => stale.identity,
            (_, None) => self.look_up_new(hash, version).await?,
            (_, stale) => match (self.look_up(hash).await, stale) {
                (Ok(identity), _) => {
                    self.insert(hash, version, &identity);
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

    /// Looks up a token that is not cached.
    async fn look_up_new(
        &self,
        hash: [u8; 32],
        version: u64,
    ) -> Result<Arc<Identity>, CallerError> {
        if self.is_unknown(&hash) {
            return Err(CallerError::Unknown);
        }
        let too_many = || CallerError::Unavailable("too many lookups of unknown tokens".into());
        let waiting = self.waiting_lookups.try_acquire().map_err(|_full| too_many())?;
        let permit = timeout(NEW_LOOKUP_TIMEOUT, self.new_lookups.acquire()).await;
        drop(waiting);
        let Ok(Ok(_permit)) = permit else { return Err(too_many()) };
        let found = self.look_up(hash).await;
        match &found {
            Ok(identity) => self.insert(hash, version, identity),
            Err(CallerError::Unknown) => self.remember_unknown(hash),
            Err(_other) => {}
        }
        found
    }

    fn is_unknown(&self, hash: &[u8; 32]) -> bool {
        let unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        unknown.get(hash).is_some_and(|since| since.elapsed() < UNKNOWN_TTL)
    }

    fn remember_unknown(&self, hash: [u8; 32]) {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        if unknown.len() >= MAX_CACHED {
            unknown.clear();
        }
        unknown.insert(hash, Instant::now());
    }

    async fn look_up(&self, hash: [u8; 32]) -> Result<Arc<Identity>, CallerError> {
        let accounts = Accounts::new(self.ledger.clone());
        let found = tokio::task::spawn_blocking(move || accounts.find_token(&hash)).await;
        let (token, user) = found
            .map_err(|error| CallerError::Unavailable(error.to_string()))?
            .map_err(|error| CallerError::Unavailable(error.to_string()))?
            .ok_or(CallerError::Unknown)?;
        Ok(Arc::new(Identity { user, token }))
    }

    fn cached(&self, hash: &[u8; 32]) -> Option<CachedIdentity> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(hash).cloned()
    }

    fn insert(&self, hash: [u8; 32], version: u64, identity: &Arc<Identity>) {
        let identity = Arc::clone(identity);
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= MAX_CACHED {
            cache.clear();
        }
        cache.insert(hash, CachedIdentity { since: Instant::now(), version, identity });
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

    fn ledger(dir: &tempfile::TempDir) -> Ledger {
        let url = format!("sqlite://{}", dir.path().join("keybridge.db").display());
        Ledger::open(&url).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_lookups_of_unknown_tokens_wait() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::new(ledger(&dir));
        let permits = u32::try_from(MAX_NEW_LOOKUPS).unwrap();
        let _busy = directory.new_lookups.acquire_many(permits).await.unwrap();
        let tokens: Vec<_> =
            (0..=MAX_WAITING_LOOKUPS).map(|_| BridgeToken::generate().unwrap()).collect();
        let began = Instant::now();
        let lookups = tokens.iter().map(|token| async {
            assert!(matches!(directory.identify(token).await, Err(CallerError::Unavailable(_))));
            began.elapsed()
        });
        let waits = futures_util::future::join_all(lookups).await;
        let at_once = waits.iter().filter(|wait| wait.is_zero()).count();
        assert_eq!(at_once, 1, "all others wait for their timeout");
    }

    #[tokio::test]
    async fn an_unknown_token_is_not_looked_up_again_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(&dir);
        let accounts = Accounts::new(ledger.clone());
        let user = NewUser { name: "ada".into(), email: None, role: Role::Member };
        let user = accounts.create_user(&user).unwrap();
        let directory = Directory::new(ledger);
        let token = BridgeToken::generate().unwrap();
        assert_eq!(directory.identify(&token).await, Err(CallerError::Unknown));
        accounts.store_token(user.id, &token, None, None).unwrap();
        assert_eq!(directory.identify(&token).await, Err(CallerError::Unknown), "remembered");
        tokio::time::pause();
        tokio::time::advance(UNKNOWN_TTL).await;
        assert_eq!(directory.identify(&token).await.unwrap().user.id, user.id);
    }
}
