-- When the phases of a request ended, in microseconds after `started_at`; NULL where it did not come so far, or that
-- cannot be known. And the request that carried a tool's result first, and contents that are recorded only where the
-- configuration says so. Expand-only: the statements of the release before still work.

ALTER TABLE interceptions ADD COLUMN identified_us bigint;
ALTER TABLE interceptions ADD COLUMN body_read_us bigint;
ALTER TABLE interceptions ADD COLUMN credential_us bigint;
ALTER TABLE interceptions ADD COLUMN opened_us bigint;
ALTER TABLE interceptions ADD COLUMN connected_us bigint;
ALTER TABLE interceptions ADD COLUMN settled_us bigint;
ALTER TABLE interceptions ADD COLUMN events_relayed bigint;

ALTER TABLE tool_usages ADD COLUMN result_interception_id uuid;
-- SHA-256 of the result in hex.
ALTER TABLE tool_usages ADD COLUMN result_sha256 text;
-- Its text, where the configuration has it recorded.
ALTER TABLE tool_usages ADD COLUMN result text;

-- The text of answers, where the configuration has it recorded.
CREATE TABLE answers (
    id uuid NOT NULL,
    interception_id uuid NOT NULL,
    provider_response_id text,
    content text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (interception_id, id)
) PARTITION BY RANGE (interception_id);

CREATE TABLE answers_default PARTITION OF answers DEFAULT;
