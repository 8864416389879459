//! Users and tokens through the API.

use axum::http::Method;

use super::*;

/// Sends a JSON body; the answer is null where it has none.
async fn send(
    api: &Api,
    (method, path): (Method, &str),
    bearer: &str,
    body: &str,
) -> (StatusCode, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", api.authorization(bearer))
        .body(Body::from(body.to_owned()))
        .unwrap();
    let response = api.router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn administrators_create_and_change_users() {
    let (api, _dir) = api_fixture().await;
    let create = (Method::POST, "/api/v1/users");
    let carol = r#"{"name":"carol","email":"carol@example.com","role":"auditor"}"#;
    for bearer in ["ada", "eve"] {
        let (status, refused) = send(&api, create.clone(), bearer, carol).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(refused["error"]["hint"].as_str().unwrap().contains("/me"), "{refused}");
    }
    let (status, created) = send(&api, create.clone(), "root", carol).await;
    assert_eq!((status, &created["role"]), (StatusCode::CREATED, &"auditor".into()));
    assert_eq!(send(&api, create.clone(), "root", carol).await.0, StatusCode::CONFLICT);
    for (body, word) in [
        ("", "body"),
        ("[]", "body"),
        (r#"{"name":"a b"}"#, "user name"),
        (r#"{"name":"dan","role":"king"}"#, "role"),
        (r#"{"name":"dan","email":"dan"}"#, "email"),
        (r#"{"name":"dan","colour":"red"}"#, "colour"),
    ] {
        let (status, refused) = send(&api, create.clone(), "root", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(refused["error"]["message"].as_str().unwrap().contains(word), "{refused}");
    }
    let change = (Method::PATCH, "/api/v1/users/carol");
    let (status, changed) =
        send(&api, change.clone(), "root", r#"{"status":"suspended","role":"member"}"#).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!((&changed["status"], &changed["role"]), (&"suspended".into(), &"member".into()));
    assert_eq!(changed["email"], "carol@example.com", "what is not named stays");
    assert_eq!(send(&api, change, "eve", "{}").await.0, StatusCode::FORBIDDEN);
    let unknown = (Method::PATCH, "/api/v1/users/zoe");
    assert_eq!(send(&api, unknown, "root", "{}").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn one_active_administrator_is_left() {
    let (api, _dir) = api_fixture().await;
    let change = (Method::PATCH, "/api/v1/users/root");
    for body in [r#"{"role":"member"}"#, r#"{"status":"suspended"}"#] {
        let (status, refused) = send(&api, change.clone(), "root", body).await;
        assert_eq!(status, StatusCode::CONFLICT, "{refused}");
    }
    let ada = (Method::PATCH, "/api/v1/users/ada");
    assert_eq!(send(&api, ada, "root", r#"{"role":"admin"}"#).await.0, StatusCode::OK);
    assert_eq!(send(&api, change, "root", r#"{"role":"member"}"#).await.0, StatusCode::OK);
}

#[tokio::test]
async fn users_are_listed_in_pages_for_auditors_and_members_see_themselves() {
    let (api, _dir) = api_fixture().await;
    let (_, first) = get(&api, "/api/v1/users?limit=3", Some("eve")).await;
    let names = |page: &Value| -> Vec<String> {
        let items = page["items"].as_array().unwrap();
        items.iter().map(|user| user["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        (names(&first), &first["next_cursor"]),
        (vec!["ada".into(), "bob".into(), "eve".into()], &"eve".into())
    );
    let (_, rest) = get(&api, "/api/v1/users?limit=3&cursor=eve", Some("root")).await;
    assert_eq!((names(&rest), &rest["next_cursor"]), (vec!["root".into()], &Value::Null));
    assert_eq!(get(&api, "/api/v1/users", Some("ada")).await.0, StatusCode::FORBIDDEN);
    assert_eq!(get(&api, "/api/v1/users?colour=red", Some("eve")).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(get(&api, "/api/v1/users/ada", Some("ada")).await.0, StatusCode::OK);
    assert_eq!(get(&api, "/api/v1/users/bob", Some("ada")).await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(&api, "/api/v1/users/bob/tokens", Some("ada")).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn people_make_and_revoke_their_own_tokens_and_administrators_those_of_all() {
    let (mut api, _dir) = api_fixture().await;
    let own = (Method::POST, "/api/v1/users/ada/tokens");
    let (status, created) =
        send(&api, own.clone(), "ada", r#"{"name":"laptop","expires_in":"90d"}"#).await;
    assert_eq!(status, StatusCode::CREATED);
    assert_eq!((&created["name"], &created["user"]), (&"laptop".into(), &"ada".into()));
    assert!(created["expires_at"].is_string() && created.get("token_hash").is_none(), "{created}");
    api.tokens.insert("laptop".into(), created["token"].as_str().unwrap().into());
    assert_eq!(get(&api, "/api/v1/me", Some("laptop")).await.0, StatusCode::OK);

    let (status, plain) = send(&api, own.clone(), "ada", "").await;
    assert_eq!((status, &plain["expires_at"]), (StatusCode::CREATED, &Value::Null));
    for bearer in ["bob", "eve"] {
        assert_eq!(send(&api, own.clone(), bearer, "{}").await.0, StatusCode::FORBIDDEN);
    }
    assert_eq!(send(&api, own.clone(), "root", "{}").await.0, StatusCode::CREATED);
    for body in [
        r#"{"expires_in":"soon"}"#,
        r#"{"expires_at":"2020-01-01T00:00:00Z"}"#,
        r#"{"expires_at":"2120-01-01T00:00:00Z","expires_in":"1d"}"#,
        &format!(r#"{{"name":"{}"}}"#, "x".repeat(129)),
    ] {
        assert_eq!(send(&api, own.clone(), "ada", body).await.0, StatusCode::BAD_REQUEST, "{body}");
    }

    let (_, first) = get(&api, "/api/v1/users/ada/tokens?limit=3", Some("ada")).await;
    assert_eq!(first["items"].as_array().unwrap().len(), 3);
    let next =
        format!("/api/v1/users/ada/tokens?cursor={}", first["next_cursor"].as_str().unwrap());
    let (_, rest) = get(&api, &next, Some("ada")).await;
    assert_eq!((rest["items"].as_array().unwrap().len(), &rest["next_cursor"]), (1, &Value::Null));

    let path = format!("/api/v1/tokens/{}", created["id"].as_str().unwrap());
    let revoke = (Method::DELETE, path.as_str());
    assert_eq!(send(&api, revoke.clone(), "bob", "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(send(&api, revoke.clone(), "ada", "").await.0, StatusCode::NO_CONTENT);
    assert_eq!(send(&api, revoke, "root", "").await.0, StatusCode::NO_CONTENT, "again");
    let (status, refused) = get(&api, "/api/v1/me", Some("laptop")).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{refused}");
    let unknown = (Method::DELETE, "/api/v1/tokens/1");
    assert_eq!(send(&api, unknown, "root", "").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn another_method_is_refused_in_the_form_of_the_api() {
    let (api, _dir) = api_fixture().await;
    let (status, refused) = send(&api, (Method::PUT, "/api/v1/users"), "root", "{}").await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(refused["error"]["message"].as_str().unwrap().contains("PUT"), "{refused}");
}

#[tokio::test]
async fn a_body_that_cannot_be_read_gets_an_error_of_the_api() {
    let (api, _dir) = api_fixture().await;
    let long = format!(r#"{{"name":"{}"}}"#, "x".repeat(17 << 10));
    let rows = [
        ("text/plain", r#"{"name":"dan"}"#, StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("application/x-www-form-urlencoded", "name=dan", StatusCode::UNSUPPORTED_MEDIA_TYPE),
        ("application/json", long.as_str(), StatusCode::PAYLOAD_TOO_LARGE),
        ("application/json", r#"["dan",null,null]"#, StatusCode::BAD_REQUEST),
        ("Application/JSON; charset=utf-8", r#"{"name":"dan"}"#, StatusCode::CREATED),
    ];
    for (content_type, body, expected) in rows {
        for (bearer, expected) in [("ada", StatusCode::FORBIDDEN), ("root", expected)] {
            let request = Request::post("/api/v1/users")
                .header("authorization", api.authorization(bearer))
                .header("content-type", content_type)
                .body(Body::from(body.to_owned()))
                .unwrap();
            let response = api.router.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), expected, "{content_type} {bearer}");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(body["error"]["kind"].is_string(), expected != StatusCode::CREATED);
        }
    }
}
