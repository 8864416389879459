//! `keybridge serve`: wiring, first run, and an orderly end.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use jiff::Timestamp;
use keybridge_bridge::{Bridge, config::BridgeConfig};
use keybridge_identity::{Accounts, BridgeToken, Directory, NewUser, Role};
use keybridge_ledger::{Claim, Ledger};
use keybridge_net::listener::{self, Endpoint, Site};
use keybridge_sim::SimServer;
use keybridge_telemetry::log::{self, LogLevel};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::Mutex, task::JoinError};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    admin_view::AdminView,
    cli::{Cli, Exit, ServeOptions},
    config::{Config, Overrides, Source},
    env::Env,
    reload::{self, Reload},
    signals::End,
    simulate::{self, Simulated},
    socket,
};

/// Pause between two rounds of the retention job.
const RETENTION_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// Longest that requests told to end may take to be settled.
const SETTLE_TIME: Duration = Duration::from_secs(5);

pub(crate) fn command(cli: &Cli, env: &Env, options: &ServeOptions) -> Result<(), Exit> {
    let overrides = Overrides { listen: options.listen.clone(), store: options.store.clone() };
    let source = cli.source(env, &overrides);
    let config = source.load().map_err(Exit::Config)?;
    let log = log::start(&config.log);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let ledger = Cli::open_to_serve(&config)?;
    block_on(async {
        let simulated = if options.simulate { Simulated::Providers } else { Simulated::Nothing };
        let given = Given { inherited: socket::inherited()?, reloading: Some((source, log)) };
        let server = Server::start(config, ledger, simulated, given).await?;
        let end = End::listen()?;
        server.greet();
        server.until_told(end).await
    })
}

/// Runs a command on an async runtime of its own.
pub(crate) fn block_on<T>(command: impl Future<Output = Result<T, Exit>>) -> Result<T, Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("the runtime cannot start")?;
    let result = runtime.block_on(command);
    // Dropping it would wait for every thread that blocks, such as the retention job's. What had to be
    // written is written: closing the ledger is part of the command.
    runtime.shutdown_background();
    result
}

/// What a process that serves may have from its surroundings.
#[derive(Debug, Default)]
pub struct Given {
    /// A socket to listen on, which takes the place of `server.listen`.
    pub inherited: Option<TcpListener>,
    /// Where the configuration can be read again, and what logs.
    pub reloading: Option<(Source, LogLevel)>,
}

/// A bridge with all it needs, listening.
#[derive(Debug)]
pub struct Server {
    /// Its records.
    pub ledger: Ledger,
    /// What users type.
    pub public_url: String,
    /// The token of the user `admin`, if this start made it.
    pub first_token: Option<BridgeToken>,
    /// The data path.
    pub bridge: Bridge,
    site: Site,
    endpoint: Endpoint,
    grace: Duration,
    simulated: Option<SimServer>,
    metrics: Option<(TcpListener, axum::Router)>,
    claim: Claim,
}

