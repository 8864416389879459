//! Continuations: values stored with earlier responses for later requests of a conversation.

use std::{collections::HashMap, fmt, sync::Arc};

use uuid::Uuid;

use crate::{
    LedgerError,
    record::key_hash,
    store::{
        Store,
        sql::{Cells, Database, FromRow, all, required},
    },
};

/// Finds the values that [`crate::Entry::keep`] stored; clones share the store.
#[derive(Clone)]
pub struct ContinuationStore {
    store: Arc<dyn Store>,
}

impl ContinuationStore {
    pub(crate) const fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// The values of a user for these keys, by key. Does not block the runtime.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn find(
        &self,
        user_id: Uuid,
        keys: Vec<String>,
    ) -> Result<HashMap<String, String>, LedgerError> {
        let store = Arc::clone(&self.store);
        let find = move || find(store.authentication(), user_id, &keys);
        let found = tokio::task::spawn_blocking(find).await;
        found.map_err(|error| LedgerError::Database(error.to_string()))?
    }
}

impl fmt::Debug for ContinuationStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContinuationStore").finish_non_exhaustive()
    }
}

fn find(
    database: &dyn Database,
    user_id: Uuid,
    keys: &[String],
) -> Result<HashMap<String, String>, LedgerError> {
    let by_hash: HashMap<String, &String> = keys.iter().map(|key| (key_hash(key), key)).collect();
    let sql = format!(
        "SELECT {} FROM continuations WHERE user_id = $1 AND key IN ({})",
        Continuation::COLUMNS,
        database.flavour().elements()
    );
    let hashes: Vec<&String> = by_hash.keys().collect();
    let hashes = serde_json::json!(hashes).to_string();
    let found: Vec<Continuation> = all(database, &sql, &[user_id.into(), hashes.into()])?;
    let by_key = found.into_iter().filter_map(|Continuation { key_hash, value }| {
        by_hash.get(&key_hash).map(|key| ((*key).clone(), value))
    });
    Ok(by_key.collect())
}

/// The value that is stored under the hash of a key.
struct Continuation {
    key_hash: String,
    value: String,
}

impl FromRow for Continuation {
    const COLUMNS: &'static str = "key, value";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        Ok(Self { key_hash: required(row.text()?)?, value: required(row.text()?)? })
    }
}
