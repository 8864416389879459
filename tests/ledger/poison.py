"""Records that the store does not take: a trigger refuses them, or takes too long over them."""

import contextlib
import sqlite3

# The requests whose records the store does not take have these user agents: it refuses their openings,
# it refuses their settlements, and it takes too long over their openings.
OPEN, SETTLE, SLOW = "poison-open", "poison-settle", "poison-slow"

SQLITE = """
CREATE TRIGGER poison_open BEFORE INSERT ON interceptions WHEN NEW.user_agent = 'poison-open'
BEGIN SELECT RAISE(ABORT, 'poison'); END;
CREATE TRIGGER poison_settle BEFORE UPDATE OF ended_at ON interceptions
WHEN NEW.user_agent = 'poison-settle' AND NEW.outcome <> 'interrupted' BEGIN SELECT RAISE(ABORT, 'poison'); END;
"""
POSTGRES = """
CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF NEW.user_agent = 'poison-slow' AND TG_OP = 'INSERT' THEN PERFORM pg_sleep(30); END IF;
  IF NEW.user_agent = 'poison-open' AND TG_OP = 'INSERT'
     OR NEW.user_agent = 'poison-settle' AND TG_OP = 'UPDATE' AND NEW.outcome <> 'interrupted' THEN
    RAISE EXCEPTION 'poison' USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER poison BEFORE INSERT OR UPDATE ON interceptions
FOR EACH ROW EXECUTE FUNCTION poison();
"""


def install(world, store):
    """Makes a store refuse the records of poisonous requests."""
    _run(world, store, SQLITE, POSTGRES)


def heal(world, *bridges):
    """Lets the bridges' store take the records, and returns what they set aside; returns the number of
    entries."""
    _run(world, bridges[0].store, "DROP TRIGGER poison_open; DROP TRIGGER poison_settle;",
         "DROP TRIGGER poison ON interceptions; DROP FUNCTION poison;")
    committed = 0
    for bridge in bridges:
        (done,) = bridge.cli("ledger", "spool", "replay")
        assert done["refused"] == done["damaged"] == 0, done
        files = bridge.cli("ledger", "spool", "list")
        assert not [file for file in files if file["kind"] == "aside"], files
        committed += done["committed"]
    return committed


def _run(world, store, sqlite, postgres):
    if store.startswith("sqlite://"):
        path = store.removeprefix("sqlite://")
        with contextlib.closing(sqlite3.connect(path, timeout=30)) as database:
            database.executescript(sqlite)
    else:
        world.server.psql(postgres, store.rsplit("/", 1)[1])
