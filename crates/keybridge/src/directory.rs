//! Who a token belongs to: the ledger's answer, kept for a moment.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use keybridge_bridge::host::{Caller, CallerError, Directory};
use keybridge_console::{Identified, Identity, IdentityError};
use keybridge_ledger::{
    Condition, Ledger,
    record::{Token, User, UserStatus},
    token::BridgeToken,
};
use tokio::time::Instant;
use uuid::Uuid;

/// How long an answer counts where no change is told: a revoked token works no longer than this.
const FRESH: Duration = Duration::from_secs(2);
/// How long it counts while the store is down and records go to the spool.
const STALE: Duration = Duration::from_secs(3_600);
/// Most answers kept; beyond it all are forgotten.
const MOST: usize = 10_000;

type Known = Arc<(Token, User)>;

/// Users by their tokens. An answer counts for [`FRESH`], or until a change is told; while the store
/// is down and records go to the spool, it counts for [`STALE`], or until a change was told. Nothing
/// is kept of tokens that nobody knows.
#[derive(Debug)]
pub(crate) struct LedgerDirectory {
    ledger: Ledger,
    known: Mutex<HashMap<[u8; 32], Answer>>,
}

/// What the ledger said, when, and at which version of its users and tokens.
#[derive(Debug, Clone)]
struct Answer {
    since: Instant,
    version: u64,
    known: Known,
}

impl LedgerDirectory {
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self { ledger, known: Mutex::new(HashMap::new()) }
    }

    /// The token and its user, if both are in force.
    async fn find(&self, token: &BridgeToken) -> Result<Known, CallerError> {
        let hash = token.hash();
        let version = self.ledger.access_version();
        let answer = self.answer(&hash).filter(|answer| answer.version == version);
        let within =
            |limit| answer.clone().filter(|answer: &Answer| answer.since.elapsed() < limit);
        if let Some(answer) = within(FRESH) {
            return in_force(answer.known);
        }
        let known = match (self.ledger.recorder().condition(), within(STALE)) {
            (Condition::Spooling, Some(answer)) => answer.known,
            (_, stale) => match (self.ask(hash).await, stale) {
                (Ok(known), _) => {
                    let known_now = Arc::clone(&known);
                    self.keep(hash, Answer { since: Instant::now(), version, known: known_now });
                    known
                }
                // The ledger has not noticed yet that its store is down.
                (Err(CallerError::Unavailable(_)), Some(stale)) if self.ledger.spools() => {
                    stale.known
                }
                (Err(error), _) => return Err(error),
            },
        };
        in_force(known)
    }

    async fn ask(&self, hash: [u8; 32]) -> Result<Known, CallerError> {
        let ledger = self.ledger.clone();
        let asked = tokio::task::spawn_blocking(move || ledger.find_token(&hash)).await;
        let unavailable = |reason: String| CallerError::Unavailable(reason);
        asked
            .map_err(|error| unavailable(error.to_string()))?
            .map_err(|error| unavailable(error.to_string()))?
            .map(Arc::new)
            .ok_or(CallerError::Unknown)
    }

    fn answer(&self, hash: &[u8; 32]) -> Option<Answer> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(hash).cloned()
    }

    fn keep(&self, hash: [u8; 32], answer: Answer) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(hash, answer);
    }
}

fn in_force(known: Known) -> Result<Known, CallerError> {
    let (token, user) = &*known;
    if token.revoked_at.is_some() {
        return Err(CallerError::Revoked);
    }
    if token.expires_at.is_some_and(|at| at <= Timestamp::now()) {
        return Err(CallerError::Expired);
    }
    if user.status == UserStatus::Suspended {
        return Err(CallerError::Suspended);
    }
    Ok(known)
}

#[async_trait]
impl Directory for LedgerDirectory {
    async fn identify(&self, token: &BridgeToken) -> Result<Caller, CallerError> {
        let known = self.find(token).await?;
        let (token, user) = &*known;
        Ok(Caller { user_id: user.id, user_name: user.name.as_str().into(), token_id: token.id })
    }

    async fn kept(
        &self,
        user_id: Uuid,
        keys: Vec<String>,
    ) -> Result<HashMap<String, String>, String> {
        let ledger = self.ledger.clone();
        let asked = tokio::task::spawn_blocking(move || ledger.continuations(user_id, &keys)).await;
        asked.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}

#[async_trait]
impl Identity for LedgerDirectory {
    async fn identify(&self, bearer: &str) -> Result<Identified, IdentityError> {
        let token = BridgeToken::parse(bearer).map_err(|_invalid| IdentityError::Unknown)?;
        let known = self.find(&token).await.map_err(|error| match error {
            CallerError::Unknown => IdentityError::Unknown,
            CallerError::Expired => IdentityError::Expired,
            CallerError::Revoked => IdentityError::Revoked,
            CallerError::Suspended => IdentityError::Suspended,
            CallerError::Unavailable(reason) => IdentityError::Unavailable(reason),
        })?;
        let (token, user) = &*known;
        Ok(Identified { user: user.clone(), token: token.clone() })
    }
}
