//! Reloads the configuration while the process serves.

use std::{fmt, sync::Arc};

use anyhow::Context;
use keybridge_bridge::Bridge;
use keybridge_net::listener::ServerTls;
use keybridge_telemetry::log::LogLevel;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

use crate::{
    applied_config::{AppliedConfig, LastReload},
    config::{Problem, Problems, Restart, Source},
    simulate::Simulation,
};

/// Reloads the configuration, one reload at a time.
pub(crate) struct Reload {
    pub(crate) source: Source,
    pub(crate) bridge: Bridge,
    /// None: the process was started without TLS.
    pub(crate) tls: Option<ServerTls>,
    pub(crate) log: LogLevel,
    pub(crate) simulation: Simulation,
    pub(crate) server_secret: [u8; 32],
    /// The settings that were read at startup and change only with a restart.
    pub(crate) restart: Restart,
    /// What is in force.
    pub(crate) applied: Arc<AppliedConfig>,
    /// Held during a reload.
    pub(crate) lock: tokio::sync::Mutex<()>,
}

/// The result of a reload.
#[derive(Debug, Clone)]
pub(crate) struct Reloaded {
    pub(crate) warnings: Vec<Problem>,
    /// Settings that have changed and need a restart.
    pub(crate) restart_needed: Vec<&'static str>,
}

impl Reload {
    /// Reads the configuration and applies it to new requests, or changes nothing if it has a problem.
    /// Logs the result.
    pub(crate) async fn reload(&self, requested_by: &str) -> Result<Reloaded, Problems> {
        let _guard = self.lock.lock().await;
        let applied = self.apply().await;
        self.applied.note_reload(LastReload::now(requested_by, &applied));
        match &applied {
            Ok(Reloaded { warnings, restart_needed }) => {
                tracing::info!(requested_by, "configuration reloaded");
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                for setting in restart_needed {
                    tracing::warn!(
                        setting,
                        "this setting has changed and takes effect after a restart"
                    );
                }
            }
            Err(problems) => {
                tracing::error!(
                    requested_by,
                    "configuration not reloaded, the current one stays in effect: {problems}"
                );
            }
        }
        applied
    }

    async fn apply(&self) -> Result<Reloaded, Problems> {
        let source = self.source.clone();
        let loading = tokio::task::spawn_blocking(move || source.load());
        let mut config =
            loading.await.map_err(|error| problem("the configuration", error.to_string()))??;
        self.simulation
            .apply_to(&mut config)
            .map_err(|error| problem("providers", error.to_string()))?;
        let restart_needed = self.restart.changed_by(&config.restart);
        let warnings = std::mem::take(&mut config.warnings);
        let (log, tls) = (config.log.clone(), config.tls.take());
        let settings = std::mem::take(&mut config.settings);
        self.bridge
            .reload(config.into_bridge(self.server_secret))
            .await
            .map_err(|error| problem("providers", error.to_string()))?;
        if let (Some(current), Some(tls)) = (&self.tls, &tls) {
            current.replace(tls);
        }
        self.log.set(&log);
        self.applied.replace(settings, &restart_needed);
        Ok(Reloaded { warnings, restart_needed })
    }
}

fn problem(path: &str, message: String) -> Problems {
    Problems(vec![Problem { path: path.into(), message }])
}

impl fmt::Debug for Reload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reload").field("source", &self.source).finish_non_exhaustive()
    }
}

/// Reloads the configuration at each SIGHUP from now on; without a handler, SIGHUP ends the process.
pub(crate) fn reload_on_sighup(reload: Arc<Reload>) -> anyhow::Result<()> {
    let mut hangups = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    let job = async move {
        while hangups.recv().await.is_some() {
            // `reload` has logged the result.
            let _result = reload.reload("SIGHUP").await;
        }
    };
    // Ends with the runtime.
    let _job = TaskTracker::new().spawn(job);
    Ok(())
}
