//! Which definitions a server gave its tools. Models act on descriptions and schemas, and a server can
//! change them at any time: each change is logged and counted.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use aws_lc_rs::digest::{Context, SHA256};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::tool::Tool;

/// Maximum number of tools of one server whose definitions are remembered after they were withdrawn.
const MAX_WITHDRAWN: usize = 1_000;

/// The definition of a tool, and how often it changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolDefinition {
    /// The id of the tool.
    pub id: String,
    /// SHA-256 of its description and schema, in hex.
    pub sha256: String,
    /// How often it has changed since this process first saw it.
    pub changes: u64,
    /// When it last changed.
    pub changed_at: Option<jiff::Timestamp>,
}

/// The definitions of the tools of one server, by id.
#[derive(Debug, Default)]
pub(super) struct DefinitionHistory {
    known: BTreeMap<String, ToolDefinition>,
}

/// A definition that is not what it was.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) id: String,
    pub(super) before: String,
    pub(super) after: String,
}

impl DefinitionHistory {
    /// Takes the definitions of a list over and returns those that differ from earlier ones, also of
    /// tools that had been withdrawn in between.
    pub(super) fn update(&mut self, tools: &[Arc<Tool>], now: jiff::Timestamp) -> Vec<Change> {
        let mut changes = Vec::new();
        for tool in tools {
            let sha256 = hash(tool);
            let Some(known) = self.known.get_mut(&tool.id) else {
                let id = tool.id.clone();
                let new = ToolDefinition { id: id.clone(), sha256, changes: 0, changed_at: None };
                self.known.insert(id, new);
                continue;
            };
            if known.sha256 != sha256 {
                let before = std::mem::replace(&mut known.sha256, sha256.clone());
                known.changes += 1;
                known.changed_at = Some(now);
                changes.push(Change { id: tool.id.clone(), before, after: sha256 });
            }
        }
        if self.known.len() > tools.len() + MAX_WITHDRAWN {
            let listed: HashSet<&str> = tools.iter().map(|tool| tool.id.as_str()).collect();
            self.known.retain(|id, _| listed.contains(id.as_str()));
        }
        changes
    }

    /// The definitions of these tools.
    pub(super) fn of(&self, tools: &[Arc<Tool>]) -> Vec<ToolDefinition> {
        tools.iter().filter_map(|tool| self.known.get(&tool.id)).cloned().collect()
    }
}

fn hash(tool: &Tool) -> String {
    let mut hash = Context::new(&SHA256);
    // A description has no end of its own: its length keeps it apart from the schema.
    let description = tool.description.as_deref().unwrap_or_default();
    hash.update(format!("{} {}\n", tool.description.is_some(), description.len()).as_bytes());
    hash.update(description.as_bytes());
    hash.update(tool.input_schema.as_bytes());
    hex::encode(hash.finish())
}

/// What is counted of the servers of one data path; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    pub(super) definition_changes: Family<ServerLabels, Counter>,
}

/// The server, by its name in the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ServerLabels {
    pub(super) server: String,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "injected_tool_definition_changes",
            "Tools whose description or schema changed between two lists of their server",
            self.definition_changes.clone(),
        );
    }
}
