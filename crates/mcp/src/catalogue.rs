//! The tools of each server under the ids that models see, and the set of each provider's requests.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use aws_lc_rs::digest;

use super::{McpServerConfig, connection::ServerConnection, listing::ListedTool, tool::Tool};

/// The allowed tools of one server, ready to be injected.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    pub(super) tools: Vec<Arc<Tool>>,
    /// Malformed tools, each with the reason.
    pub(super) refused: Vec<String>,
}

/// The tools of one provider's requests.
#[derive(Debug, Default)]
pub struct ToolSet {
    /// Sorted by id; ids are unique.
    pub tools: Vec<Arc<Tool>>,
}

/// The sets of all providers.
#[derive(Debug, Default)]
pub(super) struct ToolSets {
    /// Sets of the providers that a server names.
    named: HashMap<String, Arc<ToolSet>>,
    others: Arc<ToolSet>,
}

/// Longest id of a tool that every provider accepts.
const MAX_ID: usize = 64;
/// Hexadecimal digits of a hash at the end of an id.
const HASH_DIGITS: usize = 8;

impl Catalogue {
    /// Keeps the tools that the configuration allows, and gives them ids.
    pub(super) fn new(
        listed: Vec<ListedTool>,
        refused: Vec<String>,
        connection: &Arc<ServerConnection>,
    ) -> Self {
        let mut by_name = BTreeMap::new();
        for tool in listed {
            if by_name.contains_key(&tool.name) {
                tracing::warn!(
                    server = connection.config.name,
                    tool = tool.name,
                    "a tool is listed twice"
                );
            } else if allowed(&connection.config, &tool.name) {
                by_name.insert(tool.name.clone(), tool);
            }
        }
        let mut ids = HashSet::new();
        let mut tools = Vec::with_capacity(by_name.len());
        for (name, tool) in by_name {
            let plain = id(&connection.config.name, &name);
            let id = if ids.contains(&plain) { hashed_id(&plain, &name) } else { plain };
            if ids.insert(id.clone()) {
                tools.push(Arc::new(Tool::new(id, tool, connection)));
            } else {
                tracing::warn!(
                    server = connection.config.name,
                    tool = name,
                    "a tool is left out: no id is free for it"
                );
            }
        }
        tools.sort_by(|one, other| one.id.cmp(&other.id));
        Self { tools, refused }
    }

    /// Whether models and callers cannot tell them apart.
    pub(super) fn is_equivalent(&self, other: &Self) -> bool {
        self.refused == other.refused
            && self.tools.len() == other.tools.len()
            && self.tools.iter().zip(&other.tools).all(|(one, other)| one.is_equivalent(other))
    }
}

impl ToolSet {
    pub fn find(&self, id: &str) -> Option<&Arc<Tool>> {
        let found = self.tools.binary_search_by(|tool| tool.id.as_str().cmp(id)).ok()?;
        self.tools.get(found)
    }

    fn new<'a>(catalogues: impl Iterator<Item = &'a Catalogue>) -> Self {
        let mut tools: Vec<_> = catalogues.flat_map(|catalogue| catalogue.tools.clone()).collect();
        tools.sort_by(|one, other| one.id.cmp(&other.id));
        tools.dedup_by(|later, earlier| {
            let is_taken = later.id == earlier.id;
            if is_taken {
                let (server, tool) = (&later.server_name, &later.name);
                tracing::warn!(
                    server,
                    tool,
                    "a tool is left out: another server's tool has its id"
                );
            }
            is_taken
        });
        Self { tools }
    }
}

impl ToolSets {
    pub(super) fn new(servers: &[(&McpServerConfig, Arc<Catalogue>)]) -> Self {
        let set_for = |provider: Option<&str>| {
            let catalogues = servers
                .iter()
                .filter(|(config, _)| serves(config, provider))
                .map(|(_, catalogue)| catalogue.as_ref());
            Arc::new(ToolSet::new(catalogues))
        };
        let named = servers
            .iter()
            .filter_map(|(config, _)| config.providers.as_deref())
            .flatten()
            .map(|provider| (provider.clone(), set_for(Some(provider))))
            .collect();
        Self { named, others: set_for(None) }
    }

    pub(super) fn of(&self, provider: &str) -> Arc<ToolSet> {
        Arc::clone(self.named.get(provider).unwrap_or(&self.others))
    }
}

pub(super) fn serves(config: &McpServerConfig, provider: Option<&str>) -> bool {
    match (&config.providers, provider) {
        (None, _) => true,
        (Some(providers), Some(provider)) => providers.iter().any(|named| named == provider),
        (Some(_), None) => false,
    }
}

fn allowed(config: &McpServerConfig, name: &str) -> bool {
    let denied = config.deny.as_ref().is_some_and(|deny| deny.is_match(name));
    !denied && config.allow.as_ref().is_none_or(|allow| allow.is_match(name))
}

/// `bmcp_<server>_<tool>`; a server's name has no `_`, so that servers do not share ids.
fn id(server: &str, tool: &str) -> String {
    let plain: String = "bmcp_"
        .chars()
        .chain(server.chars())
        .chain(std::iter::once('_'))
        .chain(tool.chars())
        .map(|letter| if letter.is_ascii_alphanumeric() || letter == '-' { letter } else { '_' })
        .collect();
    if plain.len() > MAX_ID { hashed_id(&plain, tool) } else { plain }
}

fn hashed_id(plain: &str, tool: &str) -> String {
    let hash = digest::digest(&digest::SHA256, tool.as_bytes());
    let hex = hex::encode(hash);
    let beginning: String = plain.chars().take(MAX_ID - HASH_DIGITS - 1).collect();
    format!("{beginning}_{}", hex.get(..HASH_DIGITS).unwrap_or_default())
}
