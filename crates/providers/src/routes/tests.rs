use http::Method;

use keybridge_wire::request::ObjectKind;

use super::{AllowedRoute, Meter, ObjectRoute, RoutePath, canonical_path};
use crate::config::ProviderType;

const KINDS: [ProviderType; 4] =
    [ProviderType::Anthropic, ProviderType::OpenAi, ProviderType::Copilot, ProviderType::Bedrock];

fn only(kind: ProviderType, text: &str) -> AllowedRoute {
    let mut routes = AllowedRoute::parse(kind, text).unwrap();
    assert_eq!(routes.len(), 1, "{text}");
    routes.remove(0)
}

#[test]
fn a_path_may_stand_for_all_below_it() {
    let rows = [
        ("GET /v1/files", [true, false, false]),
        ("GET /v1/files/*", [false, true, false]),
        ("GET /v1/files(/*)", [true, true, false]),
    ];
    for (text, expected) in rows {
        let route = only(ProviderType::OpenAi, text);
        let paths = ["/v1/files", "/v1/files/file_1/content", "/v1/filesystem"];
        assert_eq!(paths.map(|path| route.path.contains(path)), expected, "{text}");
        assert_eq!(route.method, Method::GET);
    }
}

#[test]
fn a_missing_version_is_added_as_in_requests() {
    let route = only(ProviderType::OpenAi, "POST /fim/completions");
    assert_eq!(route.path, RoutePath::one("/v1/fim/completions"));
    let route = only(ProviderType::Copilot, "POST /embeddings");
    assert_eq!(route.path, RoutePath::one("/embeddings"));
}

#[test]
fn a_route_of_a_group_is_measured_and_owned_like_the_groups() {
    let speech = only(ProviderType::OpenAi, "POST /v1/audio/speech");
    assert_eq!((speech.meter, speech.object), (Meter::Characters, None));
    let moderation = only(ProviderType::OpenAi, "POST /v1/moderations");
    assert_eq!(moderation.meter, Meter::None);
    let content = only(ProviderType::OpenAi, "GET /v1/files/*");
    let object = content.object.unwrap();
    assert_eq!(object.kind, ObjectKind::File);
    assert_eq!(object.id("/v1/files/file_1/content"), Some("file_1"));
    assert_eq!(object.id("/v1/files"), None);
    let unknown = only(ProviderType::OpenAi, "POST /v1/ocr");
    assert_eq!((unknown.meter, unknown.object), (Meter::Usage, None));
    let deleting = only(ProviderType::OpenAi, "DELETE /v1/ocr");
    assert_eq!(deleting.meter, Meter::None);
    let given = AllowedRoute::new(ProviderType::OpenAi, "POST", "/v1/ocr", Some(Meter::None));
    assert_eq!(given.unwrap().meter, Meter::None);
}

#[test]
fn what_cannot_be_allowed_is_refused_with_the_reason() {
    let rows = [
        (
            "embedings",
            "no group of routes `embedings` for the type `openai`; its groups are completions, embeddings",
        ),
        ("/v1/embeddings", "neither a group of routes nor a method and a path"),
        ("", "neither a group of routes nor a method and a path"),
        ("FETCH /v1/files", "`FETCH` is not GET, HEAD, POST, PUT, PATCH or DELETE"),
        ("post /v1/files", "`post` is not GET"),
        ("CONNECT /v1/files", "`CONNECT` is not GET"),
        ("GET v1/files", "must begin with `/`"),
        ("GET https://example.org/v1/files", "must begin with `/`"),
        ("GET /v1/*/content", "must have `*` only at its end"),
        ("GET /v1/files*", "must have `*` only at its end"),
        ("GET /v1/files(/*", "must have `*` only at its end"),
        ("GET /*", "allows everything"),
        ("GET /v1(/*)", "allows everything"),
        ("GET /v1/*", "allows everything"),
        ("GET /", "allows everything"),
    ];
    for (text, expected) in rows {
        let error = AllowedRoute::parse(ProviderType::OpenAi, text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let error = AllowedRoute::parse(ProviderType::Anthropic, "embeddings").unwrap_err();
    assert!(error.to_string().ends_with("its groups are files, batches"), "{error}");
    assert!(Meter::parse("tokens").unwrap_err().to_string().contains("`tokens` is not `usage`"));
}

#[test]
fn the_canonical_spelling_of_a_path_stays_as_it_is() {
    for kind in KINDS {
        for rest in ["v1/messages", "messages", "v1/v1/messages", "api/hello", "v1", ""] {
            let path = canonical_path(kind, rest);
            let again = canonical_path(kind, path.trim_start_matches('/'));
            assert_eq!(path, again, "{kind} {rest}");
        }
    }
}

#[test]
fn a_path_belongs_to_its_objects_whichever_route_allows_it() {
    let found = |kind, path| {
        let object = ObjectRoute::of_path(kind, path)?;
        Some((object.kind, object.id(path).map(str::to_owned)))
    };
    let file = Some((ObjectKind::File, Some("f".to_owned())));
    assert_eq!(found(ProviderType::OpenAi, "/v1/files/f/content"), file);
    assert_eq!(found(ProviderType::OpenAi, "/v1/containers"), Some((ObjectKind::Container, None)));
    assert_eq!(found(ProviderType::OpenAi, "/v1/filesystem"), None);
    let batch = Some((ObjectKind::Batch, Some("b".to_owned())));
    assert_eq!(found(ProviderType::Anthropic, "/v1/messages/batches/b/results"), batch);
}
