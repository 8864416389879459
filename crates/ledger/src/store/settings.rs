//! The settings of a store: values by key, such as the secret of its installation.

use super::sql::{Database, Value, execute, first};
use crate::LedgerError;

/// Checks that the store responds.
pub(crate) fn ping(database: &dyn Database) -> Result<(), LedgerError> {
    execute(database, "SELECT count(*) FROM settings", &[])
}

/// The value of a setting; stores `initial` when it has none.
pub(crate) fn setting(
    database: &dyn Database,
    key: &str,
    initial: &[u8],
) -> Result<Vec<u8>, LedgerError> {
    execute(
        database,
        "INSERT INTO settings (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING",
        &[key.into(), Value::Bytes(initial.into())],
    )?;
    let found = first(database, "SELECT value FROM settings WHERE key = $1", &[key.into()])?;
    found.ok_or_else(|| LedgerError::Row(format!("the setting `{key}` is missing")))
}
