use std::time::Duration;

use keybridge_console::MetricsAccess;
use keybridge_ledger::RetentionPolicy;
use keybridge_providers::{
    bedrock::{AwsSource, BedrockApi},
    config::KeySelection,
};
use keybridge_telemetry::log::LogFormat;

use super::{Config, OfflineStart, Overrides};
use crate::env::Env;

fn parse(text: &str, env: &Env) -> Result<Config, Vec<String>> {
    Config::parse(text, env, &Overrides::default())
        .map_err(|problems| problems.0.iter().map(ToString::to_string).collect())
}

fn problems(text: &str) -> Vec<String> {
    parse(text, &Env::default()).unwrap_err()
}

#[test]
fn an_empty_configuration_is_valid() {
    let config = parse("", &Env::from([("ANTHROPIC_API_KEY", "sk-ant-1")])).unwrap();
    let names: Vec<_> = config.providers.iter().map(|p| (p.name.as_str(), p.keys.len())).collect();
    assert_eq!(names, [("anthropic", 1), ("openai", 0), ("copilot", 0)]);
    assert_eq!(config.listen.to_string(), "127.0.0.1:8787");
    assert_eq!(config.public_url, "http://127.0.0.1:8787");
    assert!(!format!("{config:?}").contains("sk-ant-1"), "keys do not print");
}

#[test]
fn every_problem_is_listed_at_once_with_its_path() {
    let text = r#"
        colour = "red"
        [server]
        listen = "nowhere"
        max_body = "much"
        shutdown_grace = 5
        keep_alive = 0
        max_concurrent_requests = "many"
        trusted_proxies = ["10.0.0.0/8", "192.0.2.1", "10.0.0.0/40", "proxy"]
        min_body_rate = "fast"
        [store]
        url = "postgres:///x"
        max_connections = 0
        read_timeout = 0
        [ledger]
        durability = "stone"
        on_outage = "hope"
        spool_max_bytes = "0"
        spool_max_age = "long"
        [telemetry]
        metrics_listen = "9090"
        [telemetry.log]
        format = "xml"
        [[providers]]
        name = "api"
        type = "anthropic"
        base_url = "ftp://x"
        keys = [{ env = "NOT_SET" }]
        shiny = true
        [[providers]]
        type = "openai"
        keys = [{ name = "a", value = "x", file = "y" }]
        timeouts = { idle = "0" }
        max_retries = 11
        [[providers]]
        type = "openai"
        [[providers]]
        type = "bedrock"
        [[providers]]
        name = "Big--Name"
        type = "copilot"
        keys = [{ value = "k" }]
    "#;
    let found = problems(text);
    let expected = [
        "colour: ",
        "server.max_concurrent_requests: ",
        "providers[0].shiny: ",
        "server.listen: ",
        "server.max_body: ",
        "server.min_body_rate: ",
        "server.trusted_proxies[2]: `10.0.0.0/40` is not an IP address or a network",
        "server.trusted_proxies[3]: `proxy` is not",
        "server.shutdown_grace: ",
        "server.keep_alive: must not be 0",
        "store.max_connections: ",
        "store.read_timeout: ",
        "store.url: invalid store URL `postgres:///x`: the host is missing",
        "ledger.durability: `stone`",
        "ledger.on_outage: `hope`",
        "ledger.spool_max_bytes: ",
        "ledger.spool_max_age: ",
        "telemetry.metrics_listen: ",
        "telemetry.log.format: ",
        "providers[0].name: `api` is reserved",
        "providers[0].base_url: ",
        "providers[0].keys[0].env: the environment variable NOT_SET is not set",
        "providers[1].keys[0]: needs exactly one",
        "providers[1].timeouts.idle: must not be 0",
        "providers[1].max_retries: must be at most 10",
        "providers[2].name: `openai` is used by another provider",
        "providers[3].bedrock: is missing",
        "providers[4].name: ",
        "providers[4].keys: GitHub Copilot",
    ];
    check(&found, &expected);
}

