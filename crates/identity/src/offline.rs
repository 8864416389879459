//! The offline cache: what `serve` must know to start while its store cannot be reached.
//!
//! A file that only its owner reads: the address and the secret of the store, and for each token that was
//! used here its hash, its user's name and role, and when the store last confirmed both. It has no token,
//! no e-mail address and no record.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use keybridge_ledger::{KnownStore, private_file};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{AccessEnd, Identity, Role, Token, User, UserStatus};

/// How long an entry counts after the store last confirmed it.
const OFFLINE_TTL: Duration = Duration::from_secs(24 * 3_600);
/// Maximum number of entries; the one that was not used for the longest time makes room.
const MAX_ENTRIES: usize = 10_000;
/// Maximum size of the file in bytes; a larger one is not read.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// How far in the future the clock may have been when an entry was confirmed.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(60);
/// The format of the file.
const FORMAT: u32 = 1;
/// The permission bits of all but the owner.
const OTHERS: u32 = 0o077;

/// Why the offline cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// There is none, or it cannot be read.
    #[error("the offline cache `{}` cannot be read: {error}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
    /// Others may have read or changed it.
    #[error("the offline cache `{}` is accessible to others; it must have mode 0600", .0.display())]
    Permissions(PathBuf),
    /// It is damaged, or of another release.
    #[error("the offline cache `{}` is damaged or of another release: {reason}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It belongs to another store.
    #[error("the offline cache is of the store {found}, not of {expected}")]
    OtherStore {
        /// The address in the file.
        found: String,
        /// The configured address.
        expected: String,
    },
    /// The store has not confirmed any entry for too long.
    #[error("the offline cache has nobody whom the store has confirmed within the last 24 h")]
    Empty,
}

/// The cache and its file; clones share them.
#[derive(Debug, Clone)]
pub struct OfflineCache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    store: KnownStore,
    entries: Mutex<Entries>,
    /// Held while the file is written.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Entries {
    by_hash: HashMap<[u8; 32], Entry>,
    /// Whether somebody who is in the file must leave it.
    has_removed: bool,
}

#[derive(Debug, Clone)]
struct Entry {
    identity: Arc<Identity>,
    used_at: Timestamp,
    confirmed_at: Timestamp,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct CacheFile {
    format: u32,
    store_url: String,
    store_id: Uuid,
    store_secret: String,
    entries: Vec<FileEntry>,
}

#[derive(Serialize, Deserialize)]
struct FileEntry {
    token_hash: String,
    token_id: Uuid,
    expires_at: Option<Timestamp>,
    user_id: Uuid,
    user_name: String,
    role: String,
    used_at: Timestamp,
    confirmed_at: Timestamp,
}

impl OfflineCache {
    /// The cache of a store that can be reached. What the file has of this store is kept until the store
    /// says otherwise; a file that cannot be used is replaced.
    pub fn of_store(path: PathBuf, store: KnownStore) -> Self {
        let entries = match read(&path) {
            Ok(file) if file.store().as_ref() == Some(&store) => file.into_entries(),
            Ok(_other) => HashMap::new(),
            Err(OfflineError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                HashMap::new()
            }
            Err(error) => {
                tracing::warn!(%error, "the offline cache is written anew");
                HashMap::new()
            }
        };
        Self::new(path, store, entries)
    }

    /// The cache in a file, to start without the store at `url`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, others can access it, it belongs to another store, or none of its
    /// entries was confirmed recently.
    pub fn read(path: PathBuf, url: &str, now: Timestamp) -> Result<Self, OfflineError> {
        let file = read(&path)?;
        if file.store_url != url {
            return Err(OfflineError::OtherStore { found: file.store_url, expected: url.into() });
        }
        let Some(store) = file.store() else {
            return Err(OfflineError::Format { path, reason: "the secret is not valid".into() });
        };
        let mut entries = file.into_entries();
        entries.retain(|_hash, entry| entry.left(now).is_some());
        if entries.is_empty() {
            return Err(OfflineError::Empty);
        }
        Ok(Self::new(path, store, entries))
    }

