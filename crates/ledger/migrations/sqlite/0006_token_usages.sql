-- What decides the price of an answer: what the tokens were for, the model, the service tier, the speed, the
-- region, the part of the cache writes that is kept for long, and the usage object as the provider sent it.
-- Expand-only: the statements of the release before still work.

ALTER TABLE token_usages ADD COLUMN kind TEXT NOT NULL DEFAULT 'answer';
ALTER TABLE token_usages ADD COLUMN model TEXT;
ALTER TABLE token_usages ADD COLUMN service_tier TEXT;
ALTER TABLE token_usages ADD COLUMN speed TEXT;
ALTER TABLE token_usages ADD COLUMN region TEXT;
ALTER TABLE token_usages ADD COLUMN cache_write_long_tokens INTEGER;
ALTER TABLE token_usages ADD COLUMN raw TEXT;
