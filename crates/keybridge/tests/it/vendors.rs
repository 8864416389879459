//! What vendors do differently: how a credential is sent, where the model is, what is added to a query.

use std::{
    collections::BTreeSet, fs, os::unix::fs::PermissionsExt, process::Command, time::Duration,
};

use http::HeaderValue;
use keybridge_providers::{
    config::{Fallback, ProviderConfig, ProviderType, QueryParameter},
    vendors::{CredentialForm, Profile},
};
use keybridge_sim::{Exchange, KeyOverride};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    binary::BINARY,
    support::{OPENAI_KEY, World, body, dumps, pool_key, provider},
};

const CHAT: &str = "/v1/chat/completions";
const OWN_KEY: &str = "own-azure-key-0123456789";
/// What a client names in its query.
const VERSION: &str = "?api-version=2025-04-01-preview";

/// A provider of a profile at a path of the simulator.
fn vendor(name: &str, profile: &str, base: &str, path: &str) -> ProviderConfig {
    let mut config = provider(ProviderType::OpenAi, base);
    config.name = name.into();
    config.profile = Profile::named(profile).unwrap().clone();
    config.base_url = format!("{base}{path}").parse().unwrap();
    if config.profile.key_optional || config.profile.credential == CredentialForm::None {
        config.keys.clear();
    }
    config
}

/// A world with further providers.
async fn world(vendors: &[(&str, &str, &str)]) -> World {
    World::with(|config| {
        let base = config.providers[1].base_url.to_string().replace("/openai/v1", "");
        for (name, profile, path) in vendors {
            config.providers.push(vendor(name, profile, &base, path));
        }
    })
    .await
}

/// The values of the headers in which credentials are sent.
fn credentials(exchange: &Exchange) -> Vec<(String, String)> {
    let names = ["authorization", "x-api-key", "api-key", "x-goog-api-key"];
    let headers = exchange.headers.iter().filter(|(name, _)| names.contains(&name.as_str()));
    headers
        .map(|(name, value)| (name.clone(), String::from_utf8_lossy(value).into_owned()))
        .collect()
}

fn one(name: &str, value: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), value.to_owned())]
}

#[tokio::test]
async fn an_azure_client_reaches_several_deployments_of_one_provider() {
    let world = world(&[("azure", "azure-openai-deployments", "/azure/openai")]).await;
    for (count, deployment) in [(1, "gpt-x"), (2, "gpt-5.1_eu")] {
        let path = format!("/azure/openai/deployments/{deployment}/chat/completions{VERSION}");
        let request = body(CHAT, "text", count == 1);
        let headers = [("api-key", world.token.as_str())];
        let answer = world.send(world.post(&path, &headers, request.clone())).await;
        assert_status!(answer, 200);
        let sent = world.last_exchange();
        assert_eq!(sent.problems, Vec::<String>::new());
        assert_eq!(sent.path_and_query, path);
        assert_eq!(credentials(&sent), one("api-key", OPENAI_KEY));
        assert_eq!(sent.body, request.as_bytes(), "the body's model says nothing");
        let record = world.settled_records(count).await.pop().unwrap();
        assert_eq!(
            (&record["model"], &record["endpoint"], &record["credential_scheme"]),
            (&deployment.into(), &CHAT.into(), &"api_key".into())
        );
        assert_eq!(record["body_edits"], json!([]));
    }
}

#[tokio::test]
async fn a_client_without_deployments_reaches_the_one_that_its_model_names() {
    let world = world(&[("azure", "azure-openai-deployments", "/azure/openai")]).await;
    let request = || world.centralized("/azure/v1/chat/completions", &body(CHAT, "text", false));
    assert_status!(world.send(request()).await, 200);
    let sent = world.last_exchange().path_and_query;
    let path = "/azure/openai/deployments/sim-text/chat/completions";
    assert_eq!(sent, format!("{path}?api-version=2024-10-21"));
    let traversal = body(CHAT, "text", false).replace("sim-text", "../../admin");
    let answer = world.send(world.centralized("/azure/v1/chat/completions", &traversal)).await;
    assert_status!(answer, 400);
    assert!(answer.text().contains("the name of a deployment"), "{}", answer.text());
    assert_eq!(world.sim.exchanges().len(), 1);
    let record = world.settled_records(2).await.pop().unwrap();
    assert_eq!(record["outcome"], "refused");
}

