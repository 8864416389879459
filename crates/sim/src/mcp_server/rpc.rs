//! JSON-RPC: the response of each method.

use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use serde_json::{Value, json};

use super::{
    McpCall, McpSim,
    http::{Reply, VERSIONS, session},
    tools::{self, Outcome},
};
use crate::turns::word;

/// Handles a message.
pub(super) fn handle_message(sim: &McpSim, headers: &HeaderMap, message: &Value) -> Reply {
    let Some(method) = message.get("method").and_then(Value::as_str) else {
        return Reply::Accepted;
    };
    let params = message.get("params").unwrap_or(&Value::Null);
    let id = message.get("id").filter(|id| !id.is_null());
    let Some(id) = id else {
        return session(sim, headers).map_or_else(Reply::Rejected, |session| {
            if method == "notifications/cancelled" {
                let request = params.get("requestId").unwrap_or(&Value::Null);
                sim.state().cancel(session, request);
            }
            Reply::Accepted
        });
    };
    match method {
        "initialize" => return initialize(sim, id, params),
        "ping" | "tools/list" | "tools/call" => {}
        // Also before a session is opened, so that a probe for a later protocol fails at once.
        _ => return Reply::Response(error(id, -32_601, &format!("Method not found: {method}"))),
    }
    let session = match session(sim, headers) {
        Ok(session) => session,
        Err(refusal) => return Reply::Rejected(refusal),
    };
    match method {
        "tools/list" => Reply::Response(list(sim, id, params)),
        "tools/call" => call(sim, (session, id), headers, params),
        _ => Reply::Response(result(id, &json!({}))),
    }
}

fn initialize(sim: &McpSim, id: &Value, params: &Value) -> Reply {
    let wanted = word(params, "protocolVersion");
    let [.., latest] = VERSIONS;
    let version = if VERSIONS.contains(&wanted) { wanted } else { latest };
    let opened = json!({
        "protocolVersion": version,
        "capabilities": { "tools": { "listChanged": true } },
        "serverInfo": { "name": "keybridge-sim", "version": env!("CARGO_PKG_VERSION") },
    });
    Reply::SessionOpened(result(id, &opened), sim.state().open_session())
}

/// Returns a page of the tools; the cursor is the index of its first tool.
fn list(sim: &McpSim, id: &Value, params: &Value) -> Value {
    let mut state = sim.state();
    let first = match params.get("cursor").filter(|cursor| !cursor.is_null()) {
        None => {
            state.counts.lists += 1;
            0
        }
        Some(cursor) => {
            let first = cursor.as_str().and_then(|cursor| cursor.strip_prefix("tool-"));
            match first.and_then(|first| first.parse::<usize>().ok()) {
                Some(first) => first,
                None => return error(id, -32_602, "Invalid cursor"),
            }
        }
    };
    let page = state.tools.iter().skip(first).take(state.page_size);
    let mut listed = json!({ "tools": page.collect::<Vec<_>>() });
    let next = first.saturating_add(state.page_size);
    if let Some(listed) = listed.as_object_mut().filter(|_| next < state.tools.len()) {
        listed.insert("nextCursor".into(), format!("tool-{next}").into());
    }
    result(id, &listed)
}

fn call(sim: &McpSim, (session, id): (&str, &Value), headers: &HeaderMap, params: &Value) -> Reply {
    static ORDER: AtomicU64 = AtomicU64::new(0);
    let name = word(params, "name");
    let arguments = params.get("arguments").unwrap_or(&Value::Null);
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = headers.iter().map(|(name, value)| (name.to_string(), text(value)));
    let mut state = sim.state();
    state.record_call(McpCall {
        tool: name.to_owned(),
        arguments: arguments.clone(),
        order: ORDER.fetch_add(1, Ordering::Relaxed),
        headers: headers.collect(),
    });
    let is_listed = state.tools.iter().any(|tool| word(tool, "name") == name);
    let outcome = if is_listed { tools::call(name, arguments) } else { tools::unknown(name) };
    match outcome {
        Outcome::Result(value) => Reply::Response(result(id, &value)),
        Outcome::Error(code, message) => Reply::Response(error(id, code, &message)),
        Outcome::Disconnect => Reply::Disconnect,
        Outcome::Delayed(wait, value) => {
            let (number, cancelled) = state.begin(session, id);
            let running = RunningCall { sim: sim.clone(), number };
            let value = result(id, &value);
            Reply::Deferred(Box::pin(async move {
                let waited = cancelled.run_until_cancelled(tokio::time::sleep(wait)).await;
                drop(running);
                waited.map(|()| value)
            }))
        }
    }
}

/// A call in progress; ends when dropped, also if its client disconnects.
struct RunningCall {
    sim: McpSim,
    number: u64,
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.sim.state().end(self.number);
    }
}

fn result(id: &Value, result: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "result": result })
}

fn error(id: &Value, code: i64, message: &str) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": { "code": code, "message": message } })
}
