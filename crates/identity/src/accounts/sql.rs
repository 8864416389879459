//! The SQL statements over `users` and `tokens`.

use std::collections::HashMap;

use jiff::Timestamp;
use keybridge_ledger::{
    LedgerError,
    store::{Cells, Database, FromRow, Value, all, execute, first, required, word},
};
use uuid::Uuid;

use crate::{AccessEnd, NewUser, Role, Token, User, UserChange, UserStatus};

/// Maximum number of tokens that one statement asks for.
const MAX_IDS: usize = 500;

/// Inserts a user; `None` when the name is taken.
pub(super) fn insert_user(
    database: &dyn Database,
    user: &NewUser,
) -> Result<Option<User>, LedgerError> {
    let sql = format!(
        "INSERT INTO users (id, name, email, role, status, created_at)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (name) DO NOTHING RETURNING {}",
        User::COLUMNS
    );
    first(
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
    )
}

pub(super) fn users(database: &dyn Database) -> Result<Vec<User>, LedgerError> {
    all(database, &format!("SELECT {} FROM users ORDER BY name", User::COLUMNS), &[])
}

/// The users whose names follow a name, in the order of names.
pub(super) fn users_after(
    database: &dyn Database,
    name: &str,
    limit: u32,
) -> Result<Vec<User>, LedgerError> {
    let columns = User::COLUMNS;
    let sql = format!("SELECT {columns} FROM users WHERE name > $1 ORDER BY name LIMIT {limit}");
    all(database, &sql, &[name.into()])
}

pub(super) fn token(database: &dyn Database, id: Uuid) -> Result<Option<Token>, LedgerError> {
    let sql = format!("SELECT {} FROM tokens WHERE id = $1", Token::COLUMNS);
    first(database, &sql, &[id.into()])
}

pub(super) fn user(database: &dyn Database, name: &str) -> Result<Option<User>, LedgerError> {
    let sql = format!("SELECT {} FROM users WHERE name = $1", User::COLUMNS);
    first(database, &sql, &[name.into()])
}

pub(super) fn has_administrators(database: &dyn Database) -> Result<bool, LedgerError> {
    let sql = format!("SELECT {} FROM users WHERE role = $1 LIMIT 1", User::COLUMNS);
    Ok(first::<User>(database, &sql, &[Role::Admin.as_str().into()])?.is_some())
}

/// Changes a user; `None` when there is no such user, or when no active administrator would be left.
pub(super) fn change_user(
    database: &dyn Database,
    name: &str,
    change: &UserChange,
) -> Result<Option<User>, LedgerError> {
    let sql = format!(
        "UPDATE users SET email = coalesce($1, email), role = coalesce($2, role),
           status = coalesce($3, status)
         WHERE name = $4 AND (role <> 'admin' OR status <> 'active'
           OR (coalesce($2, role) = 'admin' AND coalesce($3, status) = 'active')
           OR EXISTS (SELECT 1 FROM users o
             WHERE o.role = 'admin' AND o.status = 'active' AND o.name <> $4))
         RETURNING {}",
        User::COLUMNS
    );
    let role = change.role.map(|role| role.as_str().to_owned());
    let status = change.status.map(|status| status.as_str().to_owned());
    let values = [change.email.clone().into(), role.into(), status.into(), name.into()];
    first(database, &sql, &values)
}

pub(super) fn insert_token(database: &dyn Database, token: &Token) -> Result<(), LedgerError> {
    execute(
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
    )
}