    fn new(path: PathBuf, store: KnownStore, by_hash: HashMap<[u8; 32], Entry>) -> Self {
        let entries = Mutex::new(Entries { by_hash, has_removed: false });
        Self { shared: Arc::new(Shared { path, store, entries, writing: Mutex::default() }) }
    }

    /// What is known of the store.
    pub fn store(&self) -> &KnownStore {
        &self.shared.store
    }

    /// Number of people's tokens in it.
    pub fn len(&self) -> usize {
        self.entries().by_hash.len()
    }

    /// Whether it has no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whose a token is, and for how long that counts.
    pub(crate) fn find(
        &self,
        hash: &[u8; 32],
        now: Timestamp,
    ) -> Option<(Arc<Identity>, Duration)> {
        let entries = self.entries();
        let entry = entries.by_hash.get(hash)?;
        Some((Arc::clone(&entry.identity), entry.left(now)?))
    }

    /// Notes that the store knows a token, which was used just now.
    pub(crate) fn confirm(&self, hash: [u8; 32], identity: &Arc<Identity>, now: Timestamp) {
        let mut entries = self.entries();
        if entries.by_hash.len() >= MAX_ENTRIES && !entries.by_hash.contains_key(&hash) {
            let oldest = entries.by_hash.iter().min_by_key(|(_hash, entry)| entry.used_at);
            if let Some(oldest) = oldest.map(|(hash, _entry)| *hash) {
                entries.by_hash.remove(&oldest);
            }
        }
        let identity = Arc::clone(identity);
        entries.by_hash.insert(hash, Entry { identity, used_at: now, confirmed_at: now });
    }

    /// Removes a token that the store does not accept.
    pub(crate) fn remove(&self, hash: &[u8; 32]) {
        let mut entries = self.entries();
        let removed = entries.by_hash.remove(hash);
        entries.has_removed |= removed.is_some();
    }

    /// Takes over what the store says of tokens; one that it does not accept is removed.
    pub(crate) fn confirm_all(&self, states: &HashMap<Uuid, Option<AccessEnd>>, now: Timestamp) {
        let mut entries = self.entries();
        let before = entries.by_hash.len();
        entries.by_hash.retain(|_hash, entry| match states.get(&entry.identity.token.id) {
            Some(None) => {
                entry.confirmed_at = now;
                true
            }
            Some(Some(_ended)) => false,
            // It was added after the store was asked.
            None => true,
        });
        entries.has_removed |= entries.by_hash.len() < before;
    }

    /// The ids of its tokens.
    pub(crate) fn token_ids(&self) -> Vec<Uuid> {
        self.entries().by_hash.values().map(|entry| entry.identity.token.id).collect()
    }

    /// Whether somebody must leave the file.
    pub(crate) fn has_removed(&self) -> bool {
        self.entries().has_removed
    }

    /// Writes the file on a blocking thread; an error is logged.
    pub async fn write(&self) {
        let cache = self.clone();
        let written = tokio::task::spawn_blocking(move || cache.write_now()).await;
        if let Err(error) = written.map_err(io::Error::other).flatten() {
            let path = self.shared.path.display();
            tracing::error!(%error, %path, "the offline cache cannot be written");
        }
    }