#[tokio::test]
async fn a_deployment_becomes_the_model_where_the_body_names_it() {
    let world = world(&[("azure", "azure-openai", "/azure/openai/v1")]).await;
    let path = "/azure/openai/deployments/sim-cached/chat/completions?api-version=2024-10-21";
    let answer = world.send(world.centralized(path, &body(CHAT, "text", true))).await;
    assert_status!(answer, 200);
    let sent = world.last_exchange();
    assert_eq!(sent.path_and_query, "/azure/openai/v1/chat/completions?api-version=2024-10-21");
    let expected = body(CHAT, "text", true).replace("\"sim-text\"", "\"sim-cached\"");
    assert_eq!(String::from_utf8_lossy(&sent.body), expected, "nothing else is changed");
    let record = world.settled_record().await;
    assert_eq!(
        (&record["model"], &record["body_edits"]),
        (&"sim-cached".into(), &json!(["model"]))
    );
    // The SDK for the newer API names the deployment in the body alone.
    let path = "/azure/openai/v1/chat/completions";
    assert_status!(world.send(world.centralized(path, &body(CHAT, "text", false))).await, 200);
    assert_eq!(world.last_exchange().path_and_query, path);
}

#[tokio::test]
async fn a_deployment_can_be_part_of_the_base_url() {
    let path = "/azure/openai/deployments/gpt-x";
    let world = world(&[("azure", "azure-openai-deployments", path)]).await;
    let request = body(CHAT, "text", false);
    assert_status!(
        world.send(world.centralized("/azure/v1/chat/completions", &request)).await,
        200
    );
    let sent = world.last_exchange();
    let version = "?api-version=2024-10-21";
    assert_eq!(sent.path_and_query, format!("{path}/chat/completions{version}"));
    let record = world.settled_record().await;
    assert_eq!((&record["model"], &record["body_edits"]), (&"sim-text".into(), &json!([])));
}

#[tokio::test]
async fn a_server_without_keys_is_sent_no_credential() {
    let world =
        world(&[("local", "ollama", "/keyless/v1"), ("optional", "vllm", "/keyless/v1")]).await;
    let own = format!("Bearer {OWN_KEY}");
    let byok = [("x-ai-governance-token", world.token.as_str()), ("authorization", own.as_str())];
    let bearer = format!("Bearer {}", world.token);
    let centralized = [("authorization", bearer.as_str()), ("api-key", OWN_KEY)];
    for (count, (name, headers)) in
        [("local", &centralized), ("local", &byok), ("optional", &centralized)].iter().enumerate()
    {
        let path = format!("/{name}{CHAT}");
        let answer = world.send(world.post(&path, *headers, body(CHAT, "text", true))).await;
        assert_status!(answer, 200, "{name}");
        let sent = world.last_exchange();
        assert_eq!(sent.problems, Vec::<String>::new());
        assert_eq!(credentials(&sent), []);
        let record = world.settled_records(count + 1).await.pop().unwrap();
        assert_eq!(
            (&record["credential_kind"], &record["credential_source"]),
            (&"centralized".into(), &"none".into())
        );
        for empty in ["scheme", "hint", "length", "fingerprint"] {
            assert!(record[format!("credential_{empty}")].is_null(), "{record:#}");
        }
    }
    let states = world.bridge.provider_states();
    assert!(states.iter().filter(|state| state.keys.is_empty()).count() >= 2);
}

