//! The supervisor of one MCP server: connects, lists the tools, and does both again as needed.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use keybridge_policy::Backoff;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    McpServerConfig, McpState, McpStatus, Supervision,
    catalogue::Catalogue,
    connection::ServerConnection,
    definitions::{DefinitionHistory, ServerLabels},
    error::McpError,
    http_client::HttpClient,
    session::SupervisedSession,
};

/// One MCP server: the connection to it and its tools.
#[derive(Debug)]
pub(super) struct Server {
    connection: Arc<ServerConnection>,
    http: HttpClient,
    tasks: TaskTracker,
    catalogue: watch::Sender<Arc<Catalogue>>,
    definitions: Mutex<DefinitionHistory>,
}

/// Timeout of a list of tools, all pages together.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// A server may change its tools without a notification.
const RELIST_INTERVAL: Duration = Duration::from_secs(5 * 60);
/// Notifications come in groups: the tools are listed once for all that come within this time.
const CHANGE_DEBOUNCE: Duration = Duration::from_millis(200);
/// Delays between attempts to connect.
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// A session that lasted this long resets the backoff.
const STABLE_AFTER: Duration = Duration::from_secs(30);

impl Server {
    pub(super) fn new(config: McpServerConfig, tasks: &TaskTracker) -> Self {
        let http = HttpClient::new(&config);
        let connection = Arc::new(ServerConnection::new(config));
        Self {
            connection,
            http,
            tasks: tasks.clone(),
            catalogue: watch::Sender::default(),
            definitions: Mutex::default(),
        }
    }

    pub(super) fn config(&self) -> &McpServerConfig {
        &self.connection.config
    }

    pub(super) fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(&self.catalogue.borrow())
    }

    pub(super) fn state(&self) -> McpState {
        let state = self.connection.state();
        let catalogue = self.catalogue();
        let definitions = self.definitions.lock().unwrap_or_else(PoisonError::into_inner);
        McpState {
            name: self.connection.config.name.clone(),
            url: self.connection.url.clone(),
            status: state.status,
            protocol_version: state.server_info.protocol_version,
            server_info: state.server_info.name,
            tools: catalogue.tools.iter().map(|tool| tool.id.clone()).collect(),
            refused_tools: catalogue.refused.clone(),
            tool_definitions: definitions.of(&catalogue.tools),
            error: state.error,
            since: state.since,
        }
    }

    /// Waits for the result of the first attempt to connect.
    pub(super) async fn wait_for_first_attempt(&self) {
        self.connection.wait_for_first_attempt().await;
    }

    /// Keeps the server connected until it is stopped.
    pub(super) async fn supervise(&self, supervision: &Supervision, stop: &CancellationToken) {
        let mut backoff = RECONNECT;
        while let Some(connected) = stop.run_until_cancelled(self.connect(supervision)).await {
            match connected {
                Err(error) => self.mark_down(&error),
                Ok(mut session) => {
                    let since = Instant::now();
                    let watching = self.watch(supervision, &mut session);
                    let Some(error) = stop.run_until_cancelled(watching).await else {
                        self.connection.stop();
                        return session.close().await;
                    };
                    self.mark_down(&error);
                    // A server that is down may not answer the end of its session for a while.
                    self.tasks.spawn(session.close());
                    if since.elapsed() >= STABLE_AFTER {
                        backoff.reset();
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(backoff.next_delay()) => {}
                () = self.connection.recheck.notified() => {}
            }
        }
        self.connection.stop();
    }

    /// Opens a session and lists the tools.
    async fn connect(&self, supervision: &Supervision) -> Result<SupervisedSession, McpError> {
        let session =
            SupervisedSession::open(&self.http, &self.connection.recheck, &self.tasks).await?;
        let listed = self.list(supervision, &session).await;
        if let Err(error) = listed {
            self.tasks.spawn(session.close());
            return Err(error);
        }
        let info = session.server_info();
        tracing::info!(
            server = self.connection.config.name,
            protocol_version = info.protocol_version,
            server_info = info.name,
            tools = self.catalogue.borrow().tools.len(),
            "the MCP server is ready"
        );
        self.connection.set_ready(session.handle(), info);
        Ok(session)
    }

    /// Lists the tools when they may have changed, until the session ends or fails.
    async fn watch(&self, supervision: &Supervision, session: &mut SupervisedSession) -> McpError {
        loop {
            let changed = Arc::clone(session.changed());
            tokio::select! {
                () = session.closed() => {
                    return McpError::Unreachable("the session ended".into());
                }
                () = changed.notified() => sleep(CHANGE_DEBOUNCE).await,
                () = self.connection.recheck.notified() => {}
                () = sleep(RELIST_INTERVAL) => {}
            }
            if let Err(error) = self.list(supervision, session).await {
                return error;
            }
        }
    }

    async fn list(
        &self,
        supervision: &Supervision,
        session: &SupervisedSession,
    ) -> Result<(), McpError> {
        let listing =
            timeout(LIST_TIMEOUT, session.handle().list()).await.unwrap_or_else(|_elapsed| {
                let limit = LIST_TIMEOUT.as_secs();
                Err(McpError::Unreachable(format!("its tools were not listed within {limit} s")))
            })?;
        let catalogue = Catalogue::new(listing.tools, listing.refused, &self.connection);
        if !catalogue.is_equivalent(&self.catalogue.borrow()) {
            for tool in &catalogue.refused {
                tracing::warn!(
                    server = self.connection.config.name,
                    tool,
                    "a malformed tool is left out"
                );
            }
            self.report_changes(supervision, &catalogue);
            self.catalogue.send_replace(Arc::new(catalogue));
            supervision.tools_changed();
        }
        Ok(())
    }

    /// Logs and counts the tools that have another definition than before.
    fn report_changes(&self, supervision: &Supervision, catalogue: &Catalogue) {
        let mut definitions = self.definitions.lock().unwrap_or_else(PoisonError::into_inner);
        let server = &self.connection.config.name;
        for change in definitions.update(&catalogue.tools, jiff::Timestamp::now()) {
            tracing::warn!(
                server,
                tool = change.id,
                before = change.before,
                after = change.after,
                "the MCP server changed the definition of a tool"
            );
            let labels = ServerLabels { server: server.clone() };
            supervision.metrics.definition_changes.get_or_create(&labels).inc();
        }
    }

    fn mark_down(&self, error: &McpError) {
        let error = self.connection.config.without_secrets(&error.to_string());
        let server = &self.connection.config.name;
        if self.connection.state().status == McpStatus::Down {
            tracing::debug!(server, error, "the MCP server is still down");
        } else {
            tracing::warn!(server, error, "the MCP server is down");
        }
        self.connection.set_down(error);
    }
}
