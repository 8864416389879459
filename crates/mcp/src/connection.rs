//! The state of the connection to one MCP server, which its supervisor keeps and calls use.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};

use super::{
    McpServerConfig, McpStatus,
    error::McpError,
    http_client::display_url,
    session::{ServerInfo, Session},
};

/// The connection to one MCP server: its supervisor changes it, calls wait for its session.
#[derive(Debug)]
pub(super) struct ServerConnection {
    pub(super) config: McpServerConfig,
    /// Without user information and query.
    pub(super) url: String,
    state: watch::Sender<ConnectionState>,
    /// Has the supervisor connect, or check that the server still answers, without delay.
    pub(super) recheck: Arc<Notify>,
}

/// The state of a connection.
#[derive(Debug, Clone)]
pub(super) struct ConnectionState {
    pub(super) status: McpStatus,
    pub(super) since: jiff::Timestamp,
    pub(super) error: Option<String>,
    pub(super) server_info: ServerInfo,
    session: Option<Session>,
    /// How many times the server was lost or could not be reached.
    failures: u64,
    /// The supervisor has ended.
    is_stopped: bool,
}

impl ServerConnection {
    pub(super) fn new(config: McpServerConfig) -> Self {
        let state = ConnectionState {
            status: McpStatus::Connecting,
            since: jiff::Timestamp::now(),
            error: None,
            server_info: ServerInfo::default(),
            session: None,
            failures: 0,
            is_stopped: false,
        };
        let url = display_url(&config.url);
        Self { config, url, state: watch::Sender::new(state), recheck: Arc::default() }
    }

    pub(super) fn state(&self) -> ConnectionState {
        self.state.borrow().clone()
    }

    /// Waits for the result of the first attempt to connect.
    pub(super) async fn wait_for_first_attempt(&self) {
        let mut state = self.state.subscribe();
        // The sender lives as long as this does.
        let _changed = state.wait_for(|state| state.status != McpStatus::Connecting).await;
    }

    pub(super) fn set_ready(&self, session: Session, server_info: ServerInfo) {
        self.state.send_modify(|state| {
            state.set_status(McpStatus::Ready);
            state.error = None;
            state.server_info = server_info;
            state.session = Some(session);
        });
    }

    pub(super) fn set_down(&self, error: String) {
        self.state.send_modify(|state| {
            state.set_status(McpStatus::Down);
            state.error = Some(error);
            state.session = None;
            state.failures += 1;
        });
    }

    /// Marks the end of the supervisor.
    pub(super) fn stop(&self) {
        self.set_down("keybridge is shutting down".into());
        self.state.send_modify(|state| state.is_stopped = true);
    }

    /// Calls a tool and returns the JSON of its result, or what failed. The caller sets a timeout.
    pub(super) async fn call(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
    ) -> Result<String, String> {
        let session = self.session().await?;
        session.call(tool, arguments).await.map_err(|error| match error {
            McpError::Rpc { code, message } => {
                self.config.without_secrets(&format!("{message} ({code})"))
            }
            McpError::Invalid(reason) => {
                format!(
                    "the MCP server's result is not valid: {}",
                    self.config.without_secrets(&reason)
                )
            }
            McpError::Unreachable(_) | McpError::Status(_) => {
                self.recheck.notify_one();
                self.unavailable(&error.to_string())
            }
        })
    }

    /// The session. If there is none, has the supervisor connect at once and waits for the result.
    async fn session(&self) -> Result<Session, String> {
        let mut state = self.state.subscribe();
        let failures = {
            let state = state.borrow_and_update();
            if let Some(session) = &state.session {
                return Ok(session.clone());
            }
            state.failures
        };
        self.recheck.notify_one();
        let settled = |state: &ConnectionState| {
            state.session.is_some() || state.failures > failures || state.is_stopped
        };
        match state
            .wait_for(settled)
            .await
            .map(|state| (state.session.clone(), state.error.clone()))
        {
            Ok((Some(session), _)) => Ok(session),
            Ok((None, error)) => Err(self.unavailable(&error.unwrap_or_default())),
            Err(_closed) => Err(self.unavailable("its supervisor has ended")),
        }
    }

    fn unavailable(&self, reason: &str) -> String {
        let reason = self.config.without_secrets(reason);
        format!("the MCP server {} is not available: {reason}", self.config.name)
    }
}

impl ConnectionState {
    fn set_status(&mut self, status: McpStatus) {
        if self.status != status {
            self.status = status;
            self.since = jiff::Timestamp::now();
        }
    }
}
