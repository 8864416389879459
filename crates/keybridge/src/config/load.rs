//! From text and environment to the raw configuration, with every problem of form on the way.

use serde_path_to_error::Segment;
use toml::{Table, Value};

use super::{Problem, Problems, raw::RawConfig};
use crate::env::Env;

/// Most problems that are looked for; a file with more is not a configuration.
const MOST_PROBLEMS: usize = 100;

/// Settings of later releases without which all goes on as before: a warning is enough.
const WITHOUT_EFFECT: [(&str, &str); 3] = [
    ("telemetry.otlp_endpoint", "there are no traces"),
    ("telemetry.records_log", "there is no log of records"),
    ("telemetry.user_label", "no metric has that label yet"),
];

/// The providers of a bridge without configuration, and the variables that hold their keys.
const PUBLIC: [(&str, Option<&str>); 3] = [
    ("anthropic", Some("ANTHROPIC_API_KEY")),
    ("openai", Some("OPENAI_API_KEY")),
    ("copilot", None),
];

/// The raw configuration, and what was found while it was read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) raw: RawConfig,
    /// What is wrong with its form; it is left out of `raw`.
    pub(super) problems: Vec<Problem>,
    /// What has no effect.
    pub(super) warnings: Vec<Problem>,
}

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

pub(super) fn raw(text: &str, env: &Env) -> Result<Read, Problems> {
    let mut table: Table =
        text.parse().map_err(|error| Problems(vec![syntax_problem(text, &error)]))?;
    if is_public(&table, env) {
        table.insert("providers".into(), public_providers(env));
    }
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    let mut settings = Vec::new();
    for (parts, text, name) in env.settings() {
        let path = steps(&table, &parts);
        if !is_place(&table, &path) {
            let message = "names nothing in the configuration by its name or number".into();
            problems.push(Problem { path: name.into(), message });
            continue;
        }
        let mut tree = Value::Table(std::mem::take(&mut table));
        put(&mut tree, &path, literal(text));
        if let Value::Table(merged) = tree {
            table = merged;
        }
        settings.push(FromEnv { path, name: name.into(), text: text.into(), as_text: false });
    }
    let mut tree = Value::Table(table);
    while problems.len() < MOST_PROBLEMS {
        let error = match serde_path_to_error::deserialize::<_, RawConfig>(tree.clone()) {
            Ok(raw) => return Ok(Read { raw, problems, warnings }),
            Err(error) => error,
        };
        let path = path_of(error.path());
        let mut setting = settings.iter_mut().find(|setting| path.starts_with(&setting.path));
        if let Some(setting) = &mut setting
            && !setting.as_text
            && setting.path == path
        {
            setting.as_text = true;
            put(&mut tree, &path, Value::String(setting.text.clone()));
            continue;
        }
        let shown = setting.map_or_else(|| shown(&path), |setting| setting.name.clone());
        match without_effect(&path) {
            Some(message) => warnings.push(Problem { path: shown, message }),
            None => problems.push(Problem { path: shown, message: message(&error) }),
        }
        if !remove(&mut tree, &path) {
            break;
        }
    }
    Err(Problems(problems))
}

fn message(error: &serde_path_to_error::Error<toml::de::Error>) -> String {
    // What was found instead is left out: it may be a key in a wrong place.
    match error.inner().message().rsplit_once(", expected ") {
        Some((found, expected)) if found.starts_with("invalid ") => {
            let expected = if expected.starts_with("struct ") { "a table" } else { expected };
            format!("is not {expected}")
        }
        _ => error.inner().message().to_owned(),
    }
}

/// A file that is no TOML; the line itself is not shown, because it may hold a key.
fn syntax_problem(text: &str, error: &toml::de::Error) -> Problem {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    Problem { path: "the file".into(), message: format!("line {line}: {}", error.message()) }
}

/// What a setting of a later release says, if it is one that may be there.
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

/// Whether neither file nor environment make providers of their own.
fn is_public(table: &Table, env: &Env) -> bool {
    let is_public = |name: &String| PUBLIC.iter().any(|(public, _)| public == name);
    !table.contains_key("providers")
        && env.settings().all(|(parts, ..)| match parts.as_slice() {
            [first, name, ..] if first == "providers" => is_public(name),
            [first] => first != "providers",
            _ => true,
        })
}

fn public_providers(env: &Env) -> Value {
    let provider = |(kind, variable): (&str, Option<&str>)| {
        let is_set = |name: &&str| env.value(name).is_some_and(|value| !value.trim().is_empty());
        let mut provider = Table::new();
        provider.insert("type".into(), Value::String(kind.into()));
        if let Some(name) = variable.filter(is_set) {
            let key = Table::from_iter([("env".to_owned(), Value::String(name.into()))]);
            provider.insert("keys".into(), Value::Array(vec![Value::Table(key)]));
        }
        Value::Table(provider)
    };
    Value::Array(PUBLIC.map(provider).into())
}

/// The lists whose elements have names.
const LISTS: [&str; 2] = ["providers", "mcp_servers"];

/// Whether a variable means an element that is there, or the next one by its number.
fn is_place(table: &Table, path: &[Step]) -> bool {
    match path {
        [Step::Key(list), second, ..] if LISTS.contains(&list.as_str()) => {
            let count = table.get(list).and_then(Value::as_array).map_or(0, Vec::len);
            matches!(second, Step::Index(index) if *index <= count)
        }
        _ => true,
    }
}

/// The path of a variable's parts; an element of a list is named by number or by name.
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
