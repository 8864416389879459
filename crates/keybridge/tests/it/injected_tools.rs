//! Injected tools end to end: what clients see, what providers and MCP servers receive, and what is
//! recorded, in each dialect, streaming and not.

mod conversations;
mod counting;
mod failures;
mod limits;
mod loops;
mod seen;
mod servers;

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use keybridge::config::Config;
use keybridge_mcp::{McpServerConfig, McpStatus};
use keybridge_sim::{
    Exchange, KeyOverride,
    mcp_server::{McpSim, McpSimServer},
};
use seen::Seen;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::support::{Answer, ENDPOINTS, World, pool_key};

const MESSAGES: &str = ENDPOINTS[0];
const CHAT: &str = ENDPOINTS[1];
const RESPONSES: &str = ENDPOINTS[2];
/// Each endpoint, streaming and not.
const WAYS: [(&str, bool); 6] = [
    (MESSAGES, true),
    (MESSAGES, false),
    (CHAT, true),
    (CHAT, false),
    (RESPONSES, true),
    (RESPONSES, false),
];
/// The credential of the MCP server, which nobody else may receive.
const MCP_SECRET: &str = "mcp-s3cret-0123456789";

/// A world with an MCP server whose tools are injected.
struct Tools {
    world: World,
    mcp: McpSim,
    server: McpSimServer,
}

fn server_config(name: &str, url: &str) -> McpServerConfig {
    let secret = HeaderValue::from_str(&format!("Bearer {MCP_SECRET}")).unwrap();
    McpServerConfig {
        headers: vec![(HeaderName::from_static("authorization"), secret)],
        ..crate::support::mcp_server(name, url)
    }
}

impl Tools {
    async fn start() -> Self {
        Self::with(|_config| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mcp = McpSim::new();
        mcp.require_header("authorization", &format!("Bearer {MCP_SECRET}"));
        let server = mcp.start().await.unwrap();
        let url = server.url();
        let world = World::with(|config| {
            config.tools.servers.push(server_config("sim", &url));
            change(config);
        });
        let tools = Self { world: world.await, mcp, server };
        tools.until_ready().await;
        tools
    }

    async fn until_ready(&self) {
        let ready = || {
            let states = self.world.bridge.mcp_states();
            states.iter().all(|server| server.status == McpStatus::Ready)
        };
        until("the MCP server is ready", ready).await;
    }

    /// Requests a script of turns, and assembles the response as a client does.
    async fn ask(&self, (path, stream): (&str, bool), turns: &Value) -> Seen {
        self.send((path, stream), &request(path, stream), turns).await
    }

    async fn send(&self, way: (&str, bool), body: &Value, turns: &Value) -> Seen {
        Seen::read(way, &self.answer(way.0, body, turns).await)
    }

    async fn answer(&self, path: &str, body: &Value, turns: &Value) -> Answer {
        let bearer = format!("Bearer {}", self.world.token);
        let turns = turns.to_string();
        let headers = [("authorization", bearer.as_str()), ("x-sim-turns", turns.as_str())];
        self.world.send(self.world.post(path, &headers, body.to_string())).await
    }

    /// The requests that the provider received, which must have no problems.
    fn exchanges(&self) -> Vec<Exchange> {
        let exchanges = self.world.sim.exchanges();
        for exchange in &exchanges {
            assert_eq!(exchange.problems, Vec::<String>::new(), "{exchange:?}");
            let text = String::from_utf8_lossy(&exchange.body).into_owned();
            let headers = format!("{:?}", exchange.headers);
            assert!(!text.contains(MCP_SECRET) && !headers.contains(MCP_SECRET));
        }
        exchanges
    }
}

/// The simplest request.
fn request(path: &str, stream: bool) -> Value {
    let mut body = json!({ "model": "m", "stream": stream });
    match path {
        RESPONSES => body["input"] = "hi".into(),
        _ => body["messages"] = json!([{ "role": "user", "content": "hi" }]),
    }
    match path {
        MESSAGES => body["max_tokens"] = 100.into(),
        CHAT if stream => body["stream_options"] = json!({ "include_usage": true }),
        _ => {}
    }
    body
}

fn call(tool: &str, arguments: Value) -> Value {
    json!({ "call": format!("bmcp_sim_{tool}"), "arguments": arguments })
}

/// The only tool row of a record.
fn tool_of(record: &Value) -> &Value {
    let rows = record["tool_usages"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{record:#}");
    &rows[0]
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}
