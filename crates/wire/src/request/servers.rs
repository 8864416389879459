//! The MCP servers that a request tells its provider to call.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use super::{Value, attachments::without_secrets, text};

/// Maximum number of servers that are read of one request.
const MAX_SERVERS: usize = 100;

/// An MCP server that the provider is to call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostedServer {
    /// The name that calls refer to.
    pub name: String,
    /// Its URL, without credentials and query, or the id of the provider's connector.
    pub url: String,
}

/// Reads `mcp_servers` of the Messages API.
pub(super) fn of_messages(servers: Value<'_>) -> Vec<HostedServer> {
    let servers = servers.objects(["name", "url"]).filter_map(|[name, url]| server(name, url));
    servers.take(MAX_SERVERS).collect()
}

/// Reads those tools of the Responses API that are servers.
pub(super) fn of_tools(tools: Value<'_>) -> Vec<HostedServer> {
    static LABEL: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("\"server_label\""));
    if LABEL.find(tools.raw().as_bytes()).is_none() {
        return Vec::new();
    }
    let servers = tools.elements().filter_map(|tool| {
        let url = tool.get("server_url").or_else(|| tool.get("connector_id"));
        server(tool.get("server_label"), url)
    });
    servers.take(MAX_SERVERS).collect()
}

fn server(name: Option<Value<'_>>, url: Option<Value<'_>>) -> Option<HostedServer> {
    Some(HostedServer { name: text(name)?, url: without_secrets(&text(url)?) })
}
