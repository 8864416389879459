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
    // Usually it is there, and then a store that cannot be written can still be opened.
    if let Some(found) = stored(database, key)? {
        return Ok(found);
    }
    execute(
        database,
        "INSERT INTO settings (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING",
        &[key.into(), Value::Bytes(initial.into())],
    )?;
    stored(database, key)?
        .ok_or_else(|| LedgerError::Row(format!("the setting `{key}` is missing")))
}

/// The value of a setting, if it has one.
pub(crate) fn stored(database: &dyn Database, key: &str) -> Result<Option<Vec<u8>>, LedgerError> {
    first(database, "SELECT value FROM settings WHERE key = $1", &[key.into()])
}

/// Stores the value of a setting in place of an earlier one.
pub(crate) fn put(database: &dyn Database, key: &str, value: &[u8]) -> Result<(), LedgerError> {
    execute(
        database,
        "INSERT INTO settings (key, value) VALUES ($1, $2)
         ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        &[key.into(), Value::Bytes(value.into())],
    )
}
