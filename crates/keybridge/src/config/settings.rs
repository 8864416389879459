//! The settings in force, as the administration API shows them: each with its name, its value without
//! secrets, and where it comes from.

use serde_json::{Map, Value};

use super::{
    load::{Origins, Step, path_text},
    raw::RawConfig,
};

/// What stands for a secret.
const MASK: &str = "***";
/// Settings that may be absent, whose types leave them out then.
const ABSENT: &[(&str, &str)] = &[("server", "public_url"), ("server", "tls")];
/// Query parameters whose values are shown; those of any other may be a key.
const SHOWN_PARAMETERS: &[&str] = &[
    "api-version",
    "application_name",
    "connect_timeout",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
];

/// Where the value of a setting comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It is set nowhere.
    Default,
    /// The configuration file.
    File,
    /// The environment variable with this name.
    Environment(String),
    /// An option of the command line.
    CommandLine,
}

/// A setting.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Its path in the file, such as `providers[0].base_url`.
    pub name: String,
    /// Its value, with `***` for secrets; null where it is not set and has no default.
    pub value: Value,
    /// Where the value comes from.
    pub origin: Origin,
}

/// All settings of a configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// The configuration file, if there is one.
    pub file: Option<String>,
    /// In the order of the reference page.
    pub settings: Vec<Setting>,
}

impl Settings {
    pub(super) fn of(raw: &RawConfig, origins: &Origins) -> Self {
        // A type that was read from text can be written again.
        let mut tree = serde_json::to_value(raw).unwrap_or_default();
        for (section, key) in ABSENT {
            if let Some(Value::Object(section)) = tree.get_mut(section) {
                section.entry(*key).or_insert(Value::Null);
            }
        }
        let mut all = Self::default();
        all.add(&mut Vec::new(), tree, origins);
        all
    }

    /// Adds what is at a path: a setting, or those in it.
    fn add(&mut self, path: &mut Vec<Step>, value: Value, origins: &Origins) {
        let inner: Vec<(Step, Value)> = match value {
            Value::Object(object) if !object.is_empty() => {
                object.into_iter().map(|(key, inner)| (Step::Key(key), inner)).collect()
            }
            Value::Array(elements) if elements.iter().any(Value::is_object) => {
                let step = |(index, inner)| (Step::Index(index), inner);
                elements.into_iter().enumerate().map(step).collect()
            }
            leaf => {
                let (name, origin) = (path_text(path), origins.of(path));
                self.settings.push(Setting { name, value: without_secrets(path, leaf), origin });
                return;
            }
        };
        for (step, value) in inner {
            path.push(step);
            self.add(path, value, origins);
            path.pop();
        }
    }

    /// Takes over the values that these settings, and all in them, have in `current`: they change only with a
    /// restart.
    pub(crate) fn keep(&mut self, current: &Self, names: &[&str]) {
        let is_kept = |setting: &Setting| {
            names.iter().any(|name| {
                let rest = setting.name.strip_prefix(name);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            })
        };
        let mut kept: Vec<&Setting> = current.settings.iter().filter(|s| is_kept(s)).collect();
        let mut settings = Vec::with_capacity(self.settings.len());
        for setting in self.settings.drain(..) {
            if !is_kept(&setting) {
                settings.push(setting);
            } else if let Some(at) = kept.iter().position(|kept| kept.name == setting.name) {
                settings.push(kept.remove(at).clone());
            }
        }
        // Those that the new configuration no longer has.
        settings.extend(kept.into_iter().cloned());
        self.settings = settings;
    }
}

/// The value of a setting as it can be shown. Values of the type of secrets are masked already.
fn without_secrets(path: &[Step], value: Value) -> Value {
    let is_parameter = matches!(
        path,
        [Step::Key(providers), _, Step::Key(query), Step::Key(name), ..]
            if providers == "providers" && query == "query" && !SHOWN_PARAMETERS.contains(&name.as_str())
    );
    match value {
        Value::String(_) if is_parameter => MASK.into(),
        Value::String(text) => masked_url(&text).unwrap_or(text).into(),
        Value::Array(elements) => {
            elements.into_iter().map(|element| without_secrets(path, element)).collect()
        }
        Value::Object(object) => {
            let inner = object.into_iter().map(|(key, value)| (key, without_secrets(path, value)));
            Value::Object(inner.collect::<Map<_, _>>())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

/// A URL without its password, the values of its query and its fragment; none for another text. What stands
/// before any `@` is taken for a password: it may contain every character.
fn masked_url(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let (user, rest) = match rest.rsplit_once('@') {
        None => (String::new(), rest),
        // The user of a database is no secret.
        Some((user, rest)) if scheme.starts_with("postgres") => {
            let user = match user.split_once(':') {
                Some((name, _password)) => format!("{name}:{MASK}@"),
                None => format!("{user}@"),
            };
            (user, rest)
        }
        Some((_secret, rest)) => (format!("{MASK}@"), rest),
    };
    let (rest, fragment) = rest.split_once('#').map_or((rest, ""), |(rest, _)| (rest, MASK));
    let (base, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut masked = format!("{scheme}://{user}{base}");
    for (index, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
        masked.push(if index == 0 { '?' } else { '&' });
        match pair.split_once('=') {
            Some((name, value)) if SHOWN_PARAMETERS.contains(&name) => {
                masked.push_str(&format!("{name}={value}"));
            }
            Some((name, _secret)) => masked.push_str(&format!("{name}={MASK}")),
            None => masked.push_str(MASK),
        }
    }
    if !fragment.is_empty() {
        masked.push_str(&format!("#{fragment}"));
    }
    Some(masked)
}

#[cfg(test)]
mod tests;
