-- Which process serves a request, so that what a dead one left open can be told from what a living
-- one is at. Expand-only: the statements of the release before still work.

ALTER TABLE interceptions ADD COLUMN replica_id TEXT;
