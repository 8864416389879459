//! The scripted MCP server: its transport, its tools and what it records.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use keybridge_sim::{
    Sim,
    mcp_server::{McpSim, McpSimServer},
};
use serde_json::{Value, json};

const TEST_TIMEOUT: Duration = Duration::from_secs(10);

type Headers<'a> = &'a [(&'a str, &'a str)];

/// A client of the server with its own session.
struct Peer {
    url: String,
    session: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// A complete response.
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn is_stream(&self) -> bool {
        self.headers["content-type"] == "text/event-stream"
    }

    fn json(&self) -> Value {
        let data = self.text.lines().find_map(|line| line.strip_prefix("data: "));
        serde_json::from_str(data.unwrap_or(&self.text)).unwrap()
    }
}

impl Peer {
    /// A client without a session.
    fn new(url: String) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { url, session: String::new(), client }
    }

    async fn connected(server: &McpSimServer) -> Self {
        let mut peer = Self::new(server.url());
        let answer = peer.ask("initialize", json!({ "protocolVersion": "2025-06-18" })).await;
        assert_eq!(answer.json()["result"]["protocolVersion"], "2025-06-18");
        peer.session = answer.headers["mcp-session-id"].to_str().unwrap().to_owned();
        assert_eq!(peer.notify("notifications/initialized", json!({})).await, 202);
        peer
    }

    async fn send(
        &self,
        method: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Option<Response<Body>> {
        let mut request = Request::builder().method(method).uri(&self.url);
        if !self.session.is_empty() {
            request = request.header("mcp-session-id", &self.session);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body)).unwrap();
        let answer =
            tokio::time::timeout(TEST_TIMEOUT, self.client.request(request)).await.unwrap();
        answer.ok().map(|answer| answer.map(Body::new))
    }

    /// Returns `None` if the connection was aborted.
    async fn post(&self, message: &Value) -> Option<Answer> {
        let headers = [
            ("accept", "application/json, text/event-stream"),
            ("content-type", "application/json"),
            ("x-user", "ada"),
        ];
        whole(self.send("POST", &headers, message.to_string()).await?).await
    }

    async fn ask(&self, method: &str, params: Value) -> Answer {
        let message = json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params });
        self.post(&message).await.unwrap()
    }

    async fn call(&self, tool: &str, arguments: Value) -> Value {
        let answer = self.ask("tools/call", json!({ "name": tool, "arguments": arguments })).await;
        let json = answer.json();
        assert_eq!((answer.status, &json["id"]), (200, &7.into()));
        json
    }

    async fn notify(&self, method: &str, params: Value) -> u16 {
        let message = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        self.post(&message).await.unwrap().status
    }
}

async fn whole(response: Response<Body>) -> Option<Answer> {
    let (head, body) = response.into_parts();
    let body = tokio::time::timeout(TEST_TIMEOUT, body.collect()).await.unwrap().ok()?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    Some(Answer { status: head.status.as_u16(), headers: head.headers, text })
}

async fn until(is_so: impl Fn() -> bool) {
    let search = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, search).await.unwrap();
}

#[tokio::test]
async fn the_tools_are_listed_in_pages() {
    let sim = McpSim::new();
    let server = sim.start().await.unwrap();
    let peer = Peer::connected(&server).await;
    for (page_size, pages) in [(2, 6), (5, 3), (12, 1)] {
        sim.set_page_size(page_size);
        let (mut names, mut params, mut count) = (Vec::new(), json!({}), 0);
        loop {
            let page = peer.ask("tools/list", params).await.json();
            for tool in page["result"]["tools"].as_array().unwrap() {
                assert!(tool["description"].is_string() && tool["inputSchema"]["type"] == "object");
                names.push(tool["name"].as_str().unwrap().to_owned());
            }
            count += 1;
            let Some(cursor) = page["result"].get("nextCursor") else { break };
            params = json!({ "cursor": cursor });
        }
        assert_eq!((names.len(), count), (12, pages));
        assert_eq!((names[0].as_str(), names[11].as_str()), ("echo", "gone"));
    }
    assert_eq!(sim.lists(), 3);
    let wrong = peer.ask("tools/list", json!({ "cursor": "x" })).await.json();
    assert_eq!(wrong["error"]["code"], -32_602);
}

