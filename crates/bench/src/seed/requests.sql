-- Users with one token each, whose text nobody knows, and a temporary row for each request, in the order of
-- time, with what its rows have in common.

INSERT INTO users (id, name, role, status, created_at)
SELECT @id(@from - 7776000000000 + number * 60000000, number, 0, 0), 'user-' || CAST(number AS TEXT), 'member',
    'active', @time(@from - 7776000000000 + number * 60000000)
FROM seed_users;

INSERT INTO tokens (id, user_id, name, token_hash, hint, created_at)
SELECT @id(@from - 7776000000000 + number * 60000000, number, 1, 0),
    @id(@from - 7776000000000 + number * 60000000, number, 0, 0), 'laptop',
    'seed' || @hex(number, 60), 'kb_…' || @hex(number, 4),
    @time(@from - 7776000000000 + number * 60000000)
FROM seed_users;

CREATE TEMPORARY TABLE seed_requests AS
SELECT session, step, key, user_number, client, requests, thread_requests, is_named, is_long, is_rare, is_byok,
    is_last, agent, agents, started_us, upstream_us, first_byte_us, thread_step, thread_us, parent_us, first_us,
    draw_outcome, draw_usage, draw_attempts, draw_output, output_tokens, long_us,
    CASE WHEN agent > 0 OR draw_model % 100 < 8 THEN small ELSE model END AS model,
    CASE WHEN is_last = 0 OR draw_outcome % 1000 < 730 THEN 'completed'
         WHEN draw_outcome % 1000 < 850 THEN 'failed'
         WHEN draw_outcome % 1000 < 940 THEN 'cancelled'
         WHEN draw_outcome % 1000 < 982 THEN 'refused'
         ELSE 'interrupted' END AS outcome,
    first_byte_us + @least(output_tokens * 11000, gap_us / 4) AS ended_us,
    CASE WHEN is_last = 1 THEN 0 WHEN draw_calls % 100 < 80 THEN 1 WHEN draw_calls % 100 < 95 THEN 2
         ELSE 3 END AS calls,
    3000 + (step % 120) * 650 + draw_usage % 2000 AS context_tokens
FROM (
    SELECT r.*, upstream_us + @least(250000 + draw_time % 2000000, gap_us / 8) AS first_byte_us,
        20 + draw_output % 700 + CASE WHEN draw_output / 1000 % 20 = 0 THEN 3000 ELSE 0 END AS output_tokens
    FROM (
        SELECT r.*, started_us + 800 + draw_time / 1000 % 6000 AS upstream_us
        FROM (
            SELECT b.*, @random(1) AS draw_outcome, @random(2) AS draw_model, @random(3) AS draw_time,
                @random(4) AS draw_output, @random(5) AS draw_calls, @random(6) AS draw_usage,
                @random(7) AS draw_attempts
            FROM (
                SELECT s.*, m.small, t.step, (s.session * 8192 + t.step + @seed * 7919) % 2147483647 AS key,
                    -- Of a thread all requests but the last call tools, and only the last may fail.
                    CASE WHEN t.step % s.thread_requests = s.thread_requests - 1 OR t.step = s.requests - 1
                         THEN 1 ELSE 0 END AS is_last,
                    t.step / s.thread_requests % (s.agents + 1) AS agent,
                    t.step - t.step % s.thread_requests AS thread_step,
                    -- Each at its place, and up to half of the distance later.
                    s.first_us + t.step * s.gap_us + t.step * 7919 % 97 * (s.gap_us / 200) AS started_us,
                    s.first_us + (t.step - t.step % s.thread_requests) * s.gap_us
                        + (t.step - t.step % s.thread_requests) * 7919 % 97 * (s.gap_us / 200) AS thread_us,
                    s.first_us + (t.step - 1) * s.gap_us + (t.step - 1) * 7919 % 97 * (s.gap_us / 200) AS parent_us,
                    s.gap_us / 3 AS long_us
                FROM seed_sessions s JOIN seed_models m ON m.number = s.model @steps()
            ) b
        ) r
    ) r
) r
ORDER BY started_us;

CREATE INDEX seed_requests_by_start ON seed_requests (started_us);
ANALYZE seed_requests;
ANALYZE seed_sessions;
