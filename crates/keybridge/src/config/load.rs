//! Reads the raw configuration from text and environment, and collects all problems of form.

use serde_path_to_error::Segment;
use toml::{Table, Value};

use super::{Problem, Problems, raw::RawConfig, settings::Origin};
use crate::env::Env;

/// Maximum number of problems reported; a file with more is not a configuration.
const MAX_PROBLEMS: usize = 100;

/// Settings of later releases that are not essential: they get a warning instead of an error.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("telemetry.otlp_endpoint", "traces are not supported yet"),
    ("telemetry.records_log", "a log of records is not supported yet"),
    ("telemetry.user_label", "no metric has this label yet"),
];

/// The default providers, and the environment variables that contain their keys.
const PUBLIC: &[(&str, Option<&str>)] = &[
    ("anthropic", Some("ANTHROPIC_API_KEY")),
    ("openai", Some("OPENAI_API_KEY")),
    ("copilot", None),
];

/// The raw configuration, and the problems found in it.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) raw: RawConfig,
    /// Values of the wrong form, which are left out of `raw`.
    pub(super) problems: Vec<Problem>,
    /// Settings without effect.
    pub(super) warnings: Vec<Problem>,
    /// Where the values come from.
    pub(super) origins: Origins,
}

/// Where the values of a configuration come from.
#[derive(Debug)]
pub(super) struct Origins {
    file: Value,
    /// The paths of the values from the environment, and the names of their variables.
    environment: Vec<(Vec<Step>, String)>,
    /// The settings that options of the command line set.
    pub(super) command_line: Vec<&'static str>,
}

impl Origins {
    /// Where the value at a path comes from.
    pub(super) fn of(&self, path: &[Step]) -> Origin {
        if self.command_line.contains(&path_text(path).as_str()) {
            return Origin::CommandLine;
        }
        let is_at = |variable: &[Step]| path.starts_with(variable) || variable.starts_with(path);
        // A later variable overrides an earlier one.
        let variable = self.environment.iter().rfind(|(variable, _)| is_at(variable));
        match variable {
            Some((_, name)) => Origin::Environment(name.clone()),
            None if at(&self.file, path).is_some() => Origin::File,
            None => Origin::Default,
        }
    }
}

/// The value at a path.
fn at<'a>(tree: &'a Value, path: &[Step]) -> Option<&'a Value> {
    path.iter().try_fold(tree, |at, step| match step {
        Step::Key(key) => at.get(key),
        Step::Index(index) => at.get(index),
    })
}

/// A value from the environment.
struct FromEnv {
    path: Vec<Step>,
    name: String,
    text: String,
    /// Whether it is used as a string because it did not fit as TOML.
    is_string: bool,
}

/// A step of a path in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A key of a table.
    Key(String),
    /// An element of a list.
    Index(usize),
}

pub(super) fn raw(text: &str, env: &Env) -> Result<Read, Problems> {
    let mut table: Table =
        text.parse().map_err(|error| Problems(vec![syntax_problem(text, &error)]))?;
    let file = Value::Table(table.clone());
    if has_default_providers(&table, env) {
        table.insert("providers".into(), default_providers(env));
    }
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    let mut settings = Vec::new();
    for (parts, text, name) in env.settings() {
        let path = steps(&table, &parts);
        if !is_valid_path(&table, &path) {
            let message = "no provider or MCP server has this name or number".into();
            problems.push(Problem { path: name.into(), message });
            continue;
        }
        let mut tree = Value::Table(std::mem::take(&mut table));
        put(&mut tree, &path, parse_value(text));
        if let Value::Table(merged) = tree {
            table = merged;
        }
        settings.push(FromEnv { path, name: name.into(), text: text.into(), is_string: false });
    }
    let mut tree = Value::Table(table);
    while problems.len() < MAX_PROBLEMS {
        let error = match serde_path_to_error::deserialize::<_, RawConfig>(tree.clone()) {
            Ok(raw) => {
                let environment = settings.into_iter().map(|setting| (setting.path, setting.name));
                let environment = environment.collect();
                let origins = Origins { file, environment, command_line: Vec::new() };
                return Ok(Read { raw, problems, warnings, origins });
            }
            Err(error) => error,
        };
        let path = path_of(error.path());
        let mut setting = settings.iter_mut().find(|setting| path.starts_with(&setting.path));
        if let Some(setting) = &mut setting
            && !setting.is_string
            && setting.path == path
        {
            setting.is_string = true;
            put(&mut tree, &path, Value::String(setting.text.clone()));
            continue;
        }
        let name = setting.map_or_else(|| path_text(&path), |setting| setting.name.clone());
        match without_effect(&path) {
            Some(message) => warnings.push(Problem { path: name, message }),
            None => problems.push(Problem { path: name, message: message(&error) }),
        }
        if !remove(&mut tree, &path) {
            break;
        }
    }
    Err(Problems(problems))
}

