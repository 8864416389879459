//! Which requests reach a provider, judged by their path, method, query and headers.

use http::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{World, allow_unknown_objects, body, tcp::serve};

/// A credential of the user's own.
const OWN_BEARER: &str = "Bearer gho_own_0123456789";
const METHODS: [Method; 8] = [
    Method::GET,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::HEAD,
    Method::OPTIONS,
    Method::TRACE,
];

/// Sends a request whose target no client library has parsed; returns the response.
async fn send_raw(world: &World, method: &str, target: &str) -> String {
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let text = body("/openai/v1/responses", "text", false);
    let request = format!(
        "{method} {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
        world.token,
        text.len(),
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset is an end, too.
    let _read = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_path_that_servers_disagree_on_never_reaches_a_provider() {
    let world = World::start().await;
    let paths = [
        "/openai/v1/responses//",
        "/openai/v1/responses/compact/",
        "/openai/v1/responses//compact",
        "/openai/v1//responses",
        "/openai///v1/responses",
        "/openai/v1/responses/",
        "/openai/v1/responses/COMPACT",
        "/openai/v1/Responses",
        "/openai/V1/responses",
        "/openai/v1/responses/..;/compact",
        "/openai/v1/responses/;a",
        "/openai/v1/responses/compact;a=b",
        "/openai/v1/responses/x%3bcompact",
        "/openai/v1/responses/../models",
        "/openai/v1/responses/%2e%2e/models",
        "/openai/v1/responses/.%2E/models",
        "/openai/v1/responses/..%20/models",
        "/openai/v1/responses/x%2fcompact",
        "/openai/v1/responses/x%2F..%2F..%2Ffiles",
        "/openai/v1/responses/..%5cfiles",
        "/openai/v1/responses/..\\files",
        "/openai/v1/responses/%252e%252e/files",
        "/openai/v1/responses/x%25252e",
        "/openai/v1/responses/%c0%ae%c0%ae/x",
        "/openai/v1/responses/%e0%80%ae",
        "/openai/v1/responses/x%00",
        "/openai/v1/responses/x%0d%0ax-y:z",
        "/openai/v1/responses/%",
        "/openai/v1/responses/%zz",
        "/openai/v1/chat%2Fcompletions",
        "/anthropic/v1/messages/",
        "/anthropic/v1/messages//count_tokens",
        "/anthropic/v1/Messages",
        "/anthropic/v1/models/..;/messages",
        "/api/v2/aibridge/openai/v1/responses/..;/compact",
    ];
    for path in paths {
        for method in ["GET", "POST", "DELETE"] {
            let answer = send_raw(&world, method, path).await;
            let is_refused =
                ["HTTP/1.1 400", "HTTP/1.1 404"].iter().any(|status| answer.starts_with(status));
            assert!(is_refused, "{method} {path}: {answer}");
            assert!(answer.contains("\"error\":{"), "{method} {path}: {answer}");
        }
    }
    let sent: Vec<String> =
        world.sim.exchanges().into_iter().map(|exchange| exchange.path_and_query).collect();
    assert_eq!(sent, Vec::<String>::new());
}

#[tokio::test]
async fn a_path_reaches_the_provider_as_it_was_judged() {
    let world = World::start().await;
    let rows = [
        ("/openai/v1/responses/%63ompact", "/openai/v1/responses/compact", "/v1/responses/compact"),
        ("/openai/%76%31/responses", "/openai/v1/responses", "/v1/responses"),
        ("/openai//responses", "/openai/v1/responses", "/v1/responses"),
        ("/openai/v1/v1/responses", "/openai/v1/responses", "/v1/responses"),
        ("/openai/v1/responses?a=%2e%2e//", "/openai/v1/responses?a=%2e%2e//", "/v1/responses"),
    ];
    for (path, sent, endpoint) in rows {
        let answer = send_raw(&world, "POST", path).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        assert_eq!(world.last_exchange().path_and_query, sent, "{path}");
        let records = world.settled_records(world.sim.exchanges().len()).await;
        assert_eq!(records.last().unwrap()["endpoint"], endpoint, "{path}");
    }
    let answer = send_raw(&world, "POST", "/anthropic/messages/count_tokens").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(world.last_exchange().path_and_query, "/anthropic/v1/messages/count_tokens");
}

#[tokio::test]
async fn an_endpoint_is_reached_by_its_own_methods_only() {
    let world = World::with(allow_unknown_objects).await;
    let rows: [(&str, &[Method]); 14] = [
        ("/anthropic/v1/messages", &[Method::POST]),
        ("/anthropic/v1/messages/count_tokens", &[Method::POST]),
        ("/anthropic/v1/models/claude-x", &[Method::GET, Method::HEAD]),
        ("/anthropic/api/event_logging/batch", &[Method::POST]),
        ("/openai/v1/chat/completions", &[Method::POST]),
        ("/openai/v1/responses/compact", &[Method::POST]),
        ("/openai/v1/models/ft:gpt:acme::x", &[Method::GET, Method::HEAD]),
        ("/openai/v1/conversations", &[Method::GET, Method::POST, Method::DELETE]),
        ("/openai/v1/conversations/c/items", &[Method::GET, Method::POST, Method::DELETE]),
        ("/openai/v1/responses/resp_1", &[Method::GET, Method::POST, Method::DELETE]),
        ("/copilot/models", &[Method::GET, Method::HEAD]),
        ("/copilot/agents/swe", &[Method::GET, Method::POST, Method::DELETE]),
        ("/copilot/mcp/readonly", &[Method::GET, Method::POST, Method::DELETE]),
        ("/copilot/.well-known/x", &[Method::GET, Method::HEAD]),
    ];
    let bearer = format!("Bearer {}", world.token);
    let centralized = [("authorization", bearer.as_str())];
    let own = [("authorization", OWN_BEARER), ("x-ai-governance-token", world.token.as_str())];
    for (path, allowed) in rows {
        for method in METHODS {
            world.sim.clear();
            let is_own = path.starts_with("/copilot");
            let headers: &[_] = if is_own { &own } else { &centralized };
            let mut request = world.request(method.clone(), path, headers);
            if method == Method::POST {
                *request.body_mut() = body(path, "text", false).into();
            }
            let answer = world.send(request).await;
            let sent: Vec<String> = world.sim.exchanges().into_iter().map(|e| e.method).collect();
            if allowed.contains(&method) {
                assert_eq!(sent, [method.as_str()], "{method} {path}: {}", answer.text());
                continue;
            }
            assert_eq!(sent, Vec::<String>::new(), "{method} {path}");
            assert_status!(answer, 404, "{method} {path}");
            if method != Method::HEAD {
                let methods: Vec<&str> = allowed.iter().map(Method::as_str).collect();
                let expected = format!("its methods are {}", methods.join(", "));
                assert!(answer.text().contains(&expected), "{method} {path}: {}", answer.text());
            }
        }
    }
    world.sim.clear();
    for target in ["127.0.0.1:1", "/openai/v1/models"] {
        let answer = send_raw(&world, "CONNECT", target).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{target}: {answer}");
    }
    assert!(world.sim.exchanges().is_empty());
}

#[tokio::test]
async fn what_changes_something_at_a_provider_is_recorded() {
    let world = World::with(allow_unknown_objects).await;
    let bearer = format!("Bearer {}", world.token);
    let centralized = [("authorization", bearer.as_str())];
    let own = [("authorization", OWN_BEARER), ("x-ai-governance-token", world.token.as_str())];
    let rows = [
        (Method::POST, "/openai/v1/conversations", "/v1/conversations"),
        (Method::POST, "/openai/v1/conversations/c/items", "/v1/conversations/c/items"),
        (Method::DELETE, "/openai/v1/conversations/c", "DELETE /v1/conversations/c"),
        (Method::DELETE, "/openai/v1/responses/resp_1", "DELETE /v1/responses/resp_1"),
        (Method::POST, "/openai/v1/responses/resp_1/cancel", "/v1/responses/resp_1/cancel"),
        (Method::POST, "/copilot/agents/swe", "/agents/swe"),
        (Method::POST, "/copilot/mcp/readonly", "/mcp/readonly"),
    ];
    for (method, path, _endpoint) in &rows {
        let headers: &[_] = if path.starts_with("/copilot") { &own } else { &centralized };
        let answer = world.send(world.request(method.clone(), path, headers)).await;
        assert_status!(answer, 200, "{method} {path}");
    }
    // These change nothing.
    for path in ["/openai/v1/conversations/c", "/openai/v1/responses/resp_1/input_items"] {
        let answer = world.send(world.request(Method::GET, path, &centralized)).await;
        assert_status!(answer, 200, "{path}");
    }
    let records = world.settled_records(rows.len()).await;
    for (record, (method, path, endpoint)) in records.iter().zip(&rows) {
        assert_eq!(record["endpoint"], *endpoint, "{method} {path}");
        assert_eq!(record["outcome"], "completed", "{method} {path}: {record:#}");
        assert_eq!(record["status_code"], 200, "{method} {path}");
        assert_eq!(record["token_usages"], json!([]), "nothing was billed: {method} {path}");
        assert_eq!(record["client"], "Unknown");
    }
}

#[tokio::test]
async fn a_stream_that_is_not_a_models_is_relayed_as_it_is() {
    const EVENT: &str = "event: message\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\n";
    let address = serve(|mut stream| async move {
        let mut head = [0; 16 * 1024];
        let _read = stream.read(&mut head).await;
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
             {:x}\r\n{EVENT}\r\n0\r\n\r\n",
            EVENT.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let world = World::with(|config| {
        config.providers[2].base_url = format!("http://{address}").parse().unwrap();
    })
    .await;
    let own = [("authorization", OWN_BEARER), ("x-ai-governance-token", world.token.as_str())];
    let answer = world.send(world.request(Method::POST, "/copilot/mcp/readonly", &own)).await;
    assert_eq!(answer.text(), EVENT);
    let record = world.settled_record().await;
    assert_eq!((&record["outcome"], &record["token_usages"]), (&"completed".into(), &json!([])));
}

#[tokio::test]
async fn a_bridge_token_in_a_path_or_query_is_refused_and_not_quoted() {
    let world = World::start().await;
    let token = world.token.clone();
    let encoded = format!("%6bb%5F{}", token.strip_prefix("kb_").unwrap());
    let targets = [
        format!("/openai/v1/models/{token}"),
        format!("/openai/v1/models/x{token}"),
        format!("/openai/v1/models/x_{token}y"),
        format!("/openai/v1/models/{encoded}"),
        format!("/openai/v1/responses/resp_{token}/input_items"),
        format!("/openai/{token}"),
        format!("/openai/v1/models?after=x{token}"),
        format!("/openai/v1/models?after=x{encoded}"),
    ];
    for target in &targets {
        let answer = send_raw(&world, "GET", target).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{target}: {answer}");
        assert!(answer.contains("must not contain a bridge token"), "{target}: {answer}");
        assert!(!answer.contains(&token[3..]), "{target}: {answer}");
    }
    for target in [format!("/{token}/v1/models"), format!("/x{token}")] {
        let answer = send_raw(&world, "GET", &target).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{target}: {answer}");
        assert!(!answer.contains(&token[3..]), "{target}: {answer}");
    }
    assert!(world.records().await.is_empty());
    // What changes something is recorded even if it is refused, but not the token.
    let answer = send_raw(&world, "POST", &format!("/openai/v1/conversations?x={token}")).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let record = world.settled_record().await;
    assert_eq!(record["outcome"], "refused");
    assert!(!record.to_string().contains(&token[3..]), "{record:#}");
    assert!(world.sim.exchanges().is_empty());
}

#[tokio::test]
async fn a_bridge_token_in_any_header_stays_here() {
    let world = World::start().await;
    let token = world.token.clone();
    let encoded = format!("%6bb%5F{}", token.strip_prefix("kb_").unwrap());
    let bearer = format!("Bearer {token}");
    for value in [
        token.clone(),
        format!("x{token}"),
        format!("x_{token}y"),
        encoded.clone(),
        format!("a=b; session=x{encoded}"),
        format!("https://example.org/?x={token}"),
    ] {
        let as_credential = format!("Bearer {value}");
        let centralized = [("authorization", bearer.as_str())];
        // What is no credential of the user's own is replaced by the company's key.
        let own = [("x-ai-governance-token", token.as_str()), ("authorization", &as_credential)];
        for credentials in [&centralized[..], &own] {
            let mut headers = vec![
                ("x-note", value.as_str()),
                ("referer", &value),
                ("api-key", &value),
                ("user-agent", &value),
            ];
            headers.extend(credentials);
            let path = "/openai/v1/models?a=1";
            let answer = world.send(world.request(Method::GET, path, &headers)).await;
            assert_status!(answer, 200, "{value}");
            for (name, bytes) in world.last_exchange().headers {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                assert!(!text.contains(&token[3..]), "{name}: {text}");
            }
        }
    }
}

#[tokio::test]
async fn a_centralized_request_carries_one_credential() {
    let world = World::start().await;
    let bearer = format!("Bearer {}", world.token);
    let headers = [
        ("authorization", bearer.as_str()),
        ("x-api-key", "own"),
        ("api-key", "own"),
        ("x-goog-api-key", "own"),
    ];
    let path = "/openai/v1/models?a=1&key=own&%6bey=own";
    let answer = world.send(world.request(Method::GET, path, &headers)).await;
    assert_status!(answer, 200);
    let sent = world.last_exchange();
    assert_eq!(sent.path_and_query, "/openai/v1/models?a=1");
    let credentials: Vec<String> = sent.headers.iter().map(|(name, _)| name.clone()).collect();
    assert!(credentials.contains(&"authorization".to_owned()), "{credentials:?}");
    assert!(credentials.iter().all(|name| !name.ends_with("api-key")), "{credentials:?}");
}

#[tokio::test]
async fn a_browser_does_not_show_a_providers_answer_as_a_page() {
    let world = World::start().await;
    let bearer = format!("Bearer {}", world.token);
    for dest in ["document", "iframe", "image", "script", ""] {
        let headers = [("authorization", bearer.as_str()), ("sec-fetch-dest", dest)];
        let path = "/anthropic/v1/models";
        let answer = world.send(world.request(Method::GET, path, &headers)).await;
        assert_status!(answer, 403, "{dest}");
        assert_eq!(answer.json()["error"]["type"], "permission_error", "{dest}");
    }
    assert!(world.sim.exchanges().is_empty());
    let headers = [("authorization", bearer.as_str()), ("sec-fetch-dest", "empty")];
    let answer = world.send(world.request(Method::GET, "/anthropic/v1/models", &headers)).await;
    assert_status!(answer, 200);
}
