-- Who made what a provider stores: responses, conversations, files, batches and the like. A request through
-- a company's key may name only what its own user made, and is sent with the key that made it.
-- Expand-only: the statements of the release before still work.

CREATE TABLE objects (
    -- The name of the provider instance.
    provider TEXT NOT NULL,
    -- The provider's id of the object.
    id TEXT NOT NULL,
    kind TEXT NOT NULL,
    -- The name of the provider's key; NULL where another credential made it.
    key TEXT,
    user_id TEXT NOT NULL,
    interception_id TEXT NOT NULL REFERENCES interceptions (id) ON DELETE CASCADE,
    created_at TEXT NOT NULL,
    deleted_at TEXT,
    PRIMARY KEY (provider, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX objects_by_interception ON objects (interception_id);
