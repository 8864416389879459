//! MCP servers that start, stop and change while requests are made.

use super::*;

fn ids(tools: &Tools) -> Vec<String> {
    tools.world.bridge.mcp_states()[0].tools.clone()
}

#[tokio::test]
async fn a_server_that_is_down_stops_no_request_and_its_tools_appear_once_it_is_up() {
    let mcp = McpSim::new();
    let server = mcp.start().await.unwrap();
    let (address, url) = (server.addr, server.url());
    drop(server);
    let world = World::with(|config| {
        let mut server = server_config("sim", &url);
        server.headers.clear();
        config.tools.servers.push(server);
    });
    let world = world.await;
    assert_eq!(world.bridge.mcp_states()[0].status, McpStatus::Down);
    assert!(world.bridge.mcp_states()[0].error.is_some());
    let server = mcp.start_on(address).await.unwrap();
    let tools = Tools { world, mcp, server };
    let turns = json!([[call("echo", json!({ "message": "x" }))], [{ "text": "{result}" }]]);
    let calls_tool = |seen: &Seen| seen.text == "Echo: x";
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let seen = tools.ask((CHAT, true), &turns).await;
        assert_status!(seen, 200);
        if calls_tool(&seen) {
            break;
        }
        assert!(Instant::now() < deadline, "{:?}", tools.world.bridge.mcp_states());
        sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn tools_change_when_the_server_reports_a_change() {
    let tools = Tools::start().await;
    until("the server can tell", || tools.mcp.listeners() > 0).await;
    assert!(ids(&tools).contains(&"bmcp_sim_echo".to_owned()));
    let new = json!({ "name": "new", "description": "d", "inputSchema": { "type": "object" } });
    tools.mcp.set_tools(vec![new]);
    until("the list is read again", || ids(&tools) == ["bmcp_sim_new"]).await;
    tools.ask((MESSAGES, false), &json!([[{ "text": "x" }]])).await;
    let body = String::from_utf8_lossy(&tools.exchanges().pop().unwrap().body).into_owned();
    assert!(body.contains("bmcp_sim_new") && !body.contains("bmcp_sim_echo"), "{body}");
}

#[tokio::test]
async fn an_expired_session_is_opened_again_and_the_call_is_made() {
    let tools = Tools::start().await;
    for with_sse in [true, false] {
        tools.mcp.answer_with_sse(with_sse);
        tools.mcp.expire_sessions();
        let turns = json!([[call("echo", json!({ "message": "x" }))], [{ "text": "{result}" }]]);
        let seen = tools.ask((MESSAGES, true), &turns).await;
        assert_eq!(seen.text, "Echo: x", "{}", seen.raw);
    }
    assert!(tools.mcp.sessions_opened() >= 3);
}

#[tokio::test]
async fn a_server_that_restarts_keeps_its_tools() {
    let Tools { world, mcp, server } = Tools::start().await;
    let address = server.addr;
    let before = world.bridge.mcp_states()[0].tools.clone();
    drop(server);
    let turns = json!([[call("echo", json!({ "message": "x" }))], [{ "text": "{result}" }]]);
    let server = mcp.start_on(([127, 0, 0, 1], 0).into()).await.unwrap();
    let tools = Tools { world, mcp, server };
    let seen = tools.ask((RESPONSES, true), &turns).await;
    assert!(seen.text.starts_with("Error: the MCP server sim is not available"), "{}", seen.text);
    assert_eq!(ids(&tools), before, "prompts stay the same");
    // The old address again.
    let _server = tools.mcp.start_on(address).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while tools.ask((RESPONSES, true), &turns).await.text != "Echo: x" {
        assert!(Instant::now() < deadline, "{:?}", tools.world.bridge.mcp_states());
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(ids(&tools), before);
}

#[tokio::test]
async fn a_rejected_credential_of_an_mcp_server_is_reported_but_not_shown() {
    let mcp = McpSim::new();
    mcp.require_header("authorization", "Bearer another");
    let server = mcp.start().await.unwrap();
    let world =
        World::with(|config| config.tools.servers.push(server_config("sim", &server.url())));
    let state = world.await.bridge.mcp_states().remove(0);
    assert_eq!(state.status, McpStatus::Down);
    let error = state.error.unwrap();
    assert!(error.contains("401"), "{error}");
    assert!(!error.contains(MCP_SECRET));
}