#[tokio::test]
async fn the_callers_own_credential_is_sent_in_the_header_that_it_came_in() {
    let world = world(&[("azure", "azure-openai", "/azure/openai/v1")]).await;
    let bearer = format!("Bearer {OWN_KEY}");
    let token = ("x-ai-governance-token", world.token.as_str());
    let rows = [
        (vec![token, ("api-key", OWN_KEY)], one("api-key", OWN_KEY)),
        (vec![token, ("authorization", &*bearer)], one("authorization", &bearer)),
        (
            vec![token, ("api-key", OWN_KEY), ("authorization", "Bearer other")],
            one("api-key", OWN_KEY),
        ),
        // What this vendor does not take is not sent to it.
        (
            vec![token, ("x-api-key", OWN_KEY), ("x-goog-api-key", OWN_KEY)],
            one("api-key", OPENAI_KEY),
        ),
        (vec![token, ("api-key", "Basic dXNlcjpwYXNz")], one("api-key", OPENAI_KEY)),
        (vec![token, ("api-key", &*world.token)], one("api-key", OPENAI_KEY)),
    ];
    for (headers, expected) in rows {
        let path = "/azure/v1/chat/completions?key=own&a=1";
        let answer = world.send(world.post(path, &headers, body(CHAT, "text", false))).await;
        assert_status!(answer, 200, "{headers:?}");
        let sent = world.last_exchange();
        assert_eq!(credentials(&sent), expected, "{headers:?}");
        assert_eq!(sent.path_and_query, "/azure/openai/v1/chat/completions?a=1");
    }
}

#[tokio::test]
async fn a_bridge_token_is_found_in_the_headers_and_the_query_of_every_sdk() {
    let world = World::start().await;
    let token = world.token.clone();
    for name in ["api-key", "x-goog-api-key", "x-api-key"] {
        let headers = [(name, token.as_str())];
        let answer =
            world.send(world.post("/openai/v1/responses", &headers, body("", "text", false))).await;
        assert_status!(answer, 200, "{name}");
        let bearer = format!("Bearer {OPENAI_KEY}");
        assert_eq!(credentials(&world.last_exchange()), one("authorization", &bearer));
    }
    let path = format!("/openai/v1/responses?a=1&key={token}");
    let answer = world.send(world.post(&path, &[], body("", "text", false))).await;
    assert_status!(answer, 200);
    assert_eq!(world.last_exchange().path_and_query, "/openai/v1/responses?a=1");
}

#[tokio::test]
async fn secrets_of_headers_and_queries_are_sent_and_shown_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::with(|config| {
        let openai = &mut config.providers[1];
        openai.dump = Some(dumps(dir.path()));
        let subscription = QueryParameter {
            name: "subscription".into(),
            value: "query/secret-0123456789".to_owned().into(),
        };
        openai.set_query = vec![subscription];
        let mut gateway = HeaderValue::from_static("header-secret-0123456789");
        gateway.set_sensitive(true);
        openai.set_headers = vec![("x-gateway".parse().unwrap(), gateway)];
    })
    .await;
    // The simulated provider quotes an unknown scenario.
    let request =
        r#"{"model":"sim-query/secret-0123456789-header-secret-0123456789","input":"hello"}"#;
    let path = "/openai/v1/responses?subscription=mine&b=2";
    let answer = world.send(world.centralized(path, request)).await;
    assert_status!(answer, 400);
    let sent = world.last_exchange();
    assert_eq!(
        sent.path_and_query,
        "/openai/v1/responses?b=2&subscription=query%2Fsecret-0123456789"
    );
    let record = world.settled_record().await;
    let message = record["error_message"].as_str().unwrap();
    assert!(message.contains("quer...6789") && message.contains("head...6789"), "{message}");
    // Dumps are written beside the request.
    let deadline = Instant::now() + Duration::from_secs(10);
    let dumped = loop {
        let files = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path());
        let mut texts = files.map(|file| fs::read_to_string(file).unwrap_or_default());
        if let Some(dumped) = texts.find(|text| text.starts_with("POST ") && text.contains("\n\n"))
        {
            break dumped;
        }
        assert!(Instant::now() < deadline, "no dump was written");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let head = dumped.split("\n\n").next().unwrap();
    assert!(head.contains("b=2&subscription=***\n"), "{head}");
    assert!(!head.contains("secret-0123456789"), "{head}");
}

