use http::Method;
use keybridge_providers::config::ProviderType;

use keybridge_providers::config::ProviderConfig;
use keybridge_providers::routes::{AllowedRoute, Meter};

use super::{Purpose, Unresolved, resolve};

const KINDS: [ProviderType; 4] =
    [ProviderType::Anthropic, ProviderType::OpenAi, ProviderType::Copilot, ProviderType::Bedrock];

fn config(kind: ProviderType, allow_routes: &[&str]) -> ProviderConfig {
    let allowed = allow_routes.iter().flat_map(|text| AllowedRoute::parse(kind, text).unwrap());
    ProviderConfig {
        allow_routes: allowed.collect(),
        ..ProviderConfig::new(kind, "https://example.org/v1".parse().unwrap())
    }
}

fn purpose(kind: ProviderType, method: &Method, path: &str) -> Option<Purpose> {
    resolve(&config(kind, &[]), method, path).ok().map(|found| found.purpose)
}

#[test]
fn no_endpoint_has_a_method_that_changes_more_than_it_names() {
    let never = [Method::TRACE, Method::CONNECT, Method::PUT, Method::PATCH, Method::OPTIONS];
    for endpoint in KINDS.into_iter().flat_map(super::endpoints) {
        for method in &never {
            assert_eq!(endpoint.purpose(method), None, "{endpoint:?}");
        }
    }
}

#[test]
fn whatever_deletes_or_is_posted_below_stored_objects_is_recorded() {
    let paths = [
        "/v1/conversations",
        "/v1/conversations/conv_1",
        "/v1/conversations/conv_1/items",
        "/v1/responses/resp_1",
        "/v1/responses/resp_1/cancel",
        "/v1/responses/anything%20else",
    ];
    for path in paths {
        for method in [Method::POST, Method::DELETE] {
            let purpose = purpose(ProviderType::OpenAi, &method, path);
            assert_eq!(purpose, Some(Purpose::Change), "{method} {path}");
        }
        let purpose = purpose(ProviderType::OpenAi, &Method::GET, path);
        assert_eq!(purpose, Some(Purpose::PassThrough), "{path}");
    }
    for path in ["/agents/swe", "/mcp/readonly"] {
        let purpose = purpose(ProviderType::Copilot, &Method::POST, path);
        assert_eq!(purpose, Some(Purpose::Change), "{path}");
    }
}

#[test]
fn a_path_in_another_letter_case_is_no_endpoint() {
    let config = config(ProviderType::OpenAi, &["POST /v1/responses/*", "POST /v1/Responses"]);
    for path in ["/v1/responses/COMPACT", "/v1/responses/Input_Tokens", "/v1/Responses"] {
        let resolved = resolve(&config, &Method::POST, path);
        assert!(matches!(resolved, Err(Unresolved::NoEndpoint)), "{path}: {resolved:?}");
    }
    for path in ["/V1/responses", "/v1/Models"] {
        assert_eq!(purpose(ProviderType::OpenAi, &Method::GET, path), None, "{path}");
    }
    let models = purpose(ProviderType::OpenAi, &Method::GET, "/v1/models/GPT-X");
    assert_eq!(models, Some(Purpose::PassThrough));
}

#[test]
fn an_allowed_route_changes_nothing_about_the_endpoints_of_the_type() {
    let config =
        config(ProviderType::OpenAi, &["POST /v1/ocr", "POST /v1/chat/*", "DELETE /v1/models/*"]);
    let purpose = |method: &Method, path: &str| {
        resolve(&config, method, path).map(|found| found.purpose).map_err(|unresolved| {
            match unresolved {
                Unresolved::NoEndpoint => Vec::new(),
                Unresolved::Method(methods) => methods,
            }
        })
    };
    let chat = Purpose::Intercept(keybridge_wire::Dialect::ChatCompletions);
    assert_eq!(purpose(&Method::POST, "/v1/chat/completions"), Ok(chat));
    assert_eq!(purpose(&Method::POST, "/v1/responses/x/cancel"), Ok(Purpose::Change));
    assert_eq!(purpose(&Method::GET, "/v1/models/x"), Ok(Purpose::PassThrough));
    assert_eq!(purpose(&Method::DELETE, "/v1/models/x"), Ok(Purpose::Allowed(Meter::None)));
    assert_eq!(purpose(&Method::POST, "/v1/ocr"), Ok(Purpose::Allowed(Meter::Usage)));
    assert_eq!(purpose(&Method::PUT, "/v1/ocr"), Err(vec![Method::POST]));
    assert_eq!(purpose(&Method::GET, "/v2/ocr"), Err(Vec::new()));
}

#[test]
fn a_group_has_its_paths_methods_and_objects_in_each_type() {
    let files = config(ProviderType::OpenAi, &["files", "GET /v1/batches/*"]);
    let rows = [
        (Method::POST, "/v1/files", Some(("file", None))),
        (Method::GET, "/v1/files/file_1/content", Some(("file", Some("file_1")))),
        (Method::DELETE, "/v1/files/file_1", Some(("file", Some("file_1")))),
        (Method::GET, "/v1/batches/b", Some(("batch", Some("b")))),
        (Method::POST, "/v1/batches/b/cancel", None),
        (Method::PUT, "/v1/files/file_1", None),
        (Method::POST, "/v1/embeddings", None),
    ];
    for (method, path, expected) in rows {
        let object = resolve(&files, &method, path).ok().and_then(|found| found.object);
        let object = object.map(|object| (object.kind.as_str(), object.id(path)));
        assert_eq!(object, expected, "{method} {path}");
    }
    let batches = config(ProviderType::Anthropic, &["batches"]);
    let path = "/v1/messages/batches/msgbatch_1/results";
    let found = resolve(&batches, &Method::GET, path).unwrap();
    assert_eq!(found.purpose, Purpose::Allowed(Meter::None));
    assert_eq!(found.object.and_then(|object| object.id(path)), Some("msgbatch_1"));
}
