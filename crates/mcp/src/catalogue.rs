//! The tools of one server under the ids that models see, and the sets that providers' requests get.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use aws_lc_rs::digest;

use super::{McpServerConfig, connection::Line, listing::Listed, tool::Tool};

/// Tools of one server: allowed ones, ready to be injected.
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
pub(super) struct Sets {
    /// Of the providers that some server names.
    named: HashMap<String, Arc<ToolSet>>,
    others: Arc<ToolSet>,
}

/// Longest id of a tool; the least that any provider takes.
const MAX_ID: usize = 64;
/// Hexadecimal digits of a hash at the end of an id.
const HASH_DIGITS: usize = 8;

impl Catalogue {
    /// Leaves out what the configuration does not allow, and gives ids to the rest.
    pub(super) fn new(listed: Vec<Listed>, refused: Vec<String>, line: &Arc<Line>) -> Self {
        let mut by_name = BTreeMap::new();
        for tool in listed {
            if by_name.contains_key(&tool.name) {
                tracing::warn!(server = line.config.name, tool = tool.name, "listed twice");
            } else if allowed(&line.config, &tool.name) {
                by_name.insert(tool.name.clone(), tool);
            }
        }
        let mut ids = HashSet::new();
        let mut tools = Vec::with_capacity(by_name.len());
        for (name, tool) in by_name {
            let plain = id(&line.config.name, &name);
            let id = if ids.contains(&plain) { hashed_id(&plain, &name) } else { plain };
            if ids.insert(id.clone()) {
                tools.push(Arc::new(Tool::new(id, tool, line)));
            } else {
                tracing::warn!(server = line.config.name, tool = name, "no id is left for it");
            }
        }
        tools.sort_by(|one, other| one.id.cmp(&other.id));
        Self { tools, refused }
    }

    /// Whether both say the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.refused == other.refused
            && self.tools.len() == other.tools.len()
            && self.tools.iter().zip(&other.tools).all(|(one, other)| one.is_same(other))
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
            let taken = later.id == earlier.id;
            if taken {
                let (server, tool) = (&later.server_name, &later.name);
                tracing::warn!(server, tool, "its id is another server's");
            }
            taken
        });
        Self { tools }
    }
}

impl Sets {
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
