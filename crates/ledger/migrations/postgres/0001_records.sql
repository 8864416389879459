-- Users, their tokens and the trail. Ids are UUIDv7, so a range of ids is a range of time: the trail
-- is partitioned by it, month by month, and retention drops whole months. Column names are a
-- contract with readers of the database.
--
-- The trail has no foreign keys: each would be looked up for every row and would stand in the way of
-- dropping a month. A record and its rows are written in one transaction, and `keybridge ledger
-- verify` counts what does not belong together. Indexes on what clients and providers choose are hash
-- indexes, which have no limit on a value's length.

CREATE TABLE users (
    id uuid PRIMARY KEY,
    name text NOT NULL UNIQUE,
    email text,
    role text NOT NULL,
    status text NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE TABLE tokens (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id),
    name text,
    token_hash text NOT NULL UNIQUE,
    hint text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    last_used_at timestamptz,
    revoked_at timestamptz
);

CREATE TABLE settings (
    key text PRIMARY KEY,
    value bytea NOT NULL
);

-- The processes that serve from this store; one that is silent for long is dead.
CREATE TABLE replicas (
    id uuid PRIMARY KEY,
    version text NOT NULL,
    started_at timestamptz NOT NULL,
    beat_at timestamptz NOT NULL
);

CREATE TABLE interceptions (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL,
    token_id uuid,
    provider text NOT NULL,
    provider_type text NOT NULL,
    endpoint text NOT NULL,
    dialect text NOT NULL,
    model text,
    model_served text,
    streaming boolean NOT NULL,
    client text,
    user_agent text,
    client_session_id text,
    agent_id text,
    parent_agent_id text,
    thread_id uuid,
    parent_id uuid,
    correlating_tool_call_id text,
    credential_kind text,
    credential_source text,
    credential_scheme text,
    credential_hint text,
    credential_length bigint,
    credential_fingerprint text,
    started_at timestamptz NOT NULL,
    first_byte_at timestamptz,
    ended_at timestamptz,
    outcome text NOT NULL,
    status_code bigint,
    upstream_status bigint,
    error_kind text,
    error_message text,
    stop_reason text,
    attempts bigint NOT NULL,
    inner_turns bigint NOT NULL,
    request_bytes bigint NOT NULL,
    response_bytes bigint NOT NULL,
    body_edits jsonb NOT NULL,
    request_sha256 text,
    replica_id uuid
) PARTITION BY RANGE (id);

CREATE INDEX interceptions_by_user ON interceptions (user_id, id);
CREATE INDEX interceptions_by_session ON interceptions USING hash (client_session_id);
CREATE INDEX interceptions_by_thread ON interceptions (thread_id);
CREATE INDEX interceptions_by_start ON interceptions USING brin (started_at);
CREATE INDEX interceptions_open ON interceptions (replica_id) WHERE outcome = 'in_progress';

CREATE TABLE token_usages (
    id uuid NOT NULL,
    interception_id uuid NOT NULL,
    provider_response_id text,
    input_tokens bigint,
    output_tokens bigint,
    cache_read_input_tokens bigint,
    cache_write_input_tokens bigint,
    extra jsonb NOT NULL,
    quality text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (interception_id, id)
) PARTITION BY RANGE (interception_id);

CREATE INDEX token_usages_by_response ON token_usages USING hash (provider_response_id);

CREATE TABLE prompts (
    id uuid NOT NULL,
    interception_id uuid NOT NULL,
    provider_response_id text,
    prompt text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (interception_id, id)
) PARTITION BY RANGE (interception_id);

CREATE TABLE tool_usages (
    id uuid NOT NULL,
    interception_id uuid NOT NULL,
    provider_response_id text,
    tool_call_id text,
    tool text NOT NULL,
    -- As the model wrote them, JSON or not.
    arguments text,
    injected boolean NOT NULL,
    server_url text,
    invocation_error text,
    duration_ms bigint,
    result_bytes bigint,
    result_is_error boolean,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (interception_id, id)
) PARTITION BY RANGE (interception_id);

CREATE INDEX tool_usages_by_call ON tool_usages USING hash (tool_call_id);

CREATE TABLE thoughts (
    id uuid NOT NULL,
    interception_id uuid NOT NULL,
    source text NOT NULL,
    content text NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (interception_id, id)
) PARTITION BY RANGE (interception_id);

-- For what no month is there for, such as the records of a machine whose clock is wrong.
CREATE TABLE interceptions_default PARTITION OF interceptions DEFAULT;
CREATE TABLE token_usages_default PARTITION OF token_usages DEFAULT;
CREATE TABLE prompts_default PARTITION OF prompts DEFAULT;
CREATE TABLE tool_usages_default PARTITION OF tool_usages DEFAULT;
CREATE TABLE thoughts_default PARTITION OF thoughts DEFAULT;
