-- What a later request of a conversation needs of answers in which calls of injected tools were
-- hidden from the client, by the hash of a key that the request will contain. Expand-only.

CREATE TABLE continuations (
    user_id TEXT NOT NULL,
    key TEXT NOT NULL,
    interception_id TEXT NOT NULL REFERENCES interceptions (id) ON DELETE CASCADE,
    value TEXT NOT NULL,
    PRIMARY KEY (user_id, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX continuations_by_interception ON continuations (interception_id);
