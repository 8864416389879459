-- Who made what a provider stores: responses, conversations, files, batches and the like. A request through
-- a company's key may name only what its own user made, and is sent with the key that made it. Not divided
-- by months, as a row is found by its id alone; deleted with its interception. Expand-only: the statements
-- of the release before still work.

CREATE TABLE objects (
    -- The name of the provider instance.
    provider text NOT NULL,
    -- The provider's id of the object, at most 1 KiB.
    id text NOT NULL,
    kind text NOT NULL,
    -- The name of the provider's key; NULL where another credential made it.
    key text,
    user_id uuid NOT NULL,
    interception_id uuid NOT NULL,
    created_at timestamptz NOT NULL,
    deleted_at timestamptz,
    PRIMARY KEY (provider, id)
);

CREATE INDEX objects_by_interception ON objects (interception_id);
