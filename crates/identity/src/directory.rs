//! Identifies callers by their tokens, with a cache in front of the store, and ends the open requests of
//! those whose token is revoked or whose user is suspended.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use keybridge_ledger::{Condition, Ledger};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use uuid::Uuid;

use crate::{
    Access, AccessEnd, Accounts, BridgeToken, OfflineCache, Token, User, access::ProcessAccess,
};

/// How long a cached identity is used if no change is announced: the longest that a revoked token works.
const FRESH_TTL: Duration = Duration::from_secs(2);
/// How long it is used while the store is down and records go to the spool.
const STALE_TTL: Duration = Duration::from_secs(3_600);
/// Maximum number of cached tokens. When it is reached, only those with open requests stay.
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
/// How often the tokens of open requests are checked if no change is announced: a command that works on
/// a SQLite file announces nothing to the process that serves from it.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// How often the offline cache is written, unless an entry must be removed at once.
const OFFLINE_WRITE_INTERVAL: Duration = Duration::from_secs(60);

/// A user and the token that identified them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: User,
    /// Their token.
    pub token: Token,
}

/// The user who made a request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The user's id.
    pub user_id: Uuid,
    /// The user's unique name.
    pub user_name: Arc<str>,
    /// The id of the token.
    pub token_id: Uuid,
    /// Ends when the request must end.
    pub access: Arc<Access>,
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
    process: Arc<ProcessAccess>,
    /// Whom to accept after a start without the store, if that is allowed.
    offline: Option<OfflineCache>,
    waiting_lookups: Semaphore,
}

/// A cached identity, with the time of its lookup and the version of users and tokens.
#[derive(Debug, Clone)]
struct CachedIdentity {
    since: Instant,
    /// Until when it is used while the store is down.
    stale_until: Instant,
    version: u64,
    identity: Arc<Identity>,
    access: Arc<Access>,
}

/// When the offline cache was written last, and whether its people must be checked before that is due.
struct OfflineWriting {
    is_check_due: bool,
    written: Option<Instant>,
}

impl CachedIdentity {
    /// Requests hold the access; the cache alone holds it once.
    fn has_open_requests(&self) -> bool {
        Arc::strong_count(&self.access) > 1
    }
}

impl Directory {
    /// The directory of a ledger's store.
    pub fn new(ledger: Ledger) -> Self {
        Self {
            ledger,
            cache: Mutex::default(),
            unknown: Mutex::default(),
            new_lookups: Semaphore::new(MAX_NEW_LOOKUPS),
            process: Arc::default(),
            offline: None,
            waiting_lookups: Semaphore::new(MAX_WAITING_LOOKUPS),
        }
    }

    /// Keeps what a start without the store needs in a file.
    #[must_use]
    pub fn with_offline_cache(self, offline: Option<OfflineCache>) -> Self {
        Self { offline, ..self }
    }

    /// Identifies the user of a token, if both are accepted.
    ///
    /// # Errors
    ///
    /// Why the token is not accepted.
    pub async fn identify(&self, token: &BridgeToken) -> Result<Arc<Identity>, CallerError> {
        Ok(self.find(token).await?.identity)
    }

    /// Identifies the user of a request that stays open; its access ends when the token is revoked, the
    /// user is suspended, or the process shuts down.
    ///
    /// # Errors
    ///
    /// Why the token is not accepted.
    pub async fn open_request(&self, token: &BridgeToken) -> Result<Caller, CallerError> {
        let CachedIdentity { identity, access, .. } = self.find(token).await?;
        let Identity { user, token } = &*identity;
        let user_name = user.name.as_str().into();
        Ok(Caller { user_id: user.id, user_name, token_id: token.id, access })
    }

    /// Ends all open requests, and those that are opened later.
    pub fn end_requests(&self) {
        self.process.end();
    }

