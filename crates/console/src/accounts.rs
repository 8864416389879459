//! Users and their tokens: read by auditors, changed by administrators; each person sees themself, and
//! makes and revokes their own tokens.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, RawQuery, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{delete, get},
};
use jiff::Timestamp;
use keybridge_identity::{
    AccountError, Accounts, NewUser, Role, Token, User, UserChange, UserStatus,
};
use keybridge_ledger::{
    LedgerError, Page, parse,
    record::{serialize_optional_time, serialize_time},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{Caller, Console, Failure, query};

/// Maximum size of a request body.
const MAX_BODY_BYTES: usize = 16 * 1024;
/// Maximum length of a label and of an email address, in characters.
const MAX_LABEL_CHARS: usize = 128;
const MAX_EMAIL_CHARS: usize = 254;

pub(crate) fn router() -> Router<Console> {
    Router::new()
        .route("/users", get(users).post(create_user))
        .route("/users/{name}", get(user).patch(change_user))
        .route("/users/{name}/tokens", get(tokens).post(create_token))
        .route("/tokens/{id}", delete(revoke_token))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
}

/// A person, as the API shows them.
#[derive(Debug, Serialize)]
pub(crate) struct UserView {
    id: Uuid,
    name: String,
    email: Option<String>,
    role: Role,
    status: UserStatus,
    #[serde(serialize_with = "serialize_time")]
    created_at: Timestamp,
}

impl From<User> for UserView {
    fn from(user: User) -> Self {
        let User { id, name, email, role, status, created_at } = user;
        Self { id, name, email, role, status, created_at }
    }
}

/// A token, as the API shows it.
#[derive(Debug, Serialize)]
pub(crate) struct TokenView {
    id: Uuid,
    user: String,
    name: Option<String>,
    hint: String,
    #[serde(serialize_with = "serialize_time")]
    created_at: Timestamp,
    #[serde(serialize_with = "serialize_optional_time")]
    expires_at: Option<Timestamp>,
    #[serde(serialize_with = "serialize_optional_time")]
    last_used_at: Option<Timestamp>,
    #[serde(serialize_with = "serialize_optional_time")]
    revoked_at: Option<Timestamp>,
}

impl TokenView {
    fn new(token: Token, user: String) -> Self {
        let Token { id, name, hint, created_at, expires_at, last_used_at, revoked_at, .. } = token;
        Self { id, user, name, hint, created_at, expires_at, last_used_at, revoked_at }
    }
}

/// A new token with its text, which is shown once.
#[derive(Debug, Serialize)]
struct CreatedToken {
    #[serde(flatten)]
    token: TokenView,
    /// The text.
    #[serde(rename = "token")]
    secret: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserToCreate {
    name: String,
    email: Option<String>,
    role: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeOfUser {
    email: Option<String>,
    role: Option<String>,
    status: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenToCreate {
    name: Option<String>,
    /// An RFC 3339 time.
    expires_at: Option<Timestamp>,
    /// A duration from now, such as `90d`.
    expires_in: Option<String>,
}

impl TokenToCreate {
    fn expiry(&self) -> Result<Option<Timestamp>, Failure> {
        let now = Timestamp::now();
        let expiry = match (self.expires_at, &self.expires_in) {
            (None, None) => return Ok(None),
            (Some(at), None) => at,
            (None, Some(duration)) => {
                let duration = parse::duration(duration)
                    .map_err(|error| Failure::invalid(format!("`expires_in`: {error}")))?;
                now.checked_add(duration)
                    .map_err(|error| Failure::invalid(format!("`expires_in`: {error}")))?
            }
            (Some(_), Some(_)) => {
                let both = "`expires_at` and `expires_in` say the same: send one of them";
                return Err(Failure::invalid(both.into()));
            }
        };
        if expiry <= now {
            return Err(Failure::invalid("the token would have expired already".into()));
        }
        Ok(Some(expiry))
    }
}

impl From<AccountError> for Failure {
    fn from(error: AccountError) -> Self {
        let message = error.to_string();
        match error {
            AccountError::UserExists(_) => Self::new(StatusCode::CONFLICT, "conflict", message)
                .with_hint("choose another name, or change the user with PATCH"),
            AccountError::LastAdministrator(_) => {
                Self::new(StatusCode::CONFLICT, "conflict", message)
            }
            AccountError::UserName(_) => Self::invalid(message),
            AccountError::NoSuchUser(_) => {
                Self::not_found(&message).with_hint("`GET /api/v1/users` lists the users")
            }
            AccountError::NoSuchToken(_) => Self::not_found(&message),
            AccountError::Token(_) => Self::internal(&message),
            AccountError::Store(error) => error.into(),
        }
    }
}

impl Console {
    /// Runs a statement over users or tokens, which blocks.
    async fn accounts<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Accounts) -> Result<T, AccountError> + Send + 'static,
    ) -> Result<T, Failure> {
        let accounts = Accounts::new(self.ledger.clone());
        match tokio::task::spawn_blocking(move || work(&accounts)).await {
            Ok(done) => done.map_err(Failure::from),
            Err(panic) => Err(Failure::internal(&panic.to_string())),
        }
    }
}

impl Caller {
    /// Refuses members.
    pub(crate) fn check_sees_all(&self, what: &str) -> Result<(), Failure> {
        if self.visible_user().is_none() {
            return Ok(());
        }
        Err(Failure::forbidden(&format!("only auditors and administrators see the {what}")))
    }

    /// Refuses callers that are no administrators.
    pub(crate) fn check_admin(&self, what: &str) -> Result<(), Failure> {
        match self.identity.user.role {
            Role::Admin => Ok(()),
            Role::Member | Role::Auditor => {
                let message = format!("only administrators can {what}");
                Err(Failure::forbidden(&message)
                    .with_hint("`GET /api/v1/me` shows your role; an administrator can change it"))
            }
        }
    }

    fn is(&self, user: &str) -> bool {
        self.identity.user.name == user
    }
}

async fn users(
    State(console): State<Console>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    caller.check_sees_all("users")?;
    let query::List { limit, cursor } = query::list(query.as_deref()).map_err(Failure::invalid)?;
    let after = cursor.unwrap_or_default();
    let found = console.accounts(move |accounts| accounts.users_after(&after, limit + 1)).await?;
    Ok(Json(page(found, limit, UserView::from, |user| user.name.clone())).into_response())
}

async fn user(
    State(console): State<Console>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<Response, Failure> {
    check_visible(&caller, &name)?;
    let user = console.accounts(move |accounts| accounts.user(&name)).await?;
    Ok(Json(UserView::from(user)).into_response())
}

async fn create_user(
    State(console): State<Console>,
    caller: Caller,
    body: Bytes,
) -> Result<Response, Failure> {
    caller.check_admin("create users")?;
    let UserToCreate { name, email, role } = read_json(&body)?;
    check_email(email.as_deref())?;
    let role =
        role.map(|role| query::parsed("role", &role)).transpose().map_err(Failure::invalid)?;
    let role = role.unwrap_or(Role::Member);
    let user = NewUser { name, email, role };
    let user = console.accounts(move |accounts| accounts.create_user(&user)).await?;
    tracing::info!(user = user.name, by = caller.identity.user.name, "a user was created");
    Ok((StatusCode::CREATED, Json(UserView::from(user))).into_response())
}

async fn change_user(
    State(console): State<Console>,
    caller: Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Response, Failure> {
    caller.check_admin("change users")?;
    let ChangeOfUser { email, role, status } = read_json(&body)?;
    check_email(email.as_deref())?;
    let role =
        role.map(|role| query::parsed("role", &role)).transpose().map_err(Failure::invalid)?;
    let status = status.map(|status| query::parsed("status", &status));
    let status = status.transpose().map_err(Failure::invalid)?;
    let change = UserChange { email, role, status };
    let user = console.accounts(move |accounts| accounts.change_user(&name, &change)).await?;
    tracing::info!(user = user.name, by = caller.identity.user.name, "a user was changed");
    Ok(Json(UserView::from(user)).into_response())
}

async fn tokens(
    State(console): State<Console>,
    caller: Caller,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Failure> {
    check_visible(&caller, &name)?;
    let query::List { limit, cursor } = query::list(query.as_deref()).map_err(Failure::invalid)?;
    let before = cursor.map_or(Ok(Uuid::max()), |cursor| cursor.parse());
    let before = before.map_err(|_invalid| LedgerError::Cursor)?;
    let user = name.clone();
    let found =
        console.accounts(move |accounts| accounts.tokens_before(&user, before, limit + 1)).await?;
    let view = |token| TokenView::new(token, name.clone());
    Ok(Json(page(found, limit, view, |token| token.id.to_string())).into_response())
}

async fn create_token(
    State(console): State<Console>,
    caller: Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Response, Failure> {
    if !caller.is(&name) {
        caller.check_admin("create tokens of other users")?;
    }
    let wanted: TokenToCreate =
        if body.is_empty() { TokenToCreate::default() } else { read_json(&body)? };
    let expires_at = wanted.expiry()?;
    let label = wanted.name.filter(|label| !label.is_empty());
    if label.as_ref().is_some_and(|label| label.chars().count() > MAX_LABEL_CHARS) {
        let message = format!("`name` has more than {MAX_LABEL_CHARS} characters");
        return Err(Failure::invalid(message));
    }
    let user = name.clone();
    let create =
        move |accounts: &Accounts| accounts.create_token(&user, label.as_deref(), expires_at);
    let (token, secret) = console.accounts(create).await?;
    tracing::info!(
        user = name,
        token = token.hint,
        by = caller.identity.user.name,
        "a token was created"
    );
    let token = TokenView::new(token, name);
    let created = CreatedToken { token, secret: secret.expose().to_owned() };
    let mut response = (StatusCode::CREATED, Json(created)).into_response();
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, no_store);
    Ok(response)
}

async fn revoke_token(
    State(console): State<Console>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let missing = || Failure::not_found("there is no such token");
    let id: Uuid = id.parse().map_err(|_invalid| missing())?;
    let is_admin = caller.identity.user.role == Role::Admin;
    let owner = caller.identity.user.id;
    let revoke = move |accounts: &Accounts| match accounts.token(id)? {
        token if is_admin || token.user_id == owner => accounts.revoke_token(id).map(Some),
        _ => Ok(None),
    };
    let token = console.accounts(revoke).await?.ok_or_else(missing)?;
    tracing::info!(token = token.hint, by = caller.identity.user.name, "a token was revoked");
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Refuses what a member may not see, as if it did not exist.
fn check_visible(caller: &Caller, user: &str) -> Result<(), Failure> {
    if caller.visible_user().is_none() || caller.is(user) {
        return Ok(());
    }
    Err(AccountError::NoSuchUser(user.into()).into())
}

fn check_email(email: Option<&str>) -> Result<(), Failure> {
    let is_valid = |email: &str| {
        email.contains('@')
            && email.chars().count() <= MAX_EMAIL_CHARS
            && !email.chars().any(|c| c.is_control() || c.is_whitespace())
    };
    match email {
        Some(email) if !is_valid(email) => {
            Err(Failure::invalid("`email` is not an email address".into()))
        }
        Some(_) | None => Ok(()),
    }
}

fn read_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        Failure::invalid(format!("the body is not what this call takes: {error}"))
            .with_hint("send a JSON object")
    })
}

/// A page of what was found, which has one more than `limit` if there is a next page.
fn page<F, T>(
    mut found: Vec<F>,
    limit: u32,
    view: impl Fn(F) -> T,
    cursor: impl Fn(&F) -> String,
) -> Page<T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let has_more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| has_more).map(cursor);
    Page { items: found.into_iter().map(view).collect(), next_cursor, searched_until: None }
}