impl Server {
    /// Takes the store, makes the first user where there is none, and listens.
    ///
    /// # Errors
    ///
    /// When the store is taken, a provider cannot be made of its settings, or the address is in use.
    pub async fn start(
        mut config: Config,
        ledger: Ledger,
        simulated: Simulated,
        given: Given,
    ) -> anyhow::Result<Self> {
        // An error means that a provider is installed, and there is only this one.
        let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (claim, first_token, server_secret) = {
            let ledger = ledger.clone();
            tokio::task::spawn_blocking(move || take(&ledger)).await??
        };
        let (simulated, simulation) = simulate::start(simulated).await?;
        simulation.stand_in(&mut config)?;
        let endpoint = endpoint(&config, given.inherited)?;
        let public_url = match config.listen.port() {
            // Any free one was asked for.
            0 => {
                let scheme = if config.tls.is_some() { "https" } else { "http" };
                format!("{scheme}://{}", endpoint.listener.local_addr()?)
            }
            _ => config.public_url.clone(),
        };
        if let Some(retention) = config.retention {
            keep_for(&ledger, retention);
        }
        let grace = config.shutdown_grace;
        let metrics_listener = match config.metrics_listen {
            Some(address) => Some(socket::listen(address, config.reuse_port)?),
            None => None,
        };
        let restart = std::mem::take(&mut config.restart);
        let directory = Arc::new(Directory::new(ledger.clone()));
        let bridge_config = bridge_config(config, server_secret);
        let recorder = ledger.recorder();
        let bridge =
            Bridge::new(bridge_config, directory.clone(), ledger.continuations(), recorder)?;
        bridge.start().await;
        let registry = registry(&ledger, &bridge);
        let metrics = metrics_listener
            .map(|listener| (listener, keybridge_console::metrics_router(Arc::clone(&registry))));
        let reload = given.reloading.map(|(source, log)| {
            let (bridge, tls, turn) = (bridge.clone(), endpoint.tls.clone(), Mutex::default());
            Arc::new(Reload { source, bridge, tls, log, simulation, server_secret, restart, turn })
        });
        if let Some(reload) = &reload {
            reload::at_hangups(Arc::clone(reload))?;
        }
        let console = keybridge_console::router(
            ledger.clone(),
            directory,
            registry,
            Arc::new(AdminView { bridge: bridge.clone(), reload: reload.clone() }),
        );
        let site = Site::new(bridge.clone(), console, keybridge_console::is_own);
        Ok(Self {
            ledger,
            public_url,
            first_token,
            bridge,
            site,
            endpoint,
            grace,
            simulated,
            metrics,
            claim,
        })
    }

    /// The address that it listens on.
    ///
    /// # Errors
    ///
    /// When the system does not tell.
    pub fn address(&self) -> std::io::Result<std::net::SocketAddr> {
        self.endpoint.listener.local_addr()
    }

    /// Says where the bridge is and, on the first start, how to use it.
    fn greet(&self) {
        let url = &self.public_url;
        eprintln!("keybridge listens on {url}");
        if let Some(simulated) = &self.simulated {
            eprintln!("every provider is simulated: http://{}/_sim/scenarios", simulated.addr);
        }
        if let Some(token) = &self.first_token {
            // The one secret that is printed, once, because nobody could know it otherwise.
            println!("{}", snippet(url, token.expose()));
        }
    }

    /// Serves until SIGTERM or Ctrl-C, then ends in order; a second signal ends at once.
    pub(crate) async fn until_told(self, mut end: End) -> Result<(), Exit> {
        let shutdown = CancellationToken::new();
        // A task of its own: dropping it here could block, for example on a heartbeat.
        let mut serving = TaskTracker::new().spawn(self.serve(shutdown.clone()));
        let ended = |ended: Result<anyhow::Result<()>, JoinError>| Ok(ended.context("serving")??);
        tokio::select! {
            result = &mut serving => return ended(result),
            () = end.told() => {}
        }
        tracing::info!("shutting down; a second signal exits at once");
        shutdown.cancel();
        tokio::select! {
            result = &mut serving => ended(result),
            () = end.told() => Err(Exit::Interrupted),
        }
    }

    /// Serves until `shutdown`, settles what was in flight and writes all that waits.
    ///
    /// # Errors
    ///
    /// When the listener fails, or the thread that closes the ledger does.
    pub async fn serve(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let (draining, reading) = (self.bridge.clone(), self.ledger.clone());
        let on_grace_over = move || {
            draining.drain();
            reading.cancel_reads();
        };
        let tasks = TaskTracker::new();
        if let Some((listener, router)) = self.metrics {
            let until = shutdown.clone();
            tasks.spawn(listener::serve(listener, router, until, Duration::ZERO, || ()));
        }
        listener::serve(self.endpoint, self.site, shutdown, self.grace, on_grace_over).await?;
        self.bridge.drain();
        if tokio::time::timeout(SETTLE_TIME, self.bridge.settled()).await.is_err() {
            tracing::warn!("requests were still in flight at the end");
        }
        self.bridge.end_sessions().await;
        let (ledger, claim) = (self.ledger, self.claim);
        let closing = move || {
            ledger.close();
            drop(claim);
        };
        tokio::task::spawn_blocking(closing).await?;
        Ok(())
    }
}

