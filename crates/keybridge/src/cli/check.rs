//! `keybridge check`: the configuration, and with `--online` everything it names.

use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use keybridge_bridge::config::ProviderConfig;
use keybridge_ledger::Ledger;
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
    let store = Ledger::open(&config.store_url).and_then(|ledger| ledger.ready());
    let store = store.map(|()| "answers".into()).map_err(|error| error.to_string());
    let mut checks = vec![("store".to_owned(), store)];
    serve::runtime()?.block_on(async {
        for provider in &config.providers {
            let result = match tokio::time::timeout(PATIENCE, reach(provider)).await {
                Ok(result) => result.map_err(|error| format!("{error:#}")),
                Err(_elapsed) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
            };
            checks.push((format!("provider {}", provider.name), result));
        }
    });
    Ok(checks)
}

/// Any answer over HTTP says that name, network, TLS and server work; no credential is sent.
async fn reach(provider: &ProviderConfig) -> anyhow::Result<String> {
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tls = rustls::ClientConfig::builder()
        .with_root_certificates(serve::roots())
        .with_no_client_auth();
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let url = format!("{}/models", provider.base_url.to_string().trim_end_matches('/'));
    let response = client.request(Request::get(url).body(Empty::new())?).await?;
    Ok(format!("answers {}", response.status().as_u16()))
}

fn report(cli: &Cli, what: &str, result: &Result<String, String>) -> Result<(), Exit> {
    let (ok, text) = match result {
        Ok(text) => (true, text),
        Err(text) => (false, text),
    };
    if cli.json {
        return json_line(&json!({ "check": what, "ok": ok, "detail": text }));
    }
    println!("{} {what}: {text}", if ok { "ok   " } else { "FAILED" });
    Ok(())
}