fn message(error: &serde_path_to_error::Error<toml::de::Error>) -> String {
    // The value found is left out: it may be a key in the wrong place.
    match error.inner().message().rsplit_once(", expected ") {
        Some((found, expected)) if found.starts_with("invalid ") => {
            let expected = if expected.starts_with("struct ") { "a table" } else { expected };
            format!("is not {expected}")
        }
        _ => error.inner().message().to_owned(),
    }
}

/// The problem of a file that is not TOML. The line itself is left out: it may contain a key.
fn syntax_problem(text: &str, error: &toml::de::Error) -> Problem {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    Problem { path: "the file".into(), message: format!("line {line}: {}", error.message()) }
}

/// The warning for a setting of a later release.
fn without_effect(path: &[Step]) -> Option<String> {
    let keys: Vec<&str> = path
        .iter()
        .filter_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        })
        .collect();
    let path = keys.join(".");
    let (_, why) = WITHOUT_EFFECT.iter().find(|(later, _)| *later == path)?;
    Some(format!("has no effect in this release: {why}"))
}

/// Whether neither file nor environment configures providers of its own.
fn has_default_providers(table: &Table, env: &Env) -> bool {
    let is_public = |name: &String| PUBLIC.iter().any(|(public, _)| public == name);
    !table.contains_key("providers")
        && env.settings().all(|(parts, ..)| match parts.as_slice() {
            [first, name, ..] if first == "providers" => is_public(name),
            [first] => first != "providers",
            _ => true,
        })
}

fn default_providers(env: &Env) -> Value {
    let provider = |(kind, variable): &(&str, Option<&str>)| {
        let is_set = |name: &&str| env.value(name).is_some_and(|value| !value.trim().is_empty());
        let mut provider = Table::new();
        provider.insert("type".into(), Value::String((*kind).into()));
        if let Some(name) = variable.filter(is_set) {
            let key = Table::from_iter([("env".to_owned(), Value::String(name.into()))]);
            provider.insert("keys".into(), Value::Array(vec![Value::Table(key)]));
        }
        Value::Table(provider)
    };
    Value::Array(PUBLIC.iter().map(provider).collect())
}

/// The lists whose elements have names.
const LISTS: &[&str] = &["providers", "mcp_servers"];

/// Whether the path of a variable names an existing element of a list, or the next one by its number.
fn is_valid_path(table: &Table, path: &[Step]) -> bool {
    match path {
        [Step::Key(list), second, ..] if LISTS.contains(&list.as_str()) => {
            let count = table.get(list).and_then(Value::as_array).map_or(0, Vec::len);
            matches!(second, Step::Index(index) if *index <= count)
        }
        _ => true,
    }
}

/// The path that the parts of a variable name; elements of lists go by number or by name.
fn steps(table: &Table, parts: &[String]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for part in parts {
        let list = match steps.as_slice() {
            [Step::Key(first)] if LISTS.contains(&first.as_str()) => Some(first.clone()),
            _ => None,
        };
        let is_key = matches!(steps.as_slice(), [_, _, Step::Key(third)] if third == "keys");
        let index = (list.is_some() || is_key).then(|| {
            part.parse().ok().or_else(|| {
                let elements = table.get(list.as_deref()?)?.as_array()?;
                elements.iter().position(|element| {
                    let named = element.get("name").or_else(|| element.get("type"));
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

/// Parses a text as a TOML value; a text that is not TOML is a string.
fn parse_value(text: &str) -> Value {
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

pub(super) fn path_text(path: &[Step]) -> String {
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
                // Only the next element can be added: a gap would be an empty provider.
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

/// Removes the value at a path, so that the next problem can be found.
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
            // Replaced by an empty element, so that later ones keep their numbers.
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
