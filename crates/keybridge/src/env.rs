//! The only reader of the environment.

use std::{collections::BTreeMap, fmt};

/// Prefix of variables that set configuration values.
pub(crate) const PREFIX: &str = "KEYBRIDGE_";

/// The environment variables that the configuration may use; tests pass their own.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// The variables of this process, without those whose name or value is not UTF-8.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the environment"
    )]
    pub fn of_process() -> Self {
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        Self(
            names.filter_map(|name| std::env::var(&name).ok().map(|value| (name, value))).collect(),
        )
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Each variable such as `KEYBRIDGE_<SECTION>__<KEY>`: its parts in lower case, its value and its
    /// name.
    pub(crate) fn settings(&self) -> impl Iterator<Item = (Vec<String>, &str, &str)> {
        self.0.iter().filter_map(|(name, value)| {
            let rest = name.strip_prefix(PREFIX)?;
            let is_setting = rest.contains("__") || matches!(rest, "PROVIDERS" | "MCP_SERVERS");
            let parts = rest.split("__").map(str::to_ascii_lowercase).collect();
            is_setting.then_some((parts, value.as_str(), name.as_str()))
        })
    }
}

/// Prints only the names: values are often secrets.
impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Env {
    fn from(variables: [(&str, &str); N]) -> Self {
        Self(variables.map(|(name, value)| (name.into(), value.into())).into())
    }
}
