//! Simulated providers: in this process behind every provider of the configuration, or alone.

use std::fs::OpenOptions;

use anyhow::Context;
use keybridge_bridge::config::{Key, ProviderConfig, ProviderType};
use keybridge_sim::{Sim, SimServer};
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::{Exit, SimOptions},
    serve,
};

/// The central key where none is configured: nobody but the simulated provider takes it.
const CENTRAL_KEY: &str = "sk-simulated-central-key-0123456789";

/// Starts the simulated providers and points the given ones at them.
pub(crate) async fn behind(providers: &mut [ProviderConfig]) -> anyhow::Result<SimServer> {
    let server = Sim::new().start().await.context("the simulated providers cannot listen")?;
    for provider in providers {
        let mount = match provider.kind {
            ProviderType::Anthropic => "/anthropic",
            ProviderType::OpenAi => "/openai/v1",
            ProviderType::Copilot => "/copilot",
        };
        provider.base_url = format!("http://{}{mount}", server.addr).parse()?;
        if provider.keys.is_empty() && provider.kind != ProviderType::Copilot {
            let value = SecretString::from(CENTRAL_KEY);
            provider.keys.push(Key { name: "simulated".into(), value });
        }
    }
    Ok(server)
}

/// `keybridge sim`: the simulated providers alone, until SIGTERM or Ctrl-C.
pub(crate) fn command(options: &SimOptions) -> Result<(), Exit> {
    let mut sim = Sim::new();
    if let Some(path) = &options.log {
        let file = OpenOptions::new().append(true).create(true).open(path);
        sim = sim.with_journal(file.with_context(|| format!("{}", path.display()))?);
    }
    serve::runtime()?.block_on(async {
        let server = sim.start_on(options.listen).await;
        let server = server.with_context(|| format!("{} cannot be listened on", options.listen))?;
        eprintln!("simulated providers listen on {}", server.base());
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        Ok(())
    })
}
