-- The records of the requests from @from to @to.

INSERT INTO interceptions (id, user_id, token_id, provider, provider_type, endpoint, dialect, model, model_served,
    streaming, store, background, client, user_agent, client_retry_count, client_session_id, agent_id,
    parent_agent_id, thread_id, parent_id, correlating_tool_call_id, credential_kind, credential_source,
    credential_scheme, credential_hint, credential_length, credential_fingerprint, started_at, first_byte_at,
    ended_at, outcome, status_code, upstream_status, upstream_started_at, upstream_request_id, error_kind,
    error_message, stop_reason, refusal_category, attempts, inner_turns, request_bytes, response_bytes, body_edits,
    request_sha256, replica_id@session_column())
SELECT id, user_id, token_id, provider, provider_type, endpoint, dialect, model, model_served,
    streaming, store, background, client, user_agent, client_retry_count, client_session_id, agent_id,
    parent_agent_id, thread_id, parent_id, correlating_tool_call_id, credential_kind, credential_source,
    credential_scheme, credential_hint, credential_length, credential_fingerprint, started_at, first_byte_at,
    ended_at, outcome, status_code, upstream_status, upstream_started_at, upstream_request_id, error_kind,
    error_message, stop_reason, refusal_category, attempts, inner_turns, request_bytes, response_bytes, body_edits,
    request_sha256, replica_id
    @session_value(coalesce(client_session_id, CAST(thread_id AS TEXT)))
