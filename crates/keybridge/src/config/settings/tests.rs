use serde_json::{Value, json};

use super::{Origin, Setting, Settings, masked_url};
use crate::{
    config::{Config, Overrides},
    env::Env,
};

/// What must not be shown anywhere.
const CANARY: &str = "canary-0123456789";

fn parse(text: &str, env: &Env, overrides: &Overrides) -> Settings {
    Config::parse(text, env, overrides).unwrap().settings
}

fn setting<'a>(settings: &'a Settings, name: &str) -> &'a Setting {
    settings.settings.iter().find(|setting| setting.name == name).expect(name)
}

fn shown(settings: &Settings, name: &str) -> (Value, Origin) {
    let Setting { value, origin, .. } = setting(settings, name);
    (value.clone(), origin.clone())
}

#[test]
fn each_setting_says_where_its_value_comes_from() {
    let text = r#"
        [server]
        max_body = "1 MiB"
        keep_alive = "9s"
        listen = "127.0.0.1:1"
        [[providers]]
        name = "main"
        type = "anthropic"
        max_retries = 5
        keys = [{ name = "a", env = "KEY" }]
    "#;
    let env = Env::from([
        ("KEY", CANARY),
        ("KEYBRIDGE_SERVER__KEEP_ALIVE", "20s"),
        ("KEYBRIDGE_SERVER__TRUSTED_PROXIES", r#"["10.0.0.0/8"]"#),
        ("KEYBRIDGE_PROVIDERS__MAIN__MAX_RETRIES", "7"),
    ]);
    let overrides = Overrides { listen: Some("127.0.0.1:2".into()), store: None };
    let settings = parse(text, &env, &overrides);
    let variable = |name: &str| Origin::Environment(format!("KEYBRIDGE_{name}"));
    let rows = [
        ("server.max_body", json!("1 MiB"), Origin::File),
        ("server.keep_alive", json!("20s"), variable("SERVER__KEEP_ALIVE")),
        ("server.trusted_proxies", json!(["10.0.0.0/8"]), variable("SERVER__TRUSTED_PROXIES")),
        ("server.listen", json!("127.0.0.1:2"), Origin::CommandLine),
        ("server.shutdown_grace", json!("30s"), Origin::Default),
        ("server.public_url", Value::Null, Origin::Default),
        ("server.tls", Value::Null, Origin::Default),
        ("ledger.retention_max_fraction", json!(0.5), Origin::Default),
        ("store.url", json!("sqlite://keybridge.db"), Origin::Default),
        ("mcp_servers", json!([]), Origin::Default),
        ("providers[0].name", json!("main"), Origin::File),
        ("providers[0].max_retries", json!(7), variable("PROVIDERS__MAIN__MAX_RETRIES")),
        ("providers[0].keys[0].env", json!("KEY"), Origin::File),
        ("providers[0].keys[0].value", Value::Null, Origin::Default),
        ("providers[0].timeouts.connect", json!("10s"), Origin::Default),
    ];
    for (name, value, origin) in rows {
        assert_eq!(shown(&settings, name), (value, origin), "{name}");
    }
    let names: std::collections::BTreeSet<_> = settings.settings.iter().map(|s| &s.name).collect();
    assert_eq!(names.len(), settings.settings.len(), "each once");
}

#[test]
fn the_default_providers_come_from_nowhere() {
    let env = Env::from([("ANTHROPIC_API_KEY", CANARY)]);
    let settings = parse("", &env, &Overrides::default());
    assert_eq!(shown(&settings, "providers[0].type"), (json!("anthropic"), Origin::Default));
    assert_eq!(
        shown(&settings, "providers[0].keys[0].env"),
        (json!("ANTHROPIC_API_KEY"), Origin::Default)
    );
    assert!(!format!("{settings:?}").contains(CANARY));
}

#[test]
fn a_secret_is_shown_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, CANARY).unwrap();
    let file = file.display();
    let text = format!(
        r#"
        [store]
        url = "postgres://bridge:{CANARY}@db/records?sslmode=require&options={CANARY}"
        [egress]
        proxy = "http://user:{CANARY}@proxy:3128"
        [[providers]]
        name = "a"
        type = "anthropic"
        keys = [{{ name = "v", value = "{CANARY}" }}, {{ name = "f", file = "{file}" }}]
        set_headers = {{ X-One = "{CANARY}", X-Two = {{ value = "{CANARY}" }}, X-Three = {{ env = "SECRET" }} }}
        set_query = {{ one = "{CANARY}", two = {{ value = "{CANARY}" }} }}
        query = {{ api-version = "2026-01-01", key = "{CANARY}" }}
        [[providers]]
        name = "b"
        type = "bedrock"
        [providers.bedrock]
        region = "eu-central-1"
        model = "anthropic.claude"
        access_key_id = "{CANARY}"
        secret_access_key = {{ value = "{CANARY}" }}
        session_token = "{CANARY}"
        [[mcp_servers]]
        name = "wiki"
        url = "https://mcp.example.com/mcp?token={CANARY}&{CANARY}"
        headers = {{ Authorization = "Bearer {CANARY}", X-Key = {{ value = "{CANARY}" }} }}
        "#
    );
    let env = Env::from([
        ("SECRET", CANARY),
        ("KEYBRIDGE_PROVIDERS__A__KEYS__0__VALUE", CANARY),
        ("KEYBRIDGE_PROVIDERS__A__SET_HEADERS__X_FOUR", CANARY),
        ("KEYBRIDGE_MCP_SERVERS__WIKI__HEADERS__X_FIVE", CANARY),
    ]);
    let settings = parse(&text, &env, &Overrides::default());
    assert!(!format!("{settings:?}").contains(CANARY), "{settings:#?}");
    let rows = [
        ("store.url", "postgres://bridge:***@db/records?sslmode=require&options=***"),
        ("egress.proxy", "***"),
        ("providers[0].keys[0].value", "***"),
        ("providers[0].set_headers.X-One", "***"),
        ("providers[0].set_query.two.value", "***"),
        ("providers[0].query.api-version", "2026-01-01"),
        ("providers[0].query.key", "***"),
        ("providers[1].bedrock.session_token", "***"),
        ("mcp_servers[0].url", "https://mcp.example.com/mcp?token=***&***"),
        ("mcp_servers[0].headers.Authorization", "***"),
    ];
    for (name, value) in rows {
        assert_eq!(setting(&settings, name).value, value, "{name}");
    }
}

