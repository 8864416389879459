//! Injected tools: put into requests, called, and answered in further turns.

use std::sync::Arc;

use keybridge_mcp::Servers;

use self::edits::RenderedTools;
use crate::{config::ToolsConfig, metrics::ToolMetrics};

pub(crate) mod edits;
pub(crate) mod stream;
pub(crate) mod tool_loop;
pub(crate) mod whole;

/// The tools that are put into requests, and how far they may go.
#[derive(Debug)]
pub(crate) struct InjectedTools {
    pub(crate) servers: Servers,
    /// Without the servers.
    pub(crate) config: ToolsConfig,
    pub(crate) metrics: Arc<ToolMetrics>,
    rendered: RenderedTools,
}

impl InjectedTools {
    pub(crate) fn new(servers: Servers, config: ToolsConfig, metrics: Arc<ToolMetrics>) -> Self {
        Self { servers, config, metrics, rendered: RenderedTools::default() }
    }
}
