//! How long requests took, from the roll-ups.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::{
    LedgerError, ProviderLatency,
    store::{
        rollups,
        sql::{Database, STATEMENT_TIMEOUT, count, required},
    },
};

/// How long providers took from the request to the first byte of the answer, in the half hours from `since` to
/// `until`.
pub(crate) fn first_bytes(
    database: &dyn Database,
    since: Timestamp,
    until: Timestamp,
) -> Result<Vec<ProviderLatency>, LedgerError> {
    let sql = "SELECT provider, bucket, CAST(sum(requests) AS BIGINT) FROM latency_slots
               WHERE slot >= $1 AND slot < $2 AND phase = 'first_byte'
               GROUP BY provider, bucket HAVING sum(requests) > 0 ORDER BY provider, bucket";
    let values = [rollups::slot(since).into(), rollups::slot(until).into()];
    let mut buckets: BTreeMap<String, Vec<(i64, u64)>> = BTreeMap::new();
    database.run(STATEMENT_TIMEOUT, sql, &values, &mut |row| {
        let (provider, bucket) = (required(row.text()?)?, required(row.integer()?)?);
        buckets.entry(provider).or_default().push((bucket, count(row)?));
        Ok(())
    })?;
    let latencies = buckets.into_iter().map(|(provider, buckets)| ProviderLatency {
        provider,
        requests: buckets.iter().map(|(_, requests)| requests).sum(),
        p50_us: quantile(&buckets, 50),
        p95_us: quantile(&buckets, 95),
    });
    Ok(latencies.collect())
}

/// The time within which so many of a hundred requests were: the end of the bucket that the last of them is in.
fn quantile(buckets: &[(i64, u64)], of_100: u64) -> u64 {
    let all: u64 = buckets.iter().map(|(_, requests)| requests).sum();
    let mut seen = 0_u64;
    for (bucket, requests) in buckets {
        seen = seen.saturating_add(*requests);
        if seen.saturating_mul(100) >= all.saturating_mul(of_100) {
            return rollups::bucket_end(*bucket);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn a_quantile_is_the_end_of_its_bucket() {
        // 2^10 and 2^20 microseconds.
        let buckets = [(39, 90), (79, 10)];
        assert_eq!(quantile(&buckets, 50), 1_024);
        assert_eq!(quantile(&buckets, 90), 1_024);
        assert_eq!(quantile(&buckets, 95), 1_048_576);
        assert_eq!(quantile(&[], 95), 0);
    }
}