#[tokio::test]
async fn each_tool_returns_what_it_describes() {
    let sim = McpSim::new();
    let server = sim.start().await.unwrap();
    let peer = Peer::connected(&server).await;
    let rows = [
        ("echo", json!({ "message": "hi" }), "/result/content/0/text", json!("Echo: hi")),
        ("add", json!({ "a": 2, "b": 40 }), "/result/content/0/text", json!("42")),
        ("add", json!({ "a": 0.5, "b": 1 }), "/result/content/0/text", json!("1.5")),
        ("slow", json!({ "ms": 1 }), "/result/content/0/text", json!("Done after 1 ms.")),
        ("fail", json!({}), "/result/isError", json!(true)),
        ("big", json!({ "bytes": 3 }), "/result/content/0/text", json!("xxx")),
        ("image", json!({}), "/result/content/1/mimeType", json!("image/png")),
        ("structured", json!({}), "/result/structuredContent/answer", json!(42)),
        ("odd", json!({}), "/result/content/0/type", json!("hologram")),
        ("resource", json!({}), "/result/content/1/type", json!("resource_link")),
        ("invalid", json!({}), "/result/content", json!(42)),
        ("protocol-error", json!({}), "/error/code", json!(-32_603)),
        ("echo", json!({}), "/error/code", json!(-32_602)),
        ("nothing", json!({}), "/error/code", json!(-32_602)),
    ];
    let count = rows.len();
    for (with_sse, times) in [(true, 1), (false, 2)] {
        sim.answer_with_sse(with_sse);
        assert_eq!(peer.ask("ping", json!({})).await.is_stream(), with_sse);
        for (tool, arguments, pointer, expected) in &rows {
            let answer = peer.call(tool, arguments.clone()).await;
            assert_eq!(answer.pointer(pointer), Some(expected), "{tool} {answer}");
        }
        assert_eq!(sim.calls().len(), count * times);
    }
    let gone =
        json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": "gone" } });
    assert!(peer.post(&gone).await.is_none(), "the connection breaks off");
    let calls = sim.calls();
    assert!(calls.windows(2).all(|pair| pair[0].order < pair[1].order));
    assert_eq!(
        (calls[0].tool.as_str(), &calls[0].arguments),
        ("echo", &json!({ "message": "hi" }))
    );
    assert!(calls[0].headers.contains(&("x-user".into(), "ada".into())));
    sim.clear();
    assert!(sim.calls().is_empty() && sim.lists() == 0);
}

#[tokio::test]
async fn a_slow_call_ends_when_cancelled_or_when_its_client_disconnects() {
    let sim = McpSim::new();
    let server = sim.start().await.unwrap();
    let peer = Peer::connected(&server).await;
    let slow = |id: &str| {
        json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call",
        "params": { "name": "slow", "arguments": { "ms": 600_000 } } })
    };
    for with_sse in [true, false] {
        sim.answer_with_sse(with_sse);
        let cancel = async {
            until(|| sim.running() == 1).await;
            let other = json!({ "requestId": "another" });
            assert_eq!(peer.notify("notifications/cancelled", other).await, 202);
            assert_eq!(sim.running(), 1);
            let own = json!({ "requestId": "a" });
            assert_eq!(peer.notify("notifications/cancelled", own).await, 202);
        };
        let (answer, ()) = tokio::join!(async { peer.post(&slow("a")).await.unwrap() }, cancel);
        assert_eq!((answer.text.as_str(), sim.running()), ("", 0));

        let slow = slow("b");
        tokio::select! {
            _answer = peer.post(&slow) => assert!(sim.calls().is_empty(), "nothing is sent"),
            () = until(|| sim.running() == 1) => {}
        }
        until(|| sim.running() == 0).await;
    }
    assert_eq!(sim.cancelled(), 4);
}

#[tokio::test]
async fn listeners_are_notified_of_changed_tools() {
    let sim = McpSim::new();
    let server = sim.start().await.unwrap();
    let peer = Peer::connected(&server).await;
    let accept = [("accept", "text/event-stream")];
    let mut stream = peer.send("GET", &accept, String::new()).await.unwrap().into_body();
    assert_eq!(sim.listeners(), 1);
    sim.set_tools(vec![json!({ "name": "new", "inputSchema": { "type": "object" } })]);
    let mut heard = String::new();
    while !heard.contains("notifications/tools/list_changed") {
        let frame = tokio::time::timeout(TEST_TIMEOUT, stream.frame()).await.unwrap();
        heard.push_str(&String::from_utf8_lossy(&frame.unwrap().unwrap().into_data().unwrap()));
    }
    let listed = peer.ask("tools/list", json!({})).await.json();
    assert_eq!(listed["result"]["tools"][0]["name"], "new");
    let answer = peer.call("new", json!({ "x": 1 })).await;
    assert_eq!(answer["result"]["content"][0]["text"], "new got {\"x\":1}");
    sim.expire_sessions();
    let end = tokio::time::timeout(TEST_TIMEOUT, stream.frame()).await.unwrap();
    assert!(end.is_none(), "the stream ends with its session");
}

