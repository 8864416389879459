//! Streamable HTTP: checks requests and builds response bodies.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::{
    body::{Body, to_bytes},
    extract::Request,
    response::Response,
};
use bytes::Bytes;
use http_body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{McpSim, PATH, rpc};
use crate::player;

/// The maximum size of a request.
const MAX_BODY_BYTES: usize = 4 << 20;
/// The header with the session id.
const SESSION_HEADER: &str = "mcp-session-id";
/// The supported protocol versions, the latest last.
pub(super) const VERSIONS: [&str; 4] = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"];

/// A response that is not ready yet; `None` for a cancelled call.
pub(super) type DeferredResponse = Pin<Box<dyn Future<Output = Option<Value>> + Send>>;

/// The reply to a message.
pub(super) enum Reply {
    Response(Value),
    /// A response, and the session that was opened.
    SessionOpened(Value, String),
    Deferred(DeferredResponse),
    /// The connection is closed without a response.
    Disconnect,
    /// The message was a notification or a response of the client.
    Accepted,
    Rejected(SessionError),
}

/// Why a request does not belong to a session.
#[derive(Debug, Clone, Copy)]
pub(super) enum SessionError {
    /// It uses an unsupported protocol version.
    UnsupportedVersion,
    /// It has no session id.
    MissingId,
    /// It has an unknown session id.
    UnknownId,
}

impl SessionError {
    fn response(self) -> Response<Body> {
        match self {
            Self::UnsupportedVersion => {
                failure(400, -32_000, "Bad Request: Unsupported protocol version")
            }
            Self::MissingId => {
                failure(400, -32_000, "Bad Request: Mcp-Session-Id header is required")
            }
            Self::UnknownId => failure(404, -32_001, "Session not found"),
        }
    }
}

/// The session that a request belongs to.
pub(super) fn session<'a>(sim: &McpSim, headers: &'a HeaderMap) -> Result<&'a str, SessionError> {
    let (version, id) = (text(headers, "mcp-protocol-version"), text(headers, SESSION_HEADER));
    if !version.is_empty() && !VERSIONS.contains(&version) {
        return Err(SessionError::UnsupportedVersion);
    }
    if id.is_empty() {
        return Err(SessionError::MissingId);
    }
    if sim.state().has_session(id) { Ok(id) } else { Err(SessionError::UnknownId) }
}

pub(super) async fn handle(sim: &McpSim, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    if head.uri.path() != PATH {
        return failure(404, -32_000, "Not Found");
    }
    if let Some(refused) = check_access(sim, &head.headers) {
        return refused;
    }
    match head.method {
        Method::POST => post(sim, &head.headers, body).await,
        Method::GET => get(sim, &head.headers),
        Method::DELETE => delete(sim, &head.headers),
        _ => {
            let mut response = failure(405, -32_000, "Method not allowed.");
            let allowed = HeaderValue::from_static("GET, POST, DELETE");
            response.headers_mut().insert(header::ALLOW, allowed);
            response
        }
    }
}

/// Rejects a request if all are rejected or its required header is missing.
fn check_access(sim: &McpSim, headers: &HeaderMap) -> Option<Response<Body>> {
    let state = sim.state();
    if let Some(status) = state.refused_with {
        return Some(failure(status, -32_000, "The simulated server rejects all requests."));
    }
    if let Some((name, value)) = &state.required
        && text(headers, name) != value
    {
        let mut response = failure(401, -32_000, "Unauthorized");
        let scheme = HeaderValue::from_static("Bearer");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        return Some(response);
    }
    None
}

