//! The recount: what a complete trail cannot contain, and what somebody else says it must.

use std::collections::{HashMap, HashSet};

use crate::{
    Comparison, HandedOut, LedgerError, Recount,
    store::sql::{CHILDREN, Database, RECOUNT_TIMEOUT, Value, all_within},
};

/// Values in one statement.
const CHUNK: usize = 1_000;

/// Counts what is there; `alive` is the condition under which an interception `i` in progress
/// belongs to a process that lives.
pub(crate) fn recount(database: &dyn Database, alive: &str) -> Result<Recount, LedgerError> {
    let count = |sql: &str| -> Result<u64, LedgerError> {
        let found: Vec<i64> = all_within(RECOUNT_TIMEOUT, database, sql, &[])?;
        u64::try_from(found.first().copied().unwrap_or(0))
            .map_err(|error| LedgerError::Row(error.to_string()))
    };
    let open = "SELECT count(*) FROM interceptions i WHERE i.outcome = 'in_progress'";
    let mut rows_without_interception = 0;
    for table in CHILDREN {
        rows_without_interception += count(&format!(
            "SELECT count(*) FROM {table} c WHERE NOT EXISTS
             (SELECT 1 FROM interceptions i WHERE i.id = c.interception_id)"
        ))?;
    }
    Ok(Recount {
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
             WHERE u.provider_response_id IS NOT NULL
             GROUP BY i.user_id, u.provider_response_id HAVING count(*) > 1) AS d",
        )?,
    })
}

/// Compares what a provider says it handed out with what is recorded.
pub(crate) fn compare(
    database: &dyn Database,
    handed_out: &[HandedOut],
) -> Result<Comparison, LedgerError> {
    let mut seen = HashSet::new();
    let unique: Vec<&HandedOut> =
        handed_out.iter().filter(|line| seen.insert(line.response_id.as_str())).collect();
    let ids = unique.iter().map(|line| line.response_id.as_str());
    let recorded = numbers(
        database,
        "SELECT provider_response_id, count(DISTINCT interception_id) FROM token_usages
         WHERE provider_response_id IN",
        "GROUP BY provider_response_id",
        ids,
    )?;
    let mut comparison = Comparison { response_ids: to_u64(unique.len()), ..Comparison::default() };
    let mut unknown = Vec::new();
    for line in unique {
        match recorded.get(&line.response_id) {
            Some(1) => comparison.found += 1,
            Some(_) => comparison.doubled.push(line.response_id.clone()),
            None => unknown.push(line),
        }
    }
    // The id never reached the bridge, or died with it: its request was committed before. Whatever
    // is completed had its id.
    let hashes = unknown.iter().filter_map(|line| line.request_sha256.as_deref());
    let mut without_id = numbers(
        database,
        "SELECT i.request_sha256, count(*) FROM interceptions i
         WHERE i.outcome <> 'completed' AND NOT EXISTS (SELECT 1 FROM token_usages u WHERE u.interception_id = i.id
           AND u.provider_response_id IS NOT NULL) AND i.request_sha256 IN",
        "GROUP BY i.request_sha256",
        hashes,
    )?;
    for line in unknown {
        let left = line.request_sha256.as_ref().and_then(|hash| without_id.get_mut(hash));
        match left {
            Some(left) if *left > 0 => {
                *left -= 1;
                comparison.found_by_request += 1;
            }
            Some(_) | None => comparison.missing.push(line.response_id.clone()),
        }
    }
    Ok(comparison)
}

fn numbers<'a>(
    database: &dyn Database,
    select: &str,
    group: &str,
    keys: impl Iterator<Item = &'a str>,
) -> Result<HashMap<String, i64>, LedgerError> {
    let keys: Vec<Value> = keys.map(Value::from).collect();
    let mut found = HashMap::new();
    for chunk in keys.chunks(CHUNK) {
        let places: Vec<String> = (1..=chunk.len()).map(|number| format!("${number}")).collect();
        let sql = format!("{select} ({}) {group}", places.join(", "));
        found.extend(all_within::<(String, i64)>(RECOUNT_TIMEOUT, database, &sql, chunk)?);
    }
    Ok(found)
}

fn to_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