/// What the data path needs of the configuration.
pub fn bridge_config(config: Config, server_secret: [u8; 32]) -> BridgeConfig {
    BridgeConfig {
        providers: config.providers,
        governance_headers: config.governance_headers,
        max_body: config.max_body,
        body_timeout: config.body_timeout,
        limits: config.limits,
        trust_forwarded_headers: config.trust_forwarded_headers,
        record: config.record,
        tools: config.tools,
        server_secret,
    }
}

/// Where clients connect to.
fn endpoint(config: &Config, inherited: Option<TcpListener>) -> anyhow::Result<Endpoint> {
    let (is_inherited, tls) = (inherited.is_some(), config.tls.clone());
    let listener = match inherited {
        None => socket::listen(config.listen, config.reuse_port)?,
        Some(listener) => {
            let address = listener.local_addr()?;
            tracing::info!(%address, "listens on the socket of the service manager");
            listener
        }
    };
    Ok(Endpoint { listener, is_inherited, tls, connections: config.connections })
}

/// Takes the store for this process, which may block; gives the token of the first user, if this is
/// the first start, and the store's secret.
fn take(ledger: &Ledger) -> anyhow::Result<(Claim, Option<BridgeToken>, [u8; 32])> {
    let claim = ledger.claim()?;
    if claim.interrupted > 0 {
        let records = claim.interrupted;
        tracing::warn!(records, "records of a process that died are marked as interrupted");
    }
    Ok((claim, first_user(ledger)?, ledger.server_secret()?))
}

fn registry(ledger: &Ledger, bridge: &Bridge) -> Arc<Registry> {
    let mut registry = Registry::with_prefix("keybridge");
    ledger.register_metrics(&mut registry);
    bridge.register_metrics(&mut registry);
    Arc::new(registry)
}

/// On a store without users: `admin` and a token.
fn first_user(ledger: &Ledger) -> anyhow::Result<Option<BridgeToken>> {
    let accounts = Accounts::new(ledger.clone());
    if accounts.has_users()? {
        return Ok(None);
    }
    accounts.create_user(&NewUser { name: "admin".into(), email: None, role: Role::Admin })?;
    let (_token, secret) = accounts.create_token("admin", Some("first"), None)?;
    Ok(Some(secret))
}

/// Deletes what is older than `retention`, now and then daily.
fn keep_for(ledger: &Ledger, retention: Duration) {
    let ledger = ledger.clone();
    let work = async move {
        loop {
            let ledger = ledger.clone();
            let round = move || -> anyhow::Result<u64> {
                Ok(ledger.apply_retention(Timestamp::now().checked_sub(retention)?)?)
            };
            let done = tokio::task::spawn_blocking(round).await.map_err(|error| anyhow!(error));
            match done.and_then(|done| done) {
                Ok(0) => {}
                Ok(records) => tracing::info!(records, "old records were deleted"),
                Err(error) => tracing::error!(%error, "old records could not be deleted"),
            }
            tokio::time::sleep(RETENTION_PAUSE).await;
        }
    };
    // Ends with the runtime: what a round did not delete, the next one does.
    let _job = TaskTracker::new().spawn(work);
}

/// The lines to paste on the first start.
fn snippet(url: &str, token: &str) -> String {
    format!(
        r#"The user `admin` was made. Its bridge token, shown only now:

  {token}

Claude Code, with the company's key:
  export ANTHROPIC_BASE_URL={url}/anthropic ANTHROPIC_AUTH_TOKEN={token} CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1
Claude Code, with your own key or subscription:
  export ANTHROPIC_BASE_URL={url}/anthropic ANTHROPIC_CUSTOM_HEADERS="X-AI-Governance-Token: {token}" CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1

Codex, in ~/.codex/config.toml, with the company's key (export KEYBRIDGE_TOKEN={token}):
  model_provider = "keybridge"
  [model_providers.keybridge]
  name = "keybridge"
  base_url = "{url}/openai/v1"
  env_key = "KEYBRIDGE_TOKEN"
  wire_api = "responses"
Codex, with your own key: env_key = "OPENAI_API_KEY" and
  http_headers = {{ "X-AI-Governance-Token" = "{token}" }}"#
    )
}