#[test]
fn routes_that_cannot_be_allowed_are_listed_with_the_reason() {
    let found = problems(
        r#"
        [server]
        max_upload = "huge"
        [[providers]]
        type = "openai"
        allow_routes = [
            "embeddings", "embedings", "FETCH /v1/files", "GET v1/files", "GET /v1/*/x",
            "GET /v1/a//b", "GET /v1/../x", { method = "POST", path = "/v1/ocr", meter = "tokens" },
        ]
        [[providers]]
        type = "anthropic"
        allow_routes = ["embeddings"]
        [[providers]]
        type = "bedrock"
        bedrock = { region = "eu-central-1", model = "m", access_key_id = "a", secret_access_key = "b" }
        allow_routes = ["files"]
        [[providers]]
        name = "v1"
        type = "copilot"
        "#,
    );
    let expected = [
        "server.max_upload: ",
        "providers[0].allow_routes[1]: there is no group of routes `embedings`",
        "providers[0].allow_routes[2]: `FETCH` is not GET, HEAD, POST",
        "providers[0].allow_routes[3]: the path `v1/files` must begin with `/`",
        "providers[0].allow_routes[4]: the path `/v1/*/x` must have `*` only at its end",
        "providers[0].allow_routes[5]: the path has segments or characters",
        "providers[0].allow_routes[6]: the path has segments or characters",
        "providers[0].allow_routes[7]: `tokens` is not `usage`, `characters` or `none`",
        "providers[1].allow_routes[0]: there is no group of routes `embeddings` for the type `anthropic`",
        "providers[2].allow_routes: Amazon Bedrock has no further routes",
        "providers[3].name: `v1` is reserved",
    ];
    check(&found, &expected);
    let found = problems(
        "[[providers]]\ntype = 'openai'\nallow_routes = [{ path = '/v1/x' }, 5, { verb = 'GET' }]",
    );
    let needs = ": needs a group of routes, a method and a path, or a table";
    let expected = [
        "providers[0].allow_routes[0]: `` is not GET",
        &format!("providers[0].allow_routes[1]{needs}"),
        &format!("providers[0].allow_routes[2]{needs}"),
    ];
    check(&found, &expected);
}

#[test]
fn metrics_are_open_on_this_machine_unless_they_have_a_listener_or_are_restricted() {
    let access = |text: &str| parse(text, &Env::default()).unwrap().metrics_access;
    assert_eq!(access(""), MetricsAccess::Local);
    assert_eq!(access("[telemetry]\nmetrics_local = false"), MetricsAccess::TokenOnly);
    let listener = "[telemetry]\nmetrics_listen = '127.0.0.1:9000'";
    assert_eq!(access(listener), MetricsAccess::TokenOnly);
}

#[test]
fn retention_has_a_part_that_it_may_remove_at_once() {
    let policy = |text: &str| parse(text, &Env::default()).unwrap().retention;
    let days = |days: u64| Some(Duration::from_secs(days * 24 * 3_600));
    assert_eq!(policy(""), RetentionPolicy { keep: days(60), max_fraction: 0.5 });
    let text = "[ledger]\nretention = '0'\nretention_max_fraction = 1";
    assert!(
        problems(&text.replace("= 1", "= 1.5"))
            .contains(&"ledger.retention_max_fraction: must be from 0 to 1".to_owned())
    );
    assert_eq!(policy(text), RetentionPolicy { keep: None, max_fraction: 1.0 });
}

