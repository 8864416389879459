//! Errors of a provider about the company's key, which the client cannot do anything about and must not see.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, response};
use keybridge_net::encoding::{codings, decoded};
use keybridge_providers::{
    body::AnswerBody, credential::Credential, dump::Dump, failure::Failure, provider::Provider,
};
use keybridge_wire::error::{self, ErrorKind, ErrorShape};
use uuid::Uuid;

use super::{key_mask::MASK_KEY, watch::Watch};
use crate::{
    headers,
    settlement::{Ending, SettlementGuard},
};

/// The name of the edit, as recorded.
const KEY_REFUSED: &str = "key_refused";
/// Maximum size of an error that is rewritten.
const MAX_ERROR_BYTES: usize = 64 * 1024;

/// An error answer of a provider.
pub(super) struct ErrorAnswer {
    pub(super) head: response::Parts,
    pub(super) body: AnswerBody,
    pub(super) dump: Option<Dump>,
}

/// Whether a provider refused the company's key.
pub(crate) fn is_key_refused(status: StatusCode, credential: &Credential) -> bool {
    status == StatusCode::UNAUTHORIZED && credential.key.is_some()
}

/// The message for a client whose request met a refused key.
pub(crate) fn key_refused(provider: &Provider) -> String {
    let name = &provider.config.name;
    format!(
        "the provider refused the company's key for `{name}`; neither your request nor your bridge token \
         is at fault: tell the administrators of keybridge"
    )
}

/// Whether an error must be read to its end before it is passed on: its message is replaced, or a key
/// could be quoted in it where it cannot be seen.
pub(super) fn must_read(head: &response::Parts, credential: &Credential) -> bool {
    let is_encoded = || !codings(&head.headers).is_empty();
    is_key_refused(head.status, credential)
        || !head.status.is_success() && credential.is_centralized() && is_encoded()
}

/// Masks the company's keys in the headers of an error.
pub(super) fn mask_headers(headers: &mut HeaderMap, guard: &mut SettlementGuard) {
    let mut has_masked = false;
    for value in headers.values_mut() {
        let masked = guard.provider().secrets.overwrite_in(value.as_bytes());
        if let Some(masked) = masked.and_then(|masked| HeaderValue::from_bytes(&masked).ok()) {
            *value = masked;
            has_masked = true;
        }
    }
    if has_masked {
        guard.note_edit(MASK_KEY);
    }
}

/// Responds with an error that was read to its end: with the bridge's own message if the key was refused,
/// and without the company's keys.
pub(super) async fn respond(
    id: Uuid,
    shape: ErrorShape,
    answer: ErrorAnswer,
    guard: &mut SettlementGuard,
    watch: &mut Watch,
) -> Result<Response<Body>, Failure> {
    let ErrorAnswer { mut head, body, mut dump } = answer;
    let bytes = read(body, watch).await?;
    guard.observe(&bytes);
    if let Some(dump) = &mut dump {
        dump.response_chunk(&bytes);
    }
    let answer_codings = codings(&head.headers);
    let plain = decoded(&answer_codings, &bytes, MAX_ERROR_BYTES)
        .map_err(|_undecodable| Failure::truncated())?;
    headers::to_client(&mut head.headers);
    let mut rewritten = None;
    if is_key_refused(head.status, &guard.attempts().credential()) {
        let message = key_refused(guard.provider());
        let replaced = error::replace_message(&plain, &message).unwrap_or_else(|| {
            let json = HeaderValue::from_static("application/json");
            head.headers.insert(header::CONTENT_TYPE, json);
            let id = id.to_string();
            error::body(shape, ErrorKind::Authentication, &message, Some(&id))
        });
        head.headers.insert("x-should-retry", HeaderValue::from_static("false"));
        rewritten = Some(replaced);
        guard.note_edit(KEY_REFUSED);
    }
    let secrets = &guard.provider().secrets;
    if let Some(masked) = secrets.overwrite_in(rewritten.as_deref().unwrap_or(&plain)) {
        rewritten = Some(masked);
        guard.note_edit(MASK_KEY);
    }
    let body = match rewritten {
        None => bytes.clone(),
        Some(body) => {
            head.headers.remove(header::CONTENT_ENCODING);
            Bytes::from(body)
        }
    };
    head.headers.remove(header::CONTENT_LENGTH);
    headers::set_interception_id(&mut head.headers, id);
    guard.end(&Ending::Relayed);
    Ok(Response::from_parts(head, Body::from(body)))
}

/// Reads an error to its end.
async fn read(mut body: AnswerBody, watch: &mut Watch) -> Result<Bytes, Failure> {
    let mut read = BytesMut::new();
    loop {
        match watch.next_frame(&mut body).await? {
            None => return Ok(read.freeze()),
            Some(Ok(frame)) => read.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Some(Err(error)) => {
                tracing::warn!(%error, "the provider closed the connection before its error was complete");
                return Err(Failure::truncated());
            }
        }
        watch.progressed();
        if read.len() > MAX_ERROR_BYTES {
            return Err(Failure::upstream(
                StatusCode::BAD_GATEWAY,
                ErrorKind::Api,
                "the provider's error answer is too large".into(),
            ));
        }
    }
}