FROM (
    SELECT started_us, step AS order_step,
        @id(started_us, session, step, 0) AS id,
        @id(@start - 7776000000000 + user_number * 60000000, user_number, 0, 0) AS user_id,
        @id(@start - 7776000000000 + user_number * 60000000, user_number, 1, 0) AS token_id,
        m.provider, m.provider_type, m.endpoint, m.dialect, m.model,
        CASE WHEN outcome IN ('completed', 'cancelled') THEN m.model_served END AS model_served,
        key % 50 > 0 AS streaming,
        CASE WHEN m.dialect = 'responses' THEN FALSE END AS store,
        CASE WHEN m.dialect = 'responses' THEN FALSE END AS background,
        c.name AS client, c.user_agent,
        CASE WHEN outcome = 'failed' THEN key % 3 ELSE 0 END AS client_retry_count,
        CASE WHEN is_long = 1 THEN 'session-of-5000-steps'
             WHEN is_named = 1 THEN CAST(@id(first_us, session, 8191, 0) AS TEXT) END AS client_session_id,
        CASE WHEN agent > 0 THEN 'agent-' || @hex(session, 6) || '-' || @hex(agent, 1) END AS agent_id,
        -- Every second sub-agent is one of the sub-agent before it.
        CASE WHEN agent > 0 AND agent % 2 = 0 THEN 'agent-' || @hex(session, 6) || '-' || @hex(agent - 1, 1)
             END AS parent_agent_id,
        @id(thread_us, session, thread_step, 0) AS thread_id,
        CASE WHEN step > thread_step THEN @id(parent_us, session, step - 1, 0) END AS parent_id,
        CASE WHEN step > thread_step THEN 'toolu_01' || @hex(session, 8) || @hex(step - 1, 8) || '00'
             END AS correlating_tool_call_id,
        CASE WHEN m.provider = 'copilot' OR is_byok = 1 THEN 'byok' ELSE 'centralized' END AS credential_kind,
        CASE WHEN m.provider = 'copilot' OR is_byok = 1 THEN 'request'
             WHEN session % 3 = 0 THEN 'pool:second' ELSE 'pool:main' END AS credential_source,
        CASE WHEN m.provider_type = 'anthropic' AND is_byok = 0 THEN 'api_key' ELSE 'bearer' END AS credential_scheme,
        'sk-…' || CASE WHEN is_byok = 1 THEN @hex(user_number, 4) ELSE @hex(session % 3, 4) END AS credential_hint,
        108 AS credential_length,
        CASE WHEN is_byok = 1 THEN @hex(user_number * 48271, 16)
             ELSE @hex((session % 3 + 7) * 1000003, 16) END AS credential_fingerprint,
        @time(started_us) AS started_at,
        CASE WHEN outcome IN ('completed', 'cancelled') THEN @time(first_byte_us) END AS first_byte_at,
        CASE outcome WHEN 'refused' THEN @time(started_us + 900)
                     WHEN 'failed' THEN @time(first_byte_us)
                     WHEN 'interrupted' THEN @time(started_us + long_us)
                     ELSE @time(ended_us) END AS ended_at,
        outcome,
        CASE WHEN outcome IN ('completed', 'cancelled') THEN 200
             WHEN outcome = 'refused' THEN CASE WHEN key % 3 = 0 THEN 403 ELSE 429 END
             WHEN outcome = 'failed' THEN CASE key % 5 WHEN 0 THEN 502 WHEN 1 THEN 400 ELSE 529 END
             END AS status_code,
        CASE WHEN outcome IN ('completed', 'cancelled') THEN 200
             WHEN outcome = 'failed' THEN CASE key % 5 WHEN 1 THEN 400 WHEN 0 THEN NULL ELSE 529 END
             END AS upstream_status,
        CASE WHEN outcome <> 'refused' AND draw_attempts % 50 > 0 THEN @time(upstream_us) END AS upstream_started_at,
        CASE WHEN outcome IN ('completed', 'cancelled')
             THEN 'req_' || @hex(key, 8) || @hex(draw_usage, 8) || @hex(draw_outcome, 8) END AS upstream_request_id,
        CASE WHEN outcome = 'refused' THEN CASE WHEN key % 3 = 0 THEN 'permission_error' ELSE 'rate_limit_error' END
             WHEN outcome = 'failed' THEN CASE key % 5 WHEN 0 THEN 'upstream_unreachable'
                 WHEN 1 THEN 'invalid_request_error' ELSE 'overloaded_error' END
             END AS error_kind,
        CASE WHEN outcome = 'refused' THEN CASE WHEN key % 3 = 0 THEN 'this model is not allowed for this token'
                 ELSE 'rate limit exceeded for this token; retry in 12 s' END
             WHEN outcome = 'failed' THEN CASE key % 5 WHEN 0 THEN 'connection refused'
                 WHEN 1 THEN 'prompt is too long' ELSE 'Overloaded' END
             END AS error_message,
        CASE WHEN outcome = 'completed' THEN CASE WHEN calls > 0 THEN 'tool_use' ELSE 'end_turn' END
             END AS stop_reason,
        CASE WHEN outcome = 'completed' AND calls = 0 AND draw_usage % 500 = 0 THEN 'refusal'
             END AS refusal_category,
        CASE WHEN outcome = 'refused' THEN 0 WHEN draw_attempts % 50 = 0 THEN 2 ELSE 1 END AS attempts,
        0 AS inner_turns,
        context_tokens * 4 AS request_bytes,
        CASE WHEN outcome IN ('completed', 'cancelled') THEN output_tokens * 48 + 1800 ELSE 0 END AS response_bytes,
        CASE WHEN m.dialect = 'chat_completions' THEN @json('["include_usage"]') ELSE @json('[]') END AS body_edits,
        @hex(key, 16) || @hex(draw_usage, 16) || @hex(draw_outcome, 16) || @hex(draw_attempts, 16) AS request_sha256,
        @id(@start, 1, 0, 0) AS replica_id
    FROM seed_requests r JOIN seed_models m ON m.number = r.model JOIN seed_clients c ON c.number = r.client
    WHERE started_us >= @from AND started_us < @to
) AS n
ORDER BY started_us;

INSERT INTO token_usages (id, interception_id, provider_response_id, model, service_tier, input_tokens, output_tokens,
    cache_read_input_tokens, cache_write_input_tokens, extra, raw, quality, created_at)
SELECT id, id, provider_response_id, model_served, CASE WHEN quality <> 'unknown' THEN 'standard' END,
    CASE WHEN quality <> 'unknown' THEN input_tokens END, CASE WHEN quality <> 'unknown' THEN output_tokens END,
    CASE WHEN quality <> 'unknown' THEN cache_read_tokens END,
    CASE WHEN quality <> 'unknown' THEN cache_write_tokens END,
    CASE WHEN dialect = 'messages' THEN @json('{}')
         ELSE @json('{"reasoning_tokens": ' || CAST(output_tokens / 3 AS TEXT) || '}') END,
    CASE WHEN quality = 'exact' THEN '{"input_tokens":' || CAST(input_tokens AS TEXT)
        || ',"cache_creation_input_tokens":' || CAST(cache_write_tokens AS TEXT)
        || ',"cache_read_input_tokens":' || CAST(cache_read_tokens AS TEXT)
        || ',"output_tokens":' || CAST(output_tokens AS TEXT) || ',"service_tier":"standard"}' END,
    quality, @time(ended_us)
