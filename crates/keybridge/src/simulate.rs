//! Simulated providers: in this process, in place of every configured provider, or on their own.

use std::{fs::OpenOptions, net::SocketAddr, time::Duration};

use anyhow::Context;
use http::HeaderName;
use keybridge_mcp::McpServerConfig;
use keybridge_net::egress::Egress;
use keybridge_providers::{
    bedrock::{AwsSource, BedrockApi},
    config::{Key, ProviderConfig, ProviderType},
};
use keybridge_sim::{Sim, SimServer, aws, mcp_server::McpSim};
use secrecy::SecretString;

use crate::{
    cli::{Exit, SimOptions},
    config::Config,
    runtime,
    signals::ShutdownSignals,
};

/// The centralized key where none is configured; only a simulated provider accepts it.
const CENTRALIZED_KEY: &str = "sk-simulated-company-key-0123456789";

/// What is simulated in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Simulated {
    /// Nothing.
    Nothing,
    /// Every configured provider.
    Providers,
    /// Every configured provider, and an MCP server whose tools are injected.
    ProvidersAndTools,
}

/// The header in which Azure OpenAI takes a key.
const API_KEY: HeaderName = HeaderName::from_static("api-key");
/// The name of the simulated MCP server.
const MCP_SERVER: &str = "simulated";

/// What is simulated, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Simulation {
    pub(crate) what: Simulated,
    /// None: nothing is simulated.
    pub(crate) address: Option<SocketAddr>,
}

/// Starts the simulation, which runs until the server is dropped.
pub(crate) async fn start(what: Simulated) -> anyhow::Result<(Option<SimServer>, Simulation)> {
    if what == Simulated::Nothing {
        return Ok((None, Simulation { what, address: None }));
    }
    let server = Sim::new().with_mcp(McpSim::new()).start().await;
    let server = server.context("cannot start the simulated providers")?;
    let address = Some(server.addr);
    Ok((Some(server), Simulation { what, address }))
}

impl Simulation {
    /// Points a configuration at the simulated providers.
    pub(crate) fn apply_to(self, config: &mut Config) -> anyhow::Result<()> {
        let Some(address) = self.address else { return Ok(()) };
        if self.what == Simulated::ProvidersAndTools {
            config.tools.servers.push(McpServerConfig {
                name: MCP_SERVER.into(),
                url: format!("http://{address}/mcp").parse()?,
                egress: Egress::default(),
                headers: Vec::new(),
                allow: None,
                deny: None,
                providers: None,
                call_timeout: Duration::from_secs(10),
                connect_timeout: Duration::from_secs(10),
                max_result: 1 << 20,
            });
        }
        for provider in &mut config.providers {
            let mount = match provider.kind {
                ProviderType::Anthropic => "/anthropic",
                // Where the model is in the path, the simulator takes the place of Azure OpenAI.
                ProviderType::OpenAi if !provider.profile.paths.is_empty() => "/azure/openai",
                ProviderType::OpenAi if provider.profile.headers().any(|name| *name == API_KEY) => {
                    "/azure/openai/v1"
                }
                ProviderType::OpenAi if provider.is_keyless() => "/keyless/v1",
                ProviderType::OpenAi => "/openai/v1",
                ProviderType::Copilot => "/copilot",
                ProviderType::Bedrock => simulated_bedrock(provider),
            };
            provider.base_url = format!("http://{address}{mount}").parse()?;
            let takes_keys =
                matches!(provider.kind, ProviderType::Anthropic | ProviderType::OpenAi);
            if provider.keys.is_empty() && takes_keys && !provider.is_keyless() {
                let value = SecretString::from(CENTRALIZED_KEY);
                provider.keys.push(Key { name: "simulated".into(), value, weight: 1 });
            }
        }
        Ok(())
    }
}

/// Gives a provider the simulated region and access key; returns its path in the simulator.
fn simulated_bedrock(provider: &mut ProviderConfig) -> &'static str {
    let Some(bedrock) = &mut provider.bedrock else { return "/bedrock" };
    bedrock.region = aws::REGION.into();
    bedrock.assume_role = None;
    bedrock.source = AwsSource::Static {
        access_key_id: aws::LONG_TERM.access_key_id.into(),
        secret_access_key: SecretString::from(aws::LONG_TERM.secret_access_key),
        session_token: None,
    };
    match bedrock.api {
        BedrockApi::Runtime => "/bedrock",
        BedrockApi::Mantle => "/mantle",
    }
}

/// `keybridge sim`: only the simulated providers, until SIGTERM or Ctrl-C.
pub(crate) fn command(options: &SimOptions) -> Result<(), Exit> {
    let mut sim = Sim::new().with_mcp(McpSim::new());
    if let Some(path) = &options.log {
        let file = OpenOptions::new().append(true).create(true).open(path);
        sim = sim.with_journal(file.with_context(|| format!("cannot open {}", path.display()))?);
    }
    runtime::block_on(async {
        let server = sim.start_on(options.listen).await;
        let server = server.with_context(|| format!("cannot listen on {}", options.listen))?;
        let mut signals = ShutdownSignals::listen()?;
        eprintln!("simulated providers are listening on {}", server.base());
        signals.next().await;
        Ok(())
    })
}
