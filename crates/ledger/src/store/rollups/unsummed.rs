//! Adds the records that are not summed yet, and sums records anew.

use std::collections::HashMap;

use uuid::Uuid;

use super::{Differences, SESSION_PROMPT_CHARS, SummedRecord, select_records, tables};
use crate::{
    LedgerError,
    store::sql::{Database, Flavour, STATEMENT_TIMEOUT, Value, all, count_all, execute, required},
};

/// Maximum number of records in one statement.
pub(crate) const MAX_IDS: usize = 500;

/// Ids, the first and the last of them.
pub(crate) fn id_values(flavour: Flavour, ids: &[Uuid]) -> [Value; 3] {
    let bound = |id: Option<&Uuid>| Value::Id(id.copied());
    [flavour.id_list(ids), bound(ids.iter().min()), bound(ids.iter().max())]
}

/// The condition that an id is one of `$1`, between `$2` and `$3`, which prune partitions.
pub(crate) fn is_listed(flavour: Flavour) -> String {
    format!("{} AND ? >= $2 AND ? <= $3", flavour.is_listed("?", "$1"))
}

/// Records by their ids.
pub(crate) fn records(
    transaction: &dyn Database,
    ids: &[Uuid],
) -> Result<Vec<SummedRecord>, LedgerError> {
    let flavour = transaction.flavour();
    let sql = select_records(flavour, &is_listed(flavour), "TRUE");
    all(transaction, &sql, &id_values(flavour, ids))
}

/// The beginnings of the prompts of records.
fn prompts(transaction: &dyn Database, ids: &[Uuid]) -> Result<HashMap<Uuid, String>, LedgerError> {
    let flavour = transaction.flavour();
    let condition = is_listed(flavour).replace('?', "interception_id");
    let sql = format!(
        "SELECT interception_id, substr(prompt, 1, {SESSION_PROMPT_CHARS}) FROM prompts
         WHERE {condition} ORDER BY id DESC"
    );
    let mut found = HashMap::new();
    transaction.run(STATEMENT_TIMEOUT, &sql, &id_values(flavour, ids), &mut |row| {
        found.insert(required(row.id()?)?, required(row.text()?)?);
        Ok(())
    })?;
    Ok(found)
}

/// The number of ended records that are not summed yet.
pub(crate) fn count(database: &dyn Database) -> Result<u64, LedgerError> {
    count_all(
        database,
        "SELECT count(*) FROM interceptions
         WHERE session_id IS NULL AND outcome <> 'in_progress'",
    )
}

/// Sums at most `limit` of the records that are not summed yet, newest first, and returns their number. The
/// session id, which they get, says that they are.
pub(crate) fn sum_next(
    transaction: &dyn Database,
    limit: u32,
    shard: i64,
) -> Result<u64, LedgerError> {
    // Another process may sum records too.
    let lock = match transaction.flavour() {
        Flavour::Sqlite => "",
        Flavour::Postgres => "FOR UPDATE SKIP LOCKED",
    };
    let sql = format!(
        "SELECT id FROM interceptions WHERE session_id IS NULL AND outcome <> 'in_progress'
         ORDER BY id DESC LIMIT {limit} {lock}"
    );
    let ids: Vec<Uuid> = all(transaction, &sql, &[])?;
    if ids.is_empty() {
        return Ok(0);
    }
    let condition = is_listed(transaction.flavour()).replace('?', "id");
    let sql = format!(
        "UPDATE interceptions SET session_id = coalesce(client_session_id,
           CAST(thread_id AS TEXT), CAST(id AS TEXT)) WHERE {condition}"
    );
    execute(transaction, &sql, &id_values(transaction.flavour(), &ids))?;
    let mut differences = Differences::default();
    collect(transaction, &ids, &mut differences)?;
    tables::add(transaction, &differences, shard, |_table| true)?;
    Ok(u64::try_from(ids.len()).unwrap_or(u64::MAX))
}

/// Collects what records add to the sums, from their beginning on.
pub(crate) fn collect(
    transaction: &dyn Database,
    ids: &[Uuid],
    differences: &mut Differences,
) -> Result<(), LedgerError> {
    let prompts = prompts(transaction, ids)?;
    for record in records(transaction, ids)? {
        let session_id = record.session_id.clone().unwrap_or_default();
        let prompt = prompts.get(&record.id).map(String::as_str);
        differences.found(&record, &session_id, prompt);
    }
    Ok(())
}

/// Adds records that have just ended, without the writer.
pub(crate) fn add_ended(
    transaction: &dyn Database,
    ids: &[Uuid],
    shard: i64,
) -> Result<(), LedgerError> {
    let mut differences = Differences::default();
    for record in records(transaction, ids)? {
        differences.ended(&record);
    }
    tables::add(transaction, &differences, shard, |_table| true)
}
