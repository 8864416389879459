//! What this machine remembers of its store, in a small file beside the spool. A store that was
//! exchanged, emptied or set back differs from it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    LedgerError,
    ledger::{known_store_id, store_id},
    private_file,
    record::serialize_time,
    store::{
        Store,
        interceptions::first_id,
        retention_run,
        sql::{Database, first},
    },
};

/// The beginning of the name of the file; a hash of where the store is follows.
const FILE: &str = "store-identity";
/// Hexadecimal digits of that hash.
const HASH_DIGITS: usize = 12;
/// Maximum number of missing records that are remembered.
const MAX_MISSING: usize = 100;

/// What is remembered of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RememberedStore {
    /// Where it is, without user and password.
    pub store: String,
    /// Its id.
    pub store_id: Uuid,
    /// The newest interception that was in it.
    pub newest_id: Option<Uuid>,
    /// The number of its users.
    pub users: u64,
    /// When this was written.
    #[serde(serialize_with = "serialize_time")]
    pub seen_at: Timestamp,
    /// Interceptions that were once the newest and were missing later.
    #[serde(default)]
    pub missing_ids: Vec<Uuid>,
}

/// A store compared with what is remembered of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreCheck {
    /// The file.
    pub file: PathBuf,
    /// The id of the store, if it has one.
    pub store_id: Option<Uuid>,
    /// The number of its users.
    pub users: u64,
    /// What is remembered, if anything.
    pub remembered: Option<RememberedStore>,
    /// Interceptions that were the newest once, are missing, and were not removed by retention.
    pub missing_ids: Vec<Uuid>,
    #[serde(skip)]
    store: String,
    #[serde(skip)]
    newest_id: Option<Uuid>,
}

impl StoreCheck {
    /// Why this is not the store that is remembered, or not with what it held.
    pub fn replaced(&self) -> Option<String> {
        let remembered = self.remembered.as_ref()?;
        let (store, file) = (&self.store, self.file.display());
        let advice = format!("if that is intended, remove the file `{file}`");
        if self.store_id != Some(remembered.store_id) {
            let found = self.store_id.map_or("is empty".into(), |id| format!("has the id {id}"));
            let known = remembered.store_id;
            return Some(format!(
                "the store {store} was exchanged or emptied: this machine knows it with the id {known} and {} \
                 users, now it {found}; {advice}",
                remembered.users
            ));
        }
        (self.users == 0 && remembered.users > 0).then(|| {
            format!(
                "the store {store} was emptied: it had {} users and now has none; {advice}",
                remembered.users
            )
        })
    }

    /// All that the store lacks.
    pub fn findings(&self) -> Vec<String> {
        if let Some(replaced) = self.replaced() {
            return vec![replaced];
        }
        let mut findings = Vec::new();
        if let Some(remembered) = &self.remembered
            && self.users < remembered.users
        {
            findings.push(format!(
                "the store had {} users and now has {}",
                remembered.users, self.users
            ));
        }
        findings.extend(self.missing_ids.iter().map(|id| {
            format!(
                "the record {id} was in the store and is missing: a backup was restored, or a \
                 write-ahead log was lost; remove the file `{}` once this is dealt with",
                self.file.display()
            )
        }));
        findings
    }
}

/// Whether a store at this location is remembered in a directory.
pub(crate) fn is_known(store: &dyn Store, dir: &Path) -> bool {
    file(dir, &store.location()).exists()
}

/// Compares a store with what is remembered of it in a directory.
pub(crate) fn check(store: &dyn Store, dir: &Path) -> Result<StoreCheck, LedgerError> {
    let location = store.location();
    let file = file(dir, &location);
    let remembered = load(&file)?;
    let database: &dyn Database = store;
    let missing_ids = match &remembered {
        Some(remembered) => missing(database, remembered)?,
        None => Vec::new(),
    };
    let newest = "SELECT id FROM interceptions ORDER BY id DESC LIMIT 1";
    Ok(StoreCheck {
        store_id: known_store_id(database)?,
        users: users(database)?,
        newest_id: first(database, newest, &[])?,
        file,
        store: location,
        remembered,
        missing_ids,
    })
}

/// Writes down what a store holds, unless another one is remembered in its place.
pub(crate) fn remember(store: &dyn Store, dir: &Path) -> Result<StoreCheck, LedgerError> {
    let check = check(store, dir)?;
    if let Some(replaced) = check.replaced() {
        return Err(LedgerError::Replaced(replaced));
    }
    let seen = RememberedStore {
        store: check.store.clone(),
        store_id: store_id(store)?,
        newest_id: check.newest_id,
        users: check.users,
        seen_at: Timestamp::now(),
        missing_ids: check.missing_ids.clone(),
    };
    let is_news = check
        .remembered
        .as_ref()
        .is_none_or(|known| RememberedStore { seen_at: known.seen_at, ..seen.clone() } != *known);
    if is_news {
        let text = serde_json::to_string_pretty(&seen).map_err(io::Error::other);
        text.and_then(|text| private_file::replace(&check.file, text.as_bytes()))
            .map_err(|error| failed(&check.file, &error))?;
    }
    Ok(check)
}

/// The remembered interceptions that are not in the store, and that retention did not remove.
fn missing(
    database: &dyn Database,
    remembered: &RememberedStore,
) -> Result<Vec<Uuid>, LedgerError> {
    let mut missing = Vec::new();
    for id in remembered.missing_ids.iter().chain(&remembered.newest_id) {
        let sql = "SELECT id FROM interceptions WHERE id = $1";
        if first::<Uuid>(database, sql, &[(*id).into()])?.is_none() && !missing.contains(id) {
            missing.push(*id);
        }
    }
    if !missing.is_empty() {
        let runs = retention_run::recorded(database)?;
        let removed_before = runs.iter().map(|run| first_id(run.cutoff)).max();
        missing.retain(|id| removed_before.is_none_or(|before| *id >= before));
    }
    missing.truncate(MAX_MISSING);
    Ok(missing)
}

fn users(database: &dyn Database) -> Result<u64, LedgerError> {
    let count: Option<i64> = first(database, "SELECT count(*) FROM users", &[])?;
    u64::try_from(count.unwrap_or_default()).map_err(|error| LedgerError::Row(error.to_string()))
}

fn file(dir: &Path, location: &str) -> PathBuf {
    let hash = hex::encode(digest(&SHA256, location.as_bytes()));
    dir.join(format!("{FILE}-{}", hash.get(..HASH_DIGITS).unwrap_or_default()))
}

fn load(path: &Path) -> Result<Option<RememberedStore>, LedgerError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(path, &error)),
    };
    let parsed = serde_json::from_str(&text);
    parsed.map(Some).map_err(|error| failed(path, &io::Error::other(error)))
}

fn failed(path: &Path, error: &io::Error) -> LedgerError {
    LedgerError::Remembered { path: path.display().to_string(), reason: error.to_string() }
}
