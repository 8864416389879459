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
    Ledger,
    record::{Token, User, UserStatus},
    token::BridgeToken,
};
use tokio::time::Instant;

/// How long an answer is kept: a revoked token works no longer than this.
const FRESH: Duration = Duration::from_secs(2);
/// Most answers kept; beyond it all are forgotten.
const MOST: usize = 10_000;

type Known = Arc<(Token, User)>;

/// Users by their tokens; answers are kept for [`FRESH`], refusals are not kept at all.
#[derive(Debug)]
pub(crate) struct LedgerDirectory {
    ledger: Ledger,
    known: Mutex<HashMap<[u8; 32], (Instant, Known)>>,
}

impl LedgerDirectory {
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self { ledger, known: Mutex::new(HashMap::new()) }
    }

    /// The token and its user, if both are in force.
    async fn find(&self, token: &BridgeToken) -> Result<Known, CallerError> {
        let hash = token.hash();
        if let Some(known) = self.cached(&hash) {
            return in_force(known);
        }
        let ledger = self.ledger.clone();
        let found = tokio::task::spawn_blocking(move || ledger.find_token(&hash)).await;
        let unavailable = |reason: String| CallerError::Unavailable(reason);
        let known = found
            .map_err(|error| unavailable(error.to_string()))?
            .map_err(|error| unavailable(error.to_string()))?
            .map(Arc::new)
            .ok_or(CallerError::Unknown)?;
        let known = in_force(known)?;
        self.keep(hash, Arc::clone(&known));
        Ok(known)
    }

    fn cached(&self, hash: &[u8; 32]) -> Option<Known> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, known) = known.get(hash)?;
        (since.elapsed() < FRESH).then(|| Arc::clone(known))
    }

    fn keep(&self, hash: [u8; 32], entry: Known) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(hash, (Instant::now(), entry));
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
