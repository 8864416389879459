use std::sync::Arc;

use aws_lc_rs::hmac;
use http::{HeaderMap, HeaderValue, Method};
use keybridge_providers::{
    config::{ProviderConfig, ProviderType},
    provider::Provider,
};
use keybridge_wire::Dialect;

use super::{Purpose, Route, RouteMatch, decoded_path, route};

fn provider(kind: ProviderType, base_url: &str) -> Arc<Provider> {
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = ProviderConfig::new(kind, base_url.parse().unwrap());
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
    Arc::new(Provider::new(config, &key, Arc::default()).unwrap())
}

fn providers() -> Vec<Arc<Provider>> {
    vec![
        provider(ProviderType::Anthropic, "https://api.anthropic.com"),
        provider(ProviderType::OpenAi, "https://example.org/some/path/v1/"),
        provider(ProviderType::Copilot, "https://api.githubcopilot.com"),
    ]
}

fn routed(method: &Method, path: &str) -> RouteMatch {
    route(&providers(), method, path, &HeaderMap::new())
}

fn to(method: &Method, path: &str) -> Option<Route> {
    match routed(method, path) {
        RouteMatch::Endpoint(route) => Some(route),
        _ => None,
    }
}

#[test]
fn intercepted_routes_are_found_in_every_spelling() {
    let rows = [
        ("/anthropic/v1/messages", Dialect::Messages, "https://api.anthropic.com/v1/messages"),
        ("/anthropic/v1/v1/messages", Dialect::Messages, "https://api.anthropic.com/v1/messages"),
        (
            "/openai/v1/chat/completions",
            Dialect::ChatCompletions,
            "https://example.org/some/path/v1/chat/completions",
        ),
        (
            "/openai/chat/completions",
            Dialect::ChatCompletions,
            "https://example.org/some/path/v1/chat/completions",
        ),
        (
            "/openai/v1/v1/responses",
            Dialect::Responses,
            "https://example.org/some/path/v1/responses",
        ),
        ("/openai/responses", Dialect::Responses, "https://example.org/some/path/v1/responses"),
        (
            "/copilot/chat/completions",
            Dialect::ChatCompletions,
            "https://api.githubcopilot.com/chat/completions",
        ),
        ("/copilot/responses", Dialect::Responses, "https://api.githubcopilot.com/responses"),
        ("/copilot/v1/messages", Dialect::Messages, "https://api.githubcopilot.com/v1/messages"),
    ];
    for (path, dialect, upstream) in rows {
        for prefix in ["", "/api/v2/aibridge", "/api/v2/ai-gateway"] {
            let route = to(&Method::POST, &format!("{prefix}{path}")).unwrap();
            assert_eq!(route.purpose, Purpose::Intercept(dialect), "{prefix}{path}");
            let uri = route.provider.uri(&route.upstream_path, None).unwrap();
            assert_eq!(uri.to_string(), upstream, "{prefix}{path}");
        }
    }
}

#[test]
fn side_routes_pass_with_their_query() {
    let rows = [
        (Method::POST, "/anthropic/v1/messages/count_tokens"),
        (Method::GET, "/anthropic/v1/models"),
        (Method::GET, "/anthropic/v1/models/claude-x"),
        (Method::POST, "/anthropic/api/event_logging/v2/batch"),
        (Method::GET, "/openai/v1/models"),
        (Method::GET, "/openai/models"),
        (Method::POST, "/openai/v1/conversations"),
        (Method::GET, "/openai/v1/conversations/c/items"),
        (Method::GET, "/openai/v1/responses/resp_1"),
        (Method::POST, "/openai/v1/responses/resp_1/cancel"),
        (Method::GET, "/copilot/models"),
        (Method::POST, "/copilot/agents/swe"),
        (Method::POST, "/copilot/mcp/readonly"),
        (Method::GET, "/copilot/.well-known/oauth"),
    ];
    for (method, path) in rows {
        assert_eq!(to(&method, path).unwrap().purpose, Purpose::PassThrough, "{method} {path}");
    }
    let route = to(&Method::GET, "/openai/v1/models").unwrap();
    let uri = route.provider.uri(&route.upstream_path, Some("limit=1&after=x%20y")).unwrap();
    assert_eq!(uri.to_string(), "https://example.org/some/path/v1/models?limit=1&after=x%20y");
}