#[test]
fn bedrock_has_settings_of_its_own() {
    let env = Env::from([("AWS_KEY", "AKIA1"), ("AWS_SECRET", "s3cret/of+aws")]);
    let config = parse(
        r#"
        [[providers]]
        type = "bedrock"
        bedrock = { region = "eu-central-1", model = "m:0", access_key_id = { env = "AWS_KEY" }, secret_access_key = { env = "AWS_SECRET" }, assume_role = { arn = "arn:aws:iam::1:role/r" } }
        [[providers]]
        name = "newer"
        type = "bedrock"
        bedrock = { region = "us-east-1", api = "mantle", profile = "p" }
        "#,
        &env,
    );
    let config = config.unwrap();
    assert!(!format!("{config:?}").contains("s3cret"), "secrets do not print");
    let [older, newer] = config.providers.as_slice() else { panic!("two providers") };
    assert_eq!(older.base_url, "https://bedrock-runtime.eu-central-1.amazonaws.com/");
    assert_eq!(newer.base_url, "https://bedrock-mantle.us-east-1.api.aws/anthropic");
    let (older, newer) = (older.bedrock.as_ref().unwrap(), newer.bedrock.as_ref().unwrap());
    assert_eq!(older.assume_role.as_ref().unwrap().session_name, "keybridge");
    assert_eq!((older.model.as_str(), newer.api), ("m:0", BedrockApi::Mantle));
    assert!(matches!(&newer.source, AwsSource::Profile(name) if name == "p"));

    let found = problems(
        r#"
        [[providers]]
        type = "bedrock"
        keys = [{ value = "k" }]
        bedrock = { region = "Frankfurt!", rules_file = "/nowhere.toml", access_key_id = "a" }
        [[providers]]
        name = "b"
        type = "bedrock"
        bedrock = { region = "r", api = "mantle", model = "m", session_token = "t" }
        [[providers]]
        name = "c"
        type = "bedrock"
        bedrock = { region = "r", model = "m", access_key_id = "a", secret_access_key = "b c", profile = "p", assume_role = { arn = "role", session_name = "x" } }
        [[providers]]
        type = "anthropic"
        bedrock = { region = "r" }
        [[providers]]
        name = "d"
        type = "bedrock"
        bedrock = { api = "new", shiny = 1 }
        "#,
    );
    let expected = [
        "providers[0].bedrock.region: ",
        "providers[0].bedrock.model: is missing",
        "providers[0].bedrock.rules_file: `/nowhere.toml`",
        "providers[0].bedrock: `access_key_id` and",
        "providers[0].keys: ",
        "providers[1].bedrock.model: has no effect",
        "providers[1].bedrock: `session_token` requires",
        "providers[2].bedrock.secret_access_key: ",
        "providers[2].bedrock.profile: ",
        "providers[2].bedrock.assume_role.arn: ",
        "providers[3].bedrock: a provider of the type `anthropic`",
        "providers[4].bedrock.api: `new`",
        "providers[4].bedrock.shiny: ",
    ];
    check(&found, &expected);
}

