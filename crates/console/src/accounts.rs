//! Users and their tokens: read by auditors, changed by administrators; each person sees themself, and
//! makes and revokes their own tokens.

use axum::{
    Json,
    extract::{RawQuery, State},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use keybridge_identity::{AccountError, Accounts, NewUser, Role, UserChange};
use keybridge_ledger::{LedgerError, parse};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    Console,
    caller::Caller,
    extract::{Body, PathText},
    failure::Failure,
    openapi::{AccountErrors, BodyErrors, Conflict, Forbidden, NotFound},
    query::{self, ListQuery},
    views::{CreatedTokenView, PageView, RoleWord, TokenView, UserStatusWord, UserView},
};

/// Maximum length of a label and of an email address, in characters.
const MAX_LABEL_CHARS: usize = 128;
const MAX_EMAIL_CHARS: usize = 254;

pub(crate) fn router() -> OpenApiRouter<Console> {
    OpenApiRouter::new()
        .routes(routes!(list_users, create_user))
        .routes(routes!(show_user, change_user))
        .routes(routes!(list_tokens, create_token))
        .routes(routes!(revoke_token))
}

/// A user to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UserToCreate {
    /// Unique name: letters, digits, `.`, `_`, `-` and `@`.
    #[schema(min_length = 1, max_length = 64, format = "user-name", example = "ada")]
    name: String,
    /// Email address.
    #[schema(max_length = 254, format = "email", example = "ada@example.com")]
    email: Option<String>,
    /// Default: `member`.
    #[schema(value_type = Option<RoleWord>)]
    role: Option<String>,
}

/// What changes of a user; what is absent or null stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ChangeOfUser {
    /// Email address.
    #[schema(max_length = 254, format = "email", example = "ada@example.com")]
    email: Option<String>,
    /// What they may read and change.
    #[schema(value_type = Option<RoleWord>)]
    role: Option<String>,
    /// Whether their tokens are accepted.
    #[schema(value_type = Option<UserStatusWord>)]
    status: Option<String>,
}

/// A token to create. It expires at `expires_at`, or after `expires_in`, or never.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TokenToCreate {
    /// A label.
    #[schema(max_length = 128, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$", example = "laptop")]
    name: Option<String>,
    /// An RFC 3339 time in the future.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// A duration from now, such as `90d`.
    #[schema(format = "duration-text", example = "90d")]
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

impl Console {
    /// Runs a statement over users or tokens, which blocks.
    pub(crate) async fn accounts<T: Send + 'static>(
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

/// List the users
///
/// In the order of their names; for auditors and administrators.
#[utoipa::path(
    get, path = "/users", tag = "accounts", params(ListQuery),
    responses(
        (status = 200, description = "A page", body = PageView<UserView>), AccountErrors, Forbidden,
    ),
)]
async fn list_users(
    State(console): State<Console>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<PageView<UserView>>, Failure> {
    caller.check_sees_all("users")?;
    let query: ListQuery = query::read(query.as_deref())?;
    let (limit, after) = (query.limit()?, query.cursor.unwrap_or_default());
    let found = console.accounts(move |accounts| accounts.users_after(&after, limit + 1)).await?;
    Ok(Json(page(found, limit, UserView::from, |user| user.name.clone())))
}

/// Show a user
///
/// A member sees themself only.
#[utoipa::path(
    get, path = "/users/{name}", tag = "accounts",
    params(("name" = String, Path, description = "Name of the user")),
    responses((status = 200, description = "The user", body = UserView), AccountErrors, NotFound),
)]
async fn show_user(
    State(console): State<Console>,
    caller: Caller,
    PathText(name): PathText,
) -> Result<Json<UserView>, Failure> {
    check_visible(&caller, &name)?;
    let user = console.accounts(move |accounts| accounts.user(&name)).await?;
    Ok(Json(UserView::from(user)))
}

/// Create a user
///
/// For administrators.
#[utoipa::path(
    post, path = "/users", tag = "accounts", request_body = UserToCreate,
    responses(
        (status = 201, description = "The user", body = UserView),
        AccountErrors, Forbidden, Conflict, BodyErrors,
    ),
)]
async fn create_user(
    State(console): State<Console>,
    caller: Caller,
    body: Body,
) -> Result<Response, Failure> {
    caller.check_admin("create users")?;
    let UserToCreate { name, email, role } = body.json()?;
    check_email(email.as_deref())?;
    let role = query::optional("role", role)?.unwrap_or(Role::Member);
    let user = NewUser { name, email, role };
    let user = console.accounts(move |accounts| accounts.create_user(&user)).await?;
    tracing::info!(user = user.name, by = caller.identity.user.name, "a user was created");
    Ok((StatusCode::CREATED, Json(UserView::from(user))).into_response())
}

