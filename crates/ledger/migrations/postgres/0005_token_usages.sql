-- What decides the price of an answer: what the tokens were for, the model, the service tier, the speed, the
-- region, the part of the cache writes that is kept for long, and the usage object as the provider sent it.
-- Expand-only: the statements of the release before still work.

ALTER TABLE token_usages
    ADD COLUMN kind text NOT NULL DEFAULT 'answer',
    ADD COLUMN model text,
    ADD COLUMN service_tier text,
    ADD COLUMN speed text,
    ADD COLUMN region text,
    ADD COLUMN cache_write_long_tokens bigint,
    -- JSON, unless it was cut.
    ADD COLUMN raw text;
