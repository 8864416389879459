-- A row for each exchange with a provider: each key, retry, fallback and inner turn; that of a request
-- that was sent once is the interception itself. Expand-only: the statements of the release before still
-- work.

CREATE TABLE upstream_attempts (
    id TEXT PRIMARY KEY NOT NULL,
    interception_id TEXT NOT NULL REFERENCES interceptions (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    provider TEXT NOT NULL,
    key_name TEXT,
    credential_kind TEXT,
    body_edits TEXT NOT NULL,
    status INTEGER,
    error_kind TEXT,
    provider_request_id TEXT,
    started_at TEXT NOT NULL,
    duration_ms INTEGER,
    created_at TEXT NOT NULL
) STRICT;

CREATE INDEX upstream_attempts_by_interception ON upstream_attempts (interception_id);

ALTER TABLE interceptions ADD COLUMN upstream_started_at TEXT;
ALTER TABLE interceptions ADD COLUMN upstream_request_id TEXT;
