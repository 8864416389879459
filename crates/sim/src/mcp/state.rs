//! Settings, sessions and what was received.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{McpCall, http, tools};

/// Most sessions kept; the oldest are forgotten.
const MOST_SESSIONS: usize = 1_000;
/// Most streams for notifications of a session; the oldest end.
const MOST_STREAMS: usize = 8;
/// Most notifications that wait in a stream; a reader that is slower loses its stream.
const MOST_WAITING: usize = 64;
/// Most calls kept.
const MOST_CALLS: usize = 10_000;
/// Most bytes of their arguments and headers; the latest call is kept whatever its size.
const MOST_CALL_BYTES: usize = 32 << 20;

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
    running: Vec<Running>,
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

/// A call that waits.
#[derive(Debug)]
struct Running {
    number: u64,
    session: String,
    request: Value,
    cancelled: CancellationToken,
}

impl Default for State {
    fn default() -> Self {
        Self {
            tools: tools::usual(),
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
        if self.sessions.len() >= MOST_SESSIONS {
            self.sessions.pop_front();
        }
        let id = format!("mcp-{}", crate::side::serial());
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

    /// A stream for the notifications of a session, if there is that session.
    pub(super) fn listen(&mut self, id: &str) -> Option<mpsc::Receiver<Bytes>> {
        let session = self.sessions.iter_mut().find(|session| session.id == id)?;
        let (sender, receiver) = mpsc::channel(MOST_WAITING);
        session.streams.retain(|stream| !stream.is_closed());
        if session.streams.len() >= MOST_STREAMS {
            session.streams.pop_front();
        }
        session.streams.push_back(sender);
        Some(receiver)
    }

    pub(super) fn listeners(&self) -> usize {
        let streams = self.sessions.iter().flat_map(|session| &session.streams);
        streams.filter(|stream| !stream.is_closed()).count()
    }

    pub(super) fn note_call(&mut self, call: McpCall) {
        let headers: usize =
            call.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        let bytes = call.tool.len() + call.arguments.to_string().len() + headers;
        while self.calls.len() >= MOST_CALLS || self.call_bytes + bytes > MOST_CALL_BYTES {
            let Some((_, freed)) = self.calls.pop_front() else { break };
            self.call_bytes -= freed;
        }
        self.call_bytes += bytes;
        self.calls.push_back((call, bytes));
    }

    pub(super) fn calls(&self) -> Vec<McpCall> {
        self.calls.iter().map(|(call, _)| call.clone()).collect()
    }

    /// Notes a call that waits, with its number; the token says when it is cancelled.
    pub(super) fn begin(&mut self, session: &str, request: &Value) -> (u64, CancellationToken) {
        let (number, cancelled) = (self.next_running, CancellationToken::new());
        self.next_running += 1;
        self.running.push(Running {
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

    /// A client no longer wants the answer to a request.
    pub(super) fn cancel(&mut self, session: &str, request: &Value) {
        self.counts.cancelled += 1;
        self.cancel_where(|running| running.session == session && running.request == *request);
    }

    fn cancel_where(&self, is_meant: impl Fn(&Running) -> bool) {
        let meant = self.running.iter().filter(|running| is_meant(running));
        meant.for_each(|running| running.cancelled.cancel());
    }

    pub(super) fn clear(&mut self) {
        self.calls.clear();
        self.call_bytes = 0;
        self.counts = Counts::default();
    }
}
