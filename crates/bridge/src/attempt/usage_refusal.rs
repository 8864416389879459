//! Recognises that a provider refused the field with which the bridge asks for the usage of a stream.

use std::time::Duration;

use bytes::BytesMut;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use keybridge_net::encoding::{codings, decoded};
use keybridge_providers::{
    body::{AnswerBody, BodyError},
    failure::Failure,
};
use tokio::time::timeout;

/// Maximum size of an error answer in which the field's name is searched for.
const MAX_ERROR_BYTES: usize = 64 * 1024;
/// Timeout of reading it.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// The names by which providers refer to the field.
const FIELD_NAMES: [&str; 2] = ["stream_options", "include_usage"];

/// Whether an answer with this status may refuse a field of the request.
pub(crate) fn may_refuse_field(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY)
}

/// Whether the provider's error names the field; returns the answer as it was.
pub(crate) async fn names_field(
    answer: Response<AnswerBody>,
) -> Result<(bool, Response<AnswerBody>), Failure> {
    let (head, mut body) = answer.into_parts();
    let mut read = BytesMut::new();
    let reading = timeout(READ_TIMEOUT, async {
        while read.len() < MAX_ERROR_BYTES
            && let Some(frame) = body.frame().await
        {
            read.extend_from_slice(&frame?.into_data().unwrap_or_default());
        }
        Ok::<(), BodyError>(())
    });
    // What does not arrive in time passes unjudged.
    if let Ok(Err(error)) = reading.await {
        tracing::warn!(%error, "the provider closed the connection before its error was complete");
        return Err(Failure::truncated());
    }
    let read = read.freeze();
    let plain = decoded(&codings(&head.headers), &read, MAX_ERROR_BYTES).unwrap_or_default();
    let plain = String::from_utf8_lossy(&plain);
    let names = FIELD_NAMES.iter().any(|name| plain.contains(name));
    Ok((names, Response::from_parts(head, body.unread(read))))
}