    fn write_now(&self) -> io::Result<()> {
        let now = Timestamp::now();
        let _writing = self.shared.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = {
            let mut entries = self.entries();
            entries.has_removed = false;
            entries.by_hash.retain(|_hash, entry| entry.left(now).is_some());
            entries.by_hash.iter().map(|(hash, entry)| FileEntry::new(hash, entry)).collect()
        };
        let store = &self.shared.store;
        let file = CacheFile {
            format: FORMAT,
            store_url: store.url.clone(),
            store_id: store.id,
            store_secret: hex::encode(store.secret),
            entries,
        };
        let written = private_file::replace(&self.shared.path, &serde_json::to_vec(&file)?);
        // What had to leave the file is still in it.
        self.entries().has_removed |= written.is_err();
        written
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// For how long the entry counts.
    fn left(&self, now: Timestamp) -> Option<Duration> {
        let age = now.duration_since(self.confirmed_at);
        if age < -CLOCK_SKEW || self.identity.token.expires_at.is_some_and(|at| at <= now) {
            return None;
        }
        OFFLINE_TTL.checked_sub(Duration::try_from(age).unwrap_or_default())
    }
}

impl CacheFile {
    fn store(&self) -> Option<KnownStore> {
        let secret = bytes(&self.store_secret)?;
        Some(KnownStore { url: self.store_url.clone(), id: self.store_id, secret })
    }

    /// The entries that can be read.
    fn into_entries(self) -> HashMap<[u8; 32], Entry> {
        self.entries.into_iter().take(MAX_ENTRIES).filter_map(FileEntry::parsed).collect()
    }
}

impl FileEntry {
    fn new(hash: &[u8; 32], entry: &Entry) -> Self {
        let Identity { user, token } = &*entry.identity;
        Self {
            token_hash: hex::encode(hash),
            token_id: token.id,
            expires_at: token.expires_at,
            user_id: user.id,
            user_name: user.name.clone(),
            role: user.role.as_str().into(),
            used_at: entry.used_at,
            confirmed_at: entry.confirmed_at,
        }
    }

    fn parsed(self) -> Option<([u8; 32], Entry)> {
        let user = User {
            id: self.user_id,
            name: self.user_name,
            email: None,
            role: self.role.parse::<Role>().ok()?,
            status: UserStatus::Active,
            created_at: created_at(self.user_id),
        };
        let token = Token {
            id: self.token_id,
            user_id: self.user_id,
            name: None,
            hint: String::new(),
            created_at: created_at(self.token_id),
            expires_at: self.expires_at,
            last_used_at: None,
            revoked_at: None,
            token_hash: self.token_hash,
        };
        let hash = bytes(&token.token_hash)?;
        let identity = Arc::new(Identity { user, token });
        let (used_at, confirmed_at) = (self.used_at, self.confirmed_at);
        Some((hash, Entry { identity, used_at, confirmed_at }))
    }
}

/// The time in an id.
fn created_at(id: Uuid) -> Timestamp {
    let time = id.get_timestamp().map(|time| time.to_unix());
    let time = time.and_then(|(seconds, nanoseconds)| {
        let (seconds, nanoseconds) =
            (i64::try_from(seconds).ok()?, i32::try_from(nanoseconds).ok()?);
        Timestamp::new(seconds, nanoseconds).ok()
    });
    time.unwrap_or_default()
}

fn bytes(text: &str) -> Option<[u8; 32]> {
    hex::decode(text).ok()?.try_into().ok()
}

fn read(path: &Path) -> Result<CacheFile, OfflineError> {
    let failed = |error: io::Error| OfflineError::Read { path: path.into(), error };
    let metadata = fs::symlink_metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.permissions().mode() & OTHERS != 0 {
        return Err(OfflineError::Permissions(path.into()));
    }
    let invalid = |reason: String| OfflineError::Format { path: path.into(), reason };
    if metadata.len() > MAX_FILE_BYTES {
        return Err(invalid(format!("it has {} bytes", metadata.len())));
    }
    let text = fs::read(path).map_err(failed)?;
    let file: CacheFile =
        serde_json::from_slice(&text).map_err(|error| invalid(error.to_string()))?;
    if file.format != FORMAT {
        return Err(invalid(format!("its format is {}", file.format)));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(expires_at: Option<Timestamp>) -> Arc<Identity> {
        let (user_id, id) = (Uuid::now_v7(), Uuid::now_v7());
        let now = Timestamp::now();
        let user = User {
            id: user_id,
            name: "ada".into(),
            email: Some("ada@example.com".into()),
            role: Role::Auditor,
            status: UserStatus::Active,
            created_at: now,
        };
        let token = Token {
            id,
            user_id,
            name: Some("laptop".into()),
            token_hash: hex::encode([7; 32]),
            hint: "kb_a...wxyz".into(),
            created_at: now,
            expires_at,
            last_used_at: None,
            revoked_at: None,
        };
        Arc::new(Identity { user, token })
    }

    fn store() -> KnownStore {
        let url = "postgres://***@db/keybridge".into();
        KnownStore { url, id: Uuid::from_bytes([5; 16]), secret: [9; 32] }
    }

    /// A file in which the store has confirmed one token at `confirmed_at`.
    fn written(dir: &Path, confirmed_at: Timestamp) -> PathBuf {
        let path = dir.join("offline.json");
        let cache = OfflineCache::of_store(path.clone(), store());
        cache.confirm([7; 32], &identity(None), confirmed_at);
        cache.write_now().unwrap();
        path
    }

    #[test]
    fn what_was_written_is_read_again_and_only_by_the_owner() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let path = written(dir.path(), now);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("example.com") && !text.contains("laptop"), "{text}");
        let cache = OfflineCache::read(path.clone(), &store().url, now).unwrap();
        assert_eq!(cache.store(), &store());
        let (found, left) = cache.find(&[7; 32], now).unwrap();
        assert_eq!((found.user.name.as_str(), found.user.role), ("ada", Role::Auditor));
        assert_eq!(left, OFFLINE_TTL);
        assert!(cache.find(&[8; 32], now).is_none());

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = OfflineCache::read(path, &store().url, now).unwrap_err();
        assert!(matches!(error, OfflineError::Permissions(_)), "{error}");
    }