    async fn find(&self, token: &BridgeToken) -> Result<CachedIdentity, CallerError> {
        let hash = token.hash();
        let version = self.ledger.access_version();
        let cached = self.cached(&hash).filter(|cached| cached.version == version);
        let stale = match cached {
            Some(fresh) if fresh.since.elapsed() < FRESH_TTL => return accepted(fresh),
            other => other.filter(|cached| Instant::now() < cached.stale_until),
        };
        let found = match (self.ledger.recorder().condition(), stale) {
            (Condition::Spooling, Some(stale)) => stale,
            (_, None) => self.look_up_new(hash, version).await?,
            (_, Some(stale)) => match self.look_up(hash).await {
                Ok(identity) => self.insert(hash, version, identity, STALE_TTL),
                // The ledger has not yet noticed that its store is down.
                Err(CallerError::Unavailable(_)) if self.ledger.spools() => stale,
                Err(error) => return Err(error),
            },
        };
        accepted(found)
    }

    /// Looks up a token that is not cached.
    async fn look_up_new(
        &self,
        hash: [u8; 32],
        version: u64,
    ) -> Result<CachedIdentity, CallerError> {
        if self.is_unknown(&hash) {
            return Err(CallerError::Unknown);
        }
        let offline = self.offline.as_ref().and_then(|cache| cache.find(&hash, Timestamp::now()));
        let is_down = self.ledger.recorder().condition() == Condition::Spooling;
        let found = match &offline {
            // Few ask a store that is down; the others need not wait for it.
            Some(_known) if is_down => match self.new_lookups.try_acquire() {
                Ok(_permit) => self.look_up(hash).await,
                Err(_busy) => Err(CallerError::Unavailable("the store is down".into())),
            },
            Some(_known) => self.look_up(hash).await,
            None => self.look_up_in_turn(hash).await,
        };
        match (found, offline) {
            (Ok(identity), _) => Ok(self.insert(hash, version, identity, STALE_TTL)),
            (Err(CallerError::Unavailable(_)), Some((identity, left))) if self.ledger.spools() => {
                Ok(self.insert(hash, version, identity, left.min(STALE_TTL)))
            }
            (Err(error), _) => {
                if error == CallerError::Unknown {
                    self.remember_unknown(hash);
                }
                Err(error)
            }
        }
    }

    /// Looks up a token of which nothing is known, a few at a time.
    async fn look_up_in_turn(&self, hash: [u8; 32]) -> Result<Arc<Identity>, CallerError> {
        let too_many = || CallerError::Unavailable("too many lookups of unknown tokens".into());
        let waiting = self.waiting_lookups.try_acquire().map_err(|_full| too_many())?;
        let permit = timeout(NEW_LOOKUP_TIMEOUT, self.new_lookups.acquire()).await;
        drop(waiting);
        let Ok(Ok(_permit)) = permit else { return Err(too_many()) };
        self.look_up(hash).await
    }

    fn is_unknown(&self, hash: &[u8; 32]) -> bool {
        lock(&self.unknown).get(hash).is_some_and(|since| since.elapsed() < UNKNOWN_TTL)
    }

    fn remember_unknown(&self, hash: [u8; 32]) {
        let mut unknown = lock(&self.unknown);
        if unknown.len() >= MAX_CACHED {
            unknown.clear();
        }
        unknown.insert(hash, Instant::now());
    }

    /// Asks the store, and tells the offline cache what it says.
    async fn look_up(&self, hash: [u8; 32]) -> Result<Arc<Identity>, CallerError> {
        let accounts = Accounts::new(self.ledger.clone());
        let found = tokio::task::spawn_blocking(move || accounts.use_token(&hash)).await;
        let found = found
            .map_err(|error| CallerError::Unavailable(error.to_string()))?
            .map_err(|error| CallerError::Unavailable(error.to_string()))?;
        let found = found.map(|(token, user)| Arc::new(Identity { user, token }));
        if let Some(offline) = &self.offline {
            match &found {
                Some(identity) if access_end(identity).is_none() => {
                    offline.confirm(hash, identity, Timestamp::now());
                }
                _ => offline.remove(&hash),
            }
        }
        found.ok_or(CallerError::Unknown)
    }

    fn cached(&self, hash: &[u8; 32]) -> Option<CachedIdentity> {
        lock(&self.cache).get(hash).cloned()
    }

