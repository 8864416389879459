//! The line to one MCP server: what a call needs to know of the connection that its supervisor keeps.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};

use super::{
    McpServerConfig, McpStatus,
    error::Trouble,
    http_client::shown,
    session::{About, Session},
};

/// The line to one MCP server; its supervisor writes it, calls read it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) config: McpServerConfig,
    /// Without user information and query.
    pub(super) url: String,
    link: watch::Sender<Link>,
    /// Asks the supervisor to look at the server now: to connect, or to see if it still answers.
    pub(super) attention: Arc<Notify>,
}

/// The state of a line.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) status: McpStatus,
    pub(super) since: jiff::Timestamp,
    pub(super) error: Option<String>,
    pub(super) about: About,
    session: Option<Session>,
    /// How many times the server was lost or could not be reached.
    failures: u64,
    /// No supervisor will change it any more.
    is_over: bool,
}

impl Line {
    pub(super) fn new(config: McpServerConfig) -> Self {
        let link = Link {
            status: McpStatus::Connecting,
            since: jiff::Timestamp::now(),
            error: None,
            about: About::default(),
            session: None,
            failures: 0,
            is_over: false,
        };
        let url = shown(&config.url);
        Self { config, url, link: watch::Sender::new(link), attention: Arc::default() }
    }

    pub(super) fn link(&self) -> Link {
        self.link.borrow().clone()
    }

    pub(super) async fn tried(&self) {
        let mut link = self.link.subscribe();
        // The sender lives as long as this does.
        let _tried = link.wait_for(|link| link.status != McpStatus::Connecting).await;
    }

    pub(super) fn ready(&self, session: Session, about: About) {
        self.link.send_modify(|link| {
            link.turn(McpStatus::Ready);
            link.error = None;
            link.about = about;
            link.session = Some(session);
        });
    }

    pub(super) fn down(&self, error: String) {
        self.link.send_modify(|link| {
            link.turn(McpStatus::Down);
            link.error = Some(error);
            link.session = None;
            link.failures += 1;
        });
    }

    pub(super) fn over(&self) {
        self.down("the bridge is stopping".into());
        self.link.send_modify(|link| link.is_over = true);
    }

    /// Calls a tool and gives the JSON of its result, or what failed. The caller limits the wait.
    pub(super) async fn call(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
    ) -> Result<String, String> {
        let session = self.session().await?;
        session.call(tool, arguments).await.map_err(|trouble| match trouble {
            Trouble::Refused { code, message } => {
                self.config.scrubbed(&format!("{message} ({code})"))
            }
            Trouble::Invalid(reason) => {
                format!("the MCP server's result is not valid: {}", self.config.scrubbed(&reason))
            }
            Trouble::Unreachable(_) | Trouble::Status(_) => {
                self.attention.notify_one();
                self.unreachable(&trouble.to_string())
            }
        })
    }

    /// The session; while there is none, that of an attempt which is made at once.
    async fn session(&self) -> Result<Session, String> {
        let mut link = self.link.subscribe();
        let failures = {
            let link = link.borrow_and_update();
            if let Some(session) = &link.session {
                return Ok(session.clone());
            }
            link.failures
        };
        self.attention.notify_one();
        let settled =
            |link: &Link| link.session.is_some() || link.failures > failures || link.is_over;
        match link.wait_for(settled).await.map(|link| (link.session.clone(), link.error.clone())) {
            Ok((Some(session), _)) => Ok(session),
            Ok((None, error)) => Err(self.unreachable(&error.unwrap_or_default())),
            Err(_closed) => Err(self.unreachable("it is not asked any more")),
        }
    }

    fn unreachable(&self, reason: &str) -> String {
        let reason = self.config.scrubbed(reason);
        format!("the MCP server {} could not be asked: {reason}", self.config.name)
    }
}

impl Link {
    fn turn(&mut self, status: McpStatus) {
        if self.status != status {
            self.status = status;
            self.since = jiff::Timestamp::now();
        }
    }
}
