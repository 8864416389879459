//! Users and tokens in the ledger's store: created, listed, suspended, revoked.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use keybridge_ledger::{Ledger, LedgerError};
use uuid::Uuid;

use crate::{AccessEnd, BridgeToken, Role, Token, User, UserStatus, token::TokenError};

mod sql;

/// Maximum length of a user's name, in characters.
const MAX_NAME_CHARS: usize = 64;

/// The label of the first administrator's token, and for how long it is accepted unless it is used.
const FIRST_TOKEN: &str = "first";
const FIRST_TOKEN_TTL: SignedDuration = SignedDuration::from_hours(24);

/// A user to be created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUser {
    /// Unique name.
    pub name: String,
    /// Email address.
    pub email: Option<String>,
    /// What the user may read and change.
    pub role: Role,
}

/// What changes of a user; `None` leaves a member as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserChange {
    /// Email address.
    pub email: Option<String>,
    /// What the user may read and change.
    pub role: Option<Role>,
    /// Whether the user's tokens are accepted.
    pub status: Option<UserStatus>,
}

/// An error of reading or changing users or tokens.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The name is taken.
    #[error("the user `{0}` already exists")]
    UserExists(String),
    /// The name has invalid characters or an invalid length.
    #[error("invalid user name `{0}`: use 1 to 64 letters, digits, `.`, `_`, `-` or `@`")]
    UserName(String),
    /// The change would leave no active administrator.
    #[error("`{0}` is the last active administrator: make another one first")]
    LastAdministrator(String),
    /// There is no user of that name.
    #[error("no such user: `{0}`")]
    NoSuchUser(String),
    /// No token has that id.
    #[error("no such token: {0}")]
    NoSuchToken(Uuid),
    /// A token cannot be generated.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] LedgerError),
}

/// The users and tokens of a store; clones share it. All calls block.
#[derive(Debug, Clone)]
pub struct Accounts {
    ledger: Ledger,
}

impl Accounts {
    /// The accounts of a ledger's store.
    pub const fn new(ledger: Ledger) -> Self {
        Self { ledger }
    }

    /// Creates a user.
    ///
    /// # Errors
    ///
    /// When the name is taken, or is not 1 to 64 letters, digits, `.`, `_`, `-` or `@`.
    pub fn create_user(&self, user: &NewUser) -> Result<User, AccountError> {
        let is_allowed = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
        let length = user.name.chars().count();
        if !(1..=MAX_NAME_CHARS).contains(&length) || !user.name.chars().all(is_allowed) {
            return Err(AccountError::UserName(user.name.clone()));
        }
        let created = sql::insert_user(self.ledger.database(), user)?;
        created.ok_or_else(|| AccountError::UserExists(user.name.clone()))
    }