#[tokio::test]
async fn a_fallback_may_be_another_vendor_with_another_model() {
    let world = World::with(|config| {
        let base = config.providers[1].base_url.to_string().replace("/openai/v1", "");
        config.providers.push(vendor("azure", "azure-openai", &base, "/azure/openai/v1"));
        config.providers.push(vendor("local", "ollama", &base, "/keyless/v1"));
        let to = |provider: &str| {
            Some(Fallback { provider: provider.into(), model: Some("sim-cached".into()) })
        };
        config.providers[1].keys = vec![pool_key("main", OPENAI_KEY), pool_key("next", "sk-next")];
        config.providers[1].fallback = to("azure");
        config.providers[3].keys = vec![pool_key("azure", OWN_KEY)];
        config.providers[3].fallback = to("local");
    })
    .await;
    let path = "/openai/v1/chat/completions";
    for key in [OPENAI_KEY, "sk-next"] {
        world.sim.override_key(key, Some(KeyOverride { status: 401, retry_after: None }));
    }
    let answer = world.send(world.centralized(path, &body(path, "text", true))).await;
    assert_status!(answer, 200);
    let sent = world.last_exchange();
    assert_eq!(sent.path_and_query, "/azure/openai/v1/chat/completions");
    assert_eq!(credentials(&sent), one("api-key", OWN_KEY));
    let expected = body(path, "text", true).replace("sim-text", "sim-cached");
    assert_eq!(String::from_utf8_lossy(&sent.body), expected);
    let record = world.settled_record().await;
    assert_eq!(
        (&record["model"], &record["model_served"], &record["body_edits"]),
        (&"sim-text".into(), &"sim-cached".into(), &json!(["model"]))
    );
    assert_eq!(
        (&record["provider"], &record["credential_source"], &record["credential_scheme"]),
        (&"azure".into(), &"pool:azure".into(), &"api_key".into())
    );
}

#[tokio::test]
async fn a_server_without_keys_can_be_the_fallback() {
    let world = World::with(|config| {
        let base = config.providers[1].base_url.to_string().replace("/openai/v1", "");
        config.providers.push(vendor("local", "ollama", &base, "/keyless/v1"));
        config.providers[1].fallback = Some("local".into());
    })
    .await;
    world.sim.override_key(OPENAI_KEY, Some(KeyOverride { status: 429, retry_after: Some(60) }));
    let path = "/openai/v1/chat/completions";
    let answer = world.send(world.centralized(path, &body(path, "text", false))).await;
    assert_status!(answer, 200);
    assert_eq!(credentials(&world.last_exchange()), []);
    let record = world.settled_record().await;
    assert_eq!(
        (&record["provider"], &record["credential_source"], &record["body_edits"]),
        (&"local".into(), &"none".into(), &json!([]))
    );
}

#[test]
fn every_example_of_the_documentation_is_valid_and_every_profile_has_one() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/providers.md");
    let page = fs::read_to_string(page).unwrap();
    let examples: Vec<&str> =
        page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keybridge.toml");
    let quoted = |line: &str| line.split('"').nth(1).unwrap().to_owned();
    let mut named = BTreeSet::new();
    for example in &examples {
        fs::write(&file, example).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let variables = example.split("env = ").skip(1).map(|rest| (quoted(rest), "sk-0123456789"));
        let checked = Command::new(BINARY)
            .arg("check")
            .env_clear()
            .envs(variables)
            .current_dir(dir.path())
            .output()
            .unwrap();
        let (out, err) = (checked.stdout, checked.stderr);
        let [out, err] = [out, err].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(checked.status.success(), "{example}\n{err}");
        assert!(out.contains("valid") && err.is_empty(), "{example}\n{out}{err}");
        named.extend(example.lines().filter(|line| line.starts_with("profile = ")).map(quoted));
    }
    let profiles: BTreeSet<String> = Profile::names().map(str::to_owned).collect();
    assert_eq!(named, profiles);
}