#[test]
fn a_url_is_shown_without_what_may_be_secret() {
    let rows = [
        ("postgres://u:p@h/db", "postgres://u:***@h/db"),
        ("postgres://u:p@ss@h/db", "postgres://u:***@h/db"),
        ("postgres://u:p/s?s#s@h/db", "postgres://u:***@h/db"),
        ("postgresql://u@h/db?password=p", "postgresql://u@h/db?password=***"),
        ("https://token@h/x", "https://***@h/x"),
        ("https://h/x#token", "https://h/x#***"),
        ("https://h:1/x?api-version=1&k=v", "https://h:1/x?api-version=1&k=***"),
        ("sqlite://keybridge.db", "sqlite://keybridge.db"),
    ];
    for (url, expected) in rows {
        assert_eq!(masked_url(url).as_deref(), Some(expected), "{url}");
    }
    assert_eq!(masked_url("127.0.0.1:8787"), None);
}

#[test]
fn settings_that_need_a_restart_keep_their_values() {
    let current =
        parse("[server]\nlisten = \"127.0.0.1:1\"", &Env::default(), &Overrides::default());
    let text = "[server]\nlisten = \"127.0.0.1:2\"\nmax_body = \"1 MiB\"";
    let mut new = parse(text, &Env::default(), &Overrides::default());
    new.keep(&current, &["server.listen", "server.tls"]);
    assert_eq!(setting(&new, "server.listen").value, "127.0.0.1:1");
    assert_eq!(setting(&new, "server.max_body").value, "1 MiB");
    assert_eq!(new.settings.len(), current.settings.len());
}
