//! Users, tokens and settings.

use jiff::Timestamp;
use uuid::Uuid;

use super::{Database, FromRow, Value, all, first};
use crate::{
    LedgerError, NewUser,
    record::{Token, User, UserStatus},
};

/// Whether the store answers.
pub(crate) fn ping(database: &dyn Database) -> Result<(), LedgerError> {
    all::<i64>(database, "SELECT count(*) FROM settings", &[]).map(|_answer| ())
}

/// The value of a setting, `initial` being stored when there is none.
pub(crate) fn setting(
    database: &dyn Database,
    key: &str,
    initial: &[u8],
) -> Result<Vec<u8>, LedgerError> {
    all::<i64>(
        database,
        "INSERT INTO settings (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING",
        &[key.into(), Value::Bytes(initial.into())],
    )?;
    let found = first(database, "SELECT value FROM settings WHERE key = $1", &[key.into()])?;
    found.ok_or_else(|| LedgerError::Row(format!("the setting `{key}` is gone")))
}

pub(crate) fn create_user(database: &dyn Database, user: &NewUser) -> Result<User, LedgerError> {
    let sql = format!(
        "INSERT INTO users (id, name, email, role, status, created_at)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (name) DO NOTHING RETURNING {}",
        User::COLUMNS
    );
    let made = first(
        database,
        &sql,
        &[
            Uuid::now_v7().into(),
            user.name.as_str().into(),
            user.email.clone().into(),
            user.role.as_str().into(),
            UserStatus::Active.as_str().into(),
            Timestamp::now().into(),
        ],
    )?;
    made.ok_or_else(|| LedgerError::Conflict(format!("the user `{}` exists", user.name)))
}

pub(crate) fn users(database: &dyn Database) -> Result<Vec<User>, LedgerError> {
    all(database, &format!("SELECT {} FROM users ORDER BY name", User::COLUMNS), &[])
}

pub(crate) fn set_user_status(
    database: &dyn Database,
    name: &str,
    status: UserStatus,
) -> Result<User, LedgerError> {
    let sql = format!("UPDATE users SET status = $1 WHERE name = $2 RETURNING {}", User::COLUMNS);
    let changed = first(database, &sql, &[status.as_str().into(), name.into()])?;
    changed.ok_or_else(|| LedgerError::NotFound(format!("there is no user `{name}`")))
}

pub(crate) fn insert_token(database: &dyn Database, token: &Token) -> Result<(), LedgerError> {
    all::<i64>(
        database,
        "INSERT INTO tokens (id, user_id, name, token_hash, hint, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        &[
            token.id.into(),
            token.user_id.into(),
            token.name.clone().into(),
            token.token_hash.as_str().into(),
            token.hint.as_str().into(),
            token.created_at.into(),
            token.expires_at.into(),
        ],
    )?;
    Ok(())
}

pub(crate) fn tokens(
    database: &dyn Database,
    user_id: Option<Uuid>,
) -> Result<Vec<Token>, LedgerError> {
    let columns = Token::COLUMNS;
    match user_id {
        None => all(database, &format!("SELECT {columns} FROM tokens ORDER BY id"), &[]),
        Some(id) => {
            let sql = format!("SELECT {columns} FROM tokens WHERE user_id = $1 ORDER BY id");
            all(database, &sql, &[id.into()])
        }
    }
}

pub(crate) fn revoke_token(database: &dyn Database, id: Uuid) -> Result<Token, LedgerError> {
    let sql = format!(
        "UPDATE tokens SET revoked_at = coalesce(revoked_at, $1) WHERE id = $2 RETURNING {}",
        Token::COLUMNS
    );
    let changed = first(database, &sql, &[Timestamp::now().into(), id.into()])?;
    changed.ok_or_else(|| LedgerError::NotFound(format!("there is no token {id}")))
}

pub(crate) fn find_token(
    database: &dyn Database,
    hash: &str,
) -> Result<Option<(Token, User)>, LedgerError> {
    let sql = format!("SELECT {} FROM tokens WHERE token_hash = $1", Token::COLUMNS);
    let Some(token) = first::<Token>(database, &sql, &[hash.into()])? else { return Ok(None) };
    let sql = format!("SELECT {} FROM users WHERE id = $1", User::COLUMNS);
    let user = first(database, &sql, &[token.user_id.into()])?;
    Ok(user.map(|user| (token, user)))
}
