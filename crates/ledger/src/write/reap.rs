//! Records that dead processes left in progress.

use jiff::Timestamp;
use uuid::Uuid;

use crate::{
    LedgerError,
    record::Outcome,
    store::{
        Dead, Store,
        rollups::{self, unsummed},
        sql::all,
        trail::{self, TrailKind},
    },
};

/// Marks records that dead processes left in progress as interrupted, sums them, appends them to the trail, and
/// returns their number.
pub(crate) fn reap(store: &dyn Store, replica: Uuid, dead: Dead) -> Result<u64, LedgerError> {
    let sql = format!(
        "UPDATE interceptions AS i SET outcome = '{}', ended_at = $2, in_trail = TRUE
         WHERE i.outcome = '{}' AND {} RETURNING id",
        Outcome::Interrupted,
        Outcome::InProgress,
        store.reap_condition(dead)
    );
    let mut ids: Vec<Uuid> = Vec::new();
    store.transaction(&mut |transaction| {
        rollups::lock(transaction, rollups::Lock::Shared)?;
        ids = all(transaction, &sql, &[replica.into(), Timestamp::now().into()])?;
        if ids.is_empty() {
            return Ok(());
        }
        trail::append(transaction, &ids, TrailKind::Settled)?;
        unsummed::add_ended(transaction, &ids, rollups::shard(transaction.flavour(), replica))
    })?;
    if dead == Dead::Silent {
        store.forget_silent()?;
    }
    Ok(u64::try_from(ids.len()).unwrap_or(u64::MAX))
}
