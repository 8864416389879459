"""Fills a store with generated interceptions, and with what the product derives from them."""

import contextlib
import pathlib
import sqlite3
import subprocess
import tempfile
import time

from targets import ENV, Keybridge, configure

# Commands of the product that fill in what is derived from records, as far as the binary has them.
DERIVED = (("ledger", "rollups", "--rebuild"),)
MAX_SECONDS = 4 * 3600


def product(binary, url, *command):
    """Runs a command on a store; returns its exit code and what it printed."""
    # Without a configuration, and with a directory of its own for the spool.
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        done = subprocess.run([binary, "--store", url, *command], cwd=folder, env=ENV, text=True,
                              capture_output=True, timeout=MAX_SECONDS)
    return done.returncode, (done.stdout + done.stderr).strip()


def has(binary, command):
    """Whether the binary has a command."""
    words = [word for word in command if not word.startswith("-")]
    done = subprocess.run([binary, *words, "--help"], env=ENV, capture_output=True, timeout=60)
    return done.returncode == 0


def is_indexed(url):
    """Whether the index of prompts is complete, which a serving process builds; None where a store has none."""
    if url.startswith("sqlite://"):
        with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite://"), timeout=60)) as store:
            if not store.execute("SELECT 1 FROM sqlite_schema WHERE name = 'search_position'").fetchone():
                return None
            return bool(store.execute("SELECT (SELECT last_rowid FROM search_position)"
                                      " >= (SELECT coalesce(max(rowid), 0) FROM prompts)").fetchone()[0])
    done = subprocess.run(
        ["psql", "-XAtq", url.split("?")[0], "-c",
         "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('prompts_by_words')"],
        env=ENV, text=True, capture_output=True, check=True, timeout=60)
    return {"": None, "t": True, "f": False}[done.stdout.strip()]


def index(options, url):
    """Serves from the store until the index of prompts is complete."""
    began = time.monotonic()
    if is_indexed(url) is False:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            configure(pathlib.Path(folder), "127.0.0.1:9", store=url)
            bridge = Keybridge(options.keybridge, folder, core=None)
            try:
                while not is_indexed(url):
                    if time.monotonic() - began > MAX_SECONDS:
                        raise RuntimeError("the index of prompts is not complete")
                    time.sleep(1)
                bridge.stop()
            finally:
                bridge.kill()
    state = "not there" if is_indexed(url) is None else f"complete after {time.monotonic() - began:.1f} s"
    print(f"index of prompts: {state}", flush=True)


def fill(options, url, interceptions, days=30, users=200):
    """Seeds a store and derives the rest; the exit code is that of the last command that was run."""
    done = subprocess.run([options.bench, "seed", "--store", url, "--interceptions", str(interceptions),
                           "--days", str(days), "--users", str(users)], env=ENV, timeout=MAX_SECONDS)
    if done.returncode != 0:
        return done.returncode
    index(options, url)
    for command in (*DERIVED, ("ledger", "verify")):
        if not has(options.keybridge, command):
            print(f"keybridge {' '.join(command)}: not there", flush=True)
            continue
        began = time.monotonic()
        code, printed = product(options.keybridge, url, *command)
        print(f"keybridge {' '.join(command)}: {time.monotonic() - began:.1f} s\n{printed}", flush=True)
        if code != 0:
            return code
    return 0


def run(options):
    return fill(options, options.seed, options.interceptions, options.days, options.users)
