//! Ending open requests: when the process shuts down, their token is revoked, or their user is suspended.

use std::future::Future;

use http::StatusCode;
use keybridge_identity::{Access, AccessEnd};
use keybridge_providers::failure::Failure;
use keybridge_wire::error::ErrorKind;

/// Runs `work` to completion, or fails when the access ends first. Nothing is done if it has ended before.
pub(crate) async fn run_until_ended<T>(
    access: &Access,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    if let Some(end) = access.ended() {
        return Err(failure(end));
    }
    tokio::select! {
        output = work => Ok(output),
        end = access.wait() => Err(failure(end)),
    }
}

/// The error that an open request ends with.
pub(crate) fn failure(end: AccessEnd) -> Failure {
    let (record_kind, detail) = match end {
        AccessEnd::ShuttingDown => return Failure::shutting_down(),
        AccessEnd::Revoked => ("token_revoked", "the bridge token was revoked"),
        AccessEnd::Suspended => ("user_suspended", "the user is suspended"),
    };
    let refusal = Failure::refusal(StatusCode::UNAUTHORIZED, ErrorKind::Authentication, detail);
    Failure { record_kind: Some(record_kind), ..refusal }
}
