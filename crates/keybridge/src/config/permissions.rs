//! Warnings about files with secrets that every user of the machine can read.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use toml::{Table, Value};

use super::Problem;

/// The permission of users who are neither the owner nor in the file's group to read it.
const OTHERS_READ: u32 = 0o004;

/// Settings whose texts are secret although their names are not `value`.
const SECRET_SETTINGS: &[&str] = &[
    "providers.bedrock.secret_access_key",
    "providers.bedrock.session_token",
    "mcp_servers.headers.*",
    "providers.set_headers.*",
    "providers.set_query.*",
];

/// Settings whose texts are URLs that may contain a password.
const URLS: &[&str] = &["store.url", "egress.proxy"];

/// The mode of a file that every user of the machine can read.
pub(super) fn world_readable(path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.permissions().mode();
    (mode & OTHERS_READ != 0).then(|| format!("{:04o}", mode & 0o7777))
}

/// The warning about a configuration file with secrets that every user can read.
pub(super) fn warning(path: &Path, text: &str) -> Option<Problem> {
    let mode = world_readable(path)?;
    let secrets = secrets(&text.parse().ok()?);
    let first = secrets.first()?;
    let others = match secrets.len() {
        1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    let message = format!(
        "every user of this machine can read this file (mode {mode}), and it contains secrets ({first}{others}): \
         run `chmod o-rwx`, or use `env` or `file`"
    );
    Some(Problem { path: path.display().to_string(), message })
}

/// The paths of the secrets that are written in a configuration file itself.
fn secrets(table: &Table) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in table {
        search(value, key, key, &mut found);
    }
    found
}

/// Searches a value, whose path is `path`, and `setting` without the numbers of elements.
fn search(value: &Value, path: &str, setting: &str, found: &mut Vec<String>) {
    match value {
        Value::Table(table) => {
            for (key, inner) in table {
                search(inner, &format!("{path}.{key}"), &format!("{setting}.{key}"), found);
            }
        }
        Value::Array(array) => {
            for (index, inner) in array.iter().enumerate() {
                search(inner, &format!("{path}[{index}]"), setting, found);
            }
        }
        Value::String(text) if is_secret(setting, text) => found.push(path.to_owned()),
        _ => {}
    }
}

fn is_secret(setting: &str, text: &str) -> bool {
    let is_named = |pattern: &str| match pattern.strip_suffix(".*") {
        Some(table) => setting.rsplit_once('.').is_some_and(|(parent, _)| parent == table),
        None => setting == pattern,
    };
    let has_password = || {
        let authority = text.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@'));
        authority.is_some_and(|(user, _)| user.contains(':'))
    };
    setting.ends_with(".value")
        || SECRET_SETTINGS.iter().any(|pattern| is_named(pattern))
        || (URLS.contains(&setting) && has_password())
}

#[cfg(test)]
mod tests {
    use super::secrets;

    #[test]
    fn secrets_of_a_file_are_found_by_their_settings() {
        let text = r#"
            [store]
            url = "postgres://bridge:word@db/records"
            [egress]
            proxy = "http://proxy:3128"
            [[providers]]
            type = "anthropic"
            base_url = "https://api.anthropic.com"
            keys = [{ name = "main", env = "KEY" }, { name = "spare", value = "sk-ant-1" }]
            [[mcp_servers]]
            name = "wiki"
            headers = { Authorization = "Bearer x", X-Key = { file = "/run/key" } }
        "#;
        let found = secrets(&text.parse().unwrap());
        assert_eq!(
            found,
            ["mcp_servers[0].headers.Authorization", "providers[0].keys[1].value", "store.url"]
        );
    }
}
