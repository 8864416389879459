-- Roll-ups: sums of the records, written in the transactions of the records that they sum. A record is summed when it
-- has ended; its session is counted when it begins. A record without a session id is not summed yet: it is
-- from before this migration, or from a process of the release before.
--
-- A slot is half an hour of UTC, numbered from 1970; a record's slot is that of `started_at`. Names are cut to
-- 128 characters; an empty name stands for none. Shards are of several processes, which do not wait for each
-- other. Sums outlive the records. Expand-only: the statements of the release before still work.

ALTER TABLE interceptions ADD COLUMN session_id TEXT;
CREATE INDEX interceptions_not_summed ON interceptions (id) WHERE session_id IS NULL;
DROP INDEX interceptions_by_session;
CREATE INDEX interceptions_by_session ON interceptions (session_id, user_id, id);

CREATE TABLE usage_slots (
    user_id TEXT NOT NULL,
    slot INTEGER NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    client TEXT NOT NULL,
    credential_kind TEXT NOT NULL,
    shard INTEGER NOT NULL,
    -- Requests by outcome.
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    interrupted INTEGER NOT NULL,
    -- Tokens of the quality `exact`, then of the quality `partial`, and the usages of the quality `unknown`.
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_read_input_tokens INTEGER NOT NULL,
    cache_write_input_tokens INTEGER NOT NULL,
    estimated_input_tokens INTEGER NOT NULL,
    estimated_output_tokens INTEGER NOT NULL,
    estimated_cache_read_input_tokens INTEGER NOT NULL,
    estimated_cache_write_input_tokens INTEGER NOT NULL,
    unknown_usages INTEGER NOT NULL,
    tool_calls INTEGER NOT NULL,
    PRIMARY KEY (user_id, slot, provider, model, client, credential_kind, shard)
) STRICT, WITHOUT ROWID;

CREATE INDEX usage_slots_by_slot ON usage_slots (slot);

-- The same without the user.
CREATE TABLE fleet_slots (
    slot INTEGER NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    client TEXT NOT NULL,
    credential_kind TEXT NOT NULL,
    shard INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    interrupted INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_read_input_tokens INTEGER NOT NULL,
    cache_write_input_tokens INTEGER NOT NULL,
    estimated_input_tokens INTEGER NOT NULL,
    estimated_output_tokens INTEGER NOT NULL,
    estimated_cache_read_input_tokens INTEGER NOT NULL,
    estimated_cache_write_input_tokens INTEGER NOT NULL,
    unknown_usages INTEGER NOT NULL,
    tool_calls INTEGER NOT NULL,
    PRIMARY KEY (slot, provider, model, client, credential_kind, shard)
) STRICT, WITHOUT ROWID;

-- The same by user and day of UTC, numbered from 1970.
CREATE TABLE user_days (
    day INTEGER NOT NULL,
    user_id TEXT NOT NULL,
    credential_kind TEXT NOT NULL,
    shard INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    interrupted INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_read_input_tokens INTEGER NOT NULL,
    cache_write_input_tokens INTEGER NOT NULL,
    estimated_input_tokens INTEGER NOT NULL,
    estimated_output_tokens INTEGER NOT NULL,
    estimated_cache_read_input_tokens INTEGER NOT NULL,
    estimated_cache_write_input_tokens INTEGER NOT NULL,
    unknown_usages INTEGER NOT NULL,
    tool_calls INTEGER NOT NULL,
    PRIMARY KEY (day, user_id, credential_kind, shard)
) STRICT, WITHOUT ROWID;

-- How many requests took how long. Phase `first_byte`: from the request to the provider to the first byte of
-- its answer; `total`: the whole of a completed request. Bucket b: at least 2^(b/4) and less than 2^((b+1)/4)
-- microseconds.
CREATE TABLE latency_slots (
    slot INTEGER NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    credential_kind TEXT NOT NULL,
    phase TEXT NOT NULL,
    bucket INTEGER NOT NULL,
    shard INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    PRIMARY KEY (slot, provider, model, credential_kind, phase, bucket, shard)
) STRICT, WITHOUT ROWID;

-- A session of a user: that of the client, else the thread, else the request itself. Tokens, tool calls and
-- outcomes are those of ended requests; `requests` counts those in progress too.
CREATE TABLE sessions (
    user_id TEXT NOT NULL,
    id TEXT NOT NULL,
    first_at TEXT NOT NULL,
    last_at TEXT NOT NULL,
    first_id TEXT NOT NULL,
    last_id TEXT NOT NULL,
    -- The latest end of a request.
    ended_at TEXT,
    -- Of the latest request.
    client TEXT,
    -- At most 200 characters, and the requests that they are of.
    first_prompt TEXT,
    first_prompt_id TEXT,
    last_prompt TEXT,
    last_prompt_id TEXT,
    requests INTEGER NOT NULL,
    completed INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    refused INTEGER NOT NULL,
    interrupted INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cache_read_input_tokens INTEGER NOT NULL,
    cache_write_input_tokens INTEGER NOT NULL,
    estimated_input_tokens INTEGER NOT NULL,
    estimated_output_tokens INTEGER NOT NULL,
    estimated_cache_read_input_tokens INTEGER NOT NULL,
    estimated_cache_write_input_tokens INTEGER NOT NULL,
    unknown_usages INTEGER NOT NULL,
    tool_calls INTEGER NOT NULL,
    PRIMARY KEY (user_id, id)
) STRICT;

CREATE INDEX sessions_by_last ON sessions (last_id);
CREATE INDEX sessions_by_user ON sessions (user_id, last_id);
CREATE INDEX sessions_by_id ON sessions (id);

-- What occurs in a session. Kind `model`, `agent`, `provider` or `credential_kind`.
CREATE TABLE session_parts (
    user_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (user_id, session_id, kind, value)
) STRICT, WITHOUT ROWID;
