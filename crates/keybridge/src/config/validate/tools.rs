//! Settings of injected tools.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use keybridge_bridge::config::ToolsConfig;
use keybridge_mcp::McpServerConfig;
use keybridge_net::egress::Egress;
use keybridge_providers::config::ProviderConfig;
use regex::Regex;

use super::Check;
use crate::config::{
    raw::{RawInjectedTools, RawMcpServer, RawText},
    units,
};

/// Maximum length of an MCP server's name: it is part of the names of its tools, which have at most 64
/// characters.
const MAX_MCP_NAME_CHARS: usize = 32;
const MCP_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Check<'_> {
    pub(super) fn tools(
        &mut self,
        raw: Vec<RawMcpServer>,
        limits: &RawInjectedTools,
        providers: &[ProviderConfig],
        egress: &Egress,
    ) -> ToolsConfig {
        let path = "injected_tools";
        let timeout = self.limit(&format!("{path}.call_timeout"), &limits.call_timeout);
        let max_result = self.unit(&format!("{path}.max_result"), units::size(&limits.max_result));
        if limits.skip_models.iter().any(String::is_empty) {
            self.problem(
                format!("{path}.skip_models"),
                "must not contain an empty string, which would match every model",
            );
        }
        let mut servers: Vec<McpServerConfig> = Vec::new();
        for (index, raw) in raw.into_iter().enumerate() {
            let path = format!("mcp_servers[{index}]");
            if servers.iter().any(|other| other.name == raw.name) {
                self.problem(
                    format!("{path}.name"),
                    format!("`{}` is used by another MCP server", raw.name),
                );
            }
            for name in raw.providers.iter().flatten() {
                if !providers.iter().any(|provider| provider.name == *name) {
                    let message = format!("there is no provider `{name}`");
                    self.problem(format!("{path}.providers"), message);
                }
            }
            let server = self.mcp_server(&path, raw, egress);
            servers.extend(server.map(|server| McpServerConfig {
                call_timeout: timeout,
                max_result,
                ..server
            }));
        }
        let skip_models = limits.skip_models.iter().map(|model| model.to_lowercase()).collect();
        if !(1..=1_000).contains(&limits.max_turns) {
            self.problem(format!("{path}.max_turns"), "must be from 1 to 1000");
        }
        let RawInjectedTools { max_turns, parallel_calls, .. } = *limits;
        ToolsConfig { servers, max_turns, parallel_calls, skip_models }
    }

    fn mcp_server(
        &mut self,
        path: &str,
        raw: RawMcpServer,
        egress: &Egress,
    ) -> Option<McpServerConfig> {
        self.words(&format!("{path}.name"), &raw.name);
        if raw.name.len() > MAX_MCP_NAME_CHARS {
            let message = format!("must have at most {MAX_MCP_NAME_CHARS} characters");
            self.problem(format!("{path}.name"), message);
        }
        let url = self.mcp_address(&format!("{path}.url"), &raw.url);
        let headers = self.mcp_headers(&format!("{path}.headers"), raw.headers);
        let allow = self.pattern(&format!("{path}.allow"), raw.allow.as_deref());
        let deny = self.pattern(&format!("{path}.deny"), raw.deny.as_deref());
        let egress = self.egress_to(path, egress, &raw.ca_bundle, raw.allow_private);
        Some(McpServerConfig {
            name: raw.name,
            url: url?,
            egress,
            headers,
            allow,
            deny,
            providers: raw.providers,
            call_timeout: Duration::ZERO,
            connect_timeout: MCP_CONNECT_TIMEOUT,
            max_result: 0,
        })
    }

    /// An http or https URL without user and fragment; some servers need a query.
    fn mcp_address(&mut self, path: &str, text: &str) -> Option<Uri> {
        let (address, _query) = text.split_once('?').unwrap_or((text, ""));
        self.address(path, address)?;
        let uri = text.parse().ok();
        if uri.is_none() || text.contains('#') {
            self.problem(path, "must be an http or https URL without user and fragment");
        }
        uri
    }

    fn mcp_headers(
        &mut self,
        path: &str,
        raw: std::collections::BTreeMap<String, RawText>,
    ) -> Vec<(HeaderName, HeaderValue)> {
        let mut headers = Vec::new();
        for (name, value) in raw {
            let path = format!("{path}.{name}");
            let Some(text) = self.text(&path, value) else { continue };
            let text = text.trim();
            let is_bare = name.eq_ignore_ascii_case("authorization") && !text.contains(' ');
            let text = if is_bare { format!("Bearer {text}") } else { text.to_owned() };
            headers.extend(self.header(&path, &name, &text).map(|(name, mut value)| {
                value.set_sensitive(true);
                (name, value)
            }));
        }
        headers
    }

    fn pattern(&mut self, path: &str, text: Option<&str>) -> Option<Regex> {
        match Regex::new(text?) {
            Ok(pattern) => Some(pattern),
            Err(error) => {
                // The error shows the pattern over several lines; the last one says what is wrong.
                let error = error.to_string();
                let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
                self.problem(path, format!("is not a regular expression: {reason}"));
                None
            }
        }
    }
}