/// Checks that each expected problem is found once, and no other.
fn check(found: &[String], expected: &[&str]) {
    for start in expected {
        let count = found.iter().filter(|problem| problem.starts_with(start)).count();
        assert_eq!(count, 1, "{start} in {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn problems_of_mcp_servers_are_listed_too() {
    let found = problems(
        r#"
        injected_tools = { max_turns = 0, call_timeout = "0", max_result = "0", skip_models = [""] }
        [[mcp_servers]]
        name = "Wiki"
        url = "http://user@x/mcp"
        allow = "("
        headers = { Authorization = { env = "NOT_SET" }, "X Y" = "z" }
        [[mcp_servers]]
        name = "twice"
        url = "http://x/mcp?key=1"
        providers = ["nobody"]
        [[mcp_servers]]
        name = "twice"
        url = "http://x/mcp"
        "#,
    );
    let expected = [
        "injected_tools.max_turns: must be from 1 to 1000",
        "injected_tools.call_timeout: must not be 0",
        "injected_tools.max_result: ",
        "injected_tools.skip_models: ",
        "mcp_servers[0].name: `Wiki` may contain only",
        "mcp_servers[0].url: ",
        "mcp_servers[0].headers.X Y: is not a header name",
        "mcp_servers[0].headers.Authorization.env: the environment variable NOT_SET is not set",
        "mcp_servers[0].allow: is not a regular expression: unclosed group",
        "mcp_servers[1].providers: there is no provider `nobody`",
        "mcp_servers[2].name: `twice` is used by another MCP server",
    ];
    check(&found, &expected);
}

#[test]
fn mcp_servers_are_configured_with_their_secrets_hidden() {
    let env = Env::from([
        ("WIKI_TOKEN", "s3cret-wiki"),
        ("KEYBRIDGE_MCP_SERVERS__WIKI__URL", "http://127.0.0.1:3001/mcp?tenant=t1"),
    ]);
    let text = r#"
        [[mcp_servers]]
        name = "wiki"
        url = "http://elsewhere/mcp"
        headers = { Authorization = { env = "WIKI_TOKEN" }, X-Team = "core" }
        allow = "^search"
        deny = "delete"
        providers = ["anthropic"]
        [injected_tools]
        max_turns = 3
        call_timeout = "2s"
        max_result = "4 KiB"
        parallel_calls = true
        skip_models = ["Mini"]
    "#;
    let config = parse(text, &env).unwrap();
    let tools = &config.tools;
    assert_eq!((tools.max_turns, tools.parallel_calls), (3, true));
    assert_eq!(tools.skip_models, ["mini"]);
    let server = &tools.servers[0];
    assert_eq!(server.url.to_string(), "http://127.0.0.1:3001/mcp?tenant=t1");
    let shown = format!("{server:?}");
    assert!(shown.contains("http://127.0.0.1:3001/mcp"), "{shown}");
    assert!(!shown.contains("tenant"), "a query may hold a secret: {shown}");
    let headers: Vec<_> = server
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    assert_eq!(headers, [("authorization", "Bearer s3cret-wiki"), ("x-team", "core")]);
    assert!(server.headers.iter().all(|(_, value)| value.is_sensitive()));
    assert!(server.allow.as_ref().unwrap().is_match("search_pages"));
    assert_eq!((server.call_timeout.as_secs(), server.max_result), (2, 4096));
    assert!(!format!("{config:?}").contains("s3cret-wiki"), "{config:?}");
}

#[test]
fn variables_set_every_kind_of_value() {
    let env = Env::from([
        ("KEYBRIDGE_SERVER__LISTEN", "127.0.0.1:9000"),
        ("KEYBRIDGE_SERVER__MAX_CONCURRENT_REQUESTS", "7"),
        ("KEYBRIDGE_SERVER__MAX_BODY", "1000"),
        ("KEYBRIDGE_AUTH__ALLOW_BYOK", "false"),
        ("KEYBRIDGE_TELEMETRY__LOG__FORMAT", "json"),
        ("KEYBRIDGE_PROVIDERS__MY_CLAUDE__BASE_URL", "http://127.0.0.1:1"),
        ("KEYBRIDGE_PROVIDERS__1__TYPE", "openai"),
        ("MY_KEY", "k"),
    ]);
    let text = r#"
        [[providers]]
        name = "my-claude"
        type = "anthropic"
        keys = [{ env = "MY_KEY" }]
    "#;
    let config = parse(text, &env).unwrap();
    assert_eq!((config.listen.port(), config.limits.concurrent_requests), (9000, 7));
    assert_eq!((config.max_body, config.log.format), (1000, LogFormat::Json));
    assert_eq!(config.providers[0].base_url.to_string(), "http://127.0.0.1:1/");
    assert_eq!(config.providers[1].name, "openai");
    assert!(config.providers.iter().all(|provider| !provider.allow_byok));
}

#[test]
fn a_wrong_variable_is_named() {
    let env = Env::from([("KEYBRIDGE_SERVER__COLOUR", "red"), ("KEYBRIDGE_AUTH__ALLOW_BYOK", "x")]);
    let found = parse("", &env).unwrap_err();
    assert!(found.iter().any(|problem| problem.starts_with("KEYBRIDGE_SERVER__COLOUR: ")));
    assert!(found.iter().any(|problem| problem.starts_with("KEYBRIDGE_AUTH__ALLOW_BYOK: ")));
    assert_eq!(found.len(), 2, "{found:?}");
}

#[test]
fn a_syntax_error_names_its_line() {
    let found = problems("[server\nlisten = 1");
    assert!(found[0].contains("line 1"), "{found:?}");
}

#[test]
fn no_problem_shows_a_key_in_the_wrong_place() {
    let texts = [
        "[[providers]]\ntype = 'openai'\nkeys = ['sk-secret']",
        "[[providers]]\ntype = 'openai'\nkeys = 'sk-secret'",
        "[[providers]]\ntype = 'openai'\nkeys = [{ value = 'sk-secret' 1 }]",
        "[store]\nurl = 'mysql://me:sk-secret@host/db'",
        "[store]\nurl = 'postgres://me:sk-secret@host:port/db'",
        "[store]\nurl = 'postgres://me:sk-secret@host/db?colour=red'",
        "server = 'sk-secret'",
    ];
    for text in texts {
        let found = problems(text);
        assert!(!found.is_empty() && !found.concat().contains("sk-secret"), "{found:?}");
    }
    let env = Env::from([("KEYBRIDGE_PROVIDERS__ANTHROPIC__KEYS", "sk-secret")]);
    let found = parse("", &env).unwrap_err();
    assert_eq!(found, ["KEYBRIDGE_PROVIDERS__ANTHROPIC__KEYS: is not a sequence"]);
}

#[test]
fn settings_of_later_releases_get_a_warning() {
    let text = "[telemetry]\notlp_endpoint = ''\n[[providers]]\ntype = 'openai'\n\
                circuit_breaker = { failures = 7 }";
    let config = parse(text, &Env::default()).unwrap();
    assert_eq!(config.providers[0].max_retries, 2);
    let paths: Vec<_> = config.warnings.iter().map(|warning| warning.path.as_str()).collect();
    let breaker = config.providers[0].circuit_breaker.unwrap();
    assert_eq!((breaker.failures, breaker.trial_requests), (7, 3));
    assert_eq!(breaker.open, Duration::from_secs(30));
    let expected = ["telemetry.otlp_endpoint"];
    assert_eq!(paths.len(), expected.len(), "{paths:?}");
    assert!(expected.iter().all(|path| paths.contains(path)), "{paths:?}");
}

#[test]
fn pools_breakers_and_fallbacks_are_checked() {
    let text = r#"
        [[providers]]
        type = "openai"
        key_selection = "random"
        keys = [{ name = "a", value = "x", weight = 0 }, { name = "b", value = "y", weight = 3 }]
        credentials = ["request", "mine"]
        circuit_breaker = { failures = 0, interval = "0", trial_requests = 0 }
        fallback = "nobody"
        [[providers]]
        name = "second"
        type = "openai"
        credentials = []
        fallback = "second"
        [[providers]]
        type = "anthropic"
        keys = [{ value = "k" }]
        fallback = "second"
        [[providers]]
        name = "third"
        type = "openai"
        fallback = "second"
    "#;
    let expected = [
        "providers[0].key_selection: `random`",
        "providers[0].keys[0].weight: must not be 0",
        "providers[0].credentials: `mine`",
        "providers[0].credentials: there are keys",
        "providers[0].circuit_breaker.failures: must not be 0",
        "providers[0].circuit_breaker.interval: ",
        "providers[0].circuit_breaker.trial_requests: must not be 0",
        "providers[0].fallback: there is no provider `nobody`",
        "providers[1].credentials: must not be empty",
        "providers[1].fallback: must be another provider",
        "providers[2].fallback: `second` has other dialects than the type",
        "providers[3].fallback: `second` has no keys",
    ];
    check(&problems(text), &expected);
}

#[test]
fn limits_are_checked() {
    let text = "[limits]\nbody_memory = '1 MiB'\nburst = 3";
    check(
        &problems(text),
        &["limits.body_memory: must not be less than", "limits.burst: has no effect"],
    );
    let text = "[ledger.record]\nmax_prompt = '17 MiB'\nmax_thought = 'much'";
    check(
        &problems(text),
        &[
            "ledger.record.max_prompt: must not be more than 16 MiB",
            "ledger.record.max_thought: `much` is not a size",
        ],
    );
    let text = "[limits]\nmax_concurrent_requests_per_user = 3\nrequests_per_second = 5";
    let limits = parse(text, &Env::default()).unwrap().limits;
    assert_eq!((limits.concurrent_requests_per_user, limits.requests_per_second), (3, 5));
    assert_eq!((limits.concurrent_requests, limits.body_memory), (0, 512 << 20));
}

#[test]
fn a_provider_can_accept_only_byok() {
    let text = r#"
        [[providers]]
        name = "chatgpt"
        type = "openai"
        base_url = "https://chatgpt.com/backend-api/codex"
        credentials = ["request"]
    "#;
    let config = parse(text, &Env::default()).unwrap();
    let provider = &config.providers[0];
    assert!(provider.allow_byok && !provider.allow_central);
    assert_eq!(provider.key_selection, KeySelection::First);
}

#[test]
fn variables_reach_the_public_providers_and_single_keys() {
    let env = Env::from([
        ("ANTHROPIC_API_KEY", "sk-ant-1"),
        ("KEYBRIDGE_PROVIDERS__ANTHROPIC__BASE_URL", "http://127.0.0.1:1"),
        ("KEYBRIDGE_PROVIDERS__OPENAI__KEYS__0__VALUE", "sk-2"),
    ]);
    let config = parse("", &env).unwrap();
    let found: Vec<_> = config.providers.iter().map(|p| (p.name.as_str(), p.keys.len())).collect();
    assert_eq!(found, [("anthropic", 1), ("openai", 1), ("copilot", 0)]);
    assert_eq!(config.providers[0].base_url.to_string(), "http://127.0.0.1:1/");

    let env = Env::from([("KEYBRIDGE_PROVIDERS__NOBODY__BASE_URL", "http://127.0.0.1:1")]);
    let found = parse("[[providers]]\ntype = 'openai'", &env).unwrap_err();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("KEYBRIDGE_PROVIDERS__NOBODY__BASE_URL: no provider or MCP server")
    );
}

#[test]
fn a_store_that_cannot_be_written_is_listed_with_the_rest() {
    let found = problems("[server]\nlisten = 'x'\n[store]\nurl = 'sqlite:///nowhere/at/all.db'");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|problem| problem.starts_with("store.url: ")));
}

#[test]
fn a_start_without_the_store_needs_postgresql_and_the_spool() {
    let text = |store: &str, on_outage: &str| {
        format!(
            "[auth]\noffline_cache = true\n[store]\nurl = '{store}'\n[ledger]\non_outage = '{on_outage}'"
        )
    };
    let (postgres, sqlite) = ("postgres://k@db/k", "sqlite://k.db");
    for (store, on_outage, start, warnings) in [
        (postgres, "spool", OfflineStart::Allowed, 0),
        (postgres, "refuse", OfflineStart::Refused, 1),
        (sqlite, "spool", OfflineStart::Refused, 1),
    ] {
        let config = parse(&text(store, on_outage), &Env::default()).unwrap();
        assert_eq!(config.offline_cache.start, start, "{store} {on_outage}");
        let found = config.warnings.iter().filter(|found| found.path == "auth.offline_cache");
        assert_eq!(found.count(), warnings, "{store} {on_outage}");
    }
    let config = parse("", &Env::default()).unwrap();
    assert_eq!(config.offline_cache.start, OfflineStart::Refused, "the default");
}
