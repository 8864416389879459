//! The settings, the sessions and the calls received.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{McpCall, http, tools};

/// The maximum number of sessions kept; the oldest are dropped.
const MAX_SESSIONS: usize = 1_000;
/// The maximum number of notification streams per session; the oldest end.
const MAX_STREAMS: usize = 8;
/// The maximum number of queued notifications per stream; a slower reader loses its stream.
const MAX_QUEUED_NOTIFICATIONS: usize = 64;
/// The maximum number of calls kept.
const MAX_CALLS: usize = 10_000;
/// The maximum total size of their arguments and headers; the latest call is kept whatever its size.
const MAX_CALL_BYTES: usize = 32 << 20;

#[derive(Debug)]
pub(super) struct State {
    pub(super) tools: Vec<Value>,
    pub(super) page_size: usize,
    pub(super) required: Option<(String, String)>,
    pub(super) with_sse: bool,
    pub(super) refused_with: Option<u16>,
    pub(super) counts: Counts,
    sessions: VecDeque<Session>,
    calls: VecDeque<(McpCall, usize)>,
    call_bytes: usize,
    running: Vec<RunningCall>,
    next_running: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) cancelled: usize,
    pub(super) opened: usize,
    pub(super) deleted: usize,
    pub(super) lists: usize,
}

#[derive(Debug)]
struct Session {
    id: String,
    streams: VecDeque<mpsc::Sender<Bytes>>,
}

/// A call in progress.
#[derive(Debug)]
struct RunningCall {
    number: u64,
    session: String,
    request: Value,
    cancelled: CancellationToken,
}

impl Default for State {
    fn default() -> Self {
        Self {
            tools: tools::default_tools(),
            page_size: 2,
            required: None,
            with_sse: true,
            refused_with: None,
            counts: Counts::default(),
            sessions: VecDeque::new(),
            calls: VecDeque::new(),
            call_bytes: 0,
            running: Vec::new(),
            next_running: 0,
        }
    }
}

impl State {
    pub(super) fn set_tools(&mut self, tools: Vec<Value>) {
        self.tools = tools;
        let changed = json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed" });
        let event = http::event(&changed);
        for session in &mut self.sessions {
            session.streams.retain(|stream| stream.try_send(event.clone()).is_ok());
        }
    }

    pub(super) fn open_session(&mut self) -> String {
        if self.sessions.len() >= MAX_SESSIONS {
            self.sessions.pop_front();
        }
        let id = format!("mcp-{}", crate::other_routes::serial());
        self.sessions.push_back(Session { id: id.clone(), streams: VecDeque::new() });
        self.counts.opened += 1;
        id
    }

    pub(super) fn has_session(&self, id: &str) -> bool {
        self.sessions.iter().any(|session| session.id == id)
    }

    pub(super) fn delete_session(&mut self, id: &str) {
        self.sessions.retain(|session| session.id != id);
        self.cancel_where(|running| running.session == id);
        self.counts.deleted += 1;
    }

    pub(super) fn expire_sessions(&mut self) {
        self.sessions.clear();
    }

    /// Opens a notification stream for a session, if the session exists.
    pub(super) fn listen(&mut self, id: &str) -> Option<mpsc::Receiver<Bytes>> {
        let session = self.sessions.iter_mut().find(|session| session.id == id)?;
        let (sender, receiver) = mpsc::channel(MAX_QUEUED_NOTIFICATIONS);
        session.streams.retain(|stream| !stream.is_closed());
        if session.streams.len() >= MAX_STREAMS {
            session.streams.pop_front();
        }
        session.streams.push_back(sender);
        Some(receiver)
    }

    pub(super) fn listeners(&self) -> usize {
        let streams = self.sessions.iter().flat_map(|session| &session.streams);
        streams.filter(|stream| !stream.is_closed()).count()
    }

    pub(super) fn record_call(&mut self, call: McpCall) {
        let headers: usize =
            call.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        let bytes = call.tool.len() + call.arguments.to_string().len() + headers;
        while self.calls.len() >= MAX_CALLS || self.call_bytes + bytes > MAX_CALL_BYTES {
            let Some((_, freed)) = self.calls.pop_front() else { break };
            self.call_bytes -= freed;
        }
        self.call_bytes += bytes;
        self.calls.push_back((call, bytes));
    }

    pub(super) fn calls(&self) -> Vec<McpCall> {
        self.calls.iter().map(|(call, _)| call.clone()).collect()
    }

    /// Records a call in progress; returns its number and the token that cancels it.
    pub(super) fn begin(&mut self, session: &str, request: &Value) -> (u64, CancellationToken) {
        let (number, cancelled) = (self.next_running, CancellationToken::new());
        self.next_running += 1;
        self.running.push(RunningCall {
            number,
            session: session.to_owned(),
            request: request.clone(),
            cancelled: cancelled.clone(),
        });
        (number, cancelled)
    }

    pub(super) fn end(&mut self, number: u64) {
        self.running.retain(|running| running.number != number);
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Cancels a request at its client's wish.
    pub(super) fn cancel(&mut self, session: &str, request: &Value) {
        self.counts.cancelled += 1;
        self.cancel_where(|running| running.session == session && running.request == *request);
    }

    fn cancel_where(&self, matches_call: impl Fn(&RunningCall) -> bool) {
        let matching = self.running.iter().filter(|running| matches_call(running));
        matching.for_each(|running| running.cancelled.cancel());
    }

    pub(super) fn clear(&mut self) {
        self.calls.clear();
        self.call_bytes = 0;
        self.counts = Counts::default();
    }
}
