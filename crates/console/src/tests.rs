mod accounts;
mod export;
mod openapi;
mod views;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{Request, StatusCode, request},
};
use http_body_util::BodyExt;
use jiff::{SignedDuration, Timestamp};
use keybridge_identity::{Accounts, Directory, NewUser, Role};
use keybridge_ledger::{
    Ledger, NewTokenUsage, Opening, Settlement,
    record::{Interception, Outcome, Quality},
};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tower::ServiceExt;
use uuid::Uuid;

use super::{
    ConfigProblem, Configuration, DataPath, KeyRestriction, LastErrors, LastReload, McpServer,
    MetricsAccess, Provider, ProviderKey, ReloadError, Reloaded, Setting, SettingOrigin, router,
};

/// The API, and the text of each user's token by the user's name.
struct Api {
    router: Router,
    ledger: Ledger,
    tokens: HashMap<String, String>,
}

impl Api {
    /// The `Authorization` of a user; an invalid one where there is no such user.
    fn authorization(&self, name: &str) -> String {
        format!("Bearer {}", self.tokens.get(name).map_or(name, String::as_str))
    }
}

/// The API over the records of two members, three each.
async fn api_fixture() -> (Api, tempfile::TempDir) {
    api_fixture_with(MetricsAccess::Local).await
}

async fn api_fixture_with(access: MetricsAccess) -> (Api, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/k.db", dir.path().display());
    let ledger = Ledger::open(&url).unwrap();
    let accounts = Accounts::new(ledger.clone());
    let mut tokens = HashMap::new();
    let users = [
        ("ada", Role::Member),
        ("bob", Role::Member),
        ("eve", Role::Auditor),
        ("root", Role::Admin),
    ];
    for (name, role) in users {
        let user = accounts.create_user(&NewUser { name: name.into(), email: None, role }).unwrap();
        let (_token, secret) = accounts.create_token(name, None, None).unwrap();
        for number in 0..3 {
            let mut interception = Interception::new(Uuid::now_v7(), user.id, Timestamp::now());
            interception.provider = "anthropic".into();
            interception.model = Some(format!("model-{number}"));
            interception.client_session_id = Some(format!("session-of-{name}"));
            let opening = Opening {
                interception,
                prompt: Some(format!("prompt {number} of {name}")),
                tool_results: Vec::new(),
                attachments: Vec::new(),
            };
            let mut settlement = Settlement::new(Timestamp::now(), Outcome::Completed);
            settlement.token_usages.push(NewTokenUsage {
                input_tokens: Some(10),
                output_tokens: Some(5),
                quality: Quality::Exact,
                ..NewTokenUsage::default()
            });
            if role == Role::Member {
                ledger.recorder().record(opening, settlement).await.unwrap();
            }
        }
        tokens.insert(name.to_owned(), secret.expose().to_owned());
    }
    ledger.recorder().drained().await;
    let mut registry = Registry::with_prefix("keybridge");
    ledger.register_metrics(&mut registry);
    let directory = Arc::new(Directory::new(ledger.clone()));
    let data_path = Arc::new(StaticDataPath::default());
    let router = router(ledger.clone(), directory, Arc::new(registry), data_path, access);
    (Api { router, ledger, tokens }, dir)
}

/// A data path with one MCP server, whose configuration can be reloaded once.
#[derive(Default)]
struct StaticDataPath {
    reloads: AtomicUsize,
}

#[async_trait]
impl DataPath for StaticDataPath {
    fn mcp_servers(&self) -> Vec<McpServer> {
        vec![McpServer {
            name: "wiki".into(),
            url: "http://wiki/mcp".into(),
            status: "down",
            since: "2026-11-24T00:00:00.000000Z".into(),
            protocol_version: None,
            server_info: None,
            tools: vec!["bmcp_wiki_search".into()],
            refused_tools: Vec::new(),
            tool_definitions: Vec::new(),
            error: Some("connection refused".into()),
        }]
    }

    fn providers(&self) -> Vec<Provider> {
        vec![Provider {
            name: "anthropic".into(),
            kind: "anthropic",
            base_url: "https://api.anthropic.com/".into(),
            keys: vec![ProviderKey {
                name: "main".into(),
                hint: "sk-a...cdef".into(),
                state: "resting",
                until: Some("2026-11-24T00:00:30.000000Z".into()),
                restrictions: vec![KeyRestriction {
                    endpoint: "/v1/messages".into(),
                    model: Some("claude-opus-5".into()),
                    state: "resting",
                    until: "2026-11-24T00:00:30.000000Z".into(),
                }],
            }],
            circuit_breakers: Vec::new(),
            last_errors: LastErrors { centralized: None, byok: None },
        }]
    }