/// Change a user
///
/// For administrators. The last active administrator can be neither suspended nor given another role.
#[utoipa::path(
    patch, path = "/users/{name}", tag = "accounts", request_body = ChangeOfUser,
    params(("name" = String, Path, description = "Name of the user")),
    responses(
        (status = 200, description = "The user", body = UserView),
        AccountErrors, Forbidden, NotFound, Conflict, BodyErrors,
    ),
)]
async fn change_user(
    State(console): State<Console>,
    caller: Caller,
    PathText(name): PathText,
    body: Body,
) -> Result<Json<UserView>, Failure> {
    caller.check_admin("change users")?;
    let ChangeOfUser { email, role, status } = body.json()?;
    check_email(email.as_deref())?;
    let (role, status) = (query::optional("role", role)?, query::optional("status", status)?);
    let change = UserChange { email, role, status };
    let user = console.accounts(move |accounts| accounts.change_user(&name, &change)).await?;
    tracing::info!(user = user.name, by = caller.identity.user.name, "a user was changed");
    Ok(Json(UserView::from(user)))
}

/// List the tokens of a user, newest first
///
/// A member sees their own.
#[utoipa::path(
    get, path = "/users/{name}/tokens", tag = "accounts",
    params(("name" = String, Path, description = "Name of the user"), ListQuery),
    responses(
        (status = 200, description = "A page", body = PageView<TokenView>), AccountErrors, NotFound,
    ),
)]
async fn list_tokens(
    State(console): State<Console>,
    caller: Caller,
    PathText(name): PathText,
    RawQuery(query): RawQuery,
) -> Result<Json<PageView<TokenView>>, Failure> {
    check_visible(&caller, &name)?;
    let query: ListQuery = query::read(query.as_deref())?;
    let limit = query.limit()?;
    let before = query.cursor.map_or(Ok(Uuid::max()), |cursor| cursor.parse());
    let before = before.map_err(|_invalid| LedgerError::Cursor)?;
    let user = name.clone();
    let found =
        console.accounts(move |accounts| accounts.tokens_before(&user, before, limit + 1)).await?;
    let view = |token| TokenView::new(token, name.clone());
    Ok(Json(page(found, limit, view, |token| token.id.to_string())))
}

/// Create a token
///
/// For the user and for administrators. The answer has the text of the token, which cannot be read again.
#[utoipa::path(
    post, path = "/users/{name}/tokens", tag = "accounts", request_body = Option<TokenToCreate>,
    params(("name" = String, Path, description = "Name of the user")),
    responses(
        (status = 201, description = "The token with its text", body = CreatedTokenView),
        AccountErrors, Forbidden, NotFound, BodyErrors,
    ),
)]
async fn create_token(
    State(console): State<Console>,
    caller: Caller,
    PathText(name): PathText,
    body: Body,
) -> Result<Response, Failure> {
    if !caller.is(&name) {
        caller.check_admin("create tokens of other users")?;
    }
    let wanted: TokenToCreate = body.json_or_default()?;
    let expires_at = wanted.expiry()?;
    let label = wanted.name.filter(|label| !label.is_empty());
    if let Some(label) = &label {
        check_label(label)?;
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
    let created = CreatedTokenView { token, secret: secret.expose().to_owned() };
    let mut response = (StatusCode::CREATED, Json(created)).into_response();
    let no_store = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, no_store);
    Ok(response)
}

/// Revoke a token
///
/// For its user and for administrators. Open requests of the token end; revoking it again changes nothing.
#[utoipa::path(
    delete, path = "/tokens/{id}", tag = "accounts",
    params(("id" = Uuid, Path, description = "Id of the token")),
    responses((status = 204, description = "The token is revoked"), AccountErrors, NotFound),
)]
async fn revoke_token(
    State(console): State<Console>,
    caller: Caller,
    PathText(id): PathText,
) -> Result<StatusCode, Failure> {
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
    Ok(StatusCode::NO_CONTENT)
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

fn check_label(label: &str) -> Result<(), Failure> {
    if label.chars().count() > MAX_LABEL_CHARS {
        let message = format!("`name` has more than {MAX_LABEL_CHARS} characters");
        return Err(Failure::invalid(message));
    }
    if label.chars().any(char::is_control) {
        return Err(Failure::invalid("`name` contains control characters".into()));
    }
    Ok(())
}

/// A page of what was found, which has one more than `limit` if there is a next page.
fn page<F, T>(
    mut found: Vec<F>,
    limit: u32,
    view: impl Fn(F) -> T,
    cursor: impl Fn(&F) -> String,
) -> PageView<T> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let has_more = found.len() > limit;
    found.truncate(limit);
    let next_cursor = found.last().filter(|_| has_more).map(cursor);
    let items = found.into_iter().map(view).collect();
    PageView { items, next_cursor, searched_until: None }
}
