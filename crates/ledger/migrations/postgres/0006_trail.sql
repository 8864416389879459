-- What a request carries besides its prompt, what a provider ran itself, and why it refused. Expand-only:
-- the statements of the release before still work.

CREATE TABLE attachments (
    id uuid NOT NULL,
    interception_id uuid NOT NULL,
    kind text NOT NULL,
    media_type text,
    size_bytes bigint,
    sha256 text,
    file_id text,
    url text,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (interception_id, id)
) PARTITION BY RANGE (interception_id);

CREATE TABLE attachments_default PARTITION OF attachments DEFAULT;

ALTER TABLE interceptions
    ADD COLUMN store boolean,
    ADD COLUMN background boolean,
    ADD COLUMN client_retry_count bigint,
    ADD COLUMN refusal_category text,
    ADD COLUMN refusal_explanation text,
    ADD COLUMN container_id text;

ALTER TABLE tool_usages
    ADD COLUMN provider_executed boolean,
    ADD COLUMN server_name text,
    ADD COLUMN caller text,
    ADD COLUMN caller_tool_call_id text,
    ADD COLUMN approval text;