    fn configuration(&self) -> Configuration {
        Configuration {
            version: "1.2.3",
            replica: Uuid::nil().to_string(),
            started_at: "2026-11-24T00:00:00.000000Z".into(),
            file: Some("keybridge.toml".into()),
            settings: vec![Setting {
                name: "server.listen".into(),
                value: "127.0.0.1:8787".into(),
                origin: SettingOrigin::Environment,
                variable: Some("KEYBRIDGE_SERVER__LISTEN".into()),
            }],
            restart_needed: vec!["server.listen"],
            last_reload: Some(LastReload {
                at: "2026-11-24T00:00:00.000000Z".into(),
                requested_by: "SIGHUP".into(),
                applied: false,
                problems: Vec::new(),
                warnings: Vec::new(),
            }),
        }
    }

    async fn reload(&self, requested_by: &str) -> Result<Reloaded, ReloadError> {
        assert_eq!(requested_by, "root through the API");
        if self.reloads.fetch_add(1, Ordering::SeqCst) == 0 {
            let restart_needed = vec!["server.listen"];
            return Ok(Reloaded { warnings: Vec::new(), restart_needed });
        }
        let problem = |path: &str| ConfigProblem { path: path.into(), message: "is wrong".into() };
        Err(ReloadError::Invalid(vec![problem("providers[0].name"), problem("server.max_body")]))
    }
}

