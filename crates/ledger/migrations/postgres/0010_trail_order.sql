-- The order of the trail: each record that ends, changes after its end or is removed gets the next position.
-- Positions are dense, from 1, so that a reader that remembers one misses nothing; ids and times are no such
-- cursor, because records end late and are committed out of their order.
--
-- The transaction that changes a record writes a row of `outbox`. The sequencer of any process moves these rows
-- to `trail` and moves the head, in one transaction that holds a lock on the head: a position becomes visible
-- after all lower ones. A record is in one of the two tables when `in_trail` is set. An ended record without it is
-- from before this migration, or from a process of the release before, and the sequencer takes it from its
-- index. What such a process changes of a record that is in the trail has no entry. Expand-only: the statements
-- of the release before still work.

ALTER TABLE interceptions ADD COLUMN in_trail boolean;
CREATE INDEX interceptions_not_in_trail ON interceptions (id)
    WHERE in_trail IS NULL AND outcome <> 'in_progress';

CREATE TABLE trail (
    position bigint PRIMARY KEY,
    -- `settled`: a record ended. `amended`: it changed later. `erased`: its content was erased. `dropped`: a run of
    -- retention removed records. `event`: an administrator changed something.
    kind text NOT NULL,
    -- What the entry is about: one of these. Rows outlive the records.
    interception_id uuid,
    retention_run_id uuid,
    event_id uuid
);

-- One row: the last position.
CREATE TABLE trail_head (
    only_row boolean PRIMARY KEY DEFAULT TRUE CHECK (only_row),
    position bigint NOT NULL
);
INSERT INTO trail_head (position) VALUES (0);

-- Entries without a position, in the order in which they get one.
CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    interception_id uuid,
    retention_run_id uuid,
    event_id uuid
);