    fn insert(
        &self,
        hash: [u8; 32],
        version: u64,
        identity: Arc<Identity>,
        stale_for: Duration,
    ) -> CachedIdentity {
        let since = Instant::now();
        let stale_until = since + stale_for;
        let mut cache = lock(&self.cache);
        if cache.len() >= MAX_CACHED && !cache.contains_key(&hash) {
            cache.retain(|_hash, cached| cached.has_open_requests());
        }
        let current = cache.get(&hash).map(|cached| Arc::clone(&cached.access));
        if let (Some(access), Some(end)) = (&current, access_end(&identity)) {
            access.end(end);
        }
        // The requests of a user who was suspended and resumed do not come back.
        let access = current.filter(|access| access.ended().is_none());
        let access = access.unwrap_or_else(|| Arc::new(Access::new(&self.process)));
        let cached = CachedIdentity { since, stale_until, version, identity, access };
        cache.insert(hash, cached.clone());
        cached
    }

    /// Ends the open requests of revoked tokens and suspended users as soon as the change is announced,
    /// or noticed in the store, and keeps the offline cache. Never returns.
    pub async fn watch(&self) {
        let mut changes = self.ledger.access_changes();
        let mut writing = OfflineWriting { is_check_due: true, written: None };
        loop {
            self.check_open_requests().await;
            if let Some(offline) = &self.offline {
                self.keep_offline_cache(offline, &mut writing).await;
            }
            // The sender is never gone: this directory has the ledger.
            writing.is_check_due |= timeout(CHECK_INTERVAL, changes.changed()).await.is_ok();
        }
    }

    /// Checks whom the offline cache may keep, and writes it, when that is due.
    async fn keep_offline_cache(&self, offline: &OfflineCache, writing: &mut OfflineWriting) {
        let is_due = writing.written.is_none_or(|at| at.elapsed() >= OFFLINE_WRITE_INTERVAL);
        if is_due || writing.is_check_due {
            let states = self.access_states(offline.token_ids()).await;
            writing.is_check_due = states.is_none();
            if let Some(states) = states {
                offline.confirm_all(&states, Timestamp::now());
            }
        }
        if is_due || offline.has_removed() {
            writing.written = Some(Instant::now());
            offline.write().await;
        }
    }

    /// Ends the open requests of revoked tokens and suspended users.
    async fn check_open_requests(&self) {
        let open: Vec<([u8; 32], Uuid)> = lock(&self.cache)
            .iter()
            .filter(|(_hash, cached)| cached.has_open_requests() && cached.access.ended().is_none())
            .map(|(hash, cached)| (*hash, cached.identity.token.id))
            .collect();
        let ids = open.iter().map(|(_hash, token)| *token).collect();
        let Some(states) = self.access_states(ids).await else { return };
        for (hash, token) in open {
            if let Some(Some(end)) = states.get(&token)
                && let Some(cached) = lock(&self.cache).remove(&hash)
            {
                let user = &cached.identity.user.name;
                tracing::info!(user, token_id = %token, reason = ?end, "ended open requests");
                cached.access.end(*end);
            }
        }
    }

    /// Why the access of each of these tokens has ended, if it has. `None`: the store does not tell.
    async fn access_states(&self, ids: Vec<Uuid>) -> Option<HashMap<Uuid, Option<AccessEnd>>> {
        if ids.is_empty() {
            return Some(HashMap::new());
        }
        let accounts = Accounts::new(self.ledger.clone());
        let found = tokio::task::spawn_blocking(move || accounts.access_states(&ids)).await;
        match found {
            Ok(Ok(states)) => Some(states),
            Ok(Err(error)) => {
                tracing::debug!(%error, "cannot check the tokens of open requests");
                None
            }
            Err(error) => {
                tracing::error!(%error, "the check of open requests failed");
                None
            }
        }
    }
}

fn accepted(found: CachedIdentity) -> Result<CachedIdentity, CallerError> {
    match access_end(&found.identity) {
        Some(AccessEnd::Revoked) => return Err(CallerError::Revoked),
        Some(AccessEnd::Suspended) => return Err(CallerError::Suspended),
        Some(AccessEnd::ShuttingDown) | None => {}
    }
    if found.identity.token.expires_at.is_some_and(|at| at <= Timestamp::now()) {
        return Err(CallerError::Expired);
    }
    Ok(found)
}

/// Why the access of a token has ended, if it has.
fn access_end(identity: &Identity) -> Option<AccessEnd> {
    let Identity { user, token } = identity;
    AccessEnd::of(token.revoked_at, user.status)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