/// `GET /metrics` from an address.
async fn metrics(api: &Api, peer: &str, header: Option<(&str, &str)>) -> (StatusCode, String) {
    let peer: SocketAddr = peer.parse().unwrap();
    let mut request = Request::get("/metrics").extension(ConnectInfo(peer));
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    let response = api.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[test]
fn own_paths_are_separate_from_those_of_providers() {
    for own in ["/api/v1/me", "/api/v1", "/healthz", "/readyz", "/metrics"] {
        assert!(super::is_own(own), "{own}");
    }
    for other in [
        "/",
        "",
        "/api",
        "/apis/v1/me",
        "/api/v2/aibridge/openai/v1/models",
        "/anthropic/v1/messages",
        "/anthropic/api/v1/me",
    ] {
        assert!(!super::is_own(other), "{other}");
    }
}

#[tokio::test]
async fn metrics_are_for_local_clients_auditors_and_administrators() {
    let (api, _dir) = api_fixture().await;
    for local in ["127.0.0.1:1000", "[::1]:1000", "[::ffff:127.0.0.1]:1000"] {
        let (status, page) = metrics(&api, local, None).await;
        assert_eq!(status, StatusCode::OK, "{local}");
        assert!(page.contains("keybridge_ledger_outage 0"), "{page}");
        assert!(page.contains("keybridge_ledger_commits_total"), "{page}");
    }
    let [ada, eve, root] = ["ada", "eve", "root"].map(|name| api.authorization(name));
    let rows = [
        ("192.0.2.1:1000", None, StatusCode::UNAUTHORIZED),
        ("127.0.0.1:1000", Some(("x-forwarded-for", "192.0.2.1")), StatusCode::UNAUTHORIZED),
        ("192.0.2.1:1000", Some(("authorization", ada.as_str())), StatusCode::FORBIDDEN),
        ("192.0.2.1:1000", Some(("authorization", eve.as_str())), StatusCode::OK),
        ("192.0.2.1:1000", Some(("authorization", root.as_str())), StatusCode::OK),
    ];
    for (peer, header, expected) in rows {
        assert_eq!(metrics(&api, peer, header).await.0, expected, "{peer} {header:?}");
    }
}

#[tokio::test]
async fn metrics_need_a_token_on_this_machine_too_where_it_is_configured() {
    let (api, _dir) = api_fixture_with(MetricsAccess::TokenOnly).await;
    let root = api.authorization("root");
    let rows = [
        (None, StatusCode::UNAUTHORIZED),
        (Some(("authorization", root.as_str())), StatusCode::OK),
    ];
    for (header, expected) in rows {
        assert_eq!(metrics(&api, "127.0.0.1:1000", header).await.0, expected, "{header:?}");
    }
}

async fn get(api: &Api, path: &str, bearer: Option<&str>) -> (StatusCode, Value) {
    call(api, Request::get(path), bearer).await
}

async fn call(
    api: &Api,
    mut request: request::Builder,
    bearer: Option<&str>,
) -> (StatusCode, Value) {
    if let Some(bearer) = bearer {
        request = request.header("authorization", api.authorization(bearer));
    }
    let response = api.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn a_member_sees_their_own_records_and_an_auditor_all() {
    let (api, _dir) = api_fixture().await;
    for (bearer, count) in [("ada", 3), ("bob", 3), ("eve", 6)] {
        let (status, list) = get(&api, "/api/v1/interceptions", Some(bearer)).await;
        assert_eq!((status, list["items"].as_array().unwrap().len()), (StatusCode::OK, count));
    }
    let (_, list) = get(&api, "/api/v1/interceptions?user=bob", Some("ada")).await;
    assert_eq!(list["items"], serde_json::json!([]));
    let (_, of_bob) = get(&api, "/api/v1/interceptions", Some("bob")).await;
    let path = format!("/api/v1/interceptions/{}", of_bob["items"][0]["id"].as_str().unwrap());
    assert_eq!(get(&api, &path, Some("ada")).await.0, StatusCode::NOT_FOUND);
    let (status, detail) = get(&api, &path, Some("eve")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(detail["prompts"][0]["prompt"], "prompt 2 of bob");
    assert_eq!((&detail["input_tokens"], &detail["user"]), (&10.into(), &"bob".into()));
    assert_eq!(
        get(&api, "/api/v1/sessions/session-of-bob", Some("ada")).await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn lists_are_filtered_and_paged_newest_first() {
    let (api, _dir) = api_fixture().await;
    let (_, first) = get(&api, "/api/v1/interceptions?limit=2", Some("ada")).await;
    assert_eq!(first["items"][0]["model"], "model-2");
    let cursor = first["next_cursor"].as_str().unwrap();
    let path = format!("/api/v1/interceptions?limit=2&cursor={cursor}");
    let (_, second) = get(&api, &path, Some("ada")).await;
    assert_eq!(
        (second["items"].as_array().unwrap().len(), &second["next_cursor"]),
        (1, &Value::Null)
    );
    let (_, found) = get(&api, "/api/v1/interceptions?q=PROMPT%201&since=1h", Some("eve")).await;
    assert_eq!(found["items"].as_array().unwrap().len(), 2);
    let (_, none) = get(&api, "/api/v1/interceptions?outcome=failed", Some("eve")).await;
    assert_eq!(none["items"], serde_json::json!([]));
}

#[tokio::test]
async fn sessions_have_sums_and_their_interceptions_in_order() {
    let (api, _dir) = api_fixture().await;
    let (_, list) = get(&api, "/api/v1/sessions", Some("eve")).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    let (_, one) = get(&api, "/api/v1/sessions/session-of-ada", Some("ada")).await;
    assert_eq!((&one["requests"], &one["input_tokens"]), (&3.into(), &30.into()));
    assert_eq!(one["models"], serde_json::json!(["model-0", "model-1", "model-2"]));
    assert_eq!(one["interceptions"][0]["model"], "model-0");
    assert_eq!((&one["in_progress"], &one["next_cursor"]), (&0.into(), &Value::Null));
    let mut path = "/api/v1/sessions/session-of-ada?user=ada&limit=2".to_owned();
    let (_, first) = get(&api, &path, Some("eve")).await;
    assert_eq!(first["interceptions"].as_array().unwrap().len(), 2);
    path.push_str(&format!("&cursor={}", first["next_cursor"].as_str().unwrap()));
    let (_, second) = get(&api, &path, Some("eve")).await;
    assert_eq!(second["interceptions"][0]["model"], "model-2");
    assert_eq!(second["next_cursor"], Value::Null);
    let (_, some) =
        get(&api, "/api/v1/sessions?model=model-1&outcome=completed", Some("eve")).await;
    assert_eq!(some["items"].as_array().unwrap().len(), 2);
    let (_, none) = get(&api, "/api/v1/sessions?outcome=failed&since=1d", Some("eve")).await;
    assert_eq!(none["items"], serde_json::json!([]));
}

#[tokio::test]
async fn usage_is_summed_by_what_is_asked_and_a_member_sees_their_own() {
    let (api, _dir) = api_fixture().await;
    let (status, all) = get(&api, "/api/v1/usage?group_by=user,model", Some("eve")).await;
    assert_eq!(status, StatusCode::OK, "{all}");
    let items = all["items"].as_array().unwrap();
    assert_eq!(items.len(), 6);
    let first = &items[0];
    assert_eq!((&first["user"], &first["model"]), (&"ada".into(), &"model-0".into()));
    assert_eq!((&first["requests"], &first["input_tokens"]), (&1.into(), &10.into()));
    assert!(first.get("day").is_none() && first["estimated"].is_object());
    assert_eq!((&all["total"]["requests"], &all["in_progress"]), (&6.into(), &0.into()));
    let path = "/api/v1/usage?group_by=day&time_zone=Asia/Kolkata&since=2d";
    let (_, own) = get(&api, path, Some("ada")).await;
    assert_eq!(own["total"]["requests"], 3);
    assert_eq!((&own["time_zone"], &own["approximate"]), (&"Asia/Kolkata".into(), &false.into()));
    let (_, of_bob) = get(&api, "/api/v1/usage?user=bob", Some("ada")).await;
    assert_eq!(of_bob["total"]["requests"], 0);
    let (_, of_bob) = get(&api, "/api/v1/usage?user=bob&client=none", Some("eve")).await;
    assert_eq!(of_bob["items"], serde_json::json!([]));
}

#[tokio::test]
async fn invalid_requests_name_the_invalid_parameter() {
    let (api, _dir) = api_fixture().await;
    let rows = [
        ("/api/v1/interceptions?colour=red", "colour"),
        ("/api/v1/interceptions?limit=0", "limit"),
        ("/api/v1/interceptions?limit=501", "limit"),
        ("/api/v1/interceptions?since=tomorrow", "since"),
        ("/api/v1/interceptions?outcome=fine", "outcome"),
        ("/api/v1/interceptions?thread=1", "thread"),
        ("/api/v1/interceptions?credential_kind=x", "credential_kind"),
        ("/api/v1/interceptions?cursor=x", "cursor"),
        ("/api/v1/interceptions?q=%22*", "q"),
        ("/api/v1/sessions?q=-", "q"),
        ("/api/v1/sessions/session-of-ada?cursor=x", "cursor"),
        ("/api/v1/usage?group_by=colour", "group_by"),
        ("/api/v1/usage?group_by=day,day", "group_by"),
        ("/api/v1/usage?time_zone=Mars", "time_zone"),
        ("/api/v1/usage?since=1h&until=2h", "since"),
    ];
    for (path, word) in rows {
        let (status, answer) = get(&api, path, Some("ada")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(word), "{answer}");
    }
    for path in [
        "/api/v1/interceptions?q=%zz",
        "/api/v1/interceptions?q=%ff",
        "/api/v1/interceptions?q=a%00b",
        "/api/v1/interceptions?user=ada&user=bob",
        "/api/v1/interceptions?limit=99999999999999999999",
        "/api/v1/sessions/%ff",
        "/api/v1/sessions/a%00b",
        "/api/v1/users/ada%00",
    ] {
        let (status, answer) = get(&api, path, Some("ada")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {answer}");
        assert_eq!(answer["error"]["kind"], "invalid_request", "{path}: {answer}");
    }
    for path in ["/api/v1/nothing", "/api/nothing", "/healthz/nothing"] {
        let (status, answer) = get(&api, path, Some("ada")).await;
        assert_eq!(
            (status, &answer["error"]["kind"]),
            (StatusCode::NOT_FOUND, &"not_found".into())
        );
    }
    for bearer in [None, Some("nobody")] {
        let (status, answer) = get(&api, "/api/v1/me", bearer).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert_eq!(answer["error"]["kind"], "authentication");
    }
}

#[tokio::test]
async fn probes_need_no_token_and_me_shows_no_hash() {
    let (api, _dir) = api_fixture().await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(&api, path, None).await.0, StatusCode::OK, "{path}");
    }
    let (_, me) = get(&api, "/api/v1/me", Some("ada")).await;
    assert_eq!((&me["user"]["name"], &me["role"]), (&"ada".into(), &"member".into()));
    assert!(me["token"].get("token_hash").is_none() && me["token"]["hint"].is_string());
}

#[tokio::test]
async fn providers_are_shown_to_auditors_and_administrators() {
    let (api, _dir) = api_fixture().await;
    for bearer in ["eve", "root"] {
        let (status, list) = get(&api, "/api/v1/providers", Some(bearer)).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(list["items"][0]["type"], "anthropic");
        let key = &list["items"][0]["keys"][0];
        assert_eq!(key["state"], "resting");
        assert_eq!(key["restrictions"][0]["model"], "claude-opus-5");
        assert!(list["items"][0]["last_errors"]["byok"].is_null());
    }
    assert_eq!(get(&api, "/api/v1/providers", Some("ada")).await.0, StatusCode::FORBIDDEN);
    assert_eq!(get(&api, "/api/v1/providers", None).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn mcp_servers_are_shown_to_auditors_and_administrators() {
    let (api, _dir) = api_fixture().await;
    for bearer in ["eve", "root"] {
        let (status, list) = get(&api, "/api/v1/mcp", Some(bearer)).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(list["items"][0]["status"], "down");
        assert_eq!(list["items"][0]["tools"][0], "bmcp_wiki_search");
    }
    let (status, refused) = get(&api, "/api/v1/mcp", Some("ada")).await;
    assert_eq!((status, &refused["error"]["kind"]), (StatusCode::FORBIDDEN, &"permission".into()));
    assert_eq!(get(&api, "/api/v1/mcp", None).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_configuration_is_shown_to_auditors_and_administrators() {
    let (api, _dir) = api_fixture().await;
    for bearer in ["eve", "root"] {
        let (status, configuration) = get(&api, "/api/v1/config", Some(bearer)).await;
        assert_eq!((status, &configuration["version"]), (StatusCode::OK, &"1.2.3".into()));
        assert_eq!(configuration["settings"][0]["origin"], "environment");
        assert_eq!(configuration["last_reload"]["requested_by"], "SIGHUP");
    }
    let (status, refused) = get(&api, "/api/v1/config", Some("ada")).await;
    assert_eq!((status, &refused["error"]["kind"]), (StatusCode::FORBIDDEN, &"permission".into()));
    assert_eq!(get(&api, "/api/v1/config", None).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn administrators_reload_the_configuration() {
    let (api, _dir) = api_fixture().await;
    let path = "/api/v1/config/reload";
    assert_eq!(call(&api, Request::post(path), None).await.0, StatusCode::UNAUTHORIZED);
    for bearer in ["ada", "eve"] {
        assert_eq!(call(&api, Request::post(path), Some(bearer)).await.0, StatusCode::FORBIDDEN);
    }
    let (status, reloaded) = call(&api, Request::post(path), Some("root")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(reloaded, json!({ "warnings": [], "restart_needed": ["server.listen"] }));
    let (status, refused) = call(&api, Request::post(path), Some("root")).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(refused["error"]["kind"], "invalid_configuration");
    assert_eq!(refused["error"]["problems"][1]["path"], "server.max_body");
}

#[tokio::test]
async fn what_needs_attention_is_listed_worst_first_and_to_whom_it_concerns() {
    let (api, _dir) = api_fixture().await;
    let (status, nothing) = get(&api, "/api/v1/attention", Some("ada")).await;
    assert_eq!((status, &nothing["items"]), (StatusCode::OK, &serde_json::json!([])));
    let accounts = Accounts::new(api.ledger.clone());
    for (user, days) in [("ada", 3), ("ada", 30), ("bob", 5)] {
        let ends = Timestamp::now() + SignedDuration::from_hours(24 * days);
        accounts.create_token(user, Some("ends"), Some(ends)).unwrap();
    }
    let (_, own) = get(&api, "/api/v1/attention", Some("ada")).await;
    let own = own["items"].as_array().unwrap();
    assert_eq!(own.len(), 1);
    assert_eq!((&own[0]["kind"], &own[0]["severity"]), (&"token_ends".into(), &"notice".into()));
    assert_eq!(own[0]["path"], "/api/v1/users/ada/tokens");
    let (_, all) = get(&api, "/api/v1/attention", Some("eve")).await;
    let kinds: Vec<&str> = all["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["mcp_server_down", "token_ends", "token_ends"]);
}
