-- Roll-ups: sums of the records, written in the transactions of the records that they sum. A record is summed when it
-- has ended; its session is counted when it begins. A record without a session id is not summed yet: it is
-- from before this migration, or from a process of the release before.
--
-- A slot is half an hour of UTC, numbered from 1970; a record's slot is that of `started_at`. Names are cut to
-- 128 characters; an empty name stands for none. Shards are of several processes, which do not wait for each
-- other. Sums outlive the records. Expand-only: the statements of the release before still work.

ALTER TABLE interceptions ADD COLUMN session_id text;
CREATE INDEX interceptions_not_summed ON interceptions (id) WHERE session_id IS NULL;
DROP INDEX interceptions_by_session;
CREATE INDEX interceptions_by_session ON interceptions (session_id, user_id, id);

CREATE TABLE usage_slots (
    user_id uuid NOT NULL,
    slot bigint NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    client text NOT NULL,
    credential_kind text NOT NULL,
    shard bigint NOT NULL,
    -- Requests by outcome.
    completed bigint NOT NULL,
    failed bigint NOT NULL,
    cancelled bigint NOT NULL,
    refused bigint NOT NULL,
    interrupted bigint NOT NULL,
    -- Tokens of the quality `exact`, then of the quality `partial`, and the usages of the quality `unknown`.
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cache_read_input_tokens bigint NOT NULL,
    cache_write_input_tokens bigint NOT NULL,
    estimated_input_tokens bigint NOT NULL,
    estimated_output_tokens bigint NOT NULL,
    estimated_cache_read_input_tokens bigint NOT NULL,
    estimated_cache_write_input_tokens bigint NOT NULL,
    unknown_usages bigint NOT NULL,
    tool_calls bigint NOT NULL,
    PRIMARY KEY (user_id, slot, provider, model, client, credential_kind, shard)
);

CREATE INDEX usage_slots_by_slot ON usage_slots (slot);

-- The same without the user.
CREATE TABLE fleet_slots (
    slot bigint NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    client text NOT NULL,
    credential_kind text NOT NULL,
    shard bigint NOT NULL,
    completed bigint NOT NULL,
    failed bigint NOT NULL,
    cancelled bigint NOT NULL,
    refused bigint NOT NULL,
    interrupted bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cache_read_input_tokens bigint NOT NULL,
    cache_write_input_tokens bigint NOT NULL,
    estimated_input_tokens bigint NOT NULL,
    estimated_output_tokens bigint NOT NULL,
    estimated_cache_read_input_tokens bigint NOT NULL,
    estimated_cache_write_input_tokens bigint NOT NULL,
    unknown_usages bigint NOT NULL,
    tool_calls bigint NOT NULL,
    PRIMARY KEY (slot, provider, model, client, credential_kind, shard)
);

-- The same by user and day of UTC, numbered from 1970.
CREATE TABLE user_days (
    day bigint NOT NULL,
    user_id uuid NOT NULL,
    credential_kind text NOT NULL,
    shard bigint NOT NULL,
    completed bigint NOT NULL,
    failed bigint NOT NULL,
    cancelled bigint NOT NULL,
    refused bigint NOT NULL,
    interrupted bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cache_read_input_tokens bigint NOT NULL,
    cache_write_input_tokens bigint NOT NULL,
    estimated_input_tokens bigint NOT NULL,
    estimated_output_tokens bigint NOT NULL,
    estimated_cache_read_input_tokens bigint NOT NULL,
    estimated_cache_write_input_tokens bigint NOT NULL,
    unknown_usages bigint NOT NULL,
    tool_calls bigint NOT NULL,
    PRIMARY KEY (day, user_id, credential_kind, shard)
);

-- How many requests took how long. Phase `first_byte`: from the request to the provider to the first byte of
-- its answer; `total`: the whole of a completed request. Bucket b: at least 2^(b/4) and less than 2^((b+1)/4)
-- microseconds.
CREATE TABLE latency_slots (
    slot bigint NOT NULL,
    provider text NOT NULL,
    model text NOT NULL,
    credential_kind text NOT NULL,
    phase text NOT NULL,
    bucket bigint NOT NULL,
    shard bigint NOT NULL,
    requests bigint NOT NULL,
    PRIMARY KEY (slot, provider, model, credential_kind, phase, bucket, shard)
);

-- A session of a user: that of the client, else the thread, else the request itself. Tokens, tool calls and
-- outcomes are those of ended requests; `requests` counts those in progress too.
CREATE TABLE sessions (
    user_id uuid NOT NULL,
    id text NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    first_id uuid NOT NULL,
    last_id uuid NOT NULL,
    -- The latest end of a request.
    ended_at timestamptz,
    -- Of the latest request.
    client text,
    -- At most 200 characters, and the requests that they are of.
    first_prompt text,
    first_prompt_id uuid,
    last_prompt text,
    last_prompt_id uuid,
    requests bigint NOT NULL,
    completed bigint NOT NULL,
    failed bigint NOT NULL,
    cancelled bigint NOT NULL,
    refused bigint NOT NULL,
    interrupted bigint NOT NULL,
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cache_read_input_tokens bigint NOT NULL,
    cache_write_input_tokens bigint NOT NULL,
    estimated_input_tokens bigint NOT NULL,
    estimated_output_tokens bigint NOT NULL,
    estimated_cache_read_input_tokens bigint NOT NULL,
    estimated_cache_write_input_tokens bigint NOT NULL,
    unknown_usages bigint NOT NULL,
    tool_calls bigint NOT NULL,
    PRIMARY KEY (user_id, id)
);

CREATE INDEX sessions_by_last ON sessions (last_id);
CREATE INDEX sessions_by_user ON sessions (user_id, last_id);
CREATE INDEX sessions_by_id ON sessions USING hash (id);

-- What occurs in a session. Kind `model`, `agent`, `provider` or `credential_kind`.
CREATE TABLE session_parts (
    user_id uuid NOT NULL,
    session_id text NOT NULL,
    kind text NOT NULL,
    value text NOT NULL,
    PRIMARY KEY (user_id, session_id, kind, value)
);
