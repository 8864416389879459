//! The recount: finds inconsistencies of the records, and compares them with a provider's log.

use std::collections::HashMap;

use crate::{
    Comparison, LedgerError, ProviderLogEntry, Recount,
    read::trail,
    store::{
        rollups::recount as rollups,
        sql::{CHILD_TABLES, Database, RECOUNT_TIMEOUT, Value, all_within, count_all},
    },
};

/// Maximum number of values in one statement.
const MAX_VALUES: usize = 1_000;

/// Counts the records and their inconsistencies; `alive` is the SQL condition under which an
/// interception `i` in progress belongs to a living process.
pub(crate) fn recount(database: &dyn Database, alive: &str) -> Result<Recount, LedgerError> {
    let count = |sql: &str| count_all(database, sql);
    let open = "SELECT count(*) FROM interceptions i WHERE i.outcome = 'in_progress'";
    let mut rows_without_interception = 0;
    for table in CHILD_TABLES {
        rows_without_interception += count(&format!(
            "SELECT count(*) FROM {table} c WHERE NOT EXISTS
             (SELECT 1 FROM interceptions i WHERE i.id = c.interception_id)"
        ))?;
    }
    let rollups = rollups::recount(database)?;
    let trail = trail::recount(database)?;
    Ok(Recount {
        compared_sums: rollups.compared,
        different_sums: rollups.different,
        not_summed: rollups.not_summed,
        trail_entries: trail.entries,
        trail_not_in_order: trail.not_in_order,
        trail_gaps: trail.gaps,
        trail_without_entry: trail.without_entry,
        trail_repeated: trail.repeated,
        interceptions: count("SELECT count(*) FROM interceptions")?,
        in_progress: count(&format!("{open} AND {alive}"))?,
        without_end: count(&format!("{open} AND NOT {alive}"))?
            + count(
                "SELECT count(*) FROM interceptions i
                 WHERE i.outcome <> 'in_progress' AND i.ended_at IS NULL",
            )?,
        interrupted: count("SELECT count(*) FROM interceptions i WHERE i.outcome = 'interrupted'")?,
        usages_without_interception: rows_without_interception,
        duplicate_response_ids: count(
            "SELECT count(*) FROM (SELECT 1 AS n FROM token_usages u
             JOIN interceptions i ON i.id = u.interception_id
             WHERE u.provider_response_id IS NOT NULL AND u.kind = 'answer'
             GROUP BY i.user_id, u.provider_response_id HAVING count(*) > 1) AS d",
        )?,
    })
}

/// Compares a provider's log of its responses with the records.
pub(crate) fn compare(
    database: &dyn Database,
    log: &[ProviderLogEntry],
) -> Result<Comparison, LedgerError> {
    // A provider may give an id to several responses.
    let mut lines: HashMap<&str, i64> = HashMap::new();
    let mut unique: Vec<&ProviderLogEntry> = Vec::new();
    for entry in log {
        let count = lines.entry(&entry.response_id).or_default();
        *count += 1;
        if *count == 1 {
            unique.push(entry);
        }
    }
    let ids = unique.iter().map(|entry| entry.response_id.as_str());
    let recorded = counts_by_key(
        database,
        "SELECT provider_response_id, count(DISTINCT interception_id) FROM token_usages
         WHERE provider_response_id IN",
        "GROUP BY provider_response_id",
        ids,
    )?;
    let mut comparison = Comparison { response_ids: to_u64(unique.len()), ..Comparison::default() };
    let mut unknown = Vec::new();
    for entry in unique {
        match recorded.get(&entry.response_id) {
            Some(found) if lines.get(entry.response_id.as_str()) >= Some(found) => {
                comparison.found += 1;
            }
            Some(_) => comparison.doubled.push(entry.response_id.clone()),
            None => unknown.push(entry),
        }
    }
    // The response id did not reach keybridge, or was lost when the process died; the request was
    // committed before. Completed records always have their id.
    let hashes = unknown.iter().filter_map(|entry| entry.request_sha256.as_deref());
    let mut without_id = counts_by_key(
        database,
        "SELECT i.request_sha256, count(*) FROM interceptions i
         WHERE i.outcome <> 'completed' AND NOT EXISTS (SELECT 1 FROM token_usages u WHERE u.interception_id = i.id
           AND u.provider_response_id IS NOT NULL) AND i.request_sha256 IN",
        "GROUP BY i.request_sha256",
        hashes,
    )?;
    for entry in unknown {
        let remaining = entry.request_sha256.as_ref().and_then(|hash| without_id.get_mut(hash));
        match remaining {
            Some(remaining) if *remaining > 0 => {
                *remaining -= 1;
                comparison.found_by_request += 1;
            }
            Some(_) | None => comparison.missing.push(entry.response_id.clone()),
        }
    }
    Ok(comparison)
}

fn counts_by_key<'a>(
    database: &dyn Database,
    select: &str,
    group: &str,
    keys: impl Iterator<Item = &'a str>,
) -> Result<HashMap<String, i64>, LedgerError> {
    let keys: Vec<Value> = keys.map(Value::from).collect();
    let mut found = HashMap::new();
    for chunk in keys.chunks(MAX_VALUES) {
        let places: Vec<String> = (1..=chunk.len()).map(|number| format!("${number}")).collect();
        let sql = format!("{select} ({}) {group}", places.join(", "));
        found.extend(all_within::<(String, i64)>(RECOUNT_TIMEOUT, database, &sql, chunk)?);
    }
    Ok(found)
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
