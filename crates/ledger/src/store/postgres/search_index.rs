//! Builds the indexes of searches on partitions that had rows before there were these indexes. The server itself
//! keeps them up to date, and creates them with each new partition.

use deadpool_postgres::Object;

use super::server::failed;
use crate::{LedgerError, store::IndexStep};

/// The key of the advisory lock of the process that builds an index: "keybindx" in ASCII.
const BUILD_LOCK_KEY: i64 = 0x6b65_7962_696e_6478;

/// The indexes of partitioned tables, each with its definition after `ON <partition>`.
const INDEXES: [(&str, &str, &str); 2] = [
    (
        "interceptions",
        "interceptions_by_outcome",
        "(outcome, id) WHERE outcome NOT IN ('completed', 'in_progress')",
    ),
    ("prompts", "prompts_by_words", "USING gin (prompt_words(prompt))"),
];

/// The newest partition of a table without an index of this name.
const FIND_MISSING: &str = "SELECT c.relname::text FROM pg_inherits t
    JOIN pg_class c ON c.oid = t.inhrelid
    WHERE t.inhparent = to_regclass($1) AND NOT EXISTS (
        SELECT 1 FROM pg_inherits x JOIN pg_index i ON i.indexrelid = x.inhrelid
        WHERE x.inhparent = to_regclass($2) AND i.indrelid = c.oid)
    ORDER BY c.relname DESC LIMIT 1";

/// Builds the index of one partition where it is missing. Writers do not wait for it.
pub(super) async fn step(client: &Object) -> Result<IndexStep, LedgerError> {
    let step = async {
        for (table, index, definition) in INDEXES {
            let Some(row) = client.query_opt(FIND_MISSING, &[&table, &index]).await? else {
                continue;
            };
            let partition: String = row.get(0);
            let locked = client.query_one("SELECT pg_try_advisory_lock($1)", &[&BUILD_LOCK_KEY]);
            if !locked.await?.get::<_, bool>(0) {
                // Another process is at it.
                return Ok(IndexStep::Complete);
            }
            let built = build(client, &partition, index, definition).await;
            client.execute("SELECT pg_advisory_unlock($1)", &[&BUILD_LOCK_KEY]).await?;
            built?;
            tracing::info!(partition, index, "an index was built");
            return Ok(IndexStep::Indexed(1));
        }
        Ok(IndexStep::Complete)
    };
    step.await.map_err(|error: tokio_postgres::Error| failed(&error))
}

async fn build(
    client: &Object,
    partition: &str,
    index: &str,
    definition: &str,
) -> Result<(), tokio_postgres::Error> {
    let name = format!("{partition}_{}", index.rsplit_once('_').map_or(index, |(_, what)| what));
    // What a process left that died while it built.
    client.batch_execute(&format!("DROP INDEX CONCURRENTLY IF EXISTS {name}")).await?;
    client.batch_execute("SET statement_timeout = 0").await?;
    let built = client
        .batch_execute(&format!("CREATE INDEX CONCURRENTLY {name} ON {partition} {definition}"))
        .await;
    client.batch_execute("SET statement_timeout = '1h'").await?;
    built?;
    client.batch_execute(&format!("ALTER INDEX {index} ATTACH PARTITION {name}")).await?;
    // The planner needs statistics of the indexed expression.
    client.batch_execute(&format!("ANALYZE {partition}")).await
}