#[test]
fn compaction_is_metered() {
    let route = to(&Method::POST, "/openai/v1/responses/compact").unwrap();
    assert_eq!(route.purpose, Purpose::Metered(Dialect::Responses));
}

#[test]
fn other_endpoints_are_unknown() {
    let rows = [
        (Method::GET, "/anthropic/v1/messages"),
        (Method::POST, "/anthropic/v1/files"),
        (Method::POST, "/anthropic/v1/messages/batches"),
        (Method::POST, "/anthropic/v1/chat/completions"),
        (Method::GET, "/anthropic/v1/modelsx"),
        (Method::POST, "/openai/v1/files"),
        (Method::POST, "/openai/v1/embeddings"),
        (Method::GET, "/openai/v1/responses"),
        (Method::GET, "/openai/v1/responses/"),
        (Method::POST, "/openai/v1/messages"),
        (Method::GET, "/copilot/agents/"),
        (Method::GET, "/copilot/"),
        (Method::GET, "/anthropic/v1/models/../files"),
        (Method::GET, "/anthropic/v1/models/%2e%2e/files"),
        (Method::GET, "/anthropic/v1/models/x%2F..%2F..%2Ffiles"),
        (Method::GET, "/anthropic/v1/models/%252e%252e/files"),
        (Method::GET, "/openai/v1/responses/..%5cfiles"),
    ];
    for (method, path) in rows {
        assert!(matches!(routed(&method, path), RouteMatch::NoEndpoint(_)), "{method} {path}");
    }
    for path in ["/", "/other/v1/messages", "/api/v2/aibridge/other", "/api/v2/other/anthropic"] {
        assert!(matches!(routed(&Method::POST, path), RouteMatch::NoProvider), "{path}");
    }
}

#[test]
fn probes_and_upgrades_are_recognized() {
    for path in ["/anthropic", "/anthropic/", "/anthropic/api/hello", "/openai"] {
        assert!(matches!(routed(&Method::HEAD, path), RouteMatch::Probe), "{path}");
    }
    let mut headers = HeaderMap::new();
    headers.insert("upgrade", HeaderValue::from_static("websocket"));
    for path in ["/openai/v1/responses", "/openai/responses", "/copilot/responses"] {
        let routed = route(&providers(), &Method::GET, path, &headers);
        assert!(matches!(routed, RouteMatch::Upgrade(_)), "{path}");
    }
}

#[test]
fn dots_within_a_segment_are_part_of_a_name() {
    for path in ["v1/models/gpt-4.1", "v1/models/ft:gpt..x", "v1/models/a%20b", ""] {
        assert!(decoded_path(path).is_some(), "{path}");
    }
}

#[test]
fn ambiguous_spellings_are_unknown_endpoints() {
    let rows = [
        "/openai/v1/responses//",
        "/openai/v1/responses//compact",
        "/openai/v1/responses/compact/",
        "/openai/v1/responses/;a",
        "/openai/v1/responses/compact;a=b",
        "/openai/v1/responses/COMPACT",
        "/openai/v1/Chat/Completions",
        "/openai/v1/responses/x/..;/compact",
        "/openai/v1/responses/x%00",
        "/openai/v1/responses/x%25252e",
        "/openai/v1/responses/%c0%ae%c0%ae/x",
        "/openai/v1/responses/x%2fcompact",
        "/openai///v1/models",
    ];
    for path in rows {
        let routed = routed(&Method::POST, path);
        assert!(matches!(routed, RouteMatch::NoEndpoint(_)), "{path}: {routed:?}");
    }
}

#[test]
fn an_encoded_letter_is_routed_as_the_letter_and_sent_unchanged() {
    let route = to(&Method::POST, "/openai/v1/responses/%63ompact").unwrap();
    assert_eq!(route.purpose, Purpose::Metered(Dialect::Responses));
    assert_eq!(route.endpoint, "/v1/responses/compact");
    assert_eq!(route.upstream_path, "/responses/%63ompact");
}

#[test]
fn a_base_url_may_end_in_a_slash() {
    let route = to(&Method::POST, "/openai//v1/responses").unwrap();
    assert_eq!(route.purpose, Purpose::Intercept(Dialect::Responses));
    assert_eq!(route.upstream_path, "/responses");
}