    #[test]
    fn an_entry_counts_for_a_day_after_the_store_confirmed_it() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let path = written(dir.path(), now);
        let read = |at| OfflineCache::read(path.clone(), &store().url, at);
        assert!(read(now + SignedDuration::from_hours(23)).is_ok());
        for other in [SignedDuration::from_hours(25), SignedDuration::from_hours(-1)] {
            assert!(matches!(read(now + other).unwrap_err(), OfflineError::Empty));
        }
        let url = "postgres://***@other/keybridge";
        let error = OfflineCache::read(path.clone(), url, now).unwrap_err();
        assert!(matches!(error, OfflineError::OtherStore { .. }), "{error}");
    }

    #[test]
    fn a_token_that_has_expired_or_is_not_confirmed_leaves_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let path = dir.path().join("offline.json");
        let cache = OfflineCache::of_store(path.clone(), store());
        let (kept, gone) = (identity(None), identity(None));
        cache.confirm([1; 32], &kept, now);
        cache.confirm([2; 32], &gone, now);
        cache.confirm([3; 32], &identity(Some(now - SignedDuration::from_secs(1))), now);
        let states = [(kept.token.id, None), (gone.token.id, Some(AccessEnd::Revoked))];
        cache.confirm_all(&states.into(), now);
        assert!(cache.has_removed());
        cache.write_now().unwrap();
        assert!(!cache.has_removed());
        let read = OfflineCache::read(path, &store().url, now).unwrap();
        assert_eq!(read.token_ids(), [kept.token.id]);
    }

    #[test]
    fn the_number_of_entries_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let cache = OfflineCache::of_store(dir.path().join("offline.json"), store());
        let (ada, now) = (identity(None), Timestamp::now());
        for number in 0..=MAX_ENTRIES {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_le_bytes());
            let used_at = now + SignedDuration::from_millis(i64::try_from(number).unwrap());
            cache.confirm(hash, &ada, used_at);
        }
        assert_eq!(cache.len(), MAX_ENTRIES);
        assert!(cache.find(&[0; 32], now).is_none(), "the oldest made room");
    }
}
