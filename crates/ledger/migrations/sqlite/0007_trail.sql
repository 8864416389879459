-- What a request carries besides its prompt, what a provider ran itself, and why it refused. Expand-only:
-- the statements of the release before still work.

CREATE TABLE attachments (
    id TEXT PRIMARY KEY NOT NULL,
    interception_id TEXT NOT NULL REFERENCES interceptions (id) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    media_type TEXT,
    size_bytes INTEGER,
    sha256 TEXT,
    file_id TEXT,
    url TEXT,
    created_at TEXT NOT NULL
) STRICT;

CREATE INDEX attachments_by_interception ON attachments (interception_id);

ALTER TABLE interceptions ADD COLUMN store INTEGER;
ALTER TABLE interceptions ADD COLUMN background INTEGER;
ALTER TABLE interceptions ADD COLUMN client_retry_count INTEGER;
ALTER TABLE interceptions ADD COLUMN refusal_category TEXT;
ALTER TABLE interceptions ADD COLUMN refusal_explanation TEXT;
ALTER TABLE interceptions ADD COLUMN container_id TEXT;

ALTER TABLE tool_usages ADD COLUMN provider_executed INTEGER;
ALTER TABLE tool_usages ADD COLUMN server_name TEXT;
ALTER TABLE tool_usages ADD COLUMN caller TEXT;
ALTER TABLE tool_usages ADD COLUMN caller_tool_call_id TEXT;
ALTER TABLE tool_usages ADD COLUMN approval TEXT;
