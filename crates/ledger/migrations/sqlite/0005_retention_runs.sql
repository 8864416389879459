-- What retention removed: one row for each run that removed something, written in the transactions of
-- the removal. Rows outlive what they describe. Expand-only: the statements of the release before still
-- work.

CREATE TABLE retention_runs (
    id TEXT PRIMARY KEY NOT NULL,
    -- `records`: whole interceptions with their rows.
    kind TEXT NOT NULL,
    -- What started before this time was removed.
    cutoff TEXT NOT NULL,
    started_at TEXT NOT NULL,
    -- The time of its last transaction.
    changed_at TEXT NOT NULL,
    -- The process.
    replica_id TEXT NOT NULL,
    version TEXT NOT NULL,
    -- The oldest and the newest interception that was removed.
    first_id TEXT,
    last_id TEXT,
    -- JSON: the number of rows by table.
    removed_rows TEXT NOT NULL
) STRICT;
