//! Finds interceptions by the words of their prompts.

use uuid::Uuid;

use crate::{
    LedgerError, WalkBudget,
    read::walk::{Found, Selection},
    store::sql::{Database, Flavour},
    words::Query,
};

mod postgres;
mod sqlite;

/// The newest selected interceptions whose prompts have all words of a query.
pub(super) fn find(
    database: &dyn Database,
    selection: &Selection<'_>,
    query: &Query,
    wanted: usize,
    budget: WalkBudget,
) -> Result<Found, LedgerError> {
    match database.flavour() {
        Flavour::Sqlite => sqlite::find(database, selection, query, wanted, budget),
        Flavour::Postgres => postgres::find(database, selection, query, wanted, budget),
    }
}

/// Adds ids and keeps the newest, each once.
fn merge(ids: &mut Vec<Uuid>, others: Vec<Uuid>, wanted: usize) {
    ids.extend(others);
    ids.sort_unstable_by(|one, other| other.cmp(one));
    ids.dedup();
    ids.truncate(wanted);
}
