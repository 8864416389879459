//! From text and environment to the raw configuration, with every problem of form on the way.

use serde_path_to_error::Segment;
use toml::{Table, Value};

use super::{Problem, Problems, raw::RawConfig};
use crate::env::Env;

/// Most problems that are looked for; a file with more is not a configuration.
const MOST_PROBLEMS: usize = 100;

/// Settings of later releases, and why they cannot be used yet.
const LATER: [(&str, &str); 4] = [
    ("mcp_servers", "injected tools are not part of this release"),
    ("ledger.spool_dir", "the spool is not part of this release"),
    ("telemetry.metrics_listen", "metrics are not part of this release"),
    ("telemetry.otlp_endpoint", "traces are not part of this release"),
];

/// A value that came from the environment.
struct FromEnv {
    path: Vec<Step>,
    name: String,
    text: String,
    /// Whether it is taken as text because its TOML form did not fit.
    as_text: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// The raw configuration and what is wrong with its form; what is wrong is left out of it.
pub(super) fn raw(text: &str, env: &Env) -> Result<(RawConfig, Vec<Problem>), Problems> {
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
        Problems(vec![Problem { path: "the file".into(), message: error.to_string() }])
    })?;
    let mut settings = Vec::new();
    for (parts, text, name) in env.settings() {
        let path = steps(&table, &parts);
        let mut tree = Value::Table(std::mem::take(&mut table));
        put(&mut tree, &path, literal(text));
        if let Value::Table(merged) = tree {
            table = merged;
        }
        settings.push(FromEnv { path, name: name.into(), text: text.into(), as_text: false });
    }
    let mut tree = Value::Table(table);
    let mut problems = Vec::new();
    while problems.len() < MOST_PROBLEMS {
        let error = match serde_path_to_error::deserialize::<_, RawConfig>(tree.clone()) {
            Ok(raw) => return Ok((raw, problems)),
            Err(error) => error,
        };
        let path = path_of(error.path());
        let setting = settings.iter_mut().find(|setting| path.starts_with(&setting.path));
        if let Some(setting) = setting {
            if !setting.as_text && setting.path == path {
                setting.as_text = true;
                put(&mut tree, &path, Value::String(setting.text.clone()));
                continue;
            }
            problems.push(Problem { path: setting.name.clone(), message: message(&path, &error) });
        } else {
            problems.push(Problem { path: shown(&path), message: message(&path, &error) });
        }
        if !remove(&mut tree, &path) {
            break;
        }
    }
    Err(Problems(problems))
}

fn message(path: &[Step], error: &serde_path_to_error::Error<toml::de::Error>) -> String {
    let path = shown(path);
    match LATER.iter().find(|(later, _)| *later == path) {
        Some((_, why)) => (*why).to_owned(),
        None => error.inner().message().to_owned(),
    }
}

/// The path of a variable's parts; a provider is named by number or by name.
fn steps(table: &Table, parts: &[String]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for part in parts {
        let is_provider = matches!(steps.as_slice(), [Step::Key(first)] if first == "providers");
        let index = is_provider.then(|| {
            part.parse().ok().or_else(|| {
                let providers = table.get("providers")?.as_array()?;
                providers.iter().position(|provider| {
                    let named = provider.get("name").or_else(|| provider.get("type"));
                    named
                        .and_then(Value::as_str)
                        .is_some_and(|name| name.replace('-', "_").eq_ignore_ascii_case(part))
                })
            })
        });
        steps.push(index.flatten().map_or_else(|| Step::Key(part.clone()), Step::Index));
    }
    steps
}

/// A text as TOML, or as itself when it is none.
fn literal(text: &str) -> Value {
    let parsed: Option<Table> = format!("value = {text}").parse().ok();
    parsed
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.into()))
}

fn path_of(path: &serde_path_to_error::Path) -> Vec<Step> {
    let step = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    path.iter().filter_map(step).collect()
}

fn shown(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => {
                text.push('.');
                text.push_str(key);
            }
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    if text.is_empty() { "the file".into() } else { text }
}

fn put(tree: &mut Value, path: &[Step], value: Value) {
    let Some((step, rest)) = path.split_first() else {
        *tree = value;
        return;
    };
    match step {
        Step::Key(key) => {
            if !tree.is_table() {
                *tree = Value::Table(Table::new());
            }
            if let Value::Table(table) = tree {
                let inner = table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()));
                put(inner, rest, value);
            }
        }
        Step::Index(index) => {
            if !tree.is_array() {
                *tree = Value::Array(Vec::new());
            }
            if let Value::Array(array) = tree {
                // A hole would be an empty provider; only the next one can be added.
                if *index == array.len() {
                    array.push(Value::Table(Table::new()));
                }
                if let Some(inner) = array.get_mut(*index) {
                    put(inner, rest, value);
                }
            }
        }
    }
}

/// Takes out the value at a path, so that the next problem can be found.
fn remove(tree: &mut Value, path: &[Step]) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    let mut at = tree;
    for step in parents {
        let inner = match (step, at) {
            (Step::Key(key), Value::Table(table)) => table.get_mut(key),
            (Step::Index(index), Value::Array(array)) => array.get_mut(*index),
            _ => None,
        };
        match inner {
            Some(inner) => at = inner,
            None => return false,
        }
    }
    match (last, at) {
        (Step::Key(key), Value::Table(table)) => table.remove(key).is_some(),
        (Step::Index(index), Value::Array(array)) => {
            // An empty element takes its place: later ones keep their numbers.
            let empty = Value::Table(Table::new());
            match array.get_mut(*index) {
                Some(element) if *element != empty => {
                    *element = empty;
                    true
                }
                _ => false,
            }
        }
        _ => false,
    }
}
