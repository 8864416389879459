-- Rows that belong to a record are found by it alone. An index of their own ids cost a page of each commit
-- and was never read. Not expand-only: the release before replaces token usages by their id alone.

CREATE TABLE new_token_usages (
    id TEXT NOT NULL,
    interception_id TEXT NOT NULL REFERENCES interceptions (id) ON DELETE CASCADE,
    provider_response_id TEXT,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cache_read_input_tokens INTEGER,
    cache_write_input_tokens INTEGER,
    extra TEXT NOT NULL,
    quality TEXT NOT NULL,
    created_at TEXT NOT NULL,
    kind TEXT NOT NULL DEFAULT 'answer',
    model TEXT,
    service_tier TEXT,
    speed TEXT,
    region TEXT,
    cache_write_long_tokens INTEGER,
    raw TEXT,
    PRIMARY KEY (interception_id, id)
) STRICT, WITHOUT ROWID;
INSERT INTO new_token_usages SELECT id, interception_id, provider_response_id, input_tokens, output_tokens,
    cache_read_input_tokens, cache_write_input_tokens, extra, quality, created_at, kind, model, service_tier,
    speed, region, cache_write_long_tokens, raw FROM token_usages ORDER BY interception_id, id;
DROP TABLE token_usages;
ALTER TABLE new_token_usages RENAME TO token_usages;
CREATE INDEX token_usages_by_response ON token_usages (provider_response_id)
    WHERE provider_response_id IS NOT NULL;

CREATE TABLE new_prompts (
    id TEXT NOT NULL,
    interception_id TEXT NOT NULL REFERENCES interceptions (id) ON DELETE CASCADE,
    provider_response_id TEXT,
    prompt TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;
INSERT INTO new_prompts SELECT id, interception_id, provider_response_id, prompt, created_at
    FROM prompts ORDER BY rowid;
DROP TABLE prompts;
ALTER TABLE new_prompts RENAME TO prompts;
CREATE INDEX prompts_by_interception ON prompts (interception_id);

CREATE TABLE new_tool_usages (
    id TEXT NOT NULL,
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
    created_at TEXT NOT NULL,
    provider_executed INTEGER,
    server_name TEXT,
    caller TEXT,
    caller_tool_call_id TEXT,
    approval TEXT
) STRICT;
INSERT INTO new_tool_usages SELECT id, interception_id, provider_response_id, tool_call_id, tool, arguments,
    injected, server_url, invocation_error, duration_ms, result_bytes, result_is_error, created_at,
    provider_executed, server_name, caller, caller_tool_call_id, approval FROM tool_usages ORDER BY rowid;
DROP TABLE tool_usages;
ALTER TABLE new_tool_usages RENAME TO tool_usages;
CREATE INDEX tool_usages_by_interception ON tool_usages (interception_id);
CREATE INDEX tool_usages_by_call ON tool_usages (tool_call_id) WHERE tool_call_id IS NOT NULL;

CREATE TABLE new_thoughts (
    id TEXT NOT NULL,
    interception_id TEXT NOT NULL REFERENCES interceptions (id) ON DELETE CASCADE,
    source TEXT NOT NULL,
    content TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;
INSERT INTO new_thoughts SELECT id, interception_id, source, content, created_at
    FROM thoughts ORDER BY rowid;
DROP TABLE thoughts;
ALTER TABLE new_thoughts RENAME TO thoughts;
CREATE INDEX thoughts_by_interception ON thoughts (interception_id);

CREATE TABLE new_attachments (
    id TEXT NOT NULL,
    interception_id TEXT NOT NULL REFERENCES interceptions (id) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    media_type TEXT,
    size_bytes INTEGER,
    sha256 TEXT,
    file_id TEXT,
    url TEXT,
    created_at TEXT NOT NULL
) STRICT;
INSERT INTO new_attachments SELECT id, interception_id, kind, media_type, size_bytes, sha256, file_id, url,
    created_at FROM attachments ORDER BY rowid;
DROP TABLE attachments;
ALTER TABLE new_attachments RENAME TO attachments;
CREATE INDEX attachments_by_interception ON attachments (interception_id);

CREATE TABLE new_upstream_attempts (
    id TEXT NOT NULL,
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
INSERT INTO new_upstream_attempts SELECT id, interception_id, number, turn, provider, key_name,
    credential_kind, body_edits, status, error_kind, provider_request_id, started_at, duration_ms, created_at
    FROM upstream_attempts ORDER BY rowid;
DROP TABLE upstream_attempts;
ALTER TABLE new_upstream_attempts RENAME TO upstream_attempts;
CREATE INDEX upstream_attempts_by_interception ON upstream_attempts (interception_id);
