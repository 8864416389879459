//! Users and tokens, with the names they have in the store, the API and exports.

use jiff::Timestamp;
use keybridge_ledger::{
    LedgerError,
    record::{serialize_optional_time, serialize_time},
    store::{Cells, FromRow, required, word},
    word_enum,
};
use serde::Serialize;
use uuid::Uuid;

word_enum! {
    /// What a user may read and change.
    Role {
        /// Reads their own records.
        Member = "member",
        /// Reads all records.
        Auditor = "auditor",
        /// Reads and administers everything.
        Admin = "admin",
    }
}

word_enum! {
    /// Whether a user's tokens are accepted.
    UserStatus {
        /// Tokens are accepted.
        Active = "active",
        /// Tokens are rejected until the user is resumed.
        Suspended = "suspended",
    }
}

/// A person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// Id.
    pub id: Uuid,
    /// Unique name.
    pub name: String,
    /// Email address.
    pub email: Option<String>,
    /// What they may read and change.
    pub role: Role,
    /// Whether their tokens are accepted.
    pub status: UserStatus,
    /// When the user was created.
    #[serde(serialize_with = "serialize_time")]
    pub created_at: Timestamp,
}

/// A bridge token; the store has only its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Token {
    /// Id.
    pub id: Uuid,
    /// Id of its user.
    pub user_id: Uuid,
    /// A label.
    pub name: Option<String>,
    /// SHA-256 of the token's text, in hex; never serialized.
    #[serde(skip)]
    pub token_hash: String,
    /// The masked text.
    pub hint: String,
    /// When it was created.
    #[serde(serialize_with = "serialize_time")]
    pub created_at: Timestamp,
    /// When it expires, if it does.
    #[serde(serialize_with = "serialize_optional_time")]
    pub expires_at: Option<Timestamp>,
    /// When it was last used, to the minute.
    #[serde(serialize_with = "serialize_optional_time")]
    pub last_used_at: Option<Timestamp>,
    /// When it was revoked.
    #[serde(serialize_with = "serialize_optional_time")]
    pub revoked_at: Option<Timestamp>,
}

impl FromRow for User {
    const COLUMNS: &'static str = "id, name, email, role, status, created_at";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            id: required(row.id()?)?,
            name: required(row.text()?)?,
            email: row.text()?,
            role: word(row)?,
            status: word(row)?,
            created_at: required(row.time()?)?,
        })
    }
}

impl FromRow for Token {
    const COLUMNS: &'static str =
        "id, user_id, name, token_hash, hint, created_at, expires_at, last_used_at, revoked_at";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self {
            id: required(row.id()?)?,
            user_id: required(row.id()?)?,
            name: row.text()?,
            token_hash: required(row.text()?)?,
            hint: required(row.text()?)?,
            created_at: required(row.time()?)?,
            expires_at: row.time()?,
            last_used_at: row.time()?,
            revoked_at: row.time()?,
        })
    }
}
