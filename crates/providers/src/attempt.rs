//! The log of a request's attempts: each key, retry, fallback and further turn is one exchange.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use keybridge_net::egress::SendObserver;
use keybridge_wire::error::ErrorKind;
use tokio::time::Instant;

use crate::{
    credential::Credential,
    failure::{Failure, kind_of},
};

/// Maximum number of attempts logged for one request: the first ones and the last, which is the one that
/// answered. Those between are only counted.
const MAX_ATTEMPTS: usize = 100;
/// Maximum length of a provider's request id, in bytes.
const MAX_REQUEST_ID: usize = 128;
/// The headers in which providers name a request: Anthropic's, OpenAI's, GitHub's, AWS's, Azure's,
/// Mistral's, the id of a generation, and that of a content delivery network in front of some.
const REQUEST_ID_HEADERS: [&str; 10] = [
    "request-id",
    "x-request-id",
    "x-github-request-id",
    "x-amzn-requestid",
    "apim-request-id",
    "x-ms-request-id",
    "x-amz-request-id",
    "mistral-correlation-id",
    "x-generation-id",
    "cf-ray",
];

/// One exchange with a provider.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The dispatch it belongs to, from 0: a fallback is another dispatch.
    pub dispatch: usize,
    /// The turn of the tool loop, from 0.
    pub turn: u16,
    /// The credential that was sent.
    pub credential: Arc<Credential>,
    /// When it started.
    pub started_at: Timestamp,
    /// The provider's status, once it has answered.
    pub status: Option<StatusCode>,
    /// The error, if it failed before or with the head of the answer.
    pub error: Option<ErrorKind>,
    /// The provider's own id of the request.
    pub request_id: Option<String>,
    started: Instant,
    ended: Option<Instant>,
}

impl Attempt {
    /// The duration, so far if it is running.
    pub fn duration(&self) -> Duration {
        let ended = self.ended.unwrap_or_else(Instant::now);
        ended.saturating_duration_since(self.started)
    }
}

/// The attempts of one request in order; clones share the log.
#[derive(Debug, Clone)]
pub struct AttemptLog(Arc<SharedLog>);

#[derive(Debug)]
struct SharedLog(Mutex<Log>);

#[derive(Debug)]
struct Log {
    dispatch: usize,
    turn: u16,
    /// The credential of the next attempt.
    credential: Arc<Credential>,
    count: u32,
    attempts: Vec<Attempt>,
    /// When a connection first took the request.
    connected: Option<Instant>,
}

impl SharedLog {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SendObserver for SharedLog {
    fn note_connection(&self) {
        let connected = Instant::now();
        self.lock().connected.get_or_insert(connected);
    }
}

impl AttemptLog {
    /// An empty log; the first attempt uses this credential.
    pub fn new(credential: Arc<Credential>) -> Self {
        let log = Log {
            dispatch: 0,
            turn: 0,
            credential,
            count: 0,
            attempts: Vec::new(),
            connected: None,
        };
        Self(Arc::new(SharedLog(Mutex::new(log))))
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock()
    }

    /// The number of attempts so far.
    pub fn count(&self) -> u32 {
        self.log().count
    }

    /// The credential of the last attempt, or of the first one before it is made.
    pub fn credential(&self) -> Arc<Credential> {
        Arc::clone(&self.log().credential)
    }

    /// The turn of the last attempt, if the provider has not answered it yet.
    pub fn awaited_turn(&self) -> Option<u16> {
        let log = self.log();
        let last = log.attempts.last()?;
        (last.status.is_none() && last.error.is_none()).then_some(last.turn)
    }

    /// When a connection to a provider first took the request.
    pub fn connected(&self) -> Option<Instant> {
        self.log().connected
    }

    /// What is notified when a connection takes the request.
    pub(crate) fn send_observer(&self) -> Arc<dyn SendObserver> {
        Arc::<SharedLog>::clone(&self.0)
    }

