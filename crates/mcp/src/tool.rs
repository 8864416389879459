//! A tool of an MCP server as it is injected, and calls to it.

use std::{sync::Arc, time::Duration};

use serde_json::{Map, Value};
use tokio::time::{Instant, timeout};

use super::{connection::ServerConnection, listing::ListedTool, result::ToolResult};

/// A tool that is injected into requests.
#[derive(Debug)]
pub struct Tool {
    /// The name that models see: `bmcp_<server>_<tool>`, at most 64 of `[a-zA-Z0-9_-]`.
    pub id: String,
    /// The tool's own name.
    pub name: String,
    pub server_name: String,
    /// Without user information and query.
    pub server_url: String,
    pub description: Option<String>,
    /// JSON, in the server's order of keys; always the same bytes for the same schema.
    pub input_schema: String,
    connection: Arc<ServerConnection>,
}

/// The outcome of a call.
#[derive(Debug)]
pub struct CallOutcome {
    /// The result, or an error message for the model and the record.
    pub result: Result<ToolResult, String>,
    pub duration: Duration,
}

impl Tool {
    pub(super) fn new(id: String, listed: ListedTool, connection: &Arc<ServerConnection>) -> Self {
        Self {
            id,
            name: listed.name,
            server_name: connection.config.name.clone(),
            server_url: connection.url.clone(),
            description: listed.description,
            input_schema: Value::Object(listed.input_schema).to_string(),
            connection: Arc::clone(connection),
        }
    }

    /// Calls the tool. Dropping the future cancels the call at the server.
    pub async fn call(&self, arguments: Map<String, Value>) -> CallOutcome {
        let started = Instant::now();
        let limit = self.connection.config.call_timeout;
        let result = match timeout(limit, self.connection.call(&self.name, arguments)).await {
            Ok(Ok(raw)) => {
                ToolResult::read(raw, self.connection.config.max_result).map_err(|reason| {
                    let reason = self.connection.config.without_secrets(&reason);
                    format!("the MCP server's result is not valid: {reason}")
                })
            }
            Ok(Err(reason)) => Err(reason),
            Err(_elapsed) => Err(format!("timed out after {} s", limit.as_secs_f64())),
        };
        CallOutcome { result, duration: started.elapsed() }
    }

    /// Whether models and calls cannot tell them apart.
    pub(super) fn is_equivalent(&self, other: &Self) -> bool {
        self.id == other.id
            && self.name == other.name
            && self.description == other.description
            && self.input_schema == other.input_schema
    }
}
