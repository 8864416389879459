//! Injected tools: added to requests, called, and their results sent in further turns.

use std::sync::Arc;

use keybridge_mcp::Servers;

use self::edits::RenderedTools;
use crate::{config::ToolsConfig, metrics::ToolMetrics};

pub(crate) mod edits;
pub(crate) mod stream;
pub(crate) mod tool_loop;
pub(crate) mod whole;

/// The tools that are injected into requests, and the limits of their use.
#[derive(Debug)]
pub(crate) struct InjectedTools {
    pub(crate) servers: Servers,
    /// The settings; its `servers` are empty.
    pub(crate) config: ToolsConfig,
    pub(crate) metrics: Arc<ToolMetrics>,
    rendered: RenderedTools,
}

impl InjectedTools {
    pub(crate) fn new(servers: Servers, config: ToolsConfig, metrics: Arc<ToolMetrics>) -> Self {
        Self { servers, config, metrics, rendered: RenderedTools::default() }
    }
}
