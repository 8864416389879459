//! `keybridge serve`: wiring, first start and graceful shutdown.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use keybridge_bridge::Bridge;
use keybridge_identity::{
    AccountError, Accounts, BridgeToken, Directory, OfflineCache, token::mask_tokens,
};
use keybridge_ledger::{Claim, Ledger};
use keybridge_net::listener::{self, ConnectionLimits, Connections, Endpoint, Site};
use keybridge_sim::SimServer;
use keybridge_telemetry::log::{self, LogLevel};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::Mutex, task::JoinError};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::{
    admin_view::AdminView,
    applied_config::AppliedConfig,
    care,
    cli::{Cli, Exit, ServeOptions},
    config::{Config, Source},
    env::Env,
    first_token, offline, open_files,
    process_metrics::ProcessMetrics,
    reload::{self, Reload},
    resident, runtime,
    signals::ShutdownSignals,
    simulate::{self, Simulated},
    socket,
};

/// Time that requests get to be settled after the grace period.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn command(cli: &Cli, env: &Env, options: &ServeOptions) -> Result<(), Exit> {
    let source = cli.source(env, options.listen.as_deref());
    let config = source.load().map_err(Exit::Config)?;
    let log = log::start(&config.log, mask_tokens);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let (ledger, offline) = offline::open(&config)?;
    let spool_dir = config.ledger.spool.as_ref().map_or(PathBuf::new(), |spool| spool.dir.clone());
    runtime::block_on(async {
        let simulated = if options.simulate { Simulated::Providers } else { Simulated::Nothing };
        let (inherited, reload) = (socket::inherited()?, Some((source, log)));
        let options = StartOptions { inherited, reload, offline };
        let server = Server::start(config, ledger, simulated, options).await?;
        let signals = ShutdownSignals::listen()?;
        server.print_welcome(&spool_dir);
        server.serve_until_signal(signals).await
    })
}

/// What a server takes from its process.
#[derive(Debug, Default)]
pub struct StartOptions {
    /// A listening socket to use instead of `server.listen`.
    pub inherited: Option<TcpListener>,
    /// What a reload needs: where the configuration comes from, and the handle of the log level.
    pub reload: Option<(Source, LogLevel)>,
    /// What a later start needs to know while the store cannot be reached.
    pub offline: Option<OfflineCache>,
}

/// A bridge and its console on a listening socket.
#[derive(Debug)]
pub struct Server {
    /// The store of its records.
    pub ledger: Ledger,
    /// Address that clients use.
    pub public_url: String,
    /// The token of the user `admin`, if this start created the user.
    pub first_token: Option<BridgeToken>,
    /// The data path.
    pub bridge: Bridge,
    site: Site,
    endpoint: Endpoint,
    grace: Duration,
    simulated: Option<SimServer>,
    metrics: Option<(TcpListener, axum::Router)>,
    offline: Option<OfflineCache>,
    _watching: AbortOnDropHandle<()>,
    claim: Claim,
    /// Where this machine remembers the store.
    identity_dir: Option<PathBuf>,
}

