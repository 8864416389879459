-- Users, their tokens and the trail. Ids are UUIDv7 as text, times RFC 3339 in UTC with six digits
-- of a second, so that both sort by time. Column names are a contract with readers of the file.

CREATE TABLE users (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL UNIQUE,
    email TEXT,
    role TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;

CREATE TABLE tokens (
    id TEXT PRIMARY KEY NOT NULL,
    user_id TEXT NOT NULL REFERENCES users (id),
    name TEXT,
    token_hash TEXT NOT NULL UNIQUE,
    hint TEXT NOT NULL,
    created_at TEXT NOT NULL,
    expires_at TEXT,
    last_used_at TEXT,
    revoked_at TEXT
) STRICT;

CREATE TABLE interceptions (
    id TEXT PRIMARY KEY NOT NULL,
    user_id TEXT NOT NULL REFERENCES users (id),
    token_id TEXT REFERENCES tokens (id),
    provider TEXT NOT NULL,
    provider_type TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    dialect TEXT NOT NULL,
    model TEXT,
    model_served TEXT,
    streaming INTEGER NOT NULL,
    client TEXT,
    user_agent TEXT,
    client_session_id TEXT,
    agent_id TEXT,
    parent_agent_id TEXT,
    thread_id TEXT,
    parent_id TEXT,
    correlating_tool_call_id TEXT,
    credential_kind TEXT,
    credential_source TEXT,
    credential_scheme TEXT,
    credential_hint TEXT,
    credential_length INTEGER,
    credential_fingerprint TEXT,
    started_at TEXT NOT NULL,
    first_byte_at TEXT,
    ended_at TEXT,
    outcome TEXT NOT NULL,
    status_code INTEGER,
    upstream_status INTEGER,
    error_kind TEXT,
    error_message TEXT,
    stop_reason TEXT,
    attempts INTEGER NOT NULL,
    inner_turns INTEGER NOT NULL,
    request_bytes INTEGER NOT NULL,
    response_bytes INTEGER NOT NULL,
    body_edits TEXT NOT NULL,
    request_sha256 TEXT
) STRICT;

CREATE INDEX interceptions_by_user ON interceptions (user_id, id);
CREATE INDEX interceptions_by_session ON interceptions (client_session_id, user_id)
    WHERE client_session_id IS NOT NULL;
CREATE INDEX interceptions_by_thread ON interceptions (thread_id);
CREATE INDEX interceptions_open ON interceptions (outcome) WHERE outcome = 'in_progress';

CREATE TABLE token_usages (
    id TEXT PRIMARY KEY NOT NULL,
    interception_id TEXT NOT NULL REFERENCES interceptions (id) ON DELETE CASCADE,
    provider_response_id TEXT,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cache_read_input_tokens INTEGER,
    cache_write_input_tokens INTEGER,
    extra TEXT NOT NULL,
    quality TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;

CREATE INDEX token_usages_by_interception ON token_usages (interception_id);
CREATE INDEX token_usages_by_response ON token_usages (provider_response_id)
    WHERE provider_response_id IS NOT NULL;

CREATE TABLE prompts (
    id TEXT PRIMARY KEY NOT NULL,
    interception_id TEXT NOT NULL REFERENCES interceptions (id) ON DELETE CASCADE,
    provider_response_id TEXT,
    prompt TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;

CREATE INDEX prompts_by_interception ON prompts (interception_id);

CREATE TABLE tool_usages (
    id TEXT PRIMARY KEY NOT NULL,
    interception_id TEXT NOT NULL REFERENCES interceptions (id) ON DELETE CASCADE,
    provider_response_id TEXT,
    tool_call_id TEXT,
    tool TEXT NOT NULL,
    arguments TEXT,
    injected INTEGER NOT NULL,
    server_url TEXT,
    invocation_error TEXT,
    duration_ms INTEGER,
    result_bytes INTEGER,
    result_is_error INTEGER,
    created_at TEXT NOT NULL
) STRICT;

CREATE INDEX tool_usages_by_interception ON tool_usages (interception_id);
CREATE INDEX tool_usages_by_call ON tool_usages (tool_call_id) WHERE tool_call_id IS NOT NULL;

CREATE TABLE thoughts (
    id TEXT PRIMARY KEY NOT NULL,
    interception_id TEXT NOT NULL REFERENCES interceptions (id) ON DELETE CASCADE,
    source TEXT NOT NULL,
    content TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;

CREATE INDEX thoughts_by_interception ON thoughts (interception_id);

CREATE TABLE settings (
    key TEXT PRIMARY KEY NOT NULL,
    value BLOB NOT NULL
) STRICT;
