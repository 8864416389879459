//! The description of the API.

use std::collections::{BTreeMap, BTreeSet};

use axum::http::Method;

use super::*;

const METHODS: [&str; 7] = ["get", "post", "put", "patch", "delete", "options", "trace"];

async fn document() -> Value {
    let (api, _dir) = api_fixture().await;
    let (status, document) = get(&api, "/api/v1/openapi.json", None).await;
    assert_eq!(status, StatusCode::OK);
    document
}

/// Each operation, by its method and path.
fn operations(document: &Value) -> BTreeMap<(String, String), &Value> {
    let mut operations = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(METHODS.contains(&method.as_str()), "{path}: {method}");
            operations.insert((method.clone(), path.clone()), operation);
        }
    }
    operations
}

#[tokio::test]
async fn the_description_is_openapi_3_1() {
    let text = document().await.to_string();
    let spec = oas3::from_json(&text).unwrap();
    spec.validate_version().unwrap();
    assert_eq!(spec.openapi, "3.1.0");
    assert!(spec.operations().count() > 10);
}

#[tokio::test]
async fn the_description_has_exactly_the_routes_that_are_served() {
    let document = document().await;
    let operations = operations(&document);
    let described: BTreeSet<&str> = operations.keys().map(|(_, path)| path.as_str()).collect();
    // The only list of its routes that axum has.
    let routes = format!("{:?}", super::super::api().0);
    let served: BTreeSet<&str> =
        routes.split('"').filter(|text| text.starts_with("/api/v1/")).collect();
    assert_eq!(described, served);

    let (api, _dir) = api_fixture().await;
    for path in described {
        for method in METHODS {
            let request = Request::builder()
                .method(method.to_uppercase().parse::<Method>().unwrap())
                .uri(path.replace(['{', '}'], ""));
            let (status, _) = call(&api, request, None).await;
            let is_described = operations.contains_key(&(method.to_owned(), path.to_owned()));
            assert_eq!(status != StatusCode::METHOD_NOT_ALLOWED, is_described, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn every_operation_is_described_with_its_errors() {
    let document = document().await;
    let mut ids = BTreeSet::new();
    for ((method, path), operation) in operations(&document) {
        let name = format!("{method} {path}");
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{name}");
        assert!(!operation["summary"].as_str().unwrap().is_empty(), "{name}");
        let tag = &operation["tags"][0];
        let tags = document["tags"].as_array().unwrap();
        assert!(tags.iter().any(|known| known["name"] == *tag), "{name}: {tag}");
        let responses = operation["responses"].as_object().unwrap();
        let needs_token = operation["security"] != json!([{}]);
        assert_eq!(responses.contains_key("401"), needs_token, "{name}");
        for (status, response) in responses {
            assert!(!response["description"].as_str().unwrap().is_empty(), "{name} {status}");
            if status.starts_with(['4', '5']) {
                let schema = &response["content"]["application/json"]["schema"]["$ref"];
                assert!(schema.as_str().unwrap().contains("ErrorResponse"), "{name} {status}");
            }
        }
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(!parameter["description"].as_str().unwrap_or_default().is_empty(), "{name}");
        }
    }
    assert_eq!(document["components"]["securitySchemes"]["bridge_token"]["scheme"], "bearer");
}

#[tokio::test]
async fn every_reference_of_the_description_leads_to_a_schema() {
    fn check(document: &Value, value: &Value) {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            let found = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
            assert!(found.is_some(), "{reference}");
        }
        value.as_object().into_iter().flatten().for_each(|(_, inner)| check(document, inner));
        value.as_array().into_iter().flatten().for_each(|inner| check(document, inner));
    }
    let document = document().await;
    check(&document, &document);
}
