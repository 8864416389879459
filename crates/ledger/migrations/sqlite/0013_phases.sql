-- When the phases of a request ended, in microseconds after `started_at`; NULL where it did not come so far, or that
-- cannot be known. And the request that carried a tool's result first. Expand-only: the statements of the release
-- before still work.

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
