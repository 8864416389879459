//! Opens the store to serve from, also while it cannot be reached, if the operator allows that.

use std::{fs, io, path::Path};

use jiff::Timestamp;
use keybridge_identity::OfflineCache;
use keybridge_ledger::{Ledger, LedgerError};

use crate::{
    cli::{Exit, store_error},
    config::{Config, OfflineStart, Problem, Problems},
};

/// Opens the store; creates it and applies migrations where needed. If the store cannot be reached, and
/// the offline cache knows it, the ledger begins with an outage.
pub(crate) fn open(config: &Config) -> Result<(Ledger, Option<OfflineCache>), Exit> {
    let (url, file) = (&config.store_url, &config.offline_cache.file);
    let is_allowed = config.offline_cache.start == OfflineStart::Allowed;
    match Ledger::open_with(url, &config.ledger) {
        Ok(ledger) if is_allowed => {
            let store = ledger.known_store(url).map_err(|error| store_error(&error))?;
            Ok((ledger, Some(OfflineCache::of_store(file.clone(), store))))
        }
        Ok(ledger) => {
            remove(file);
            Ok((ledger, None))
        }
        Err(error) if is_allowed && matches!(error, LedgerError::Unreachable { .. }) => {
            open_unreachable(config, &error)
        }
        Err(error) => Err(store_error(&error)),
    }
}

fn open_unreachable(
    config: &Config,
    error: &LedgerError,
) -> Result<(Ledger, Option<OfflineCache>), Exit> {
    let (url, file) = (&config.store_url, &config.offline_cache.file);
    let shown = Ledger::shown_url(url);
    let cache = OfflineCache::read(file.clone(), &shown, Timestamp::now()).map_err(|reason| {
        let message = format!("{error}; and {reason}");
        Exit::Config(Problems(vec![Problem { path: "store.url".into(), message }]))
    })?;
    let tokens = cache.len();
    tracing::error!(%error, tokens, "started without the store, for the people in the offline cache");
    let ledger = Ledger::open_unreachable(url, &config.ledger, cache.store().clone(), error);
    Ok((ledger.map_err(|error| store_error(&error))?, Some(cache)))
}

/// Removes what an earlier configuration has left: it contains a secret.
fn remove(file: &Path) {
    match fs::remove_file(file) {
        Ok(()) => tracing::info!(path = %file.display(), "removed the offline cache, which is off"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(%error, path = %file.display(), "cannot remove the offline cache");
        }
    }
}
