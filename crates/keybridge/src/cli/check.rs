//! `keybridge check`: validates the configuration and, with `--online`, connects to what it names.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use http::{HeaderValue, Request};
use keybridge_ledger::Ledger;
use keybridge_mcp::{McpServerConfig, McpStatus};
use keybridge_net::egress::{self, RequestBody};
use keybridge_providers::config::{Key, ProviderConfig, ProviderType};
use keybridge_telemetry::escape_controls;
use secrecy::ExposeSecret;
use serde_json::json;

use super::{CheckOptions, Cli, Exit};
use crate::{config::Config, env::Env, print::json_line, runtime};

const CHECK_TIMEOUT: Duration = Duration::from_secs(15);

pub(crate) fn command(cli: &Cli, env: &Env, options: &CheckOptions) -> Result<(), Exit> {
    let config = cli.load(env)?;
    for warning in &config.warnings {
        eprintln!("warning: {}", escape_controls(&warning.to_string()));
    }
    report(cli, "configuration", &Ok("valid".into()))?;
    if !options.online {
        return Ok(());
    }
    let mut failures = 0_u32;
    for (name, result) in check_online(&config)? {
        failures += u32::from(result.is_err());
        report(cli, &name, &result)?;
    }
    if failures > 0 {
        let plural = if failures == 1 { "" } else { "s" };
        return Err(anyhow!("{failures} check{plural} failed").into());
    }
    Ok(())
}

/// What was checked, and what was found or went wrong.
type CheckResult = (String, Result<String, String>);

fn check_online(config: &Config) -> Result<Vec<CheckResult>, Exit> {
    let store = Ledger::pending_migrations(&config.store_url).map(|pending| match pending.len() {
        0 => "schema up to date".to_owned(),
        count => format!("migrations to apply: {count}; `keybridge serve` applies them"),
    });
    let store = store.map_err(|error| error.to_string());
    let mut checks = vec![("store".to_owned(), store)];
    runtime::block_on(async {
        for provider in &config.providers {
            checks.push((
                format!("provider {}", provider.name),
                check_provider(provider, None).await,
            ));
            for key in &provider.keys {
                let name = format!("key {} of {}", key.name, provider.name);
                checks.push((name, check_provider(provider, Some(key)).await));
            }
        }
        for server in &config.tools.servers {
            let name = format!("MCP server {}", server.name);
            checks.push((name, check_mcp_server(server).await));
        }
        Ok(checks)
    })
}

/// Opens a session with an MCP server and lists its tools.
async fn check_mcp_server(server: &McpServerConfig) -> Result<String, String> {
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let probe = keybridge_mcp::probe(server.clone());
    let Ok(state) = tokio::time::timeout(CHECK_TIMEOUT, probe).await else {
        return Err(timed_out());
    };
    match state.status {
        McpStatus::Ready => {
            let name = state.server_info.as_deref().unwrap_or("unnamed server");
            let version = state.protocol_version.as_deref().unwrap_or("of unknown version");
            let count = state.tools.len();
            Ok(format!("{name}, MCP {version}, {count} tools"))
        }
        McpStatus::Connecting | McpStatus::Down => {
            Err(state.error.unwrap_or_else(|| "cannot open a session".into()))
        }
    }
}

async fn check_provider(provider: &ProviderConfig, key: Option<&Key>) -> Result<String, String> {
    match tokio::time::timeout(CHECK_TIMEOUT, list_models(provider, key)).await {
        Ok(result) => result.map_err(|error| format!("{error:#}")),
        Err(_elapsed) => Err(timed_out()),
    }
}

fn timed_out() -> String {
    format!("no response within {} s", CHECK_TIMEOUT.as_secs())
}

/// Requests the list of models, which costs nothing. Without a key, any HTTP response shows that name
/// resolution, network and TLS work; a key must be accepted.
async fn list_models(provider: &ProviderConfig, key: Option<&Key>) -> anyhow::Result<String> {
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = egress::client(&provider.egress, provider.timeouts.connect, false);
    let models = match provider.kind {
        ProviderType::Anthropic => "/v1/models",
        ProviderType::OpenAi | ProviderType::Copilot => "/models",
        // It has no keys; the first request shows whether the AWS credentials work.
        ProviderType::Bedrock => "/",
    };
    let uri = provider.uri(models, None).context("the base URL is not valid")?;
    let mut request = Request::get(uri).body(RequestBody::default())?;
    let headers = request.headers_mut();
    headers.insert("anthropic-version", HeaderValue::from_static("2023-06-01"));
    headers.extend(provider.set_headers.iter().cloned());
    if let Some(key) = key {
        headers.extend(provider.profile.credential.sent(key.value.expose_secret())?);
    }
    let status = client.request(request).await?.status();
    if key.is_some() && !status.is_success() {
        bail!("the provider returned status {}", status.as_u16());
    }
    Ok(format!("reachable, status {}", status.as_u16()))
}

fn report(cli: &Cli, name: &str, result: &Result<String, String>) -> Result<(), Exit> {
    let (ok, text) = match result {
        Ok(text) => (true, text),
        Err(text) => (false, text),
    };
    if cli.json {
        return json_line(&json!({ "check": name, "ok": ok, "detail": text }));
    }
    let text = escape_controls(text);
    crate::print::text(&format!("{} {name}: {text}\n", if ok { "ok   " } else { "FAILED" }))
}
