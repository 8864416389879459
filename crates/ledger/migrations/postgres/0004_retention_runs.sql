-- What retention removed: one row for each run that removed something, written in the transactions of
-- the removal. Rows outlive what they describe. Expand-only: the statements of the release before still
-- work.

CREATE TABLE retention_runs (
    id uuid PRIMARY KEY,
    -- `records`: whole interceptions with their rows.
    kind text NOT NULL,
    -- What started before this time was removed.
    cutoff timestamptz NOT NULL,
    started_at timestamptz NOT NULL,
    -- The time of its last transaction.
    changed_at timestamptz NOT NULL,
    -- The process.
    replica_id uuid NOT NULL,
    version text NOT NULL,
    -- The oldest and the newest interception that was removed.
    first_id uuid,
    last_id uuid,
    -- The number of rows by table.
    removed_rows jsonb NOT NULL
);
