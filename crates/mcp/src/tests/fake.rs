//! A small scripted MCP server on a loopback socket.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The server while it runs; what it has seen and how it behaves.
pub(super) struct Fake {
    pub(super) address: SocketAddr,
    pub(super) script: Arc<Script>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
pub(super) struct Script {
    inner: Mutex<Inner>,
}

pub(super) struct Inner {
    /// The pages of the list, each an array of tools in JSON.
    pub(super) pages: Vec<String>,
    pub(super) seen: Vec<Seen>,
    /// Whether it knows the protocol of 2026-07-28 only.
    pub(super) is_modern: bool,
    /// Whether answers to calls come as streams.
    pub(super) streams: bool,
    /// Status with which it answers to a session that it does not know.
    pub(super) unknown_session: StatusCode,
    /// The first question is never answered.
    pub(super) ignores_discover: bool,
    sessions: Vec<String>,
    opened: usize,
    notes: Vec<(Value, mpsc::Sender<String>)>,
    /// How many streams of calls in the new protocol were closed by the client.
    pub(super) closed_streams: usize,
}

pub(super) struct Seen {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            pages: vec![format!("[{}]", tool("echo"))],
            seen: Vec::new(),
            is_modern: false,
            streams: false,
            unknown_session: StatusCode::NOT_FOUND,
            ignores_discover: false,
            sessions: Vec::new(),
            opened: 0,
            notes: Vec::new(),
            closed_streams: 0,
        }
    }
}

/// A tool with an ordinary schema.
pub(super) fn tool(name: &str) -> String {
    json!({ "name": name, "inputSchema": { "type": "object" } }).to_string()
}

impl Fake {
    pub(super) async fn start() -> Self {
        Self::start_with(Arc::default(), "127.0.0.1:0".parse().unwrap()).await
    }

    pub(super) async fn start_with(script: Arc<Script>, address: SocketAddr) -> Self {
        let listener = loop {
            match TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(_in_use) => sleep(Duration::from_millis(20)).await,
            }
        };
        let address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).with_state(Arc::clone(&script));
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let stopped = stop.clone().cancelled_owned();
        tasks.spawn(async move {
            axum::serve(listener, app).with_graceful_shutdown(stopped).await.unwrap();
        });
        Self { address, script, stop, tasks }
    }

    /// Stops, and forgets its sessions.
    pub(super) async fn stop(self) -> Arc<Script> {
        self.stop.cancel();
        {
            let mut inner = self.script.lock();
            inner.notes.clear();
            inner.sessions.clear();
        }
        self.tasks.close();
        self.tasks.wait().await;
        self.script
    }
}

impl Script {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Replaces the list and notifies clients of it.
    pub(super) async fn change(&self, pages: Vec<String>) {
        let notes = {
            let mut inner = self.lock();
            inner.pages = pages;
            inner.notes.clone()
        };
        for (subscription, note) in notes {
            let mut message = json!({
                "jsonrpc": "2.0",
                "method": "notifications/tools/list_changed",
                "params": {},
            });
            if !subscription.is_null() {
                let key = "io.modelcontextprotocol/subscriptionId";
                message["params"]["_meta"][key] = subscription;
            }
            let _gone = note.send(event(&message.to_string())).await;
        }
    }

    pub(super) fn forget_sessions(&self) {
        self.lock().sessions.clear();
    }

    /// How many requests of a method, or of a method of JSON-RPC, were seen.
    pub(super) fn count(&self, what: &str) -> usize {
        let is = |seen: &&Seen| seen.method.as_str() == what || seen.body["method"] == what;
        self.lock().seen.iter().filter(is).count()
    }

    pub(super) fn has_listener(&self) -> bool {
        !self.lock().notes.is_empty()
    }
}

fn event(data: &str) -> String {
    format!("event: message\ndata: {data}\n\n")
}

async fn answer(State(script): State<Arc<Script>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let session = head.headers.get("mcp-session-id").map(|id| id.to_str().unwrap().to_owned());
    let message = body.clone();
    script.lock().seen.push(Seen { method: head.method.clone(), headers: head.headers, body });
    let is_known = session.as_ref().is_none_or(|id| script.lock().sessions.contains(id));
    if !is_known {
        return unknown_session(script.lock().unknown_session);
    }
    match head.method {
        Method::GET => {
            let (note, notes) = mpsc::channel(8);
            script.lock().notes.push((Value::Null, note));
            streamed(notes)
        }
        Method::DELETE => {
            script.lock().sessions.retain(|id| Some(id) != session.as_ref());
            empty(StatusCode::OK)
        }
        _ if message["id"].is_null() => empty(StatusCode::ACCEPTED),
        _ => {
            let is_modern = script.lock().is_modern;
            if is_modern {
                modern(&script, &message).await
            } else {
                legacy(&script, &message).await
            }
        }
    }
}