#[tokio::test]
async fn sessions_are_opened_expired_and_ended() {
    let sim = McpSim::new();
    let server = sim.start().await.unwrap();
    let mut peer = Peer::connected(&server).await;
    let other = Peer::connected(&server).await;
    assert_eq!((peer.ask("ping", json!({})).await.status, sim.sessions_opened()), (200, 2));
    let ended = whole(peer.send("DELETE", &[], String::new()).await.unwrap()).await.unwrap();
    assert_eq!((ended.status, sim.sessions_deleted()), (200, 1));
    assert_eq!(peer.ask("ping", json!({})).await.status, 404);
    assert_eq!(other.ask("ping", json!({})).await.status, 200);
    sim.expire_sessions();
    assert_eq!(other.ask("tools/list", json!({})).await.status, 404);
    assert_eq!(other.notify("notifications/initialized", json!({})).await, 404);
    peer.session.clear();
    assert_eq!(peer.ask("tools/list", json!({})).await.status, 400, "no session is named");
    let probe = peer.ask("server/discover", json!({})).await;
    assert_eq!((probe.status, &probe.json()["error"]["code"]), (200, &(-32_601).into()));
    let later = [
        ("accept", "application/json, text/event-stream"),
        ("content-type", "application/json"),
        ("mcp-protocol-version", "2026-07-28"),
    ];
    let message = r#"{"jsonrpc":"2.0","id":1,"method":"server/discover"}"#;
    let probe = whole(peer.send("POST", &later, message.into()).await.unwrap()).await.unwrap();
    assert_eq!(probe.json()["error"]["code"], -32_601, "whatever version it speaks");
    let newer = peer.ask("initialize", json!({ "protocolVersion": "2099-01-01" })).await;
    assert_eq!(newer.json()["result"]["protocolVersion"], "2025-11-25");
}

#[tokio::test]
async fn requests_that_violate_the_transport_are_rejected() {
    let sim = McpSim::new();
    let server = sim.start().await.unwrap();
    let peer = Peer::connected(&server).await;
    let (json_type, both) =
        (("content-type", "application/json"), ("accept", "application/json, text/event-stream"));
    let version = ("mcp-protocol-version", "1999-01-01");
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let rows: [(&str, Headers<'_>, &str, u16); 8] = [
        ("POST", &[json_type, both], ping, 200),
        ("POST", &[json_type, ("accept", "application/json")], ping, 406),
        ("POST", &[("content-type", "text/plain"), both], ping, 415),
        ("POST", &[json_type, both], "{", 400),
        ("POST", &[json_type, both], "[]", 400),
        ("POST", &[json_type, both, version], ping, 400),
        ("GET", &[("accept", "application/json")], "", 406),
        ("PUT", &[], "", 405),
    ];
    for (method, headers, body, status) in rows {
        let answer = peer.send(method, headers, body.into()).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{method} {headers:?} {body}");
    }
    sim.require_header("X-User", "bob");
    assert_eq!(peer.ask("ping", json!({})).await.status, 401);
    sim.require_header("x-user", "ada");
    assert_eq!(peer.ask("ping", json!({})).await.status, 200);
    sim.refuse_with(Some(503));
    assert_eq!(peer.ask("ping", json!({})).await.status, 503);
    sim.refuse_with(None);
    assert_eq!(peer.ask("ping", json!({})).await.status, 200);
}

#[tokio::test]
async fn a_server_stops_with_its_connections_and_restarts() {
    let sim = McpSim::new();
    let server = sim.start().await.unwrap();
    let peer = Peer::connected(&server).await;
    let addr = server.addr;
    let slow = json!({ "name": "slow", "arguments": { "ms": 600_000 } });
    let slow = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": slow });
    let stop = async {
        until(|| sim.running() == 1).await;
        drop(server);
    };
    let (answer, ()) = tokio::join!(peer.post(&slow), stop);
    assert!(answer.is_none(), "the call breaks off");
    until(|| sim.running() == 0).await;
    let server = sim.start_on(addr).await.unwrap();
    assert_eq!(server.addr, addr);
    // Over a new connection: the earlier one may not have noticed yet that it is closed.
    let again = Peer { session: peer.session, ..Peer::new(server.url()) };
    assert_eq!(again.ask("ping", json!({})).await.status, 200, "sessions go on");
}

#[tokio::test]
async fn the_providers_can_also_serve_an_mcp_server() {
    let mcp = McpSim::new();
    let server = Sim::new().with_mcp(mcp.clone()).start().await.unwrap();
    let peer = Peer::new(format!("{}/mcp", server.base()));
    assert_eq!(peer.ask("initialize", json!({})).await.status, 200);
    assert_eq!(mcp.sessions_opened(), 1);
    let without = Sim::new().start().await.unwrap();
    let peer = Peer::new(format!("{}/mcp", without.base()));
    assert_eq!(peer.ask("initialize", json!({})).await.status, 404);
}
