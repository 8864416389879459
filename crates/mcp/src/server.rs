//! The supervisor of one MCP server: connects, lists the tools, and does both again as needed.

use std::{sync::Arc, time::Duration};

use keybridge_policy::Backoff;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    McpServerConfig, McpState, McpStatus, Supervision, catalogue::Catalogue, connection::Line,
    error::Trouble, http_client::HttpClient, session::Connection,
};

/// One MCP server: the line to it and its tools.
#[derive(Debug)]
pub(super) struct Server {
    line: Arc<Line>,
    http: HttpClient,
    tasks: TaskTracker,
    catalogue: watch::Sender<Arc<Catalogue>>,
}

/// The tools are listed within this, all pages together.
const LISTING: Duration = Duration::from_secs(60);
/// A server may change its tools without a word.
const LIST_AGAIN: Duration = Duration::from_secs(5 * 60);
/// Changes come in groups: one listing for all that come within this.
const SETTLING: Duration = Duration::from_millis(200);
/// Delays between attempts to connect.
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// A session that held for this long ends the series of attempts.
const STABLE: Duration = Duration::from_secs(30);

impl Server {
    pub(super) fn new(config: McpServerConfig, tasks: &TaskTracker) -> Self {
        let http = HttpClient::new(&config);
        let line = Arc::new(Line::new(config));
        Self { line, http, tasks: tasks.clone(), catalogue: watch::Sender::default() }
    }

    pub(super) fn config(&self) -> &McpServerConfig {
        &self.line.config
    }

    pub(super) fn catalogue(&self) -> Arc<Catalogue> {
        Arc::clone(&self.catalogue.borrow())
    }

    pub(super) fn state(&self) -> McpState {
        let link = self.line.link();
        let catalogue = self.catalogue();
        McpState {
            name: self.line.config.name.clone(),
            url: self.line.url.clone(),
            status: link.status,
            protocol_version: link.about.protocol_version,
            server_info: link.about.server_info,
            tools: catalogue.tools.iter().map(|tool| tool.id.clone()).collect(),
            refused_tools: catalogue.refused.clone(),
            error: link.error,
            since: link.since,
        }
    }

    /// Waits until a connection was tried, with whatever success.
    pub(super) async fn tried(&self) {
        self.line.tried().await;
    }

    /// Keeps the server connected until it is told to stop.
    pub(super) async fn supervise(&self, supervision: &Supervision, stop: &CancellationToken) {
        let mut backoff = RECONNECT;
        while let Some(connected) = stop.run_until_cancelled(self.connect(supervision)).await {
            match connected {
                Err(error) => self.lose(&error),
                Ok(mut connection) => {
                    let since = Instant::now();
                    let attended = self.attend(supervision, &mut connection);
                    let Some(error) = stop.run_until_cancelled(attended).await else {
                        self.line.over();
                        return connection.close().await;
                    };
                    self.lose(&error);
                    // A server that is lost may take its time to say so.
                    self.tasks.spawn(connection.close());
                    if since.elapsed() >= STABLE {
                        backoff.reset();
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(backoff.next_delay()) => {}
                () = self.line.attention.notified() => {}
            }
        }
        self.line.over();
    }

    /// Opens a session and lists the tools.
    async fn connect(&self, supervision: &Supervision) -> Result<Connection, Trouble> {
        let connection = Connection::open(&self.http, &self.line, &self.tasks).await?;
        let listed = self.list(supervision, &connection).await;
        if let Err(trouble) = listed {
            self.tasks.spawn(connection.close());
            return Err(trouble);
        }
        let about = connection.about();
        tracing::info!(
            server = self.line.config.name,
            protocol_version = about.protocol_version,
            server_info = about.server_info,
            tools = self.catalogue.borrow().tools.len(),
            "the MCP server is ready"
        );
        self.line.ready(connection.session(), about);
        Ok(connection)
    }

    /// Lists the tools when they may have changed, until the server is lost.
    async fn attend(&self, supervision: &Supervision, connection: &mut Connection) -> Trouble {
        loop {
            let changed = Arc::clone(connection.changed());
            tokio::select! {
                () = connection.closed() => {
                    return Trouble::Unreachable("the session was ended".into());
                }
                () = changed.notified() => sleep(SETTLING).await,
                () = self.line.attention.notified() => {}
                () = sleep(LIST_AGAIN) => {}
            }
            if let Err(trouble) = self.list(supervision, connection).await {
                return trouble;
            }
        }
    }

    async fn list(
        &self,
        supervision: &Supervision,
        connection: &Connection,
    ) -> Result<(), Trouble> {
        let listing =
            timeout(LISTING, connection.session().list()).await.unwrap_or_else(|_elapsed| {
                let limit = LISTING.as_secs();
                Err(Trouble::Unreachable(format!("its tools were not listed within {limit} s")))
            })?;
        let catalogue = Catalogue::new(listing.tools, listing.refused, &self.line);
        if !catalogue.is_same(&self.catalogue.borrow()) {
            for tool in &catalogue.refused {
                tracing::warn!(server = self.line.config.name, tool, "a tool is left out");
            }
            self.catalogue.send_replace(Arc::new(catalogue));
            supervision.changed();
        }
        Ok(())
    }

    fn lose(&self, trouble: &Trouble) {
        let error = self.line.config.scrubbed(&trouble.to_string());
        let server = &self.line.config.name;
        if self.line.link().status == McpStatus::Down {
            tracing::debug!(server, error, "the MCP server is still down");
        } else {
            tracing::warn!(server, error, "the MCP server is down");
        }
        self.line.down(error);
    }
}
