-- When the phases of a request ended, in microseconds after `started_at`; NULL where it did not come so far, or that
-- cannot be known. And the request that carried a tool's result first, and contents that are recorded only where the
-- configuration says so. Expand-only: the statements of the release before still work.

ALTER TABLE interceptions ADD COLUMN identified_us INTEGER;
ALTER TABLE interceptions ADD COLUMN body_read_us INTEGER;
ALTER TABLE interceptions ADD COLUMN credential_us INTEGER;
ALTER TABLE interceptions ADD COLUMN opened_us INTEGER;
ALTER TABLE interceptions ADD COLUMN connected_us INTEGER;
ALTER TABLE interceptions ADD COLUMN settled_us INTEGER;
ALTER TABLE interceptions ADD COLUMN events_relayed INTEGER;

ALTER TABLE tool_usages ADD COLUMN result_interception_id TEXT;
-- SHA-256 of the result in hex.
ALTER TABLE tool_usages ADD COLUMN result_sha256 TEXT;
-- Its text, where the configuration has it recorded.
ALTER TABLE tool_usages ADD COLUMN result TEXT;

-- The text of answers, where the configuration has it recorded.
CREATE TABLE answers (
    id TEXT NOT NULL,
    interception_id TEXT NOT NULL REFERENCES interceptions (id) ON DELETE CASCADE,
    provider_response_id TEXT,
    content TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;
CREATE INDEX answers_by_interception ON answers (interception_id);
