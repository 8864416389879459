use http::Method;
use keybridge_providers::config::ProviderType;

use super::{Endpoint, Purpose};

const KINDS: [ProviderType; 4] =
    [ProviderType::Anthropic, ProviderType::OpenAi, ProviderType::Copilot, ProviderType::Bedrock];

fn purpose(kind: ProviderType, method: &Method, path: &str) -> Option<Purpose> {
    Endpoint::find(kind, path)?.purpose(method)
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
    for path in
        ["/v1/responses/COMPACT", "/v1/responses/Input_Tokens", "/V1/responses", "/v1/Models"]
    {
        assert!(Endpoint::find(ProviderType::OpenAi, path).is_none(), "{path}");
    }
    assert!(Endpoint::find(ProviderType::OpenAi, "/v1/models/GPT-X").is_some());
}
