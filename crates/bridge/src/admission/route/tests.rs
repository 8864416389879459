use std::sync::Arc;

use aws_lc_rs::hmac;
use http::{Method, Request, request};
use keybridge_providers::{
    config::{ProviderConfig, ProviderType},
    provider::Provider,
    vendors::Profile,
};
use keybridge_wire::Dialect;

use super::{Purpose, Route, RouteMatch, RouteRefusal, Unresolved, route};

fn provider(kind: ProviderType, base_url: &str) -> Arc<Provider> {
    of_config(ProviderConfig::new(kind, base_url.parse().unwrap()))
}

fn of_config(config: ProviderConfig) -> Arc<Provider> {
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
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

fn head(method: &Method, path: &str, headers: &[(&str, &str)]) -> request::Parts {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn routed(method: &Method, path: &str) -> RouteMatch {
    route(&providers(), &head(method, path, &[]))
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
        ("/anthropic/messages", Dialect::Messages, "https://api.anthropic.com/v1/messages"),
        ("/anthropic//v1/messages", Dialect::Messages, "https://api.anthropic.com/v1/messages"),
        ("/anthropic/%76%31/messages", Dialect::Messages, "https://api.anthropic.com/v1/messages"),
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
        ("/copilot/v1/responses", Dialect::Responses, "https://api.githubcopilot.com/responses"),
        ("/copilot/v1/v1/responses", Dialect::Responses, "https://api.githubcopilot.com/responses"),
        ("/copilot/messages", Dialect::Messages, "https://api.githubcopilot.com/v1/messages"),
    ];
    for (path, dialect, upstream) in rows {
        for prefix in ["", "/api/v2/aibridge", "/api/v2/ai-gateway"] {
            let route = to(&Method::POST, &format!("{prefix}{path}")).unwrap();
            assert_eq!(route.purpose, Purpose::Intercept(dialect), "{prefix}{path}");
            let uri = uri(&route, None).unwrap();
            assert_eq!(uri.to_string(), upstream, "{prefix}{path}");
        }
    }
}

/// The path of a route below the base URL of its own provider.
fn sent_path(route: &Route) -> String {
    route.upstream_path(&route.provider.config, None).unwrap().path.into_owned()
}

/// The address of a route at its own provider.
fn uri(route: &Route, query: Option<&str>) -> Option<http::Uri> {
    let config = &route.provider.config;
    let upstream = route.upstream_path(config, route.deployment.as_deref()).unwrap();
    config.uri(&upstream.path, query)
}

#[test]
fn a_deployment_in_the_path_is_the_model() {
    let chat = Purpose::Intercept(Dialect::ChatCompletions);
    let azure = |base: &str, rest: &str, profile: &str| {
        let mut config = ProviderConfig::new(ProviderType::OpenAi, base.parse().unwrap());
        config.name = "az".into();
        config.profile = Profile::named(profile).unwrap().clone();
        let providers = [of_config(config)];
        match route(&providers, &head(&Method::POST, &format!("/az{rest}"), &[])) {
            RouteMatch::Endpoint(route) => {
                assert_eq!(
                    (route.endpoint.as_str(), route.purpose),
                    ("/v1/chat/completions", chat)
                );
                let model = route.deployment.clone();
                (uri(&route, None).unwrap().to_string(), model)
            }
            other => panic!("{other:?}"),
        }
    };
    let version = "?api-version=2024-10-21";
    let rows = [
        // The deployment stays in the path, where the vendor has it there.
        (
            "https://r/openai",
            "azure-openai-deployments",
            format!("https://r/openai/deployments/gpt-x/chat/completions{version}"),
        ),
        (
            "https://r/openai/deployments/gpt-x",
            "azure-openai-deployments",
            format!("https://r/openai/deployments/gpt-x/chat/completions{version}"),
        ),
        ("https://r/openai/v1", "azure-openai", "https://r/openai/v1/chat/completions".into()),
        (
            "https://r/openai/deployments/gpt-x",
            "compatible",
            "https://r/openai/deployments/gpt-x/chat/completions".into(),
        ),
    ];
    for (base, profile, upstream) in rows {
        for path in
            ["/openai/deployments/gpt-x/chat/completions", "/deployments/gpt-x/chat/completions"]
        {
            assert_eq!(
                azure(base, path, profile),
                (upstream.clone(), Some("gpt-x".into())),
                "{path}"
            );
        }
    }
    let (_, model) = azure("https://r/openai/v1", "/openai/v1/chat/completions", "azure-openai");
    assert_eq!(model, None);
}

#[test]
fn a_model_that_is_no_segment_of_a_path_is_refused() {
    let mut config = ProviderConfig::new(ProviderType::OpenAi, "https://r/openai".parse().unwrap());
    config.profile = Profile::named("azure-openai-deployments").unwrap().clone();
    let providers = [of_config(config)];
    let request = head(&Method::POST, "/openai/v1/chat/completions", &[]);
    let RouteMatch::Endpoint(route) = route(&providers, &request) else { panic!() };
    let path = |model| route.upstream_path(&route.provider.config, model);
    assert_eq!(path(Some("gpt-x")).unwrap().path, "/deployments/gpt-x/chat/completions");
    for model in [None, Some(""), Some(".."), Some("a/b"), Some("a%2Fb"), Some("a?b")] {
        assert!(path(model).is_err(), "{model:?}");
    }
}

#[test]
fn side_routes_pass_with_their_query() {
    let rows = [
        (Method::GET, "/anthropic/v1/models"),
        (Method::GET, "/anthropic/models"),
        (Method::GET, "/anthropic/v1/models/claude-x"),
        (Method::POST, "/anthropic/api/event_logging/v2/batch"),
        (Method::GET, "/openai/v1/models"),
        (Method::GET, "/openai/models"),
        (Method::HEAD, "/openai/v1/models/gpt-5"),
        (Method::GET, "/openai/v1/conversations/c/items"),
        (Method::GET, "/openai/v1/responses/resp_1"),
        (Method::GET, "/copilot/models"),
        (Method::POST, "/copilot/models/session"),
        (Method::GET, "/copilot/agents/swe"),
        (Method::GET, "/copilot/mcp/readonly"),
        (Method::GET, "/copilot/.well-known/oauth"),
    ];
    for (method, path) in rows {
        assert_eq!(to(&method, path).unwrap().purpose, Purpose::PassThrough, "{method} {path}");
    }
    let route = to(&Method::GET, "/openai/v1/models").unwrap();
    let uri = uri(&route, Some("limit=1&after=x%20y")).unwrap();
    assert_eq!(uri.to_string(), "https://example.org/some/path/v1/models?limit=1&after=x%20y");
}

#[test]
fn counting_is_not_recorded() {
    for (path, dialect) in [
        ("/anthropic/v1/messages/count_tokens", Dialect::Messages),
        ("/openai/v1/responses/input_tokens", Dialect::Responses),
    ] {
        let purpose = to(&Method::POST, path).unwrap().purpose;
        assert_eq!(purpose, Purpose::Count(dialect), "{path}");
        assert!(purpose.is_free() && !purpose.expects_usage());
    }
}

#[test]
fn a_path_without_a_providers_name_goes_to_the_default_instance_of_its_dialect() {
    let mut providers = providers();
    let other = ProviderConfig {
        name: "other".into(),
        ..ProviderConfig::new(ProviderType::OpenAi, "https://other.example/v1".parse().unwrap())
    };
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret");
    providers.insert(0, Arc::new(Provider::new(other, &key, Arc::default()).unwrap()));
    let expect = |method: Method, path: &str, headers: &[(&str, &str)], expected: &str| {
        let RouteMatch::Endpoint(found) = route(&providers, &head(&method, path, headers)) else {
            panic!("{method} {path}");
        };
        assert_eq!(found.provider.config.name, expected, "{method} {path}");
    };
    for path in ["/v1/messages", "/v1/messages/count_tokens", "//v1/messages"] {
        expect(Method::POST, path, &[], "anthropic");
    }
    for path in ["/v1/v1/chat/completions", "/v1/responses", "/v1/responses/compact"] {
        expect(Method::POST, path, &[], "openai");
    }
    expect(Method::GET, "/v1/models", &[], "openai");
    expect(Method::GET, "/v1/models", &[("anthropic-version", "2023-06-01")], "anthropic");
    providers.retain(|provider| provider.config.name != "openai");
    let routed = route(&providers, &head(&Method::POST, "/v1/responses", &[]));
    assert!(matches!(routed, RouteMatch::Endpoint(found) if found.provider.config.name == "other"));
}

#[test]
fn compaction_is_metered() {
    let route = to(&Method::POST, "/openai/v1/responses/compact").unwrap();
    assert_eq!(route.purpose, Purpose::Metered(Dialect::Responses));
}

#[test]
fn other_endpoints_are_unknown() {
    let rows = [
        (Method::POST, "/anthropic/v1/files"),
        (Method::POST, "/anthropic/v1/messages/batches"),
        (Method::POST, "/anthropic/v1/chat/completions"),
        (Method::GET, "/anthropic/v1/modelsx"),
        (Method::POST, "/openai/v1/files"),
        (Method::POST, "/openai/v1/embeddings"),
        (Method::POST, "/openai/v1/messages"),
        (Method::POST, "/openai/v1/responses/COMPACT"),
        (Method::POST, "/openai/v1/Chat/Completions"),
        (Method::GET, "/copilot/agents"),
        (Method::GET, "/copilot/"),
    ];
    for (method, path) in rows {
        let routed = routed(&method, path);
        let is_unknown = matches!(
            routed,
            RouteMatch::Refused(_, RouteRefusal::Endpoint(Unresolved::NoEndpoint))
        );
        assert!(is_unknown, "{method} {path}: {routed:?}");
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
    for path in ["/openai/v1/responses", "/openai/responses", "/copilot/responses"] {
        let head = head(&Method::GET, path, &[("upgrade", "websocket")]);
        assert!(matches!(route(&providers(), &head), RouteMatch::Upgrade(_)), "{path}");
    }
}

#[test]
fn a_method_that_an_endpoint_does_not_have_is_refused() {
    let rows = [
        (Method::GET, "/anthropic/v1/messages"),
        (Method::POST, "/anthropic/v1/models"),
        (Method::DELETE, "/openai/v1/models/ft:x"),
        (Method::GET, "/openai/v1/responses"),
        (Method::DELETE, "/openai/v1/responses/compact"),
        (Method::PUT, "/openai/v1/conversations/c"),
        (Method::TRACE, "/openai/v1/responses/x"),
        (Method::HEAD, "/openai/v1/responses/x"),
        (Method::POST, "/copilot/models"),
    ];
    for (method, path) in rows {
        let routed = routed(&method, path);
        let is_refused =
            matches!(routed, RouteMatch::Refused(_, RouteRefusal::Endpoint(Unresolved::Method(_))));
        assert!(is_refused, "{method} {path}: {routed:?}");
    }
}

#[test]
fn a_path_is_sent_as_it_was_judged() {
    let rows = [
        ("/openai/v1/responses/%63ompact", "/v1/responses/compact", "/responses/compact"),
        ("/openai/%76%31/v1/responses/compact", "/v1/responses/compact", "/responses/compact"),
        ("/openai/responses/%7ex%20y", "/v1/responses/~x%20y", "/responses/~x%20y"),
    ];
    for (path, endpoint, sent) in rows {
        let route = to(&Method::POST, path).unwrap();
        assert_eq!(
            (route.endpoint.as_str(), sent_path(&route).as_str()),
            (endpoint, sent),
            "{path}"
        );
    }
}

#[test]
fn a_base_url_may_end_in_a_slash() {
    let route = to(&Method::POST, "/openai//v1/responses").unwrap();
    assert_eq!(route.purpose, Purpose::Intercept(Dialect::Responses));
    assert_eq!(sent_path(&route), "/responses");
}