FROM (
    SELECT started_us, ended_us, @id(started_us, session, step, 0) AS id, m.model_served, m.dialect, output_tokens,
        CASE WHEN outcome = 'interrupted' OR (outcome = 'cancelled' AND draw_usage % 10 > 6) THEN NULL
             ELSE 'msg_01' || @hex(session, 8) || @hex(step, 6) || @hex(draw_usage, 8) END AS provider_response_id,
        CASE WHEN outcome = 'completed' AND draw_usage / 1000 % 1000 < 960 THEN 'exact'
             WHEN outcome = 'completed' AND draw_usage / 1000 % 1000 < 985 THEN 'partial'
             WHEN outcome = 'cancelled' AND draw_usage % 10 <= 6 THEN 'partial'
             ELSE 'unknown' END AS quality,
        -- The first request of a session writes the cache, the others read most of their input from it.
        CASE WHEN step = 0 THEN 40 ELSE 5 + draw_usage % 400 END AS input_tokens,
        CASE WHEN step = 0 OR r.provider_has_cache = 0 THEN 0 ELSE context_tokens * 92 / 100 END AS cache_read_tokens,
        CASE WHEN m.dialect <> 'messages' THEN 0 WHEN step = 0 THEN context_tokens
             ELSE 300 + draw_usage % 900 END AS cache_write_tokens
    FROM (SELECT *, CASE WHEN model IN (10, 11) THEN 0 ELSE 1 END AS provider_has_cache FROM seed_requests) r
    JOIN seed_models m ON m.number = r.model
    WHERE started_us >= @from AND started_us < @to AND outcome IN ('completed', 'cancelled', 'interrupted')
) AS n
ORDER BY started_us;

INSERT INTO prompts (id, interception_id, prompt, created_at)
SELECT @id(started_us, session, step, 1), @id(started_us, session, step, 0),
    @phrase(20)
    || ' ' || @phrase(21)
    || CASE WHEN @random(22) % 100 < 40 THEN ' @common_word' ELSE ' too' END
    || CASE WHEN @random(23) % 100 < 80 THEN ', ' || @phrase(24) ELSE '' END
    || CASE WHEN @random(23) % 100 < 60 THEN ' ' || @phrase(25) ELSE '' END
    || CASE WHEN @random(23) % 100 < 40 THEN '; ' || @phrase(26) ELSE '' END
    || CASE WHEN @random(23) % 100 < 25 THEN ' ' || @phrase(27)
            || ' ' || @phrase(28) ELSE '' END
    || CASE WHEN @random(23) % 100 < 10 THEN ': ' || @phrase(29)
            || ' ' || @phrase(30)
            || ' ' || @phrase(31) ELSE '' END
    || CASE WHEN is_rare = 1 AND step = 0 THEN ' @rare_word' ELSE '' END,
    @time(started_us + 300)
FROM seed_requests
WHERE started_us >= @from AND started_us < @to AND step = thread_step
ORDER BY started_us;

INSERT INTO tool_usages (id, interception_id, provider_response_id, tool_call_id, tool, arguments, injected,
    server_url, invocation_error, duration_ms, result_bytes, result_is_error, created_at)
