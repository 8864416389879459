//! Users and tokens.

use jiff::Timestamp;
use keybridge_identity::{Identity, Role, Token, User, UserStatus};
use keybridge_ledger::record::{serialize_optional_time, serialize_time};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{RoleWord, UserStatusWord, view};

view! {
    /// A person.
    UserView as User from User {
        /// Id.
        id: Uuid,
        /// Unique name.
        name: String,
        /// Email address.
        email: Option<String>,
        /// What they may read and change.
        #[schema(value_type = RoleWord)]
        role: Role,
        /// Whether their tokens are accepted.
        #[schema(value_type = UserStatusWord)]
        status: UserStatus,
        /// When the user was created.
        #[serde(serialize_with = "serialize_time")]
        #[schema(value_type = String, format = DateTime)]
        created_at: Timestamp,
    }
}

/// A bridge token.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Token)]
pub(crate) struct TokenView {
    /// Id.
    pub(crate) id: Uuid,
    /// Name of its user.
    user: String,
    #[serde(flatten)]
    fields: TokenFieldsView,
}

impl TokenView {
    pub(crate) fn new(token: Token, user: String) -> Self {
        Self { id: token.id, user, fields: token.into() }
    }
}

/// What every view of a token has.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TokenFields)]
struct TokenFieldsView {
    /// A label.
    #[schema(required)]
    name: Option<String>,
    /// The masked text.
    hint: String,
    /// When it was created.
    #[serde(serialize_with = "serialize_time")]
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it expires; null for never.
    #[serde(serialize_with = "serialize_optional_time")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    #[serde(serialize_with = "serialize_optional_time")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    last_used_at: Option<Timestamp>,
    /// When it was revoked.
    #[serde(serialize_with = "serialize_optional_time")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    revoked_at: Option<Timestamp>,
}

impl From<Token> for TokenFieldsView {
    fn from(token: Token) -> Self {
        let Token {
            id: _,
            user_id: _,
            name,
            token_hash: _,
            hint,
            created_at,
            expires_at,
            last_used_at,
            revoked_at,
        } = token;
        Self { name, hint, created_at, expires_at, last_used_at, revoked_at }
    }
}

/// A new token with its text, which is shown once.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreatedToken)]
pub(crate) struct CreatedTokenView {
    #[serde(flatten)]
    pub(crate) token: TokenView,
    /// The text; it cannot be read again.
    #[serde(rename = "token")]
    pub(crate) secret: String,
}

/// The caller: their user, role and token.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Me)]
pub(crate) struct MeView {
    /// The user.
    user: UserView,
    /// Their role.
    #[schema(value_type = RoleWord)]
    role: Role,
    /// The token of this request.
    token: OwnTokenView,
}

impl From<&Identity> for MeView {
    fn from(identity: &Identity) -> Self {
        let Identity { user, token } = identity.clone();
        let token = OwnTokenView { id: token.id, user_id: token.user_id, fields: token.into() };
        Self { role: user.role, user: user.into(), token }
    }
}

/// The token of a request.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OwnToken)]
struct OwnTokenView {
    /// Id.
    id: Uuid,
    /// Id of its user.
    user_id: Uuid,
    #[serde(flatten)]
    fields: TokenFieldsView,
}
