//! The exchanges that one request took: each key, retry, fallback and further turn is one.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use keybridge_wire::error::ErrorKind;
use tokio::time::Instant;

use crate::{
    credential::Credential,
    failure::{Failure, kind_of},
};

/// Attempts that are kept of one request; further ones are only counted.
const MAX_ATTEMPTS: usize = 100;
/// Longest request id of a provider that is kept, in bytes.
const MAX_REQUEST_ID: usize = 128;
/// The headers in which providers name a request: Anthropic's, OpenAI's, GitHub's and AWS's.
const REQUEST_ID_HEADERS: [&str; 4] =
    ["request-id", "x-request-id", "x-github-request-id", "x-amzn-requestid"];

/// One exchange with a provider.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Which of the request's dispatches it belongs to, from 0: a fallback is another one.
    pub dispatch: usize,
    /// Which turn of a tool loop, from 0.
    pub turn: u16,
    /// The credential that it was made with.
    pub credential: Arc<Credential>,
    /// When it began.
    pub started_at: Timestamp,
    /// The provider's status, once it has answered.
    pub status: Option<StatusCode>,
    /// What went wrong, if anything did until the head of the answer.
    pub error: Option<ErrorKind>,
    /// The provider's own id of the request.
    pub request_id: Option<String>,
    started: Instant,
    ended: Option<Instant>,
}

impl Attempt {
    /// How long it took, or has taken so far.
    pub fn duration(&self) -> Duration {
        let ended = self.ended.unwrap_or_else(Instant::now);
        ended.saturating_duration_since(self.started)
    }
}

/// The attempts of one request in their order; clones share it.
#[derive(Debug, Clone)]
pub struct AttemptLog(Arc<Mutex<Log>>);

#[derive(Debug)]
struct Log {
    dispatch: usize,
    turn: u16,
    /// What the next attempt is made with.
    credential: Arc<Credential>,
    count: u32,
    attempts: Vec<Attempt>,
}

impl AttemptLog {
    /// No attempt yet; the first is made with this credential.
    pub fn new(credential: Arc<Credential>) -> Self {
        let log = Log { dispatch: 0, turn: 0, credential, count: 0, attempts: Vec::new() };
        Self(Arc::new(Mutex::new(log)))
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many attempts were made.
    pub fn count(&self) -> u32 {
        self.log().count
    }

    /// The credential of the last attempt, or of the first one while there is none.
    pub fn credential(&self) -> Arc<Credential> {
        Arc::clone(&self.log().credential)
    }

    /// Takes the attempts so far out of the log, at most 100 of them.
    pub fn take(&self) -> Vec<Attempt> {
        std::mem::take(&mut self.log().attempts)
    }

    /// Further attempts are made with another credential of the same provider instance.
    pub(crate) fn use_credential(&self, credential: Arc<Credential>) {
        self.log().credential = credential;
    }

    /// Further attempts belong to another dispatch, such as a fallback.
    pub fn begin_dispatch(&self, credential: Arc<Credential>) {
        let mut log = self.log();
        log.dispatch += 1;
        log.credential = credential;
    }

    /// Further attempts belong to the next turn of a tool loop.
    pub fn begin_turn(&self) {
        let mut log = self.log();
        log.turn = log.turn.saturating_add(1);
    }

    /// An attempt begins; the one before it is over.
    pub(crate) fn begin(&self) -> Arc<Credential> {
        let started = Instant::now();
        let mut log = self.log();
        log.count = log.count.saturating_add(1);
        if let Some(last) = log.attempts.last_mut() {
            last.ended.get_or_insert(started);
        }
        let credential = Arc::clone(&log.credential);
        if log.attempts.len() < MAX_ATTEMPTS {
            let attempt = Attempt {
                dispatch: log.dispatch,
                turn: log.turn,
                credential: Arc::clone(&credential),
                started_at: Timestamp::now(),
                status: None,
                error: None,
                request_id: None,
                started,
                ended: None,
            };
            if log.attempts.is_empty() {
                // Most requests have one attempt, and the log lives as long as the stream.
                log.attempts.reserve_exact(1);
            }
            log.attempts.push(attempt);
        }
        credential
    }

    /// The provider has begun to answer the last attempt.
    pub(crate) fn answered(&self, status: StatusCode, headers: &HeaderMap) {
        let request_id = request_id(headers);
        self.update_last(|attempt| {
            attempt.status = Some(status);
            attempt.error = (!status.is_success()).then(|| kind_of(status));
            attempt.request_id = request_id;
        });
    }

    /// The last attempt got no answer.
    pub(crate) fn failed(&self, failure: &Failure) {
        self.update_last(|attempt| {
            attempt.error = Some(failure.kind);
            attempt.ended = Some(Instant::now());
        });
    }

    fn update_last(&self, change: impl FnOnce(&mut Attempt)) {
        let mut log = self.log();
        let is_kept = usize::try_from(log.count).is_ok_and(|count| count <= MAX_ATTEMPTS);
        if let Some(last) = log.attempts.last_mut().filter(|_| is_kept) {
            change(last);
        }
    }
}

/// The provider's id of a request, if it is one that can be recorded.
fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = REQUEST_ID_HEADERS.iter().find_map(|name| headers.get(*name))?.to_str().ok()?;
    (!id.is_empty() && id.len() <= MAX_REQUEST_ID).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn credential(name: &'static str) -> Arc<Credential> {
        Arc::new(Credential::for_tests(name))
    }

    #[test]
    fn each_attempt_keeps_the_credential_it_was_made_with() {
        let log = AttemptLog::new(credential("first"));
        log.begin();
        log.answered(StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new());
        log.begin_dispatch(credential("second"));
        log.begin();
        let mut headers = HeaderMap::new();
        headers.insert("request-id", HeaderValue::from_static("req_1"));
        log.answered(StatusCode::OK, &headers);
        let attempts = log.take();
        let sources: Vec<_> =
            attempts.iter().map(|attempt| attempt.credential.trace.source.as_str()).collect();
        assert_eq!(sources, ["first", "second"]);
        assert_eq!(attempts.iter().map(|attempt| attempt.dispatch).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(attempts[0].error, Some(ErrorKind::RateLimit));
        assert_eq!(attempts[1].error, None);
        assert_eq!(attempts[1].request_id.as_deref(), Some("req_1"));
    }

    #[test]
    fn what_is_kept_of_many_attempts_is_bounded_and_their_count_is_exact() {
        let log = AttemptLog::new(credential("only"));
        for _ in 0..MAX_ATTEMPTS + 5 {
            log.begin();
            log.answered(StatusCode::OK, &HeaderMap::new());
        }
        log.begin();
        log.answered(StatusCode::INTERNAL_SERVER_ERROR, &HeaderMap::new());
        let attempts = log.take();
        assert_eq!(attempts.len(), MAX_ATTEMPTS);
        assert_eq!(attempts.last().unwrap().status, Some(StatusCode::OK));
        assert_eq!(usize::try_from(log.count()).unwrap(), MAX_ATTEMPTS + 6);
    }
}
