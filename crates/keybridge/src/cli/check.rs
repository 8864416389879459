//! `keybridge check`: the configuration, and with `--online` everything it names.

use std::time::Duration;

use anyhow::{anyhow, bail};
use http::Request;
use http_body_util::Full;
use keybridge_ledger::Ledger;
use keybridge_mcp::{McpServerConfig, McpStatus};
use keybridge_net::egress;
use keybridge_providers::config::{Key, ProviderConfig, ProviderType};
use secrecy::ExposeSecret;
use serde_json::json;

use super::{CheckOptions, Cli, Exit};
use crate::{
    config::{Config, Overrides},
    env::Env,
    print::json_line,
    serve,
};

/// Longest that one check may take.
const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) fn command(cli: &Cli, env: &Env, options: &CheckOptions) -> Result<(), Exit> {
    let config = cli.load(env, &Overrides::default())?;
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    report(cli, "configuration", &Ok("valid".into()))?;
    if !options.online {
        return Ok(());
    }
    let mut failures = 0_u32;
    for (what, result) in online(&config)? {
        failures += u32::from(result.is_err());
        report(cli, &what, &result)?;
    }
    if failures > 0 {
        return Err(anyhow!("{failures} of the checks failed").into());
    }
    Ok(())
}

type Checked = (String, Result<String, String>);

fn online(config: &Config) -> Result<Vec<Checked>, Exit> {
    // Looked at, not migrated.
    let store = Ledger::pending_migrations(&config.store_url).map(|pending| match pending.len() {
        0 => "answers, and its schema is up to date".to_owned(),
        count => format!("answers; {count} migrations are pending"),
    });
    let store = store.map_err(|error| error.to_string());
    let mut checks = vec![("store".to_owned(), store)];
    serve::block_on(async {
        for provider in &config.providers {
            checks.push((format!("provider {}", provider.name), within(provider, None).await));
            for key in &provider.keys {
                let what = format!("key {} of {}", key.name, provider.name);
                checks.push((what, within(provider, Some(key)).await));
            }
        }
        for server in &config.tools.servers {
            let what = format!("MCP server {}", server.name);
            checks.push((what, tools(server).await));
        }
        Ok(checks)
    })
}

/// A session with an MCP server, its tools listed.
async fn tools(server: &McpServerConfig) -> Result<String, String> {
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let probing = keybridge_mcp::probe(server.clone());
    let Ok(state) = tokio::time::timeout(PATIENCE, probing).await else {
        return Err(format!("no answer within {} s", PATIENCE.as_secs()));
    };
    match state.status {
        McpStatus::Ready => {
            let name = state.server_info.as_deref().unwrap_or("a server");
            let version = state.protocol_version.as_deref().unwrap_or("unknown");
            let count = state.tools.len();
            Ok(format!("{name} speaks MCP {version} and offers {count} tools"))
        }
        McpStatus::Connecting | McpStatus::Down => {
            Err(state.error.unwrap_or_else(|| "no session".into()))
        }
    }
}

async fn within(provider: &ProviderConfig, key: Option<&Key>) -> Result<String, String> {
    match tokio::time::timeout(PATIENCE, reach(provider, key)).await {
        Ok(result) => result.map_err(|error| format!("{error:#}")),
        Err(_elapsed) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

/// Without a key, any answer over HTTP says that name, network, TLS and server work. A key must be
/// accepted for the list of models, which costs nothing.
async fn reach(provider: &ProviderConfig, key: Option<&Key>) -> anyhow::Result<String> {
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = egress::client(&provider.egress, provider.timeouts.connect, false);
    let base = provider.base_url.to_string();
    let models = match provider.kind {
        ProviderType::Anthropic => "/v1/models",
        ProviderType::OpenAi | ProviderType::Copilot => "/models",
        // Has no keys of that kind; AWS credentials are tried by the first request.
        ProviderType::Bedrock => "/",
    };
    let mut request = Request::get(format!("{}{models}", base.trim_end_matches('/')))
        .header("anthropic-version", "2023-06-01");
    if let Some(key) = key {
        let secret = key.value.expose_secret();
        request = match provider.kind {
            ProviderType::Anthropic | ProviderType::Bedrock => request.header("x-api-key", secret),
            ProviderType::OpenAi | ProviderType::Copilot => {
                request.header("authorization", format!("Bearer {secret}"))
            }
        };
    }
    let status = client.request(request.body(Full::default())?).await?.status();
    if key.is_some() && !status.is_success() {
        bail!("the provider answers {}", status.as_u16());
    }
    Ok(format!("answers {}", status.as_u16()))
}

fn report(cli: &Cli, what: &str, result: &Result<String, String>) -> Result<(), Exit> {
    let (ok, text) = match result {
        Ok(text) => (true, text),
        Err(text) => (false, text),
    };
    if cli.json {
        return json_line(&json!({ "check": what, "ok": ok, "detail": text }));
    }
    crate::print::text(&format!("{} {what}: {text}\n", if ok { "ok   " } else { "FAILED" }))
}