impl Server {
    /// Claims the store, creates the first user if there is none, and listens.
    ///
    /// # Errors
    ///
    /// When another process serves from the store, a provider cannot be set up, or the address cannot
    /// be listened on.
    pub async fn start(
        mut config: Config,
        ledger: Ledger,
        simulated: Simulated,
        options: StartOptions,
    ) -> anyhow::Result<Self> {
        // An error means that it is installed already.
        let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let identity_dir = config.ledger.spool.as_ref().map(|spool| spool.dir.clone());
        let (claim, first_token, server_secret) = {
            let (ledger, identity_dir) = (ledger.clone(), identity_dir.clone());
            tokio::task::spawn_blocking(move || claim_store(&ledger, identity_dir.as_deref()))
                .await??
        };
        let (simulated, simulation) = simulate::start(simulated).await?;
        simulation.apply_to(&mut config)?;
        let endpoint = endpoint(&config, options.inherited)?;
        let public_url = public_url(&config, &endpoint)?;
        care::start_retention(&ledger, config.retention);
        care::start_summing(&ledger);
        if let Some(dir) = &identity_dir {
            care::start_remembering(&ledger, dir);
        }
        let grace = config.shutdown_grace;
        let metrics_listener = match config.metrics_listen {
            Some(address) => Some(socket::listen(address, config.reuse_port)?),
            None => None,
        };
        let metrics_access = config.metrics_access;
        let restart = std::mem::take(&mut config.restart);
        let applied = Arc::new(AppliedConfig::new(std::mem::take(&mut config.settings)));
        let directory = Directory::new(ledger.clone()).with_offline_cache(options.offline.clone());
        let directory = Arc::new(directory);
        let watching = watch(&directory);
        let bridge_config = config.into_bridge(server_secret);
        let bridge = Bridge::new(bridge_config, directory.clone(), &ledger)?;
        bridge.start().await;
        let registry = registry(&ledger, &bridge, &endpoint.connections);
        let metrics = metrics_listener
            .map(|listener| (listener, keybridge_console::metrics_router(Arc::clone(&registry))));
        let reload = options.reload.map(|(source, log)| {
            Arc::new(Reload {
                source,
                bridge: bridge.clone(),
                tls: endpoint.tls.clone(),
                log,
                simulation,
                server_secret,
                restart,
                applied: Arc::clone(&applied),
                lock: Mutex::default(),
            })
        });
        if let Some(reload) = &reload {
            reload::reload_on_sighup(Arc::clone(reload))?;
        }
        let (bridge_view, replica) = (bridge.clone(), ledger.replica());
        let admin_view =
            AdminView { bridge: bridge_view, reload: reload.clone(), applied, replica };
        let console = keybridge_console::router(
            ledger.clone(),
            directory,
            registry,
            Arc::new(admin_view),
            metrics_access,
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
            offline: options.offline,
            _watching: watching,
            claim,
            identity_dir,
        })
    }

    /// The address that the server listens on.
    ///
    /// # Errors
    ///
    /// When the system cannot tell.
    pub fn address(&self) -> std::io::Result<std::net::SocketAddr> {
        self.endpoint.listener.local_addr()
    }

    /// Hands over the first token, on the first start, and prints the address.
    fn print_welcome(&self, spool_dir: &Path) {
        let url = &self.public_url;
        if let Some(token) = &self.first_token {
            first_token::hand_over(token, url, spool_dir);
        }
        eprintln!("keybridge is listening on {url}");
        if let Some(simulated) = &self.simulated {
            eprintln!("all providers are simulated: http://{}/_sim/scenarios", simulated.addr);
        }
    }

    /// Serves until SIGTERM or Ctrl-C, then drains; a second signal stops the process at once.
    pub(crate) async fn serve_until_signal(self, mut signals: ShutdownSignals) -> Result<(), Exit> {
        let shutdown = CancellationToken::new();
        resident::start_releasing();
        // A task of its own: dropping it here could block, for example on a heartbeat.
        let mut serving = TaskTracker::new().spawn(self.serve(shutdown.clone()));
        let ended = |ended: Result<anyhow::Result<()>, JoinError>| Ok(ended.context("serving")??);
        tokio::select! {
            result = &mut serving => return ended(result),
            () = signals.next() => {}
        }
        tracing::info!("shutting down; a second signal stops the process at once");
        shutdown.cancel();
        tokio::select! {
            result = &mut serving => ended(result),
            () = signals.next() => Err(Exit::Interrupted),
        }
    }

    /// Serves until `shutdown`, then settles the requests in flight and writes all queued records.
    ///
    /// # Errors
    ///
    /// When the listener fails, or the thread that closes the ledger panics.
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
        if tokio::time::timeout(SETTLE_TIMEOUT, self.bridge.wait_until_idle()).await.is_err() {
            tracing::warn!(
                "requests were still in flight at shutdown; their records may be incomplete"
            );
        }
        self.bridge.close_mcp_sessions().await;
        if let Some(offline) = &self.offline {
            offline.write().await;
        }
        let (ledger, claim, identity_dir) = (self.ledger, self.claim, self.identity_dir);
        let closing = move || {
            ledger.close();
            if let Some(dir) = identity_dir {
                care::remember(&ledger, &dir);
            }
            drop(claim);
        };
        tokio::task::spawn_blocking(closing).await?;
        Ok(())
    }
}

