-- Finds prompts by their words, and lists interceptions by an outcome that is rare. Expand-only: the statements of
-- the release before still work.

-- What a serving process has added to the index of prompts, which it does in the background.
CREATE TABLE indexed_prompts (
    -- Sorts by the second of the interception's id. Not an implicit rowid, which changes with VACUUM.
    number INTEGER PRIMARY KEY NOT NULL,
    interception_id TEXT NOT NULL
) STRICT;

-- The words of a prompt as the program splits them, with spaces between, and the id of the user after a `u`. The
-- texts themselves are not stored again. Rows have the numbers of `indexed_prompts`.
CREATE VIRTUAL TABLE prompt_index USING fts5 (
    prompt, owner, content = '', contentless_delete = 1, detail = column, tokenize = 'ascii'
);

-- The last prompt that is in the index, by its implicit rowid; with its id, to notice when that has changed.
CREATE TABLE search_position (
    key INTEGER PRIMARY KEY NOT NULL CHECK (key = 1),
    last_rowid INTEGER NOT NULL,
    last_id TEXT,
    -- Whether earlier rows are looked for that are not in the index.
    is_repair INTEGER NOT NULL
) STRICT;
INSERT INTO search_position VALUES (1, 0, NULL, 0);

CREATE INDEX interceptions_by_outcome ON interceptions (outcome, id)
    WHERE outcome NOT IN ('completed', 'in_progress');