pub(super) fn tokens(
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

/// The tokens of a user whose ids precede an id, newest first.
pub(super) fn tokens_before(
    database: &dyn Database,
    user_id: Uuid,
    id: Uuid,
    limit: u32,
) -> Result<Vec<Token>, LedgerError> {
    let columns = Token::COLUMNS;
    let sql = format!(
        "SELECT {columns} FROM tokens WHERE user_id = $1 AND id < $2 ORDER BY id DESC LIMIT {limit}"
    );
    all(database, &sql, &[user_id.into(), id.into()])
}

/// Up to `limit` tokens that are accepted now and end before a time, with their users, the first to end first; of
/// one user or of all.
pub(super) fn ending_tokens(
    database: &dyn Database,
    user_id: Option<Uuid>,
    before: Timestamp,
    limit: u32,
) -> Result<Vec<(Token, User)>, LedgerError> {
    let condition = if user_id.is_some() { "AND user_id = $3" } else { "" };
    let sql = format!(
        "SELECT {} FROM tokens
         WHERE revoked_at IS NULL AND expires_at > $1 AND expires_at < $2 {condition}
           AND user_id IN (SELECT id FROM users WHERE status = 'active')
         ORDER BY expires_at LIMIT {limit}",
        Token::COLUMNS
    );
    let mut values = vec![Timestamp::now().into(), before.into()];
    values.extend(user_id.map(Value::from));
    let tokens: Vec<Token> = all(database, &sql, &values)?;
    let with_user = |token: Token| {
        let user = user_of(database, &token);
        user.map(|user| user.map(|user| (token, user))).transpose()
    };
    tokens.into_iter().filter_map(with_user).collect()
}

fn user_of(database: &dyn Database, token: &Token) -> Result<Option<User>, LedgerError> {
    let sql = format!("SELECT {} FROM users WHERE id = $1", User::COLUMNS);
    first(database, &sql, &[token.user_id.into()])
}

/// Revokes a token, keeping the time of the first revocation; `None` when there is no such token.
pub(super) fn revoke_token(
    database: &dyn Database,
    id: Uuid,
) -> Result<Option<Token>, LedgerError> {
    let sql = format!(
        "UPDATE tokens SET revoked_at = coalesce(revoked_at, $1) WHERE id = $2 RETURNING {}",
        Token::COLUMNS
    );
    first(database, &sql, &[Timestamp::now().into(), id.into()])
}

pub(super) fn find_token(
    database: &dyn Database,
    hash: &str,
) -> Result<Option<(Token, User)>, LedgerError> {
    let sql = format!("SELECT {} FROM tokens WHERE token_hash = $1", Token::COLUMNS);
    let Some(token) = first::<Token>(database, &sql, &[hash.into()])? else { return Ok(None) };
    Ok(user_of(database, &token)?.map(|user| (token, user)))
}

/// Marks a token as the first administrator's, which has not been used.
pub(super) fn mark_first_token(database: &dyn Database, id: Uuid) -> Result<(), LedgerError> {
    let sql = "INSERT INTO settings (key, value) VALUES ($1, $2)
               ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    execute(database, sql, &first_token_setting(id))
}

/// Lifts the expiry of a token, if it is the first administrator's; `None` if it is not.
pub(super) fn keep_first_token(
    database: &dyn Database,
    id: Uuid,
) -> Result<Option<Token>, LedgerError> {
    let sql = format!(
        "UPDATE tokens SET expires_at = NULL
         WHERE id = $3 AND EXISTS (SELECT 1 FROM settings WHERE key = $1 AND value = $2)
         RETURNING {}",
        Token::COLUMNS
    );
    let [key, value] = first_token_setting(id);
    first(database, &sql, &[key, value, id.into()])
}

/// The setting that says which token is the first administrator's.
fn first_token_setting(id: Uuid) -> [Value; 2] {
    ["first_admin_token".into(), Value::Bytes(id.as_bytes().to_vec())]
}

/// What decides whether a token is accepted.
struct TokenState {
    id: Uuid,
    end: Option<AccessEnd>,
}

impl FromRow for TokenState {
    const COLUMNS: &'static str = "t.id, t.revoked_at, u.status";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        let id = required(row.id()?)?;
        let revoked_at = row.time()?;
        Ok(Self { id, end: AccessEnd::of(revoked_at, word(row)?) })
    }
}

/// Why the access of each of these tokens has ended, if it has.
pub(super) fn access_states(
    database: &dyn Database,
    tokens: &[Uuid],
) -> Result<HashMap<Uuid, Option<AccessEnd>>, LedgerError> {
    let unknown = tokens.iter().map(|id| (*id, Some(AccessEnd::Revoked)));
    let mut states: HashMap<_, _> = unknown.collect();
    for ids in tokens.chunks(MAX_IDS) {
        let places: Vec<String> = (1..=ids.len()).map(|place| format!("${place}")).collect();
        let sql = format!(
            "SELECT {} FROM tokens t JOIN users u ON u.id = t.user_id WHERE t.id IN ({})",
            TokenState::COLUMNS,
            places.join(", ")
        );
        let ids: Vec<Value> = ids.iter().map(|id| (*id).into()).collect();
        let found = all::<TokenState>(database, &sql, &ids)?;
        states.extend(found.into_iter().map(|state| (state.id, state.end)));
    }
    Ok(states)
}