SELECT @id(ended_us, session, step, 100 + call), @id(started_us, session, step, 0),
    'msg_01' || @hex(session, 8) || @hex(step, 6) || @hex(draw_usage, 8),
    'toolu_01' || @hex(session, 8) || @hex(step, 8) || @hex(call, 2),
    CASE WHEN is_injected THEN CASE call % 2 WHEN 0 THEN 'bmcp_tickets_search' ELSE 'bmcp_wiki_read' END
         ELSE CASE draw_call % 12 WHEN 0 THEN 'Read' WHEN 1 THEN 'Read' WHEN 2 THEN 'Read' WHEN 3 THEN 'Bash'
             WHEN 4 THEN 'Bash' WHEN 5 THEN 'Bash' WHEN 6 THEN 'Edit' WHEN 7 THEN 'Edit' WHEN 8 THEN 'Grep'
             WHEN 9 THEN 'Glob' WHEN 10 THEN 'Write' ELSE 'WebFetch' END END,
    CASE draw_call % 3
        WHEN 0 THEN '{"file_path":"/home/dev/project/src/module_' || CAST(draw_call / 100 % 400 AS TEXT)
            || '.rs","limit":200}'
        WHEN 1 THEN '{"command":"cargo test -p part-' || CAST(draw_call / 100 % 40 AS TEXT) || ' 2>&1 | tail -40"}'
        ELSE '{"pattern":"fn \\w+_' || CAST(draw_call / 100 % 900 AS TEXT) || '\\(","path":"crates"}' END,
    is_injected, CASE WHEN is_injected THEN 'https://mcp.example.com/tickets' END,
    CASE WHEN is_injected AND draw_call / 12 % 20 = 0 THEN 'the server did not answer within 30 s' END,
    CASE WHEN is_injected THEN 40 + draw_call / 50 % 900 END,
    200 + draw_call / 7 % 12000, draw_call / 12 % 20 = 0, @time(ended_us)
FROM (
    SELECT r.*, n.call, draw_attempts % 33 = 0 AS is_injected,
        (draw_attempts * 16807 + n.call * 48271) % 2147483647 AS draw_call
    FROM seed_requests r
    JOIN (SELECT 0 AS call UNION ALL SELECT 1 UNION ALL SELECT 2) AS n ON n.call < r.calls
    WHERE started_us >= @from AND started_us < @to AND calls > 0
) AS n
ORDER BY started_us, call;

INSERT INTO thoughts (id, interception_id, source, content, created_at)
SELECT @id(ended_us, session, step, 200), @id(started_us, session, step, 0),
    CASE WHEN client = 1 THEN 'reasoning_summary' ELSE 'thinking' END,
    'I have to see where this is used. ' || @phrase(40)
    || '. ' || @phrase(41)
    || '. ' || @phrase(42) || '.',
    @time(ended_us)
FROM seed_requests
WHERE started_us >= @from AND started_us < @to AND outcome = 'completed' AND draw_output % 5 = 0
ORDER BY started_us;

INSERT INTO upstream_attempts (id, interception_id, number, turn, provider, key_name, credential_kind, body_edits,
    status, error_kind, provider_request_id, started_at, duration_ms, created_at)
SELECT @id(ended_us, session, step, 300 + n.number), @id(started_us, session, step, 0), n.number, 0, m.provider,
    CASE WHEN m.provider = 'copilot' OR is_byok = 1 THEN NULL WHEN n.number = 1 THEN 'main' ELSE 'second' END,
    CASE WHEN m.provider = 'copilot' OR is_byok = 1 THEN 'byok' ELSE 'centralized' END, @json('[]'),
    CASE WHEN n.number = 1 OR outcome = 'failed' THEN 529 WHEN outcome <> 'interrupted' THEN 200 END,
    CASE WHEN n.number = 1 OR outcome = 'failed' THEN 'overloaded_error' END,
    'req_' || @hex(key, 8) || @hex(draw_usage, 8) || @hex(n.number, 8),
    @time(upstream_us + (n.number - 1) * 200000),
    CASE WHEN n.number = 1 THEN 200 ELSE (ended_us - upstream_us) / 1000 END,
    @time(ended_us)
FROM seed_requests r
JOIN seed_models m ON m.number = r.model
CROSS JOIN (SELECT 1 AS number UNION ALL SELECT 2) AS n
WHERE started_us >= @from AND started_us < @to AND outcome <> 'refused' AND draw_attempts % 50 = 0
ORDER BY started_us, n.number;

INSERT INTO attachments (id, interception_id, kind, media_type, size_bytes, sha256, created_at)
SELECT @id(started_us, session, step, 400), @id(started_us, session, step, 0), 'image', 'image/png',
    20000 + draw_usage % 400000,
    @hex(draw_outcome, 16) || @hex(draw_usage, 16) || @hex(key, 16) || @hex(session, 16), @time(started_us)
FROM seed_requests
WHERE started_us >= @from AND started_us < @to AND step = thread_step AND draw_usage % 40 = 0
ORDER BY started_us;
