//! The configuration read again while the process serves.

use std::{fmt, sync::Arc};

use anyhow::Context;
use keybridge_bridge::Bridge;
use keybridge_net::listener::ServerTls;
use keybridge_telemetry::log::LogLevel;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::TaskTracker;

use crate::{
    config::{Problem, Problems, Restart, Source},
    serve::bridge_config,
    simulate::Simulation,
};

/// Applies the configuration anew; calls wait for each other.
pub(crate) struct Reload {
    pub(crate) source: Source,
    pub(crate) bridge: Bridge,
    /// None: the process began without TLS.
    pub(crate) tls: Option<ServerTls>,
    pub(crate) log: LogLevel,
    pub(crate) simulation: Simulation,
    pub(crate) server_secret: [u8; 32],
    /// What the process began with and only a restart changes.
    pub(crate) restart: Restart,
    /// Whose turn it is.
    pub(crate) turn: tokio::sync::Mutex<()>,
}

/// What a reload has to say.
#[derive(Debug)]
pub(crate) struct Reloaded {
    pub(crate) warnings: Vec<Problem>,
    /// Settings that have changed and need a restart.
    pub(crate) restart_needed: Vec<&'static str>,
}

impl Reload {
    /// Reads the configuration and applies it to new requests. If anything is wrong with it, all of
    /// it stays as it was; either is logged.
    pub(crate) async fn reload(&self, asked_by: &str) -> Result<Reloaded, Problems> {
        let _turn = self.turn.lock().await;
        let applied = self.apply().await;
        match &applied {
            Ok(Reloaded { warnings, restart_needed }) => {
                tracing::info!(asked_by, "the configuration was read again");
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                for setting in restart_needed {
                    tracing::warn!(setting, "has changed, which needs a restart");
                }
            }
            Err(problems) => {
                tracing::error!(asked_by, "the configuration stays as it was: {problems}");
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
            .stand_in(&mut config)
            .map_err(|error| problem("providers", error.to_string()))?;
        let restart_needed = self.restart.changed_by(&config.restart);
        let warnings = std::mem::take(&mut config.warnings);
        let (log, tls) = (config.log.clone(), config.tls.take());
        self.bridge
            .reload(bridge_config(config, self.server_secret))
            .await
            .map_err(|error| problem("providers", error.to_string()))?;
        if let (Some(current), Some(tls)) = (&self.tls, &tls) {
            current.replace(tls);
        }
        self.log.set(&log);
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

/// Reads the configuration again at each SIGHUP from now on, which would end the process otherwise.
pub(crate) fn at_hangups(reload: Arc<Reload>) -> anyhow::Result<()> {
    let mut hangups = signal(SignalKind::hangup()).context("SIGHUP cannot be listened for")?;
    let attending = async move {
        while hangups.recv().await.is_some() {
            // It has been logged.
            let _result = reload.reload("SIGHUP").await;
        }
    };
    // Ends with the runtime.
    let _job = TaskTracker::new().spawn(attending);
    Ok(())
}
