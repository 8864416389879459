//! The data path as the console shows it: the one place where its state becomes the API's types.

use std::sync::Arc;

use async_trait::async_trait;
use keybridge_bridge::Bridge;
use keybridge_console::{
    CircuitBreaker, ConfigProblem, Configuration, DataPath, KeyRestriction, LastError, LastErrors,
    McpServer, Provider, ProviderKey, ReloadError, Reloaded, ToolDefinition,
};
use keybridge_ledger::record::time_text;
use keybridge_mcp::McpState;
use keybridge_providers::health::{self, CircuitState, KeyState, ProviderState, Restriction};
use uuid::Uuid;

use crate::{
    applied_config::AppliedConfig,
    config::Problem,
    reload::{self, Reload},
};

/// The data path behind the administration API.
pub(crate) struct AdminView {
    pub(crate) bridge: Bridge,
    /// None: the configuration cannot be reloaded.
    pub(crate) reload: Option<Arc<Reload>>,
    /// The configuration in force.
    pub(crate) applied: Arc<AppliedConfig>,
    /// The id of this process in the store.
    pub(crate) replica: Uuid,
}

#[async_trait]
impl DataPath for AdminView {
    fn mcp_servers(&self) -> Vec<McpServer> {
        self.bridge.mcp_states().into_iter().map(mcp_server).collect()
    }

    fn providers(&self) -> Vec<Provider> {
        self.bridge.provider_states().into_iter().map(provider).collect()
    }

    fn configuration(&self) -> Configuration {
        self.applied.view(self.replica)
    }

    async fn reload(&self, requested_by: &str) -> Result<Reloaded, ReloadError> {
        let Some(reload) = &self.reload else { return Err(ReloadError::Nothing) };
        match reload.reload(requested_by).await {
            Ok(reload::Reloaded { warnings, restart_needed }) => Ok(Reloaded {
                warnings: warnings.into_iter().map(problem).collect(),
                restart_needed,
            }),
            Err(problems) => {
                Err(ReloadError::Invalid(problems.0.into_iter().map(problem).collect()))
            }
        }
    }
}

pub(crate) fn problem(Problem { path, message }: Problem) -> ConfigProblem {
    ConfigProblem { path, message }
}

fn mcp_server(state: McpState) -> McpServer {
    McpServer {
        name: state.name,
        url: state.url,
        status: state.status.as_str(),
        since: time_text(state.since),
        protocol_version: state.protocol_version,
        server_info: state.server_info,
        tools: state.tools,
        refused_tools: state.refused_tools,
        tool_definitions: state.tool_definitions.into_iter().map(tool_definition).collect(),
        error: state.error,
    }
}

fn tool_definition(definition: keybridge_mcp::ToolDefinition) -> ToolDefinition {
    let keybridge_mcp::ToolDefinition { id, sha256, changes, changed_at } = definition;
    ToolDefinition { id, sha256, changes, changed_at: changed_at.map(time_text) }
}

fn provider(state: ProviderState) -> Provider {
    Provider {
        name: state.name,
        kind: state.kind.as_str(),
        base_url: state.base_url.to_string(),
        keys: state.keys.into_iter().map(key).collect(),
        circuit_breakers: state.circuits.into_iter().map(circuit_breaker).collect(),
        last_errors: LastErrors {
            centralized: state.last_centralized_error.map(last_error),
            byok: state.last_byok_error.map(last_error),
        },
    }
}

fn key(key: KeyState) -> ProviderKey {
    ProviderKey {
        name: key.name,
        hint: key.hint,
        state: key.status.as_str(),
        until: key.until.map(time_text),
        restrictions: key.restrictions.into_iter().map(restriction).collect(),
    }
}

fn restriction(restriction: Restriction) -> KeyRestriction {
    KeyRestriction {
        endpoint: restriction.endpoint,
        model: restriction.model,
        state: restriction.status.as_str(),
        until: time_text(restriction.until),
    }
}

fn circuit_breaker(circuit: CircuitState) -> CircuitBreaker {
    CircuitBreaker {
        endpoint: circuit.endpoint,
        model: circuit.model,
        credential_kind: circuit.credential_kind,
        state: circuit.status.as_str(),
        failures: circuit.failures,
        until: circuit.until.map(time_text),
    }
}

fn last_error(error: health::LastError) -> LastError {
    LastError { at: time_text(error.at), status: error.status, kind: error.kind }
}
