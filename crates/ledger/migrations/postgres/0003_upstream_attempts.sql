-- A row for each exchange with a provider: each key, retry, fallback and inner turn; that of a request
-- that was sent once is the interception itself. Expand-only: the statements of the release before still
-- work.

CREATE TABLE upstream_attempts (
    id uuid NOT NULL,
    interception_id uuid NOT NULL,
    number bigint NOT NULL,
    turn bigint NOT NULL,
    provider text NOT NULL,
    key_name text,
    credential_kind text,
    body_edits jsonb NOT NULL,
    status bigint,
    error_kind text,
    provider_request_id text,
    started_at timestamptz NOT NULL,
    duration_ms bigint,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (interception_id, id)
) PARTITION BY RANGE (interception_id);

CREATE TABLE upstream_attempts_default PARTITION OF upstream_attempts DEFAULT;

ALTER TABLE interceptions
    ADD COLUMN upstream_started_at timestamptz,
    ADD COLUMN upstream_request_id text;