async fn post(sim: &McpSim, headers: &HeaderMap, body: Body) -> Response<Body> {
    let accepts = text(headers, "accept");
    if !accepts.contains("application/json") || !accepts.contains("text/event-stream") {
        let words = "Client must accept both application/json and text/event-stream";
        return failure(406, -32_000, words);
    }
    if !text(headers, "content-type").starts_with("application/json") {
        return failure(415, -32_000, "Content-Type must be application/json");
    }
    let Ok(body) = to_bytes(body, MAX_BODY_BYTES).await else {
        return failure(413, -32_000, "The request is too large.");
    };
    let Ok(message) = serde_json::from_slice::<Value>(&body) else {
        return failure(400, -32_700, "Parse error");
    };
    if !message.is_object() {
        return failure(400, -32_600, "Batches are not supported.");
    }
    let reply = rpc::handle_message(sim, headers, &message);
    respond(sim, reply).await
}

async fn respond(sim: &McpSim, reply: Reply) -> Response<Body> {
    let with_sse = sim.state().with_sse;
    match reply {
        Reply::Response(value) => whole(with_sse, &value),
        Reply::SessionOpened(value, session) => {
            let mut response = whole(with_sse, &value);
            if let Ok(session) = HeaderValue::from_str(&session) {
                response.headers_mut().insert(SESSION_HEADER, session);
            }
            response
        }
        Reply::Deferred(answer) if with_sse => streamed(Body::new(DeferredEvent(Some(answer)))),
        Reply::Deferred(answer) => {
            answer.await.map_or_else(accepted, |value| player::json(200, &value))
        }
        Reply::Disconnect => streamed(Body::new(BrokenBody)),
        Reply::Accepted => accepted(),
        Reply::Rejected(refusal) => refusal.response(),
    }
}

fn get(sim: &McpSim, headers: &HeaderMap) -> Response<Body> {
    if !text(headers, "accept").contains("text/event-stream") {
        return failure(406, -32_000, "Client must accept text/event-stream");
    }
    let listening =
        session(sim, headers).and_then(|id| sim.state().listen(id).ok_or(SessionError::UnknownId));
    match listening {
        Ok(receiver) => streamed(Body::new(Notifications { started: false, receiver })),
        Err(refusal) => refusal.response(),
    }
}

fn delete(sim: &McpSim, headers: &HeaderMap) -> Response<Body> {
    match session(sim, headers) {
        Ok(id) => {
            sim.state().delete_session(id);
            Response::new(Body::empty())
        }
        Err(refusal) => refusal.response(),
    }
}

/// A message as an event.
pub(super) fn event(message: &Value) -> Bytes {
    format!("event: message\ndata: {message}\n\n").into()
}

fn whole(with_sse: bool, value: &Value) -> Response<Body> {
    if with_sse { streamed(Body::from(event(value))) } else { player::json(200, value) }
}

fn streamed(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let stream = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, stream);
    let uncached = HeaderValue::from_static("no-cache, no-transform");
    response.headers_mut().insert(header::CACHE_CONTROL, uncached);
    response
}

fn accepted() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

fn failure(status: u16, code: i64, message: &str) -> Response<Body> {
    let error = json!({ "code": code, "message": message });
    player::json(status, &json!({ "jsonrpc": "2.0", "error": error, "id": null }))
}

/// The value of a header; empty if there is none.
fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// A body with one event, once its response is ready.
struct DeferredEvent(Option<DeferredResponse>);

impl http_body::Body for DeferredEvent {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        let Some(answer) = &mut this.0 else { return Poll::Ready(None) };
        let value = std::task::ready!(answer.as_mut().poll(cx));
        this.0 = None;
        Poll::Ready(value.map(|value| Ok(Frame::data(event(&value)))))
    }
}

/// A body that fails at once.
struct BrokenBody;

impl http_body::Body for BrokenBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(Some(Err(io::Error::other("the tool is gone"))))
    }
}

/// The notifications of a session, as they arrive.
struct Notifications {
    started: bool,
    receiver: mpsc::Receiver<Bytes>,
}

impl http_body::Body for Notifications {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        if !this.started {
            this.started = true;
            // It sends the response head with it, so that a client knows that the stream is open.
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b": open\n\n")))));
        }
        this.receiver.poll_recv(cx).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}
