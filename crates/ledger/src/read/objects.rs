//! Who made an object that a provider stores.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::{
    LedgerError,
    record::objects::{MAX_OBJECT_ID_BYTES, ObjectMaker},
    store::{
        Store,
        sql::{Cells, Database, Flavour, FromRow, all, first, required},
    },
    write::recorder::Recorder,
};

/// How long a lookup waits for queued records to be committed.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// How long another process usually takes, at most, until what it has recorded is committed.
const COMMIT_DELAY: Duration = Duration::from_millis(150);
/// Of how many records with one response id the earliest is looked for.
const MAX_SHARED_RESPONSES: u32 = 100;

/// Finds the makers of objects; clones share the store.
#[derive(Clone)]
pub struct ObjectStore {
    store: Arc<dyn Store>,
    recorder: Recorder,
}

/// An object that is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName {
    /// The provider's id.
    pub id: String,
    /// Whether it is the id of a response. Those that were recorded before there were rows of objects are
    /// found by their token usage.
    pub is_response: bool,
}

impl ObjectStore {
    pub(crate) const fn new(store: Arc<dyn Store>, recorder: Recorder) -> Self {
        Self { store, recorder }
    }

    /// The makers of a provider's objects, by id; also of those whose rows are still queued. Does not block
    /// the runtime.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn find(
        &self,
        provider: &str,
        names: &[ObjectName],
    ) -> Result<HashMap<String, ObjectMaker>, LedgerError> {
        let recent = self.recorder.recent_objects();
        let mut found = HashMap::new();
        let mut rest = Vec::new();
        for name in names.iter().filter(|name| name.id.len() <= MAX_OBJECT_ID_BYTES) {
            match recent.find(provider, &name.id) {
                Some(maker) => {
                    found.insert(name.id.clone(), maker);
                }
                None => rest.push(name.clone()),
            }
        }
        if rest.is_empty() {
            return Ok(found);
        }
        // While the store accepts no writes, the committed rows can still be read.
        let _drained = timeout(DRAIN_TIMEOUT, self.recorder.drained()).await;
        found.extend(self.read(provider, rest).await?);
        Ok(found)
    }

    /// Looks once more for what [`Self::find`] did not find, after the time in which another process commits
    /// what it has just recorded. Where only one process serves from the store, there is nothing to find.
    ///
    /// # Errors
    ///
    /// When the store fails.
    pub async fn find_again(
        &self,
        provider: &str,
        names: Vec<ObjectName>,
    ) -> Result<HashMap<String, ObjectMaker>, LedgerError> {
        if names.is_empty() || self.store.flavour() == Flavour::Sqlite {
            return Ok(HashMap::new());
        }
        sleep(COMMIT_DELAY).await;
        Ok(self.read(provider, names).await?.into_iter().collect())
    }

    /// Reads from the store, and keeps what is found in memory.
    async fn read(
        &self,
        provider: &str,
        names: Vec<ObjectName>,
    ) -> Result<Vec<(String, ObjectMaker)>, LedgerError> {
        let (store, owned) = (Arc::clone(&self.store), provider.to_owned());
        let read = move || find(store.authentication(), &owned, &names);
        let read = tokio::task::spawn_blocking(read).await;
        let read = read.map_err(|error| LedgerError::Database(error.to_string()))??;
        for (id, maker) in &read {
            self.recorder.recent_objects().insert(provider, id, maker.clone());
        }
        Ok(read)
    }
}

impl fmt::Debug for ObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStore").finish_non_exhaustive()
    }
}

fn find(
    database: &dyn Database,
    provider: &str,
    names: &[ObjectName],
) -> Result<Vec<(String, ObjectMaker)>, LedgerError> {
    let sql = format!(
        "SELECT {} FROM objects WHERE provider = $1 AND id IN ({})",
        MadeObject::COLUMNS,
        database.flavour().elements()
    );
    let ids: Vec<&String> = names.iter().map(|name| &name.id).collect();
    let ids = serde_json::json!(ids).to_string();
    let made: Vec<MadeObject> = all(database, &sql, &[provider.into(), ids.into()])?;
    let mut found: Vec<(String, ObjectMaker)> =
        made.into_iter().map(|MadeObject { id, maker }| (id, maker)).collect();
    for name in names.iter().filter(|name| name.is_response) {
        if !found.iter().any(|(id, _)| *id == name.id)
            && let Some(maker) = find_by_usage(database, provider, &name.id)?
        {
            found.push((name.id.clone(), maker));
        }
    }
    Ok(found)
}

/// The maker of a response that was recorded before there were rows of objects: the user of the first
/// record with its token usage, unless that only fetched it.
fn find_by_usage(
    database: &dyn Database,
    provider: &str,
    id: &str,
) -> Result<Option<ObjectMaker>, LedgerError> {
    let sql = format!(
        "SELECT i.user_id, i.credential_source, i.id FROM
           (SELECT interception_id FROM token_usages WHERE provider_response_id = $1
            LIMIT {MAX_SHARED_RESPONSES}) u
         CROSS JOIN interceptions i
         WHERE i.id = u.interception_id AND i.provider = $2 AND {}(i.endpoint, $1) = 0
         ORDER BY i.id LIMIT 1",
        database.flavour().position()
    );
    let found: Option<EarlierResponse> = first(database, &sql, &[id.into(), provider.into()])?;
    Ok(found.map(|EarlierResponse(maker)| maker))
}

/// A row of the table `objects`.
struct MadeObject {
    id: String,
    maker: ObjectMaker,
}

impl FromRow for MadeObject {
    const COLUMNS: &'static str = "id, user_id, key, interception_id";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        let id = required(row.text()?)?;
        let user_id: Uuid = required(row.id()?)?;
        let key = row.text()?;
        let maker = ObjectMaker { user_id, key, interception_id: required(row.id()?)? };
        Ok(Self { id, maker })
    }
}

/// The record of a response.
struct EarlierResponse(ObjectMaker);

impl FromRow for EarlierResponse {
    const COLUMNS: &'static str = "";

    fn from_row(row: &mut dyn Cells) -> Result<Self, LedgerError> {
        let user_id = required(row.id()?)?;
        let source = row.text()?;
        let key = source.as_deref().and_then(|source| source.strip_prefix("pool:"));
        let key = key.map(str::to_owned);
        Ok(Self(ObjectMaker { user_id, key, interception_id: required(row.id()?)? }))
    }
}