async fn legacy(script: &Script, message: &Value) -> Response {
    match message["method"].as_str().unwrap() {
        "initialize" => {
            let id = {
                let mut inner = script.lock();
                inner.opened += 1;
                let id = format!("session-{}", inner.opened);
                inner.sessions.push(id.clone());
                id
            };
            let result = json!({
                "protocolVersion": "2025-06-18",
                "capabilities": { "tools": { "listChanged": true } },
                "serverInfo": { "name": "fake", "version": "1.2" },
            });
            let mut response = result_of(message, &result.to_string());
            response.headers_mut().insert("mcp-session-id", id.parse().unwrap());
            response
        }
        "tools/list" => list(script, message),
        "tools/call" => call(script, message).await,
        "server/discover" if script.lock().ignores_discover => std::future::pending().await,
        _ => error(message, -32601, "method not found"),
    }
}

async fn modern(script: &Arc<Script>, message: &Value) -> Response {
    match message["method"].as_str().unwrap() {
        "server/discover" => {
            let result = json!({
                "resultType": "complete",
                "supportedVersions": ["2026-07-28"],
                "capabilities": { "tools": { "listChanged": true } },
                "ttlMs": 0,
                "cacheScope": "private",
                "_meta": {
                    "io.modelcontextprotocol/serverInfo": { "name": "new", "version": "3" },
                },
            });
            result_of(message, &result.to_string())
        }
        "subscriptions/listen" => {
            let (note, notes) = mpsc::channel(8);
            let accepted = json!({
                "jsonrpc": "2.0",
                "method": "notifications/subscriptions/acknowledged",
                "params": {
                    "notifications": { "toolsListChanged": true },
                    "_meta": { "io.modelcontextprotocol/subscriptionId": message["id"] },
                },
            });
            note.send(event(&accepted.to_string())).await.unwrap();
            script.lock().notes.push((message["id"].clone(), note));
            streamed(notes)
        }
        "tools/call" if message["params"]["name"] == "slow" => {
            let (note, notes) = mpsc::channel(8);
            let script = Arc::clone(script);
            TaskTracker::new().spawn(async move {
                note.closed().await;
                script.lock().closed_streams += 1;
            });
            streamed(notes)
        }
        "tools/list" => list(script, message),
        "tools/call" => call(script, message).await,
        _ => error(message, -32601, "method not found"),
    }
}

fn list(script: &Script, message: &Value) -> Response {
    let inner = script.lock();
    let at: usize =
        message["params"]["cursor"].as_str().map_or(0, |cursor| cursor.parse().unwrap());
    let next = at + 1;
    let more =
        if next < inner.pages.len() { format!(r#","nextCursor":"{next}""#) } else { String::new() };
    result_of(message, &format!(r#"{{"tools":{}{more}}}"#, inner.pages[at]))
}

/// The tools: `echo` gives its arguments, `slow` no answer, `say` the result in its arguments.
async fn call(script: &Script, message: &Value) -> Response {
    let params = &message["params"];
    let arguments = &params["arguments"];
    match params["name"].as_str().unwrap() {
        "slow" => std::future::pending().await,
        "refuse" => error(message, -32602, arguments["message"].as_str().unwrap()),
        "status" => {
            let status = arguments["status"].as_u64().unwrap().try_into().unwrap();
            let mut response = empty(StatusCode::from_u16(status).unwrap());
            if let Some(location) = arguments["location"].as_str() {
                response.headers_mut().insert(header::LOCATION, location.parse().unwrap());
            }
            response
        }
        "say" => {
            let result = arguments["result"].as_str().unwrap();
            if script.lock().streams {
                let message =
                    format!(r#"{{"jsonrpc":"2.0","result":{result},"id":{}}}"#, message["id"]);
                return stream_of(event(&message));
            }
            result_of(message, result)
        }
        _ => {
            let text = arguments.to_string();
            let result = json!({ "content": [{ "type": "text", "text": text }] });
            result_of(message, &result.to_string())
        }
    }
}

fn result_of(message: &Value, result: &str) -> Response {
    let id = &message["id"];
    json_response(StatusCode::OK, format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#))
}

fn error(message: &Value, code: i32, text: &str) -> Response {
    let error = json!({
        "jsonrpc": "2.0",
        "id": message["id"],
        "error": { "code": code, "message": text },
    });
    json_response(StatusCode::OK, error.to_string())
}

fn unknown_session(status: StatusCode) -> Response {
    let error = json!({
        "jsonrpc": "2.0",
        "id": null,
        "error": { "code": -32000, "message": "Bad Request: No valid session ID provided" },
    });
    json_response(status, error.to_string())
}

fn json_response(status: StatusCode, body: String) -> Response {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.into())
        .unwrap()
}

fn empty(status: StatusCode) -> Response {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

fn stream_of(events: String) -> Response {
    let chunk = Ok::<_, std::io::Error>(Bytes::from(events));
    event_stream(Body::from_stream(stream::iter([chunk])))
}

/// A stream that stays open as long as there is a sender.
fn streamed(notes: mpsc::Receiver<String>) -> Response {
    let chunks = stream::unfold(notes, |mut notes| async move {
        let note = notes.recv().await?;
        Some((Ok::<_, std::io::Error>(Bytes::from(note)), notes))
    });
    event_stream(Body::from_stream(chunks))
}

fn event_stream(body: Body) -> Response {
    Response::builder().header(header::CONTENT_TYPE, "text/event-stream").body(body).unwrap()
}
