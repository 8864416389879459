-- The order of the trail: each record that ends, changes after its end or is removed gets the next position, in
-- the transaction that does it. Positions are dense, from 1, so that a reader that remembers one misses nothing;
-- ids and times are no such cursor, because records end late and are committed out of their order.
--
-- A record is in the trail when `in_trail` is set. An ended record without it is from before this migration, or
-- from a process of the release before. The last row is never deleted: the next position is counted from it.
-- Expand-only: the statements of the release before still work.

ALTER TABLE interceptions ADD COLUMN in_trail INTEGER;
CREATE INDEX interceptions_not_in_trail ON interceptions (id)
    WHERE in_trail IS NULL AND outcome <> 'in_progress';

CREATE TABLE trail (
    position INTEGER PRIMARY KEY NOT NULL,
    -- `settled`: a record ended. `amended`: it changed later. `erased`: its content was erased. `dropped`: a run of
    -- retention removed records. `event`: an administrator changed something.
    kind TEXT NOT NULL,
    -- What the entry is about: one of these. Rows outlive the records.
    interception_id TEXT,
    retention_run_id TEXT,
    event_id TEXT
) STRICT;
