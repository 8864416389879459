-- What a later request of a conversation needs of answers in which calls of injected tools were
-- hidden from the client, by the hash of a key that the request will contain. Not divided by months,
-- as it is found by its key alone; deleted with its interception. Expand-only.

CREATE TABLE continuations (
    user_id uuid NOT NULL,
    key text NOT NULL,
    interception_id uuid NOT NULL,
    value text NOT NULL,
    PRIMARY KEY (user_id, key)
);

CREATE INDEX continuations_by_interception ON continuations (interception_id);