/// The URL that clients use.
fn public_url(config: &Config, endpoint: &Endpoint) -> std::io::Result<String> {
    if config.listen.port() != 0 {
        return Ok(config.public_url.clone());
    }
    // The system chose a free port.
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    Ok(format!("{scheme}://{}", endpoint.listener.local_addr()?))
}

/// The socket that clients connect to.
fn endpoint(config: &Config, inherited: Option<TcpListener>) -> anyhow::Result<Endpoint> {
    let (is_inherited, tls) = (inherited.is_some(), config.tls.clone());
    let listener = match inherited {
        None => socket::listen(config.listen, config.reuse_port)?,
        Some(listener) => {
            let address = listener.local_addr()?;
            tracing::info!(%address, "listening on the socket of the service manager");
            listener
        }
    };
    let limits = &config.connection_limits;
    let open_files = open_files::raise_limit();
    let connections = Connections::new(ConnectionLimits {
        max_connections: open_files::max_connections(limits.max_connections, open_files),
        ..limits.clone()
    });
    Ok(Endpoint { listener, is_inherited, tls, settings: config.connections, connections })
}

/// Claims the store for this process; returns the token of the first user, if this is the first
/// start, and the store's secret. Blocks.
fn claim_store(
    ledger: &Ledger,
    identity_dir: Option<&Path>,
) -> anyhow::Result<(Claim, Option<BridgeToken>, [u8; 32])> {
    // A store that is away is compared with what is known of it when it is back.
    let identity_dir = identity_dir.filter(|_| !ledger.was_opened_away());
    if let Some(dir) = identity_dir {
        care::check_store(ledger, dir)?;
    }
    let claim = ledger.claim()?;
    if claim.interrupted > 0 {
        let records = claim.interrupted;
        tracing::warn!(records, "marked the open records of a process that died as interrupted");
    }
    let first_token = if ledger.was_opened_away() { None } else { create_first_user(ledger)? };
    let secret = ledger.server_secret()?;
    if let Some(dir) = identity_dir {
        care::remember(ledger, dir);
    }
    Ok((claim, first_token, secret))
}

fn registry(ledger: &Ledger, bridge: &Bridge, connections: &Connections) -> Arc<Registry> {
    let mut registry = Registry::with_prefix("keybridge");
    ledger.register_metrics(&mut registry);
    bridge.register_metrics(&mut registry);
    let (bridge, connections) = (bridge.clone(), connections.clone());
    registry.register_collector(Box::new(ProcessMetrics { bridge, connections }));
    Arc::new(registry)
}

/// Creates the user `admin` and a token in a store that has no administrator.
fn create_first_user(ledger: &Ledger) -> anyhow::Result<Option<BridgeToken>> {
    let accounts = Accounts::new(ledger.clone());
    if accounts.has_administrators()? {
        return Ok(None);
    }
    match accounts.create_first_admin("admin") {
        Ok(token) => Ok(Some(token)),
        Err(AccountError::UserExists(name)) if !accounts.has_administrators()? => {
            tracing::warn!(
                "there is no administrator, and the user `{name}` is a member: create one with \
                 `keybridge user create NAME --role admin`"
            );
            Ok(None)
        }
        // Another replica was faster.
        Err(AccountError::UserExists(_name)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Ends open requests when the access of their caller ends.
fn watch(directory: &Arc<Directory>) -> AbortOnDropHandle<()> {
    let directory = Arc::clone(directory);
    AbortOnDropHandle::new(TaskTracker::new().spawn(async move { directory.watch().await }))
}