    /// All users by name.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn users(&self) -> Result<Vec<User>, AccountError> {
        Ok(sql::users(self.ledger.database())?)
    }

    /// The user of a name.
    ///
    /// # Errors
    ///
    /// [`AccountError::NoSuchUser`] when there is none.
    pub fn user(&self, name: &str) -> Result<User, AccountError> {
        let user = sql::user(self.ledger.database(), name)?;
        user.ok_or_else(|| AccountError::NoSuchUser(name.into()))
    }

    /// Whether any user is an administrator, even a suspended one.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn has_administrators(&self) -> Result<bool, AccountError> {
        Ok(sql::has_administrators(self.ledger.database())?)
    }

    /// Up to `limit` users whose names follow a name, in the order of names.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn users_after(&self, name: &str, limit: u32) -> Result<Vec<User>, AccountError> {
        Ok(sql::users_after(self.ledger.database(), name, limit)?)
    }

    /// Suspends or resumes a user.
    ///
    /// # Errors
    ///
    /// As [`Accounts::change_user`].
    pub fn set_user_status(&self, name: &str, status: UserStatus) -> Result<User, AccountError> {
        self.change_user(name, &UserChange { status: Some(status), ..UserChange::default() })
    }

    /// Changes a user.
    ///
    /// # Errors
    ///
    /// [`AccountError::NoSuchUser`] when there is none of that name, [`AccountError::LastAdministrator`]
    /// when no active administrator would be left.
    pub fn change_user(&self, name: &str, change: &UserChange) -> Result<User, AccountError> {
        let Some(user) = sql::change_user(self.ledger.database(), name, change)? else {
            return Err(AccountError::LastAdministrator(self.user(name)?.name));
        };
        self.ledger.announce_access_change()?;
        Ok(user)
    }

    /// Creates the first administrator and their token. The token expires in a day, unless it is used
    /// before: then it does not expire.
    ///
    /// # Errors
    ///
    /// [`AccountError::UserExists`] when there is a user of that name.
    pub fn create_first_admin(&self, name: &str) -> Result<BridgeToken, AccountError> {
        self.create_user(&NewUser { name: name.into(), email: None, role: Role::Admin })?;
        let expires_at = Timestamp::now() + FIRST_TOKEN_TTL;
        let (token, secret) = self.create_token(name, Some(FIRST_TOKEN), Some(expires_at))?;
        sql::mark_first_token(self.ledger.database(), token.id)?;
        Ok(secret)
    }

    /// The token with a hash, and its user, for a request that uses it: with its first use, the first
    /// administrator's token loses its expiry.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub(crate) fn use_token(&self, hash: &[u8; 32]) -> Result<Option<(Token, User)>, AccountError> {
        let Some((token, user)) = self.find_token(hash)? else { return Ok(None) };
        let may_be_first = token.name.as_deref() == Some(FIRST_TOKEN)
            && token.expires_at.is_some_and(|at| at > Timestamp::now())
            && AccessEnd::of(token.revoked_at, user.status).is_none();
        if !may_be_first {
            return Ok(Some((token, user)));
        }
        let kept = sql::keep_first_token(self.ledger.database(), token.id)?;
        Ok(Some((kept.unwrap_or(token), user)))
    }

    /// Creates a token for a user; its text cannot be read again later.
    ///
    /// # Errors
    ///
    /// [`AccountError::NoSuchUser`] when there is no such user.
    pub fn create_token(
        &self,
        user: &str,
        name: Option<&str>,
        expires_at: Option<Timestamp>,
    ) -> Result<(Token, BridgeToken), AccountError> {
        let user = self.user(user)?;
        let secret = BridgeToken::generate()?;
        Ok((self.store_token(user.id, &secret, name, expires_at)?, secret))
    }

    /// Stores a generated token.
    pub(crate) fn store_token(
        &self,
        user_id: Uuid,
        secret: &BridgeToken,
        name: Option<&str>,
        expires_at: Option<Timestamp>,
    ) -> Result<Token, AccountError> {
        let token = Token {
            id: Uuid::now_v7(),
            user_id,
            name: name.map(Into::into),
            token_hash: hex::encode(secret.hash()),
            hint: secret.hint(),
            created_at: Timestamp::now(),
            expires_at,
            last_used_at: None,
            revoked_at: None,
        };
        sql::insert_token(self.ledger.database(), &token)?;
        Ok(token)
    }

    /// The tokens of a user, or of all users.
    ///
    /// # Errors
    ///
    /// [`AccountError::NoSuchUser`] when there is no such user.
    pub fn tokens(&self, user: Option<&str>) -> Result<Vec<Token>, AccountError> {
        let user_id = user.map(|name| self.user(name)).transpose()?.map(|user| user.id);
        Ok(sql::tokens(self.ledger.database(), user_id)?)
    }

    /// Up to `limit` tokens of a user that were created before the one of an id, newest first.
    ///
    /// # Errors
    ///
    /// [`AccountError::NoSuchUser`] when there is no such user.
    pub fn tokens_before(
        &self,
        user: &str,
        id: Uuid,
        limit: u32,
    ) -> Result<Vec<Token>, AccountError> {
        let user = self.user(user)?;
        Ok(sql::tokens_before(self.ledger.database(), user.id, id, limit)?)
    }

    /// Up to `limit` tokens of active users that are accepted now and end before a time, with their users, the
    /// first to end first; of one user or of all.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn ending_tokens(
        &self,
        user_id: Option<Uuid>,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<(Token, User)>, AccountError> {
        Ok(sql::ending_tokens(self.ledger.database(), user_id, before, limit)?)
    }

    /// The token of an id.
    ///
    /// # Errors
    ///
    /// [`AccountError::NoSuchToken`] when there is none of that id.
    pub fn token(&self, id: Uuid) -> Result<Token, AccountError> {
        sql::token(self.ledger.database(), id)?.ok_or(AccountError::NoSuchToken(id))
    }

    /// Revokes a token; a revoked token is not changed.
    ///
    /// # Errors
    ///
    /// [`AccountError::NoSuchToken`] when there is none of that id.
    pub fn revoke_token(&self, id: Uuid) -> Result<Token, AccountError> {
        let token =
            sql::revoke_token(self.ledger.database(), id)?.ok_or(AccountError::NoSuchToken(id))?;
        self.ledger.announce_access_change()?;
        Ok(token)
    }

    /// The token with a hash, and its user.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub fn find_token(&self, hash: &[u8; 32]) -> Result<Option<(Token, User)>, AccountError> {
        Ok(sql::find_token(self.ledger.authentication(), &hex::encode(hash))?)
    }

    /// Why the access of each of these tokens has ended, if it has; one that the store does not have
    /// counts as revoked.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub(crate) fn access_states(
        &self,
        tokens: &[Uuid],
    ) -> Result<HashMap<Uuid, Option<AccessEnd>>, AccountError> {
        Ok(sql::access_states(self.ledger.authentication(), tokens)?)
    }
}