    /// Takes the attempts so far, at most 100, out of the log.
    pub fn take(&self) -> Vec<Attempt> {
        std::mem::take(&mut self.log().attempts)
    }

    /// Uses another credential of the same provider instance for further attempts.
    pub(crate) fn use_credential(&self, credential: Arc<Credential>) {
        self.log().credential = credential;
    }

    /// Starts another dispatch, such as a fallback, for further attempts.
    pub fn start_dispatch(&self, credential: Arc<Credential>) {
        let mut log = self.log();
        log.dispatch += 1;
        log.credential = credential;
    }

    /// Starts the next turn of a tool loop for further attempts.
    pub fn start_turn(&self) {
        let mut log = self.log();
        log.turn = log.turn.saturating_add(1);
    }

    /// Starts an attempt and ends the one before it; returns the credential to use.
    pub(crate) fn start_attempt(&self) -> Arc<Credential> {
        let started = Instant::now();
        let mut log = self.log();
        log.count = log.count.saturating_add(1);
        if let Some(last) = log.attempts.last_mut() {
            last.ended.get_or_insert(started);
        }
        let credential = Arc::clone(&log.credential);
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
        } else if log.attempts.len() == MAX_ATTEMPTS {
            log.attempts.pop();
        }
        log.attempts.push(attempt);
        credential
    }

    /// Records the head of the provider's answer to the last attempt.
    pub(crate) fn record_head(&self, status: StatusCode, headers: &HeaderMap) {
        let request_id = request_id(headers);
        self.update_last(|attempt| {
            attempt.status = Some(status);
            attempt.error = (!status.is_success()).then(|| kind_of(status));
            attempt.request_id = request_id;
        });
    }

    /// Records the error that an answer to the last attempt has as its first event.
    pub(crate) fn record_first_error(&self, kind: ErrorKind) {
        self.update_last(|attempt| attempt.error = Some(kind));
    }

    /// Records that the last attempt got no answer that can be used.
    pub(crate) fn record_failure(&self, failure: &Failure) {
        self.update_last(|attempt| {
            attempt.status = failure.upstream_status;
            attempt.error = Some(failure.kind);
            attempt.ended = Some(Instant::now());
        });
    }

    fn update_last(&self, change: impl FnOnce(&mut Attempt)) {
        if let Some(last) = self.log().attempts.last_mut() {
            change(last);
        }
    }
}

/// The provider's id of a request, if it can be recorded.
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
    fn each_attempt_is_logged_with_its_credential() {
        let log = AttemptLog::new(credential("first"));
        log.start_attempt();
        assert_eq!(log.awaited_turn(), Some(0));
        log.record_head(StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new());
        assert_eq!(log.awaited_turn(), None);
        log.start_dispatch(credential("second"));
        log.start_attempt();
        let mut headers = HeaderMap::new();
        headers.insert("request-id", HeaderValue::from_static("req_1"));
        log.record_head(StatusCode::OK, &headers);
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
    fn of_many_attempts_the_first_and_the_last_are_logged_and_all_are_counted() {
        let log = AttemptLog::new(credential("only"));
        for _ in 0..MAX_ATTEMPTS + 5 {
            log.start_attempt();
            log.record_head(StatusCode::OK, &HeaderMap::new());
        }
        log.start_attempt();
        log.record_head(StatusCode::INTERNAL_SERVER_ERROR, &HeaderMap::new());
        let attempts = log.take();
        assert_eq!(attempts.len(), MAX_ATTEMPTS);
        assert_eq!(attempts[MAX_ATTEMPTS - 2].status, Some(StatusCode::OK));
        assert_eq!(attempts.last().unwrap().status, Some(StatusCode::INTERNAL_SERVER_ERROR));
        assert_eq!(usize::try_from(log.count()).unwrap(), MAX_ATTEMPTS + 6);
    }
}
