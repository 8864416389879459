//! The authenticated caller of the API, and what their role allows.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts},
};
use keybridge_identity::{BridgeToken, CallerError, Identity, Role};
use uuid::Uuid;

use crate::{Console, failure::Failure};

/// The authenticated caller of the API.
pub(crate) struct Caller {
    pub(crate) identity: Arc<Identity>,
    pub(crate) token: BridgeToken,
}

impl Caller {
    /// The user whose records alone the caller may see; `None` for all.
    pub(crate) fn visible_user(&self) -> Option<Uuid> {
        match self.identity.user.role {
            Role::Member => Some(self.identity.user.id),
            Role::Auditor | Role::Admin => None,
        }
    }

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

    /// Whether the caller has this name.
    pub(crate) fn is(&self, user: &str) -> bool {
        self.identity.user.name == user
    }
}

impl FromRequestParts<Console> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, console: &Console) -> Result<Self, Failure> {
        let bearer = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
            .ok_or_else(|| {
                Failure::unauthorized("send the bridge token as `Authorization: Bearer <token>`")
            })?;
        let token = BridgeToken::parse(bearer)
            .map_err(|_invalid| Failure::unauthorized(CallerError::Unknown.to_string()))?;
        let identity = console.identify(&token).await?;
        Ok(Self { identity, token })
    }
}

impl Console {
    /// The user and token of a token's text.
    pub(crate) async fn identify(&self, token: &BridgeToken) -> Result<Arc<Identity>, Failure> {
        match self.directory.identify(token).await {
            Ok(identity) => Ok(identity),
            Err(CallerError::Unavailable(reason)) => Err(Failure::unavailable(&reason)),
            Err(refused) => Err(Failure::unauthorized(refused.to_string())),
        }
    }
}
